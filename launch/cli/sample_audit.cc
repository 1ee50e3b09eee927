#include "launch/cli/sample_audit.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/data/digest.h"

namespace paceline::cli {
namespace {

// The samples of all sources in one row, of which a turn looks at [low, high).
class Turn {
 public:
  Turn(const std::vector<std::int64_t>& samples, std::int64_t low, std::int64_t high,
       bool from_start)
      : low_(low), high_(high), from_start_(from_start) {
    std::int64_t offset = 0;
    for (const std::int64_t count : samples) {
      Source& source = sources_.emplace_back();
      source.offset = offset;
      source.samples = count;
      source.low = std::clamp(offset, low, high);
      source.high = std::clamp(offset + count, low, high);
      offset += count;
    }
    seen_.resize(static_cast<std::size_t>(high - low));
  }

  absl::Status Take(std::int64_t draw, const DrawnSample& drawn) {
    if (drawn.source < 0 || drawn.source >= std::ssize(sources_)) {
      return Wrong(draw, absl::StrCat("comes from source ", drawn.source, ", which is none"));
    }
    Source& source = sources_[static_cast<std::size_t>(drawn.source)];
    if (drawn.sample < 0 || drawn.sample >= source.samples) {
      return Wrong(draw, absl::StrCat("is sample ", drawn.sample, " of source ", drawn.source,
                                      ", which has ", source.samples));
    }
    if (source.epoch < 0) {
      source.epoch = drawn.epoch;
      source.whole = from_start_;
      if (from_start_ && drawn.epoch != 0) return Wrong(draw, "is of no first epoch");
    } else if (drawn.epoch != source.epoch) {
      RETURN_IF_ERROR(EndEpoch(draw, drawn, source));
    }
    ++source.drawn;
    const std::int64_t place = source.offset + drawn.sample;
    if (place < low_ || place >= high_) return absl::OkStatus();
    const auto bit = static_cast<std::size_t>(place - low_);
    if (seen_[bit]) {
      return Wrong(draw, absl::StrCat("is sample ", drawn.sample, " of source ", drawn.source,
                                      " for the second time in epoch ", drawn.epoch));
    }
    seen_[bit] = true;
    ++source.seen;
    return absl::OkStatus();
  }

  std::vector<SourceDraws> Found() const {
    std::vector<SourceDraws> found;
    for (const Source& source : sources_) {
      found.push_back({.samples = source.samples,
                       .whole_epochs = source.whole_epochs,
                       .in_last = source.drawn});
      // An epoch that has just ended: the next draw would say so.
      if (source.whole && source.drawn == source.samples) {
        ++found.back().whole_epochs;
        found.back().in_last = 0;
      }
    }
    return found;
  }

 private:
  struct Source {
    std::int64_t offset = 0;
    std::int64_t samples = 0;
    std::int64_t low = 0;  // of the row, as far as this turn looks
    std::int64_t high = 0;
    std::int64_t epoch = -1;  // none yet
    bool whole = false;       // the epoch's first draw is among the draws
    std::int64_t seen = 0;    // of the epoch, in this turn's part
    std::int64_t drawn = 0;   // of the epoch
    std::int64_t whole_epochs = 0;
  };

  static absl::Status Wrong(std::int64_t draw, const std::string& why) {
    return absl::DataLossError(absl::StrCat("draw ", draw, " ", why));
  }

  absl::Status EndEpoch(std::int64_t draw, const DrawnSample& drawn, Source& source) {
    if (drawn.epoch != source.epoch + 1) {
      return Wrong(draw, absl::StrCat("is of epoch ", drawn.epoch, " of source ", drawn.source,
                                      " after epoch ", source.epoch));
    }
    if (source.whole && source.seen != source.high - source.low) {
      return Wrong(draw, absl::StrCat("begins epoch ", drawn.epoch, " of source ", drawn.source,
                                      ", and epoch ", source.epoch, " left out ",
                                      source.high - source.low - source.seen, " samples"));
    }
    if (source.whole) ++source.whole_epochs;
    std::fill(seen_.begin() + (source.low - low_), seen_.begin() + (source.high - low_), false);
    source.epoch = drawn.epoch;
    source.whole = true;
    source.seen = 0;
    source.drawn = 0;
    return absl::OkStatus();
  }

  const std::int64_t low_;
  const std::int64_t high_;
  const bool from_start_;
  std::vector<Source> sources_;
  std::vector<bool> seen_;
};

}  // namespace

absl::StatusOr<std::vector<SourceDraws>> ProveDraws(
    const std::function<DrawnSample(std::int64_t)>& locate,
    const std::vector<std::int64_t>& samples, std::int64_t first, std::int64_t end,
    std::int64_t bitmap_bytes_max) {
  std::int64_t all = 0;
  for (const std::int64_t count : samples) all += count;
  const std::int64_t part = bitmap_bytes_max * 8;
  std::vector<SourceDraws> found;
  for (std::int64_t low = 0; low < all; low += part) {
    Turn turn(samples, low, std::min(all, low + part), first == 0);
    for (std::int64_t draw = first; draw < end; ++draw) {
      RETURN_IF_ERROR(turn.Take(draw, locate(draw)));
    }
    if (low == 0) found = turn.Found();
  }
  return found;
}

std::string ProofDigest(const Lineage& lineage, const std::vector<SourceDraws>& sources) {
  const RunFile& file = lineage.file;
  std::string proof =
      absl::StrCat("paceline audit 1\nrun ", lineage.request.run_id(), "\ncorpus ",
                   lineage.request.corpus_digest(), "\nseed ", file.run.seed, "\nbatch ",
                   file.train.global_batch_size, "\nsequence ", file.train.sequence_length, "\n");
  for (const CommittedRange& range : lineage.ranges) {
    absl::StrAppend(&proof, range.vouched ? "vouched " : "steps ", range.first_step, " ",
                    range.end_step, " generation ", range.generation, " ledger ",
                    range.ledger_digest, "\n");
  }
  for (const SourceDraws& source : sources) {
    absl::StrAppend(&proof, "source ", source.samples, " ", source.whole_epochs, " ",
                    source.in_last, "\n");
  }
  return Sha256Of(proof);
}

}  // namespace paceline::cli
