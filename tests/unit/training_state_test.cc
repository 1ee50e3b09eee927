#include "worker/trainer/training_state.h"

#include <gtest/gtest.h>

#include "worker/model/model.h"

namespace paceline {
namespace {

TEST(BoxesOfTest, ARangeIsPartOfARowWholeRowsAndPartOfARow) {
  const std::vector<TensorBox> boxes = BoxesOf({5, 4}, 2, 13);
  ASSERT_EQ(boxes.size(), 3u);
  EXPECT_EQ(boxes[0].start, (std::vector<std::int64_t>{0, 2}));
  EXPECT_EQ(boxes[0].shape, (std::vector<std::int64_t>{1, 2}));
  EXPECT_EQ(boxes[1].start, (std::vector<std::int64_t>{1, 0}));
  EXPECT_EQ(boxes[1].shape, (std::vector<std::int64_t>{2, 4}));
  EXPECT_EQ(boxes[2].start, (std::vector<std::int64_t>{3, 0}));
  EXPECT_EQ(boxes[2].shape, (std::vector<std::int64_t>{1, 3}));
}

TEST(BoxesOfTest, BoxesOfEveryRangeJoinUpToIt) {
  const std::vector<std::int64_t> shape = {4, 3};
  for (std::int64_t begin = 0; begin < 12; ++begin) {
    for (std::int64_t count = 0; begin + count <= 12; ++count) {
      std::int64_t at = begin;
      for (const TensorBox& box : BoxesOf(shape, begin, count)) {
        EXPECT_EQ(box.offset, at);
        EXPECT_EQ(box.offset, box.start[0] * 3 + box.start[1]);
        EXPECT_EQ(box.elements, box.shape[0] * box.shape[1]);
        EXPECT_TRUE(box.shape[0] == 1 || box.shape[1] == 3);
        at += box.elements;
      }
      EXPECT_EQ(at, begin + count);
    }
  }
}

TEST(BoxesOfTest, AVectorHasOneBox) {
  const std::vector<TensorBox> boxes = BoxesOf({10}, 3, 4);
  ASSERT_EQ(boxes.size(), 1u);
  EXPECT_EQ(boxes[0].start, (std::vector<std::int64_t>{3}));
  EXPECT_EQ(boxes[0].shape, (std::vector<std::int64_t>{4}));
  EXPECT_TRUE(BoxesOf({10}, 3, 0).empty());
}

TEST(ShardOfTest, ShardsCoverABucketThatDoesNotDivideOnce) {
  const GradientBucket bucket = {.offset = 100, .elements = 10};
  ParallelLayout layout;
  layout.data = 4;
  std::int64_t at = bucket.offset;
  for (int rank = 0; rank < 4; ++rank) {
    const FlatRange shard = ShardOf(bucket, layout, CoordinatesOf(layout, rank));
    EXPECT_EQ(shard.begin, at);
    at += shard.count;
  }
  EXPECT_EQ(at, bucket.offset + bucket.elements);
}

TEST(OwnedRangesTest, ExpertsAreSharedByTheRanksThatHaveThem) {
  ParallelLayout layout;
  layout.data = 4;
  layout.expert = 2;
  layout.shard_optimizer = true;
  const std::vector<GradientBucket> buckets = {{0, 80, false}, {80, 80, true}};
  const std::vector<FlatRange> ranges = OwnedRanges(buckets, layout, CoordinatesOf(layout, 2));
  EXPECT_EQ(ranges[0].begin, 40);
  EXPECT_EQ(ranges[0].count, 20);
  EXPECT_EQ(ranges[1].begin, 120);  // expert data index 1 of 2
  EXPECT_EQ(ranges[1].count, 40);
}

}  // namespace
}  // namespace paceline
