#include "worker/model/parameters.h"

#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/model/philox.h"

namespace paceline {
namespace {

using testing::ElementsAre;

// Known answers of the authors' library, Random123's kat_vectors for philox4x32, 10 rounds.
TEST(PhiloxTest, AgreesWithThePublishedVectors) {
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(
      Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
      ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(
      Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(InitialNormalTest, AnElementDoesNotDependOnHowManyAreAskedFor) {
  std::vector<float> all(1003);
  FillInitialNormal(7, "model.norm.weight", 0.02, all);
  for (const std::int64_t index : {0, 1, 2, 3, 4, 500, 1002}) {
    EXPECT_EQ(InitialNormal(7, "model.norm.weight", index, 0.02),
              all[static_cast<std::size_t>(index)]);
  }
}

TEST(InitialNormalTest, SeedAndNameEachChangeTheValues) {
  const float value = InitialNormal(1, "a", 0, 1.0);
  EXPECT_NE(value, InitialNormal(2, "a", 0, 1.0));
  EXPECT_NE(value, InitialNormal(1, "b", 0, 1.0));
  EXPECT_NE(value, InitialNormal(1ull << 40, "a", 0, 1.0));
}

TEST(InitialNormalTest, HasTheMomentsOfANormal) {
  std::vector<float> values(1 << 18);
  FillInitialNormal(3, "w", 2.0, values);
  double sum = 0;
  double squares = 0;
  double fourths = 0;
  for (const double value : values) {
    sum += value;
    squares += value * value;
    fourths += value * value * value * value;
  }
  const auto count = static_cast<double>(values.size());
  // Five standard errors of each moment.
  EXPECT_NEAR(sum / count, 0.0, 5 * 2.0 / std::sqrt(count));
  EXPECT_NEAR(squares / count, 4.0, 5 * 4.0 * std::sqrt(2.0 / count));
  EXPECT_NEAR(fourths / count, 48.0, 5 * 16.0 * std::sqrt(96.0 / count));
}

}  // namespace
}  // namespace paceline
