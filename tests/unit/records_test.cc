#include "worker/agent/records.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/support/temp_folder.h"

namespace paceline {
namespace {

std::uint64_t Bits(double value) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

TEST(RecordsTest, NumbersReadBackToTheSameBits) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 20000; ++i) {
    const std::uint64_t bits = random();
    double value = 0;
    std::memcpy(&value, &bits, sizeof(value));
    if (!std::isfinite(value)) continue;
    v1::StepRecord record;
    record.set_loss(value);
    const nlohmann::json json = nlohmann::json::parse(StepLine(record, 0, 1));
    ASSERT_EQ(Bits(json["loss"].get<double>()), bits) << StepLine(record, 0, 1);
  }
}

TEST(RecordsTest, WholeNumbersStayFloatsAndMinusZeroKeepsItsSign) {
  v1::StepRecord record;
  record.set_loss(5.0);
  record.set_grad_norm(-0.0);
  record.set_learning_rate(1e300);
  const nlohmann::json json = nlohmann::json::parse(StepLine(record, 0, 1));
  EXPECT_TRUE(json["loss"].is_number_float());
  EXPECT_TRUE(std::signbit(json["grad_norm"].get<double>()));
  EXPECT_EQ(json["learning_rate"].get<double>(), 1e300);
}

TEST(RecordsTest, WhatIsNotFiniteIsNull) {
  v1::StepRecord record;
  record.set_loss(std::numeric_limits<double>::quiet_NaN());
  record.set_grad_norm(-std::numeric_limits<double>::infinity());
  const nlohmann::json json = nlohmann::json::parse(StepLine(record, 0, 1));
  EXPECT_TRUE(json["loss"].is_null());
  EXPECT_TRUE(json["grad_norm"].is_null());
}

TEST(RecordsTest, StepLineHoldsEveryField) {
  v1::StepRecord record;
  record.set_step(12);
  record.set_loss(2.5);
  record.set_grad_norm(0.75);
  record.set_learning_rate(0.003);
  record.set_tokens(4096);
  record.set_step_seconds(0.25);
  EXPECT_EQ(StepLine(record, 49152, 3),
            "{\"step\":12,\"loss\":2.5,\"grad_norm\":0.75,\"learning_rate\":0.003,"
            "\"tokens\":49152,\"step_seconds\":0.25,\"generation\":3}");
}

TEST(RecordsTest, EvalLineHoldsEveryField) {
  v1::EvalRecord record;
  record.set_step(50);
  record.set_valid_loss(1.5);
  record.set_tokens(100);
  record.set_eval_seconds(0.5);
  EXPECT_EQ(EvalLine(record, 2),
            "{\"step\":50,\"valid_loss\":1.5,\"tokens\":100,\"eval_seconds\":0.5,"
            "\"generation\":2}");
}

TEST(LineFileTest, LinesAreAppendedAndReadableAtOnce) {
  const TempFolder folder;
  {
    auto file = LineFile::Open(folder / "steps.jsonl");
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE(file->Append("one").ok());
    EXPECT_EQ(ReadWhole(folder / "steps.jsonl"), "one\n");
  }
  auto file = LineFile::Open(folder / "steps.jsonl");
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE(file->Append("two").ok());
  EXPECT_EQ(ReadWhole(folder / "steps.jsonl"), "one\ntwo\n");
}

TEST(LineFileTest, TornLastLineIsCutOff) {
  const TempFolder folder;
  const std::string torn(10000, 'x');  // longer than a block
  WriteWhole(folder / "steps.jsonl", "one\n" + torn);
  auto file = LineFile::Open(folder / "steps.jsonl");
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE(file->Append("two").ok());
  EXPECT_EQ(ReadWhole(folder / "steps.jsonl"), "one\ntwo\n");
}

TEST(LineFileTest, FileWithoutAWholeLineIsEmptied) {
  const TempFolder folder;
  WriteWhole(folder / "steps.jsonl", "torn");
  ASSERT_TRUE(LineFile::Open(folder / "steps.jsonl").ok());
  EXPECT_EQ(ReadWhole(folder / "steps.jsonl"), "");
}

TEST(LineFileTest, MissingFolderIsNotFound) {
  const TempFolder folder;
  const auto missing = LineFile::Open(folder / "missing/steps.jsonl");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace paceline
