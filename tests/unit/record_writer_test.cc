#include "worker/agent/record_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/support/stuck_file.h"
#include "tests/support/temp_folder.h"
#include "worker/agent/mailbox.h"

namespace paceline {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

struct Written {
  std::uint64_t number;
  absl::Status status;
};

class RecordWriterTest : public ::testing::Test {
 protected:
  RecordWriterTest()
      : writer_(/*lines_max=*/3, [told = told_](std::uint64_t number, absl::Status status) {
          told->Push({number, std::move(status)});
        }) {}

  Written Next() {
    const auto written = told_->Pop(std::chrono::steady_clock::now() + 20s);
    EXPECT_TRUE(written.has_value());
    return written.value_or(Written{0, absl::UnknownError("nothing was told")});
  }

  TempFolder folder_;
  const std::shared_ptr<Mailbox<Written>> told_ = std::make_shared<Mailbox<Written>>(16);
  RecordWriter writer_;
};

TEST_F(RecordWriterTest, LineIsInTheFileWhenItIsTold) {
  for (std::uint64_t number = 1; number <= 5; ++number) {
    const std::string line = std::to_string(number);
    ASSERT_TRUE(writer_.Append(folder_ / (number % 2 == 0 ? "even" : "odd"), line, number).ok());
    const Written written = Next();
    EXPECT_EQ(written.number, number);
    EXPECT_TRUE(written.status.ok()) << written.status;
  }
  EXPECT_EQ(ReadWhole(folder_ / "odd"), "1\n3\n5\n");
  EXPECT_EQ(ReadWhole(folder_ / "even"), "2\n4\n");
}

TEST_F(RecordWriterTest, LineThatCannotBeWrittenIsToldAndTheNextIsWritten) {
  ASSERT_TRUE(writer_.Append(folder_ / "missing/steps.jsonl", "one", 1).ok());
  EXPECT_EQ(Next().status.code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(writer_.Append(folder_ / "steps.jsonl", "two", 2).ok());
  EXPECT_TRUE(Next().status.ok());
}

TEST_F(RecordWriterTest, StuckFileRefusesLinesBeyondTheBoundAndTakesTheRestInOrder) {
  StuckFile file(folder_ / "steps.jsonl");
  std::uint64_t number = 0;
  absl::Status status;
  while (status.ok()) {
    ++number;
    status = writer_.Append(folder_ / "steps.jsonl", std::to_string(number), number);
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("steps.jsonl"));
  EXPECT_GE(number, 4u);
  EXPECT_LE(number, 5u) << "three wait and one is being written";
  file.Read();
  std::string text;
  for (std::uint64_t line = 1; line < number; ++line) {
    EXPECT_EQ(Next().number, line);
    text += std::to_string(line) + "\n";
  }
  EXPECT_EQ(file.Read(), text);
}

TEST_F(RecordWriterTest, FinishWritesWhatWaits) {
  StuckFile file(folder_ / "steps.jsonl");
  ASSERT_TRUE(writer_.Append(folder_ / "steps.jsonl", "one", 1).ok());
  ASSERT_TRUE(writer_.Append(folder_ / "steps.jsonl", "two", 2).ok());
  file.Read();
  EXPECT_TRUE(writer_.Finish(20s).ok());
  EXPECT_EQ(file.Read(), "one\ntwo\n");
}

TEST_F(RecordWriterTest, FinishGivesUpOnAStuckFile) {
  StuckFile file(folder_ / "steps.jsonl");
  ASSERT_TRUE(writer_.Append(folder_ / "steps.jsonl", "one", 1).ok());
  ASSERT_TRUE(writer_.Append(folder_ / "steps.jsonl", "two", 2).ok());
  EXPECT_EQ(writer_.Finish(1ms).code(), absl::StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace paceline
