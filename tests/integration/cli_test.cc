// The built `paceline` on input that is wrong, and on what needs no run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

#include "common/process.h"
#include "nlohmann/json.hpp"
#include "tests/support/temp_folder.h"

namespace paceline {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

struct Output {
  int code = -1;
  std::string out;
  std::string err;
};

// Runs `paceline` with `arguments` in `folder`.
Output Paceline(const TempFolder& folder, std::vector<std::string> arguments) {
  std::vector<std::string> argv = {"/bin/sh",
                                   "-c",
                                   "out=$1; err=$2; shift 2; exec \"$@\" >\"$out\" 2>\"$err\"",
                                   "sh",
                                   folder / "out",
                                   folder / "err",
                                   std::string(std::getenv("PACELINE_BIN_DIR")) + "/paceline"};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  auto process = Process::Start({.argv = argv, .working_folder = folder.path().string()});
  EXPECT_TRUE(process.ok()) << process.status();
  const auto exit = (*process)->WaitFor(std::chrono::seconds(60));
  EXPECT_TRUE(exit.has_value()) << "paceline did not end";
  return {exit.value_or(ProcessExit{}).exit_code, ReadWhole(folder / "out"),
          ReadWhole(folder / "err")};
}

constexpr char kRunFile[] = R"([run]
name = "tiny"
[model]
vocab_size = 256
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 64
[data]
train = "corpus/train"
[train]
sequence_length = 16
global_batch_size = 4
micro_batch_size = 2
steps = 3
learning_rate = 1e-3
)";

class CliTest : public ::testing::Test {
 protected:
  CliTest() { WriteWhole(folder_ / "tiny.toml", kRunFile); }
  Output Run(std::vector<std::string> arguments) { return Paceline(folder_, std::move(arguments)); }
  TempFolder folder_;
};

TEST_F(CliTest, UnknownKeyEndsWithTwoAndNamesLineAndNearestKey) {
  std::string text = kRunFile;
  WriteWhole(folder_ / "bad.toml", text.replace(text.find("steps = 3"), 9, "stesp = 3"));
  const Output output = Run({"run", "bad.toml"});
  EXPECT_EQ(output.code, 2);
  EXPECT_THAT(output.out, IsEmpty());
  EXPECT_THAT(output.err, HasSubstr("bad.toml:15: [train] stesp = 3: there is no such key; did you "
                                    "mean steps?"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "runs"));
}

TEST_F(CliTest, MissingRunFileAndMissingCorpusEndWithTwoAndLeaveNothing) {
  const Output no_file = Run({"run", "none.toml"});
  EXPECT_EQ(no_file.code, 2);
  EXPECT_THAT(no_file.err, HasSubstr("none.toml: there is no such run file"));
  const Output no_corpus = Run({"run", "tiny.toml"});
  EXPECT_EQ(no_corpus.code, 2);
  EXPECT_THAT(no_corpus.err, HasSubstr("corpus/train"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "runs"));
}

TEST_F(CliTest, BadSetIsNamedAsGiven) {
  const Output output = Run({"run", "tiny.toml", "--set", "train.steps=many"});
  EXPECT_EQ(output.code, 2);
  EXPECT_THAT(output.err, HasSubstr("--set train.steps=many: is a string; it must be an integer"));
}

TEST_F(CliTest, SetIsAnsweredWithTheKeyAsSetTakesIt) {
  EXPECT_THAT(Run({"plan", "tiny.toml", "--set", "train.stepz=1"}).err,
              HasSubstr("did you mean train.steps?"));
  EXPECT_THAT(Run({"plan", "tiny.toml", "--set", "run.steps=1"}).err,
              HasSubstr("did you mean train.steps?"));
  const Output huge = Run({"plan", "tiny.toml", "--set", "train.steps=99999999999999999999"});
  EXPECT_EQ(huge.code, 2);
  EXPECT_THAT(huge.err, HasSubstr("is an integer beyond 64 bits"));
}

TEST_F(CliTest, WhatIsWrongWithACorpusNamesTheLineThatNamesIt) {
  const Output in_file = Run({"run", "tiny.toml"});
  EXPECT_EQ(in_file.code, 2);
  EXPECT_THAT(in_file.err, HasSubstr("tiny.toml:10: [data] train: "));
  const Output by_set = Run({"run", "tiny.toml", "--set", "data.train=elsewhere"});
  EXPECT_EQ(by_set.code, 2);
  EXPECT_THAT(by_set.err, HasSubstr("--set data.train=elsewhere: "));
}

TEST_F(CliTest, ErrorsAreOneJsonObjectWhenJsonIsAskedFor) {
  const Output output = Run({"run", "none.toml", "-o", "json"});
  EXPECT_EQ(output.code, 2);
  const nlohmann::json json = nlohmann::json::parse(output.out);
  EXPECT_EQ(json.at("exit_code"), 2);
  EXPECT_THAT(json.at("error").get<std::string>(), HasSubstr("no such run file"));
}

TEST_F(CliTest, UnknownVerbAndUnknownFlagEndWithTwo) {
  const Output verb = Run({"rnu"});
  EXPECT_EQ(verb.code, 2);
  EXPECT_THAT(verb.err, HasSubstr("did you mean paceline run?"));
  EXPECT_EQ(Run({}).code, 2);
  const Output flag = Run({"run", "tiny.toml", "--sett", "train.steps=1"});
  EXPECT_EQ(flag.code, 2);
  EXPECT_THAT(flag.err, HasSubstr("--sett: there is no such flag; did you mean --set?"));
  EXPECT_EQ(Run({"show", "--nonsense"}).code, 2);
  EXPECT_EQ(Run({"ps", "-o", "xml"}).code, 2);
}

TEST_F(CliTest, EveryVerbHasHelpWithExamplesAndTakesRunDir) {
  for (const char* verb : {"run", "ps", "show", "logs", "events", "audit", "stop", "resume",
                           "generate", "plan", "version", "completion"}) {
    const Output output = Run({verb, "--help"});
    EXPECT_EQ(output.code, 0) << verb;
    EXPECT_THAT(output.out, HasSubstr("examples:")) << verb;
    EXPECT_THAT(output.out, HasSubstr("--run-dir")) << verb;
  }
  EXPECT_THAT(Run({"data", "prepare", "--help"}).out, HasSubstr("--run-dir"));
  EXPECT_THAT(Run({"checkpoint", "export", "--help"}).out, HasSubstr("--run-dir"));
}

TEST_F(CliTest, VersionIsJsonThatParses) {
  const Output output = Run({"version", "-o", "json"});
  EXPECT_EQ(output.code, 0);
  const nlohmann::json json = nlohmann::json::parse(output.out);
  EXPECT_FALSE(json.at("version").get<std::string>().empty());
  EXPECT_EQ(json.at("transports").at(0), "gloo");
  EXPECT_TRUE(json.at("cuda_kernels_compiled").is_boolean());
}

TEST_F(CliTest, BashCompletionCompletesVerbsAndFlags) {
  const Output script = Run({"completion", "bash"});
  ASSERT_EQ(script.code, 0);
  WriteWhole(folder_ / "completion", script.out);
  WriteWhole(folder_ / "try",
             "source ./completion\n"
             "complete_line() { COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _paceline; "
             "echo \"${COMPREPLY[*]}\"; }\n"
             "complete_line paceline res\n"
             "complete_line paceline data pre\n"
             "complete_line paceline checkpoint ver\n"
             "complete_line paceline logs --fol\n"
             "complete_line paceline show lat\n"
             "complete_line paceline completion zs\n");
  auto process = Process::Start({.argv = {"/bin/bash", folder_ / "try"},
                                 .working_folder = folder_.path().string(),
                                 .log_path = folder_ / "tried"});
  ASSERT_TRUE(process.ok()) << process.status();
  ASSERT_TRUE((*process)->WaitFor(std::chrono::seconds(30)).has_value());
  EXPECT_EQ(ReadWhole(folder_ / "tried"), "resume\nprepare\nverify\n--follow\nlatest\nzsh\n");
}

TEST_F(CliTest, ZshAndFishCompletionNameTheVerbs) {
  EXPECT_THAT(Run({"completion", "zsh"}).out, StartsWith("#compdef paceline"));
  EXPECT_THAT(Run({"completion", "fish"}).out, HasSubstr("-a resume"));
  EXPECT_EQ(Run({"completion", "tcsh"}).code, 2);
}

TEST_F(CliTest, RunDirWithoutRunsIsEmptyAndARunThatIsNotThereEndsWithTwo) {
  EXPECT_EQ(Run({"ps"}).code, 0);
  EXPECT_EQ(nlohmann::json::parse(Run({"ps", "-o", "json"}).out).at("runs").size(), 0u);
  const Output missing = Run({"ps", "--run-dir", "elsewhere"});
  EXPECT_EQ(missing.code, 2);
  EXPECT_THAT(missing.err, HasSubstr("--run-dir elsewhere: there is no such folder"));
  for (const char* verb : {"show", "stop", "resume", "logs"}) {
    const Output output = Run({verb, "latest", "--run-dir", "elsewhere"});
    EXPECT_EQ(output.code, 2) << verb;
    EXPECT_THAT(output.err, HasSubstr("there are no runs in elsewhere")) << verb;
  }
}

TEST_F(CliTest, ResumeKeepsWhatDecidesTheSamples) {
  std::filesystem::create_directories(folder_.path() / "runs/tiny-1");
  WriteWhole(folder_ / "runs/tiny-1/run.toml", kRunFile);
  const Output output = Run({"resume", "latest", "--set", "train.global_batch_size=8"});
  EXPECT_EQ(output.code, 2);
  EXPECT_THAT(output.err, HasSubstr("a run that goes on keeps its train.global_batch_size"));
}

TEST_F(CliTest, PlanCountsWhatTheModelTakes) {
  const Output output = Run({"plan", "tiny.toml", "-o", "json"});
  ASSERT_EQ(output.code, 0) << output.err;
  const nlohmann::json json = nlohmann::json::parse(output.out);
  // Embedding and head 256 x 32 each; attention 4 x 32 x 32; SwiGLU 3 x 32 x 64; three norms.
  EXPECT_EQ(json.at("parameters"), 2 * 256 * 32 + 4 * 32 * 32 + 3 * 32 * 64 + 3 * 32);
  EXPECT_GT(json.at("memory_per_rank").at("activations").get<double>(), 0);
  EXPECT_EQ(json.at("tokens"), 3 * 4 * 16);
  EXPECT_THAT(Run({"plan", "tiny.toml"}).out, HasSubstr("memory a rank"));
}

TEST_F(CliTest, PlanCountsOneAsOne) {
  EXPECT_THAT(Run({"plan", "tiny.toml"}).out, HasSubstr("1 rank on 1 node of 1 slot, in order"));
}

// Of a cluster of nodes of 8 slots.
TEST_F(CliTest, PlanTakesThePartOfTheClusterThatIsAskedFor) {
  const std::string recipes = std::string(std::getenv("PACELINE_SOURCE_DIR")) + "/launch/recipes/";
  std::vector<std::string> plan = {"plan",      "tiny.toml",
                                   "--cluster", recipes + "clusters/h100-8x8.toml",
                                   "--set",     "launch.nodes=2",
                                   "--set",     "launch.slots_per_node=2",
                                   "--set",     "train.global_batch_size=8",
                                   "-o",        "json"};
  for (const bool choose : {false, true}) {
    if (choose) plan.push_back("--choose");
    const Output output = Run(plan);
    ASSERT_EQ(output.code, 0) << output.err;
    const nlohmann::json placement = nlohmann::json::parse(output.out).at("placement");
    ASSERT_EQ(placement.size(), 4u);
    for (std::size_t rank = 0; rank < 4; ++rank) {
      EXPECT_EQ(placement[rank].at("node"), "node-" + std::to_string(rank / 2));
      EXPECT_EQ(placement[rank].at("slot"), rank % 2);
    }
  }
}

TEST_F(CliTest, LogsAreOneJsonObject) {
  std::filesystem::create_directories(folder_.path() / "runs/tiny-1/logs");
  WriteWhole(folder_ / "runs/tiny-1/run.toml", kRunFile);
  WriteWhole(folder_ / "runs/tiny-1/logs/node-0.log", "first\nsecond | third\n");
  const Output output = Run({"logs", "latest", "-n", "1", "-o", "json"});
  EXPECT_EQ(output.code, 0) << output.err;
  const nlohmann::json json = nlohmann::json::parse(output.out);
  EXPECT_EQ(json.at("run_id"), "tiny-1");
  ASSERT_EQ(json.at("lines").size(), 1u);
  EXPECT_EQ(json.at("lines")[0].at("source"), "node-0");
  EXPECT_EQ(json.at("lines")[0].at("line"), "second | third");
  EXPECT_EQ(Run({"logs", "latest", "-f", "-o", "json"}).code, 2);
}

TEST_F(CliTest, GenerateFromARunsFolderSaysWhichFolderToGive) {
  std::filesystem::create_directories(folder_.path() / "runs/tiny-1/checkpoints/step-00000010-g1");
  WriteWhole(folder_ / "runs/tiny-1/run.toml", kRunFile);
  const std::vector<std::string> generate = {"generate", "--checkpoint", "runs/tiny-1", "--prompt",
                                             "a"};
  const Output none = Run(generate);
  EXPECT_EQ(none.code, 2);
  EXPECT_THAT(none.err, HasSubstr("runs/tiny-1/checkpoints, of which none is committed yet"));
  WriteWhole(folder_ / "runs/tiny-1/checkpoints/step-00000010-g1/manifest.json", "{}");
  EXPECT_THAT(Run(generate).err, HasSubstr("runs/tiny-1/checkpoints: give that"));
}

TEST_F(CliTest, GenerateWithoutACheckpointNamesTheFolder) {
  const Output output = Run({"generate", "--checkpoint", "nowhere", "--prompt", "a"});
  EXPECT_EQ(output.code, 2);
  EXPECT_THAT(output.err, HasSubstr("nowhere"));
  EXPECT_THAT(output.err, Not(HasSubstr("terminate")));
}

// The words behind "paceline run" or "paceline plan" in the comment that a recipe begins with.
std::vector<std::string> CommandInHeadOf(const std::filesystem::path& recipe) {
  std::istringstream text(ReadWhole(recipe));
  std::vector<std::string> words;
  std::string line;
  while (std::getline(text, line) && line.starts_with("#")) {
    std::istringstream of_line(line.substr(1));
    std::string word;
    bool goes_on = !words.empty();
    while (of_line >> word) {
      if (word == "paceline" && words.empty()) {
        of_line >> word;
        goes_on = true;
      } else if (goes_on && word != "\\") {
        words.push_back(word);
      }
    }
    if (!words.empty() && !line.ends_with("\\")) break;
  }
  return words;
}

TEST_F(CliTest, RecipesCanBePlannedByTheCommandsInTheirHeads) {
  const std::filesystem::path source = std::getenv("PACELINE_SOURCE_DIR");
  int planned = 0;
  for (const auto& entry : std::filesystem::directory_iterator(source / "launch/recipes")) {
    if (!entry.is_regular_file()) continue;
    SCOPED_TRACE(entry.path());
    std::vector<std::string> words = CommandInHeadOf(entry.path());
    if (words.empty()) continue;
    for (std::string& word : words) {
      if (word.starts_with("launch/")) word = (source / word).string();
    }
    words.insert(words.begin(), "plan");
    const Output output = Run(words);
    EXPECT_EQ(output.code, 0) << output.err;
    EXPECT_THAT(output.out, HasSubstr("memory a rank"));
    ++planned;
  }
  EXPECT_GE(planned, 4);
}

}  // namespace
}  // namespace paceline
