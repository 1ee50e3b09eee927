#include "common/parallel_layout.h"

#include <algorithm>
#include <limits>
#include <ostream>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace paceline {

void PrintTo(const ParallelLayout& layout, std::ostream* out) {
  *out << "pipeline " << layout.pipeline << ", data " << layout.data << ", expert "
       << layout.expert;
}

namespace {

ModelSection SparseModel(std::int64_t layers, std::int64_t dense_layers, std::int64_t vocab) {
  ModelSection model;
  model.vocab_size = vocab;
  model.hidden_size = 64;
  model.num_hidden_layers = layers;
  model.num_attention_heads = 4;
  model.num_key_value_heads = 2;
  model.head_dim = 16;
  model.intermediate_size = 1024;
  model.n_routed_experts = 8;
  model.n_shared_experts = 1;
  model.num_experts_per_tok = 2;
  model.moe_intermediate_size = 96;
  model.first_k_dense_replace = dense_layers;
  return model;
}

class ParallelLayoutTest : public ::testing::TestWithParam<ParallelLayout> {};

TEST_P(ParallelLayoutTest, CoordinatesAndRanksAreInverse) {
  const ParallelLayout& layout = GetParam();
  for (int rank = 0; rank < layout.world_size(); ++rank) {
    const RankCoordinates at = CoordinatesOf(layout, rank);
    EXPECT_EQ(RankAt(layout, at.stage, at.data), rank);
    EXPECT_EQ(at.data, at.expert_data * layout.expert + at.expert);
    EXPECT_LT(at.stage, layout.pipeline);
    EXPECT_LT(at.expert, layout.expert);
    EXPECT_LT(at.expert_data, layout.expert_data());
  }
}

TEST_P(ParallelLayoutTest, GroupsOfAKindAreEqualOrDisjointAndCoverAllRanks) {
  const ParallelLayout& layout = GetParam();
  struct Kind {
    std::vector<int> (*group_of)(const ParallelLayout&, int);
    int size;
  };
  for (const Kind& kind :
       {Kind{PipelineGroup, layout.pipeline}, Kind{DataGroup, layout.data},
        Kind{ExpertGroup, layout.expert}, Kind{ExpertDataGroup, layout.expert_data()}}) {
    std::multiset<int> covered;
    std::set<std::vector<int>> groups;
    for (int rank = 0; rank < layout.world_size(); ++rank) {
      const std::vector<int> group = kind.group_of(layout, rank);
      EXPECT_EQ(static_cast<int>(group.size()), kind.size);
      EXPECT_TRUE(std::is_sorted(group.begin(), group.end()));
      EXPECT_TRUE(std::binary_search(group.begin(), group.end(), rank));
      if (groups.insert(group).second) covered.insert(group.begin(), group.end());
    }
    ASSERT_EQ(static_cast<int>(covered.size()), layout.world_size());
    for (int rank = 0; rank < layout.world_size(); ++rank) EXPECT_EQ(covered.count(rank), 1u);
  }
}

TEST_P(ParallelLayoutTest, AnExpertGroupIsOfNeighbours) {
  const ParallelLayout& layout = GetParam();
  for (int rank = 0; rank < layout.world_size(); ++rank) {
    const std::vector<int> group = ExpertGroup(layout, rank);
    EXPECT_EQ(group.back() - group.front(), layout.expert - 1);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, ParallelLayoutTest,
    ::testing::Values(ParallelLayout{}, ParallelLayout{.data = 6}, ParallelLayout{.pipeline = 4},
                      ParallelLayout{.data = 8, .expert = 4},
                      ParallelLayout{.pipeline = 2, .data = 4, .expert = 2},
                      ParallelLayout{.pipeline = 3, .data = 12, .expert = 4},
                      ParallelLayout{.pipeline = 4, .data = 16, .expert = 16}));

// The costliest of the ranges that begin at `first`, at best, by trying every cut.
double BestByTrying(const std::vector<double>& costs, std::size_t first, int parts) {
  double sum = 0;
  if (parts == 1) {
    for (std::size_t i = first; i < costs.size(); ++i) sum += costs[i];
    return sum;
  }
  double best = std::numeric_limits<double>::infinity();
  for (std::size_t end = first + 1; end + static_cast<std::size_t>(parts) <= costs.size() + 1;
       ++end) {
    sum += costs[end - 1];
    best = std::min(best, std::max(sum, BestByTrying(costs, end, parts - 1)));
  }
  return best;
}

TEST(SplitLayersTest, NoOtherCutCostsLess) {
  constexpr std::int64_t kSequence = 128;
  for (const std::int64_t layers : {1, 2, 5, 9}) {
    for (const std::int64_t dense_layers : {std::int64_t{0}, layers / 2, layers}) {
      for (const std::int64_t vocab : {256, 4096}) {
        const ModelSection model = SparseModel(layers, dense_layers, vocab);
        std::vector<double> costs;
        for (std::int64_t layer = 0; layer < layers; ++layer) {
          costs.push_back(LayerFlopsPerToken(model, layer, kSequence));
        }
        costs.back() += HeadFlopsPerToken(model);
        for (int parts = 1; parts <= layers; ++parts) {
          const std::vector<LayerRange> ranges = SplitLayers(model, kSequence, parts);
          ASSERT_EQ(static_cast<int>(ranges.size()), parts);
          double costliest = 0;
          std::int64_t next = 0;
          for (const LayerRange& range : ranges) {
            EXPECT_EQ(range.first, next);
            EXPECT_GE(range.layers(), 1);
            next = range.end;
            double cost = 0;
            for (std::int64_t layer = range.first; layer < range.end; ++layer) {
              cost += costs[static_cast<std::size_t>(layer)];
            }
            costliest = std::max(costliest, cost);
          }
          EXPECT_EQ(next, layers);
          EXPECT_DOUBLE_EQ(costliest, BestByTrying(costs, 0, parts))
              << layers << " layers in " << parts << " parts";
        }
      }
    }
  }
}

TEST(PartOfTest, TheRanksOfAnExpertDataCopyHoldEveryTensorOnce) {
  RunFile run_file;
  run_file.model = SparseModel(/*layers=*/8, /*dense_layers=*/1, /*vocab=*/256);
  run_file.train.sequence_length = 128;
  const ParallelLayout layout{
      .pipeline = 2, .data = 4, .expert = 2, .virtual_stages = 2, .schedule = "interleaved"};
  std::multiset<std::string> names;
  for (int rank = 0; rank < layout.pipeline * layout.expert; ++rank) {
    const bool first_of_stage = CoordinatesOf(layout, rank).expert == 0;
    for (const TensorShape& tensor : ModelTensors(run_file.model, PartOf(run_file, layout, rank))) {
      // What is no routed expert's is held by every rank of the stage.
      const bool expert = tensor.name.find(".mlp.experts.") != std::string::npos;
      if (expert || first_of_stage) names.insert(tensor.name);
    }
  }
  std::multiset<std::string> whole;
  for (const TensorShape& tensor : ModelTensors(run_file.model)) whole.insert(tensor.name);
  EXPECT_EQ(names, whole);
}

// Expert groups as equal as may be, ranks of one group alike, everything once, in order.
TEST(MicroBatchesOfTest, EveryMicroBatchIsOneSharesAndGroupsDifferByOneUnit) {
  for (const int expert : {1, 2, 4}) {
    for (const int groups : {1, 2, 3, 5}) {
      for (const int pipeline : {1, 2}) {
        ParallelLayout layout;
        layout.pipeline = pipeline;
        layout.expert = expert;
        layout.data = expert * groups;
        if (pipeline > 1) layout.schedule = "interleaved";
        const std::int64_t total = 40;
        ASSERT_TRUE(CheckMicroBatches(layout, total).ok());
        std::multiset<std::int64_t> taken;
        std::set<std::int64_t> counts;
        for (int share = 0; share < layout.data; ++share) {
          const MicroBatchRange range = MicroBatchesOf(layout, share, total);
          EXPECT_EQ(range.count % pipeline, 0);
          const MicroBatchRange first = MicroBatchesOf(layout, share / expert * expert, total);
          EXPECT_EQ(range.count, first.count);
          for (std::int64_t i = 0; i < range.count; ++i) {
            taken.insert(range.At(i));
            // Who meets in an expert does not depend on the number of groups.
            EXPECT_EQ(range.At(i) / expert, first.At(i) / expert);
            EXPECT_EQ(range.At(i) % expert, share % expert);
          }
          counts.insert(range.count);
        }
        ASSERT_EQ(taken.size(), static_cast<std::size_t>(total));
        EXPECT_EQ(*taken.begin(), 0);
        EXPECT_EQ(std::set(taken.begin(), taken.end()).size(), static_cast<std::size_t>(total));
        EXPECT_EQ(*taken.rbegin(), total - 1);
        EXPECT_LE(*counts.rbegin() - *counts.begin(), pipeline);
        EXPECT_GT(*counts.begin(), 0);
      }
    }
  }
}

TEST(MicroBatchesOfTest, AShareWithNothingToDoIsRefused) {
  ParallelLayout layout;
  layout.data = 5;
  EXPECT_FALSE(CheckMicroBatches(layout, 4).ok());
  layout.data = layout.expert = 2;
  EXPECT_FALSE(CheckMicroBatches(layout, 5).ok()) << "ranks that share experts take as many";
}

}  // namespace
}  // namespace paceline
