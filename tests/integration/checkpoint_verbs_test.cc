// The built `paceline checkpoint`: what it prints and what it ends with.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "common/process.h"
#include "nlohmann/json.hpp"
#include "tests/support/small_checkpoint.h"
#include "tests/support/temp_folder.h"

namespace paceline {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class CheckpointVerbsTest : public ::testing::Test {
 protected:
  CheckpointVerbsTest() { Write(); }

  void Write() { WriteSmallCheckpoint(Step(), SmallSigmoid(), 3); }
  std::string Step() { return folder_ / "checkpoints/step-00000003-g1"; }
  std::string Part(int rank) {
    return Step() + "/rank-0000" + std::to_string(rank) + ".safetensors";
  }

  // `paceline checkpoint` with these; its exit code. out_ and err_ are what it printed.
  int Run(std::vector<std::string> arguments) {
    std::vector<std::string> argv = {"/bin/sh",
                                     "-c",
                                     "out=$1; err=$2; shift 2; exec \"$@\" >\"$out\" 2>\"$err\"",
                                     "sh",
                                     folder_ / "out",
                                     folder_ / "err",
                                     std::string(std::getenv("PACELINE_BIN_DIR")) + "/paceline",
                                     "checkpoint"};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    auto process = Process::Start({.argv = argv, .working_folder = folder_.path().string()});
    EXPECT_TRUE(process.ok()) << process.status();
    const auto exit = (*process)->WaitFor(std::chrono::seconds(60));
    EXPECT_TRUE(exit.has_value()) << "paceline did not end";
    out_ = ReadWhole(folder_ / "out");
    err_ = ReadWhole(folder_ / "err");
    return exit.value_or(ProcessExit{}).exit_code;
  }

  TempFolder folder_;
  std::string out_;
  std::string err_;
};

TEST_F(CheckpointVerbsTest, InspectNamesEverySliceOfEveryTensor) {
  ASSERT_EQ(Run({"inspect", "checkpoints", "-o", "json"}), 0) << err_;
  const json object = json::parse(out_);
  EXPECT_EQ(object.at("run_id"), "small-run");
  EXPECT_EQ(object.at("step"), 3);
  EXPECT_EQ(object.at("sample"), 3);
  EXPECT_EQ(object.at("tokens"), 48);
  EXPECT_EQ(object.at("parts").size(), 2u);
  const json& embedding = object.at("tensors").at(0);
  EXPECT_EQ(embedding.at("name"), "model.embed_tokens.weight");
  EXPECT_EQ(embedding.at("dtype"), "F32");
  EXPECT_EQ(embedding.at("shape"), json({32, 16}));
  ASSERT_EQ(embedding.at("slices").size(), 2u);
  EXPECT_EQ(embedding.at("slices").at(1).at("start"), json({16, 0}));
  EXPECT_EQ(embedding.at("slices").at(1).at("file"), "rank-00001.safetensors");
  ASSERT_EQ(Run({"inspect", Step()}), 0) << err_;
  EXPECT_THAT(out_, AllOf(HasSubstr("small-run, generation 0"),
                          HasSubstr("model.embed_tokens.weight  F32 [32, 16]"),
                          HasSubstr("rank-00001.safetensors [16, 16] from [16, 0]")));
}

TEST_F(CheckpointVerbsTest, VerifyNamesWhatIsDamagedAndEndsWithSeventy) {
  ASSERT_EQ(Run({"verify", Step()}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("step 3 is whole: 2 parts"));

  std::string bytes = ReadWhole(Part(1));
  bytes[bytes.size() - 1] ^= 1;
  WriteWhole(Part(1), bytes);
  EXPECT_EQ(Run({"verify", Step()}), 70);
  EXPECT_THAT(err_, AllOf(HasSubstr("rank-00001.safetensors"), HasSubstr("digest")));

  bytes.resize(bytes.size() / 2);
  WriteWhole(Part(1), bytes);
  EXPECT_EQ(Run({"verify", Step(), "-o", "json"}), 70);
  EXPECT_EQ(json::parse(out_).at("exit_code"), 70);
  EXPECT_THAT(err_, AllOf(HasSubstr("rank-00001.safetensors"), HasSubstr("bytes")));

  std::filesystem::remove(Part(1));
  EXPECT_EQ(Run({"verify", Step()}), 70);
  EXPECT_THAT(err_, HasSubstr("rank-00001.safetensors: this part is missing"));

  Write();
  std::string manifest = ReadWhole(Step() + "/manifest.json");
  manifest.replace(manifest.find("\"step\": 3"), 9, "\"step\": 4");
  WriteWhole(Step() + "/manifest.json", manifest);
  EXPECT_EQ(Run({"verify", Step()}), 70);
  EXPECT_THAT(err_, HasSubstr("manifest.json"));
}

TEST_F(CheckpointVerbsTest, PartsAndManifestsOfAnotherStepAreRefusedByName) {
  const std::string other = folder_ / "checkpoints/step-00000004-g1";
  ModelSection model = SmallSigmoid();
  WriteSmallCheckpoint(other, model, 4);
  // The same tensors with other values, as a later step leaves them.
  std::string later = ReadWhole(Part(1));
  for (std::size_t i = later.size() - 400; i < later.size(); i += 4) later[i] ^= 3;
  WriteWhole(Part(1), later);
  EXPECT_EQ(Run({"verify", Step()}), 70);
  EXPECT_THAT(err_, AllOf(HasSubstr("rank-00001.safetensors"), HasSubstr("another step")));

  Write();
  std::filesystem::copy_file(other + "/manifest.json", Step() + "/manifest.json",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_EQ(Run({"verify", Step()}), 70);
  EXPECT_THAT(err_, AllOf(HasSubstr("step-00000003-g1/manifest.json"), HasSubstr("step 4")));
}

TEST_F(CheckpointVerbsTest, FoldersWithoutACheckpointEndWithTwo) {
  for (const char* verb : {"inspect", "verify"}) {
    EXPECT_EQ(Run({verb, "none"}), 2) << verb;
    EXPECT_THAT(err_, HasSubstr("none: is neither a committed checkpoint"));
  }
  std::filesystem::remove(Step() + "/manifest.json");
  EXPECT_EQ(Run({"verify", Step()}), 2);
  EXPECT_EQ(Run({"export", "none", "--output", "hf"}), 2);
  EXPECT_EQ(Run({"import", "none", "--output", "back"}), 2);
  EXPECT_THAT(err_, HasSubstr("none/config.json"));
}

TEST_F(CheckpointVerbsTest, ExportAndImportSayWhatTheyMade) {
  ASSERT_EQ(
      Run({"export", "checkpoints", "--format", "huggingface", "--output", "hf", "-o", "json"}), 0)
      << err_;
  EXPECT_EQ(json::parse(out_).at("architecture"), "Glm4MoeForCausalLM");
  EXPECT_EQ(json::parse(out_).at("step"), 3);
  EXPECT_EQ(Run({"export", "checkpoints", "--output", "hf"}), 2);
  EXPECT_THAT(err_, HasSubstr("--force"));
  EXPECT_EQ(Run({"export", "checkpoints", "--output", "hf", "--force", "--dtype", "bfloat16"}), 0);
  EXPECT_THAT(out_, HasSubstr("bfloat16"));
  EXPECT_EQ(Run({"export", "checkpoints", "--output", "other", "--format", "onnx"}), 2);
  EXPECT_THAT(err_, HasSubstr("--format onnx: must be huggingface"));

  ASSERT_EQ(Run({"import", "hf", "--output", "back"}), 0) << err_;
  EXPECT_THAT(out_, AllOf(HasSubstr("[model]\nvocab_size = 32\n"), HasSubstr("init = \"")));
  EXPECT_EQ(Run({"verify", "back"}), 0) << err_;
  EXPECT_THAT(err_, IsEmpty());
}

}  // namespace
}  // namespace paceline
