// How many seeds the tests of random faults try. Each of their programs takes --seeds N:
//
//   coordinator_sim_test --seeds 10000 --gtest_filter='Seeds/*' --gtest_brief=1
// Threading: set by main, then only read.
#pragma once

namespace paceline::sim {

// N of --seeds, else `few`.
int SeedsOr(int few);

}  // namespace paceline::sim
