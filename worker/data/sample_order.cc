#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "worker/data/corpus.h"
#include "worker/data/digest.h"
#include "worker/data/source_schedule.h"

namespace paceline {
namespace {

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014; constants of Stafford's mix 13). Mix(0) =
// 0.
std::uint64_t Mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15;
constexpr std::int64_t kVerifiedTokensMax = std::int64_t{1} << 28;
constexpr std::int64_t kVerifyBlock = 1 << 20;
constexpr int kRounds = 8;  // even, so that both halves are changed equally often

// The corpora of a mixture may be small and alike; each is permuted with a key of its own. The
// first one's is the run's seed.
std::uint64_t SeedOfSource(std::uint64_t seed, std::int64_t source) {
  return seed ^ Mix(static_cast<std::uint64_t>(source));
}

}  // namespace

std::int64_t PermutedSample(std::uint64_t seed, std::int64_t epoch, std::int64_t index,
                            std::int64_t samples) {
  PACELINE_CHECK(index >= 0 && index < samples);
  if (samples == 1) return 0;
  const std::uint64_t key =
      Mix(Mix(seed + kGolden) + static_cast<std::uint64_t>(epoch) * kGolden + 1);
  // An alternating Feistel network on the smallest power of two that holds the samples; the
  // halves differ by one bit where the width is odd. An image beyond the samples is mapped again
  // (cycle walking), which keeps the map a bijection and takes fewer than two turns on average.
  const int width = std::bit_width(static_cast<std::uint64_t>(samples - 1));
  const int low_bits = width / 2;
  const std::uint64_t low_mask = (std::uint64_t{1} << low_bits) - 1;
  const std::uint64_t high_mask = (std::uint64_t{1} << (width - low_bits)) - 1;
  auto image = static_cast<std::uint64_t>(index);
  do {
    std::uint64_t high = image >> low_bits;
    std::uint64_t low = image & low_mask;
    for (int round = 0; round < kRounds; round += 2) {
      // A half has at most 32 bits, so the mix's upper 44 fill it.
      high ^= Mix(Mix(key + round * kGolden) ^ low) >> 20 & high_mask;
      low ^= Mix(Mix(key + (round + 1) * kGolden) ^ high) >> 20 & low_mask;
    }
    image = high << low_bits | low;
  } while (image >= static_cast<std::uint64_t>(samples));
  return static_cast<std::int64_t>(image);
}

struct SampleOrder::Impl {
  std::vector<std::unique_ptr<Corpus>> corpora;
  std::vector<std::int64_t> samples;  // of each corpus
  SourceSchedule schedule;
  std::int64_t sequence = 0;
  std::int64_t vocab_size = 0;
  std::uint64_t seed = 0;
  bool shuffle = true;
  std::string digest;
};

SampleOrder::SampleOrder() : impl_(std::make_unique<Impl>()) {}
SampleOrder::~SampleOrder() = default;

absl::StatusOr<std::unique_ptr<SampleOrder>> SampleOrder::Open(
    const std::vector<DataSource>& sources, std::int64_t sequence, std::int64_t vocab_size,
    std::uint64_t seed, bool shuffle) {
  if (sequence < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("sequence_length = ", sequence, "; it must be 1 or more"));
  }
  std::unique_ptr<SampleOrder> order(new SampleOrder());
  Impl& impl = *order->impl_;
  impl.sequence = sequence;
  impl.vocab_size = vocab_size;
  impl.seed = seed;
  impl.shuffle = shuffle;
  std::vector<double> weights;
  for (const DataSource& source : sources) weights.push_back(source.weight);
  ASSIGN_OR_RETURN(impl.schedule, SourceSchedule::Build(weights));

  std::string identity = absl::StrCat("paceline samples 1\nsequence ", sequence, "\n");
  for (const DataSource& source : sources) {
    ASSIGN_OR_RETURN(std::unique_ptr<Corpus> corpus, Corpus::Open(source.path));
    const std::int64_t samples = corpus->Samples(sequence);
    if (samples < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(source.path, ": ", corpus->tokens(), " tokens, too few for one sample of ",
                       "sequence_length = ", sequence, ", which takes ", sequence + 1));
    }
    if (corpus->manifest().vocab_size > vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          source.path, ": tokens of a vocabulary of ", corpus->manifest().vocab_size,
          ", but the model's vocab_size = ", vocab_size, "; it must be at least the corpus's"));
    }
    absl::StrAppend(&identity, corpus->digest(), absl::StrFormat(" %.17g\n", source.weight));
    impl.corpora.push_back(std::move(corpus));
    impl.samples.push_back(samples);
  }
  impl.digest = Sha256Of(identity);
  return order;
}

DrawnSample SampleOrder::Locate(std::int64_t draw) const {
  PACELINE_CHECK(draw >= 0);
  const SourceSchedule::Slot slot = impl_->schedule.At(draw);
  const std::int64_t samples = impl_->samples[slot.source];
  const std::int64_t epoch = slot.index / samples;
  const std::int64_t index = slot.index % samples;
  const std::int64_t sample =
      impl_->shuffle ? PermutedSample(SeedOfSource(impl_->seed, slot.source), epoch, index, samples)
                     : index;
  return {slot.source, epoch, sample};
}

absl::Status SampleOrder::Read(std::int64_t draw, std::span<std::int32_t> out) const {
  PACELINE_CHECK(static_cast<std::int64_t>(out.size()) == impl_->sequence + 1);
  const DrawnSample drawn = Locate(draw);
  return impl_->corpora[drawn.source]->Read(drawn.sample * impl_->sequence, impl_->vocab_size, out);
}

absl::Status SampleOrder::Verify() const {
  std::vector<std::int32_t> block;
  for (const auto& corpus : impl_->corpora) {
    RETURN_IF_ERROR(corpus->VerifyDigests());
    if (corpus->manifest().vocab_size > 0) continue;  // Open has compared it
    const std::int64_t tokens = std::min(corpus->tokens(), kVerifiedTokensMax);
    for (std::int64_t begin = 0; begin < tokens; begin += kVerifyBlock) {
      block.resize(std::min(kVerifyBlock, tokens - begin));
      RETURN_IF_ERROR(corpus->Read(begin, impl_->vocab_size, block));
    }
  }
  return absl::OkStatus();
}

void SampleOrder::WillNeed(std::int64_t first_draw, std::int64_t count) const {
  for (std::int64_t draw = first_draw; draw < first_draw + count; ++draw) {
    const DrawnSample drawn = Locate(draw);
    impl_->corpora[drawn.source]->WillNeed(drawn.sample * impl_->sequence, impl_->sequence + 1);
  }
}

std::int64_t SampleOrder::samples_per_epoch() const {
  std::int64_t sum = 0;
  for (const std::int64_t samples : impl_->samples) sum += samples;
  return sum;
}

std::int64_t SampleOrder::tokens() const {
  std::int64_t sum = 0;
  for (const auto& corpus : impl_->corpora) sum += corpus->tokens();
  return sum;
}

const std::string& SampleOrder::digest() const { return impl_->digest; }

}  // namespace paceline
