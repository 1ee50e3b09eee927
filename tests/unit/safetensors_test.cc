#include "worker/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

namespace paceline {
namespace {

using ::testing::HasSubstr;

std::string File(const std::string& header, std::size_t data_bytes, std::size_t padding = 0) {
  const std::uint64_t length = header.size() + padding;
  std::string file(reinterpret_cast<const char*>(&length), 8);
  return file + header + std::string(padding, ' ') + std::string(data_bytes, '\1');
}

absl::StatusOr<SafetensorsHeader> Parse(const std::string& file) {
  return ParseSafetensorsHeader(file, std::ssize(file));
}

TensorSliceInfo Slice(const std::string& name, std::vector<std::int64_t> global,
                      std::vector<std::int64_t> start, std::vector<std::int64_t> shape) {
  return {name, "F32", std::move(global), std::move(start), std::move(shape), ""};
}

TEST(SafetensorsTest, BuiltHeaderIsReadAndItsDataIsAligned) {
  const std::vector<TensorSliceInfo> slices = {
      Slice("model.norm.weight", {4}, {0}, {4}),
      Slice("w\"\\\u00e9", {8, 6}, {4, 2}, {2, 3}),
      Slice("empty", {0}, {0}, {0}),
      Slice("scalar", {}, {}, {}),
  };
  const auto header = BuildSafetensorsHeader(slices);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->size() % 64, 0u);

  const auto parsed = Parse(*header + std::string(16 + 24 + 4, '\0'));

  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->bytes, std::ssize(*header));
  EXPECT_EQ(parsed->metadata.at("format"), "paceline");
  ASSERT_EQ(parsed->tensors.size(), 4u);
  EXPECT_EQ(parsed->tensors[0].name, "model.norm.weight");
  EXPECT_EQ(parsed->tensors[0].offset, std::ssize(*header));
  EXPECT_EQ(parsed->tensors[1].name, "w\"\\\u00e9[4:6,2:5]");
  EXPECT_EQ(parsed->tensors[1].shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(parsed->tensors[1].bytes, 24);
  EXPECT_EQ(parsed->tensors[3].name, "scalar");
}

TEST(SafetensorsTest, TwoSlicesOfOneNameAreRefused) {
  const std::vector<TensorSliceInfo> slices = {Slice("a", {4}, {0}, {2}),
                                               Slice("a", {4}, {0}, {2})};
  const auto header = BuildSafetensorsHeader(slices);
  EXPECT_EQ(header.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(header.status().message()), HasSubstr("\"a[0:2]\" appears twice"));
}

TEST(SafetensorsTest, SliceOutsideOfItsTensorIsRefused) {
  const std::vector<TensorSliceInfo> slices = {Slice("a", {4}, {3}, {2})};
  EXPECT_EQ(BuildSafetensorsHeader(slices).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(SafetensorsTest, OtherWritersFilesAreRead) {
  const auto parsed = Parse(File(R"({"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[8,12]},)"
                                 R"("a":{"shape":[1],"data_offsets":[0,8],"dtype":"I64"}})",
                                 12, 5));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->tensors[0].name, "a");
  EXPECT_EQ(parsed->tensors[1].dtype, "BF16");
}

TEST(SafetensorsTest, HeadersThatCannotBeAreRefusedWithTheReason) {
  const std::pair<std::string, const char*> cases[] = {
      {"", "ends before"},
      {"\1\2\3", "ends before"},
      {File("", 0), "'{'"},
      {File("[]", 0), "'{'"},
      {File("{", 0), "JSON object"},
      {std::string("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10), "a length of"},
      {std::string("\3\0\0\0\0\0\0\0{}", 10), "a length of 3 in a file of 10"},
      {File(R"({"a":{"dtype":"F32","shape":[1]}})", 4), "\"a\""},
      {File(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4), "nothing else"},
      {File(R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4), "F33"},
      {File(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4), "integers >= 0"},
      {File(R"({"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})", 4), "integers >= 0"},
      {File(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}})", 8), "do not match"},
      {File(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4), "do not match"},
      {File(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 3), "beyond"},
      {File(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 5), "end at byte"},
      {File(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8), "hole"},
      {File(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
            R"("b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
            4),
       "overlaps"},
      {File(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296,16],"data_offsets":[0,0]}})", 0),
       "overflows"},
      {File(R"({"__metadata__":{"x":1}})", 0), "__metadata__"},
  };
  for (const auto& [file, reason] : cases) {
    const auto parsed = Parse(file);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kDataLoss) << file;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(reason));
  }
}

TEST(SafetensorsTest, DeepNestingIsRefusedWithoutRecursion) {
  EXPECT_FALSE(Parse(File("{\"a\":" + std::string(2'000'000, '['), 0)).ok());
  EXPECT_FALSE(
      Parse(File("{\"a\":" + std::string(200'000, '[') + std::string(200'000, ']') + "}", 0)).ok());
}

// Whatever is in the first bytes, the answer is an error or tensors inside of the file.
TEST(SafetensorsTest, RandomEditsNeverCrashAndNeverPointOutsideTheFile) {
  const std::vector<TensorSliceInfo> slices = {Slice("a", {4, 4}, {0, 0}, {4, 4}),
                                               Slice("b", {10}, {5}, {5})};
  const std::string whole = *BuildSafetensorsHeader(slices) + std::string(84, '\0');
  ASSERT_TRUE(Parse(whole).ok());
  std::mt19937 random(7);
  for (int round = 0; round < 20000; ++round) {
    std::string file = whole;
    for (unsigned edit = 0; edit <= random() % 4; ++edit) {
      const std::size_t at = random() % (random() % 2 == 0 ? 12 : file.size());
      file[at] =
          static_cast<char>(random() % 2 == 0 ? random() : "0123456789{}[],:\""[random() % 17]);
    }
    if (random() % 8 == 0) file.resize(random() % file.size());
    const auto parsed = Parse(file);
    if (!parsed.ok()) continue;
    for (const SafetensorsTensor& tensor : parsed->tensors) {
      ASSERT_GE(tensor.offset, parsed->bytes);
      ASSERT_LE(tensor.offset + tensor.bytes, std::ssize(file));
    }
  }
}

}  // namespace
}  // namespace paceline
