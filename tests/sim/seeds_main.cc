#include <gtest/gtest.h>

#include <cstdio>
#include <string_view>

#include "absl/strings/numbers.h"
#include "tests/sim/seeds.h"

namespace paceline::sim {
namespace {

int seeds = 0;  // 0: not given

}  // namespace

int SeedsOr(int few) { return seeds > 0 ? seeds : few; }

}  // namespace paceline::sim

int main(int argc, char** argv) {
  // Before gtest makes the tests, one for each seed.
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) != "--seeds") continue;
    if (i + 1 < argc && absl::SimpleAtoi(argv[i + 1], &paceline::sim::seeds) &&
        paceline::sim::seeds > 0) {
      continue;
    }
    std::fprintf(stderr, "--seeds: give a number of seeds, 1 or more\n");
    return 2;
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
