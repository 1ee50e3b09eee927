#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <filesystem>
#include <set>

#include "common/model_shape.h"
#include "nlohmann/json.hpp"
#include "tests/support/small_checkpoint.h"
#include "tests/support/temp_folder.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/huggingface/export.h"
#include "worker/huggingface/import.h"
#include "worker/huggingface/weight_files.h"

namespace paceline::huggingface {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<float> ReadTensor(const CheckpointReader& reader, const TensorShape& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.elements()), NAN);
  const std::vector<std::int64_t> start(tensor.shape.size(), 0);
  const absl::Status status = reader.Read(tensor.name, start, tensor.shape, values);
  EXPECT_TRUE(status.ok()) << status;
  return values;
}

std::set<std::string> Listing(const std::filesystem::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.insert(entry.path().filename().string());
  }
  return names;
}

class HuggingFaceFolderTest : public ::testing::Test {
 protected:
  // A checkpoint of `model`, opened.
  const CheckpointReader& Checkpoint(const ModelSection& model) {
    WriteSmallCheckpoint(folder_ / "step-00000003-g1", model, 3);
    auto reader = CheckpointReader::Open(folder_ / "step-00000003-g1");
    EXPECT_TRUE(reader.ok()) << reader.status();
    reader_ = *std::move(reader);
    return *reader_;
  }

  absl::StatusOr<Exported> ExportTo(const std::string& name, ExportOptions options = {}) {
    options.output = folder_ / name;
    return Export(*reader_, options);
  }

  absl::StatusOr<Imported> ImportFrom(const std::string& name, const std::string& output) {
    return Import({.input = folder_ / name, .output = folder_ / output});
  }

  std::string ImportError(const std::string& name) {
    const auto imported = ImportFrom(name, "not-made");
    EXPECT_EQ(imported.status().code(), absl::StatusCode::kInvalidArgument) << imported.status();
    EXPECT_FALSE(std::filesystem::exists(folder_ / "not-made"));
    return std::string(imported.status().message());
  }

  TempFolder folder_;
  std::unique_ptr<CheckpointReader> reader_;
};

TEST_F(HuggingFaceFolderTest, WhatIsExportedAndImportedAgainIsBitEqual) {
  int run = 0;
  for (const ModelSection& model : {SmallDense(), SmallSoftmax(), SmallSigmoid()}) {
    for (const std::int64_t shard_bytes : {kShardBytesMax, std::int64_t{2000}}) {
      const CheckpointReader& checkpoint = Checkpoint(model);
      const std::string name = "out" + std::to_string(run++);
      const auto exported = ExportTo(name, {.shard_bytes_max = shard_bytes});
      ASSERT_TRUE(exported.ok()) << exported.status();
      EXPECT_EQ(exported->files.size() > 2, shard_bytes < kShardBytesMax);
      const auto imported = ImportFrom(name, name + "-back");
      ASSERT_TRUE(imported.ok()) << imported.status();
      const auto back = CheckpointReader::Open(folder_ / (name + "-back"));
      ASSERT_TRUE(back.ok()) << back.status();
      ASSERT_TRUE((*back)->Verify().ok());
      std::vector<TensorShape> tensors = ModelTensors(model);
      for (const TensorShape& buffer : ModelStateBuffers(model)) tensors.push_back(buffer);
      for (const TensorShape& tensor : tensors) {
        const std::vector<float> values = ReadTensor(checkpoint, tensor);
        EXPECT_EQ(values.front(), SmallValue(tensor.name, 0));
        EXPECT_EQ(ReadTensor(**back, tensor), values) << tensor.name;
      }
      EXPECT_EQ(imported->tensors, std::ssize(tensors));
      EXPECT_EQ(ReadWhole(folder_ / (name + "-back") + "/model.toml"), imported->model_toml);
      const auto run_file = ParseRunFile((*back)->manifest().run_file, "imported", "/", {});
      ASSERT_TRUE(run_file.ok()) << run_file.status();
      EXPECT_EQ(run_file->model.n_routed_experts, model.n_routed_experts);
      EXPECT_THAT(imported->model_toml, AllOf(testing::StartsWith("[model]\nvocab_size = 32\n"),
                                              testing::EndsWith("tie_word_embeddings = false\n")));
    }
  }
}

TEST_F(HuggingFaceFolderTest, ShardsStayBelowTheBoundAndTheIndexNamesEveryTensor) {
  Checkpoint(SmallSigmoid());
  const auto exported = ExportTo("out", {.shard_bytes_max = 4096});
  ASSERT_TRUE(exported.ok()) << exported.status();
  const json index = json::parse(ReadWhole(folder_ / "out/model.safetensors.index.json"));
  EXPECT_EQ(index.at("weight_map").size(), exported->tensors);
  const auto weights = WeightFiles::Open(folder_ / "out");
  ASSERT_TRUE(weights.ok()) << weights.status();
  std::int64_t total = 0;
  std::map<std::string, std::int64_t> of_file;
  for (const auto& [name, tensor] : weights->tensors()) {
    total += tensor.bytes;
    of_file[index.at("weight_map").at(name).get<std::string>()] += tensor.bytes;
  }
  EXPECT_EQ(index.at("metadata").at("total_size"), total);
  EXPECT_GT(of_file.size(), 2u);
  for (const auto& [file, bytes] : of_file) EXPECT_LE(bytes, 4096) << file;
  EXPECT_TRUE(
      of_file.contains("model-00001-of-0000" + std::to_string(of_file.size()) + ".safetensors"));
}

TEST_F(HuggingFaceFolderTest, BFloat16RoundsWeightsAndKeepsTheCorrectionBias) {
  Checkpoint(SmallSigmoid());
  ASSERT_TRUE(ExportTo("out", {.dtype = "bfloat16"}).ok());
  const auto weights = WeightFiles::Open(folder_ / "out");
  ASSERT_TRUE(weights.ok()) << weights.status();
  for (const auto& [name, tensor] : weights->tensors()) {
    EXPECT_EQ(tensor.dtype, name.ends_with("e_score_correction_bias") ? "F32" : "BF16") << name;
  }
  ASSERT_TRUE(ImportFrom("out", "back").ok());
  const auto back = CheckpointReader::Open(folder_ / "back");
  ASSERT_TRUE(back.ok()) << back.status();
  const TensorShape norm{"model.norm.weight", {16}};
  for (std::int64_t i = 0; i < 16; ++i) {
    const std::uint32_t rounded = std::uint32_t{BFloat16Of(SmallValue(norm.name, i))} << 16;
    EXPECT_EQ(ReadTensor(**back, norm)[static_cast<std::size_t>(i)], std::bit_cast<float>(rounded));
  }
}

TEST(BFloat16Test, RoundsToNearestTiesToEven) {
  EXPECT_EQ(BFloat16Of(1.0f), 0x3f80);
  EXPECT_EQ(BFloat16Of(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // a tie, to even
  EXPECT_EQ(BFloat16Of(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(BFloat16Of(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(BFloat16Of(-INFINITY), 0xff80);
  EXPECT_EQ(BFloat16Of(3.4e38f), 0x7f80);  // beyond its largest
  // A NaN whose upper half alone would be an infinity.
  EXPECT_NE(BFloat16Of(std::bit_cast<float>(0x7f800001u)) & 0x7f, 0);
}

TEST_F(HuggingFaceFolderTest, WhatStandsAtTheOutputStaysUnlessItIsAnExportToReplace) {
  Checkpoint(SmallDense());
  std::filesystem::create_directories(folder_ / "mine");
  WriteWhole(folder_ / "mine/diary", "dear");
  EXPECT_EQ(ExportTo("mine", {.replace = true}).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReadWhole(folder_ / "mine/diary"), "dear");

  ASSERT_TRUE(ExportTo("out", {.shard_bytes_max = 2000}).ok());
  const std::set<std::string> before = Listing(folder_ / "out");
  const auto again = ExportTo("out");
  EXPECT_EQ(again.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(again.status().message()), HasSubstr("--force"));
  EXPECT_EQ(Listing(folder_ / "out"), before);
  ASSERT_TRUE(ExportTo("out", {.replace = true}).ok());
  EXPECT_THAT(Listing(folder_ / "out"), ElementsAre("config.json", "model.safetensors"));
  EXPECT_THAT(Listing(folder_.path()), ElementsAre("mine", "out", "step-00000003-g1"));
}

TEST_F(HuggingFaceFolderTest, DamagedCheckpointIsRefusedAndLeavesNothing) {
  Checkpoint(SmallDense());
  const std::string part = folder_ / "step-00000003-g1/rank-00001.safetensors";
  std::string bytes = ReadWhole(part);
  bytes[bytes.size() - 5] ^= 1;
  WriteWhole(part, bytes);
  const auto exported = ExportTo("out");
  EXPECT_EQ(exported.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(exported.status().message()), HasSubstr("rank-00001.safetensors"));
  EXPECT_THAT(Listing(folder_.path()), ElementsAre("step-00000003-g1"));
}

TEST_F(HuggingFaceFolderTest, ModelsAndOptionsThatDoNotFitAreRefused) {
  ModelSection model = SmallSoftmax();
  model.n_shared_experts = 1;
  Checkpoint(model);
  EXPECT_THAT(std::string(ExportTo("out").status().message()), HasSubstr("n_shared_experts = 1"));
  Checkpoint(SmallDense());
  EXPECT_THAT(std::string(ExportTo("out", {.dtype = "float8"}).status().message()),
              HasSubstr("--dtype float8: must be float32 or bfloat16"));
  EXPECT_THAT(
      std::string(ExportTo("out", {.tokenizer = {{"config.json", "{}"}}}).status().message()),
      HasSubstr("--tokenizer config.json"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out"));
}

// A folder to import, of which one thing is changed before.
class HuggingFaceImportTest : public HuggingFaceFolderTest {
 protected:
  void Begin(std::int64_t shard_bytes = kShardBytesMax) {
    Checkpoint(SmallDense());
    ASSERT_TRUE(ExportTo("hf", {.replace = true, .shard_bytes_max = shard_bytes}).ok());
  }
  void EditConfig(const std::string& field, const json& value) {
    json config = json::parse(ReadWhole(folder_ / "hf/config.json"));
    config[field] = value;
    WriteWhole(folder_ / "hf/config.json", config.dump());
  }
  // The header of model.safetensors with `from` replaced by `to`, which is as long.
  void EditHeader(const std::string& from, const std::string& to) {
    std::string bytes = ReadWhole(folder_ / "hf/model.safetensors");
    ASSERT_EQ(from.size(), to.size());
    ASSERT_NE(bytes.find(from), std::string::npos);
    WriteWhole(folder_ / "hf/model.safetensors", bytes.replace(bytes.find(from), to.size(), to));
  }
};

TEST_F(HuggingFaceImportTest, TensorsThatDoNotFitTheConfigAreNamed) {
  Begin();
  EditConfig("num_hidden_layers", 3);
  EXPECT_THAT(ImportError("hf"), HasSubstr("model.layers.2.self_attn.q_proj.weight"));
  EditConfig("num_hidden_layers", 1000);
  EXPECT_THAT(ImportError("hf"), HasSubstr("at least 1000 tensors"));
  Begin();
  EditConfig("intermediate_size", 32);
  EXPECT_THAT(ImportError("hf"), HasSubstr("has shape [24, 16]; config.json asks for [32, 16]"));
  Begin();
  EditHeader("model.norm.weight", "model.norm.wwight");
  EXPECT_THAT(ImportError("hf"), HasSubstr("has no tensor \"model.norm.weight\""));
  Begin();
  EditHeader("\"model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[16]",
             "\"model.norm.weight\":{\"dtype\":\"U32\",\"shape\":[16]");
  EXPECT_THAT(ImportError("hf"), HasSubstr("tensor \"model.norm.weight\" is U32"));
}

TEST_F(HuggingFaceImportTest, TensorsWithoutAPlaceAreRefusedAndHarmlessOnesPassedOver) {
  Begin();
  EditConfig("tie_word_embeddings", true);
  EXPECT_TRUE(ImportFrom("hf", "tied").ok());  // lm_head.weight is not read
  Begin();
  EditConfig("num_hidden_layers", 1);
  EXPECT_TRUE(ImportFrom("hf", "shorter").ok());  // model.layers.1 lies behind the last
  Begin();
  ModelSection sparse = SmallSigmoid();
  Checkpoint(sparse);
  ASSERT_TRUE(ExportTo("hf", {.replace = true}).ok());
  EditConfig("n_routed_experts", 3);
  EXPECT_THAT(ImportError("hf"), AllOf(HasSubstr("model.layers.1.mlp"), HasSubstr("[3")));
}

TEST_F(HuggingFaceImportTest, FoldersThatAreNotWholeAreRefused) {
  Begin();
  const std::string weights = folder_ / "hf/model.safetensors";
  const std::string bytes = ReadWhole(weights);
  WriteWhole(weights, bytes.substr(0, bytes.size() - 8));
  EXPECT_THAT(ImportError("hf"), AllOf(HasSubstr("model.safetensors"), HasSubstr("header")));
  WriteWhole(weights, "");
  EXPECT_THAT(ImportError("hf"), HasSubstr("model.safetensors"));
  std::filesystem::remove(weights);
  EXPECT_EQ(ImportFrom("hf", "out").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ImportFrom("none", "out").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(HuggingFaceImportTest, IndexThatLiesIsRefused) {
  const auto edit = [this](const std::function<void(json&)>& change) {
    Begin(/*shard_bytes=*/2000);
    json index = json::parse(ReadWhole(folder_ / "hf/model.safetensors.index.json"));
    change(index);
    WriteWhole(folder_ / "hf/model.safetensors.index.json", index.dump());
  };
  edit([](json& index) { index["weight_map"]["model.norm.weight"] = "../../etc/passwd"; });
  EXPECT_THAT(ImportError("hf"), HasSubstr("\"model.norm.weight\" is not a plain file name"));
  edit([](json& index) { index["weight_map"]["model.norm.weight"] = "none.safetensors"; });
  EXPECT_THAT(ImportError("hf"), HasSubstr("none.safetensors: is missing"));
  edit([](json& index) {
    index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"];
  });
  EXPECT_THAT(ImportError("hf"), HasSubstr("has no tensor \"model.norm.weight\""));
  edit([](json& index) { index = 3; });
  EXPECT_THAT(ImportError("hf"), HasSubstr("weight_map is missing"));
}

TEST_F(HuggingFaceImportTest, HalfPrecisionIsWidenedExactly) {
  constexpr std::pair<std::uint16_t, float> kHalves[] = {
      {0x3c00, 1.0f},     {0xc000, -2.0f},        {0x3555, 0.333251953125f}, {0x7bff, 65504.0f},
      {0x0001, 0x1p-24f}, {0x03ff, 0x1.ff8p-15f}, {0x0400, 0x1p-14f},        {0x8000, -0.0f},
      {0x7c00, INFINITY}, {0xfc00, -INFINITY}};
  std::vector<std::uint16_t> bits;
  for (const auto& [half, value] : kHalves) bits.push_back(half);
  bits.push_back(0x7e00);
  const std::int64_t count = std::ssize(bits);
  std::filesystem::create_directories(folder_ / "hf");
  auto file = TensorFile::New(
      folder_ / "hf/model.safetensors",
      {{.name = "halves", .dtype = "F16", .global_shape = {count}, .start = {0}, .shape = {count}}},
      "pt");
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE((*file)->Append(bits.data(), count * 2).ok());
  ASSERT_TRUE((*file)->Finish().ok());
  const auto weights = WeightFiles::Open(folder_ / "hf");
  ASSERT_TRUE(weights.ok()) << weights.status();
  std::vector<float> values;
  ASSERT_TRUE(weights
                  ->Read("halves",
                         [&values](std::span<const float> piece) {
                           values.insert(values.end(), piece.begin(), piece.end());
                           return absl::OkStatus();
                         })
                  .ok());
  for (std::size_t i = 0; i < std::size(kHalves); ++i) {
    EXPECT_EQ(std::bit_cast<std::uint32_t>(values[i]),
              std::bit_cast<std::uint32_t>(kHalves[i].second))
        << i;
  }
  EXPECT_TRUE(std::isnan(values.back()));
}

TEST(TokenizerFilesTest, BytesHaveAJsonFileAndOthersAreCopied) {
  TempFolder folder;
  const auto bytes = TokenizerFiles("bytes", ".");
  ASSERT_TRUE(bytes.ok());
  ASSERT_EQ(bytes->front().name, "tokenizer.json");
  const json vocabulary = json::parse(bytes->front().content).at("model").at("vocab");
  EXPECT_EQ(vocabulary.size(), 256u);
  EXPECT_EQ(vocabulary.at("A"), 65);
  EXPECT_EQ(vocabulary.at("\u0120"), 32);  // what the library calls a space
  WriteWhole(folder / "my.model", "pieces");
  const auto pieces = TokenizerFiles("sentencepiece:my.model", folder.path());
  ASSERT_TRUE(pieces.ok()) << pieces.status();
  EXPECT_EQ(pieces->front().name, "tokenizer.model");
  EXPECT_EQ(pieces->front().content, "pieces");
  EXPECT_EQ(TokenizerFiles("none", folder.path()).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace paceline::huggingface
