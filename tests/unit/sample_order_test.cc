// The order of samples: a bijection for every size, different for every seed and epoch, without
// pattern; and mixtures that keep their shares.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "tests/support/temp_folder.h"
#include "worker/data/corpus.h"
#include "worker/data/digest.h"
#include "worker/data/source_schedule.h"

namespace paceline {
namespace {

using ::testing::HasSubstr;

std::vector<std::int64_t> Permutation(std::uint64_t seed, std::int64_t epoch, std::int64_t size) {
  std::vector<std::int64_t> images;
  for (std::int64_t i = 0; i < size; ++i) images.push_back(PermutedSample(seed, epoch, i, size));
  return images;
}

// An llm.c shard whose token i is i % 65536, beginning with `first`.
std::string WriteRamp(const std::string& path, std::int32_t count, int first = 0) {
  std::string bytes(1024 + 2 * count, '\0');
  const std::int32_t header[3] = {20240520, 1, count};
  std::memcpy(bytes.data(), header, sizeof(header));
  for (std::int32_t i = 0; i < count; ++i) {
    const auto token = static_cast<std::uint16_t>(first + i);
    std::memcpy(bytes.data() + 1024 + 2 * i, &token, 2);
  }
  WriteWhole(path, bytes);
  return path;
}

TEST(PermutedSampleTest, IsABijectionForEverySize) {
  std::vector<std::int64_t> sizes(70);
  std::iota(sizes.begin(), sizes.end(), 1);
  for (const std::int64_t size :
       {97, 127, 128, 129, 1021, 1023, 1024, 1025, 4093, 65535, 65536, 65537, 99991}) {
    sizes.push_back(size);
  }
  for (const std::int64_t size : sizes) {
    auto images = Permutation(/*seed=*/7, /*epoch=*/3, size);
    std::sort(images.begin(), images.end());
    for (std::int64_t i = 0; i < size; ++i) ASSERT_EQ(images[i], i) << "size " << size;
  }
}

TEST(PermutedSampleTest, StaysInsideHugeSizes) {
  for (const std::int64_t size : {std::int64_t{1} << 40, (std::int64_t{1} << 40) + 1,
                                  std::numeric_limits<std::int64_t>::max()}) {
    std::set<std::int64_t> seen;
    for (std::int64_t i = 0; i < 1000; ++i) {
      const std::int64_t image = PermutedSample(1, 0, size - 1 - i, size);
      ASSERT_GE(image, 0);
      ASSERT_LT(image, size);
      seen.insert(image);
    }
    EXPECT_EQ(seen.size(), 1000);
  }
}

// A checkpoint's position means a sample only as long as this never changes.
TEST(PermutedSampleTest, IsFrozen) {
  EXPECT_EQ(Permutation(1, 0, 10), (std::vector<std::int64_t>{9, 8, 0, 7, 4, 2, 1, 3, 6, 5}));
}

TEST(PermutedSampleTest, SeedsAndEpochsGiveUnrelatedOrders) {
  constexpr std::int64_t kSize = 10007;
  const auto base = Permutation(1, 0, kSize);
  for (const auto& other : {Permutation(2, 0, kSize), Permutation(1, 1, kSize),
                            Permutation(0, 1, kSize), Permutation(1ull << 63, 0, kSize)}) {
    std::int64_t fixed = 0;
    for (std::int64_t i = 0; i < kSize; ++i) fixed += base[i] == other[i];
    EXPECT_LE(fixed, 8);  // two random orders agree in one place on average
  }
}

// Positions are uniform: over many epochs each (index, image) pair comes equally often.
TEST(PermutedSampleTest, EveryIndexReachesEveryPlaceEquallyOften) {
  for (const std::int64_t size : {2, 3, 5, 8, 13}) {
    constexpr int kEpochs = 4000;
    std::vector<int> counts(size * size, 0);
    for (int epoch = 0; epoch < kEpochs; ++epoch) {
      for (std::int64_t i = 0; i < size; ++i)
        ++counts[i * size + PermutedSample(9, epoch, i, size)];
    }
    const double expected = static_cast<double>(kEpochs) / static_cast<double>(size);
    double chi_square = 0;
    for (const int count : counts) chi_square += (count - expected) * (count - expected) / expected;
    const double freedom = static_cast<double>((size - 1) * (size - 1));
    EXPECT_LT(chi_square, freedom + 6 * std::sqrt(2 * freedom)) << "size " << size;
  }
}

TEST(PermutedSampleTest, HasNoStride) {
  constexpr std::int64_t kSize = 20000;
  const auto images = Permutation(5, 0, kSize);
  std::map<std::int64_t, int> strides;
  std::int64_t rising = 0;
  double product = 0;
  for (std::int64_t i = 0; i + 1 < kSize; ++i) {
    ++strides[images[i + 1] - images[i]];
    rising += images[i + 1] > images[i];
    product += (static_cast<double>(images[i]) / kSize - 0.5) *
               (static_cast<double>(images[i + 1]) / kSize - 0.5);
  }
  for (const auto& [stride, count] : strides) EXPECT_LE(count, 12) << "stride " << stride;
  EXPECT_NEAR(static_cast<double>(rising) / kSize, 0.5, 0.02);
  EXPECT_NEAR(product / kSize * 12, 0.0, 0.05);  // correlation of neighbours
}

TEST(SourceScheduleTest, KeepsEverySharesQuotaInEveryPrefix) {
  const std::vector<std::vector<double>> mixtures = {
      {1},        {1, 1},    {0.7, 0.3},         {0.5, 0.25, 0.25},     {1, 2, 3, 4, 5},
      {0.9, 0.1}, {1e-3, 1}, {3.14159, 2.71828}, {0.123, 0.456, 0.789}, {7, 7, 7, 1, 1, 1, 1}};
  for (const auto& weights : mixtures) {
    const auto schedule = SourceSchedule::Build(weights);
    ASSERT_TRUE(schedule.ok());
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    std::vector<std::int64_t> drawn(weights.size(), 0);
    const std::int64_t period = schedule->period();
    for (std::int64_t draw = 0; draw < 2 * period + 3; ++draw) {
      const auto slot = schedule->At(draw);
      ASSERT_EQ(slot.index, drawn[slot.source]++) << "draw " << draw;
      for (std::size_t k = 0; k < weights.size(); ++k) {
        // drawn * P against draws * quota, in integers: less than one draw apart.
        const std::int64_t apart = drawn[k] * period - (draw + 1) * schedule->quota(k);
        ASSERT_LT(std::abs(apart), period) << "source " << k << " after " << draw + 1;
      }
    }
    for (std::size_t k = 0; k < weights.size(); ++k) {
      EXPECT_NEAR(static_cast<double>(schedule->quota(k)) / static_cast<double>(period),
                  weights[k] / sum, 1.0 / 65536);
    }
  }
}

TEST(SourceScheduleTest, FindsTheSmallestExactPeriod) {
  EXPECT_EQ(SourceSchedule::Build({5})->period(), 1);
  EXPECT_EQ(SourceSchedule::Build({0.7, 0.3})->period(), 10);
  EXPECT_EQ(SourceSchedule::Build({1, 2, 3})->period(), 6);
  EXPECT_EQ(SourceSchedule::Build({1, std::sqrt(2.0)})->period(), 65536);
}

TEST(SourceScheduleTest, TinyWeightStillGetsItsTurn) {
  const auto schedule = SourceSchedule::Build({1e-12, 1, 2e-12});
  EXPECT_EQ(schedule->quota(0), 1);
  EXPECT_EQ(schedule->quota(2), 1);
  EXPECT_EQ(schedule->period(), 65536);
}

TEST(SourceScheduleTest, RefusesWeightsThatAreNoShares) {
  for (const double weight : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    EXPECT_EQ(SourceSchedule::Build({1.0, weight}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_FALSE(SourceSchedule::Build({}).ok());
}

TEST(SampleOrderTest, OneSourceGivesEverySampleOnceInEachEpoch) {
  TempFolder folder;
  const auto path = WriteRamp(folder / "a.bin", 1001);
  const auto order = SampleOrder::Open({{path, 1.0}}, 10, 65536, /*seed=*/3, /*shuffle=*/true);
  ASSERT_TRUE(order.ok()) << order.status();
  EXPECT_EQ((*order)->samples_per_epoch(), 100);
  EXPECT_EQ((*order)->tokens(), 1001);
  std::vector<std::int32_t> sample(11);
  std::vector<std::int64_t> orders[3];
  for (std::int64_t draw = 0; draw < 300; ++draw) {
    ASSERT_TRUE((*order)->Read(draw, sample).ok());
    for (int i = 1; i < 11; ++i) ASSERT_EQ(sample[i], sample[0] + i);
    EXPECT_EQ((*order)->Locate(draw),
              (DrawnSample{.source = 0, .epoch = draw / 100, .sample = sample[0] / 10}));
    EXPECT_EQ(sample[0] / 10, PermutedSample(3, draw / 100, draw % 100, 100));
    orders[draw / 100].push_back(sample[0] / 10);
  }
  EXPECT_NE(orders[0], orders[1]);
  for (auto& epoch : orders) {
    std::sort(epoch.begin(), epoch.end());
    for (std::int64_t i = 0; i < 100; ++i) ASSERT_EQ(epoch[i], i);
  }
  (*order)->WillNeed(0, 300);
}

TEST(SampleOrderTest, WithoutShuffleSamplesComeInOrder) {
  TempFolder folder;
  const auto path = WriteRamp(folder / "a.bin", 50);
  const auto order = SampleOrder::Open({{path, 1.0}}, 7, 65536, 3, /*shuffle=*/false);
  for (std::int64_t draw = 0; draw < 20; ++draw) EXPECT_EQ((*order)->Locate(draw).sample, draw % 7);
}

TEST(SampleOrderTest, WeightedSourcesKeepTheirSharesAndTheirEpochs) {
  TempFolder folder;
  const auto a = WriteRamp(folder / "a.bin", 41, 0);
  const auto b = WriteRamp(folder / "b.bin", 21, 1000);
  const auto order = SampleOrder::Open({{a, 3.0}, {b, 1.0}}, 4, 65536, 11, true);
  ASSERT_TRUE(order.ok());
  std::map<std::pair<std::int64_t, std::int64_t>, std::set<std::int64_t>> epochs;
  std::vector<std::int32_t> sample(5);
  for (std::int64_t draw = 0; draw < 400; ++draw) {
    const DrawnSample drawn = (*order)->Locate(draw);
    const bool fresh = epochs[std::pair(drawn.source, drawn.epoch)].insert(drawn.sample).second;
    ASSERT_TRUE(fresh) << "drawn twice at draw " << draw;
    ASSERT_TRUE((*order)->Read(draw, sample).ok());
    EXPECT_EQ(sample[0], drawn.source * 1000 + drawn.sample * 4);
  }
  EXPECT_EQ(epochs.size(), 30 + 20);  // 300 draws of 10 samples, 100 draws of 5
  for (const auto& [key, samples] : epochs) EXPECT_EQ(samples.size(), key.first == 0 ? 10 : 5);
}

TEST(SampleOrderTest, DigestChangesWithEverythingThatMakesASample) {
  TempFolder folder;
  const auto a = WriteRamp(folder / "a.bin", 41, 0);
  const auto b = WriteRamp(folder / "b.bin", 21, 1000);
  const auto digest = [](const std::vector<DataSource>& sources, std::int64_t sequence) {
    return (*SampleOrder::Open(sources, sequence, 65536, 1, true))->digest();
  };
  const std::set<std::string> digests = {digest({{a, 1}}, 4),         digest({{b, 1}}, 4),
                                         digest({{a, 1}}, 5),         digest({{a, 1}, {b, 1}}, 4),
                                         digest({{b, 1}, {a, 1}}, 4), digest({{a, 1}, {b, 2}}, 4)};
  EXPECT_EQ(digests.size(), 6);
  EXPECT_EQ(digest({{a, 1}}, 4), digest({{a, 1}}, 4));
}

TEST(SampleOrderTest, CorpusShorterThanOneSampleIsRefused) {
  TempFolder folder;
  const auto path = WriteRamp(folder / "a.bin", 256);
  const auto order = SampleOrder::Open({{path, 1.0}}, 256, 65536, 1, true);
  EXPECT_EQ(order.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(order.status().message()), HasSubstr("a.bin: 256 tokens, too few"));
}

TEST(SampleOrderTest, TokenOutsideTheVocabularyIsNamed) {
  TempFolder folder;
  const auto path = WriteRamp(folder / "a.bin", 300);
  const auto order = SampleOrder::Open({{path, 1.0}}, 299, 256, 1, true);
  ASSERT_TRUE(order.ok());
  std::vector<std::int32_t> sample(300);
  EXPECT_THAT(std::string((*order)->Read(0, sample).message()),
              HasSubstr("a.bin: token 256 at position 256"));
  EXPECT_THAT(std::string((*order)->Verify().message()),
              HasSubstr("a.bin: token 256 at position 256"));
  EXPECT_TRUE((*SampleOrder::Open({{path, 1.0}}, 299, 300, 1, true))->Verify().ok());
}

// A manifest's vocabulary is compared at once, before any token is read.
TEST(SampleOrderTest, CorpusOfALargerVocabularyIsRefused) {
  TempFolder folder;
  WriteRamp(folder / "a.bin", 300);
  const std::string bytes = ReadWhole(folder / "a.bin");
  const CorpusManifest manifest{.format = "llm.c",
                                .vocab_size = 300,
                                .tokens = 300,
                                .shards = {{.file = "a.bin",
                                            .tokens = 300,
                                            .bytes = static_cast<std::int64_t>(bytes.size()),
                                            .sha256 = Sha256Of(bytes)}}};
  WriteWhole(folder / "manifest.json", ToJson(manifest));
  const auto order = SampleOrder::Open({{folder.path(), 1.0}}, 100, 256, 1, true);
  EXPECT_EQ(order.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(order.status().message()), HasSubstr("vocabulary of 300"));
  const auto fits = SampleOrder::Open({{folder.path(), 1.0}}, 100, 300, 1, true);
  ASSERT_TRUE(fits.ok()) << fits.status();
  EXPECT_TRUE((*fits)->Verify().ok());
  std::string damaged = bytes;
  damaged[1500] ^= 1;
  WriteWhole(folder / "a.bin", damaged);
  EXPECT_EQ((*SampleOrder::Open({{folder.path(), 1.0}}, 100, 300, 1, true))->Verify().code(),
            absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace paceline
