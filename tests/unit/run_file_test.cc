#include "common/run_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "common/timeouts.h"

namespace paceline {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kValid[] = R"([run]
name = "quickstart"
member = "uni-a"
seed = 1
[model]
vocab_size = 256
hidden_size = 128
num_hidden_layers = 4
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 32
intermediate_size = 384
n_routed_experts = 8
n_shared_experts = 1
num_experts_per_tok = 2
moe_intermediate_size = 96
first_k_dense_replace = 1
scoring_func = "sigmoid"
rms_norm_eps = 1e-5
[data]
train = "corpus/train"
valid = "corpus/valid"
[train]
sequence_length = 256
global_batch_size = 16
micro_batch_size = 2
steps = 300
learning_rate = 3e-3
min_learning_rate = 3e-4
warmup_steps = 20
[layout]
pipeline = 1
[checkpoint]
interval_steps = 50
[launch]
nodes = 2
slots_per_node = 2
)";

// The valid file with one line replaced.
std::string With(const std::string& line, const std::string& replacement) {
  std::string text = kValid;
  const std::size_t at = text.find("\n" + line + "\n");
  EXPECT_NE(at, std::string::npos) << line;
  return text.replace(at + 1, line.size(), replacement);
}

absl::StatusOr<RunFile> Parse(const std::string& text, const std::vector<Override>& sets = {}) {
  return ParseRunFile(text, "run.toml", "/data/recipes", sets);
}

std::string ErrorOf(const std::string& text, const std::vector<Override>& sets = {}) {
  const absl::StatusOr<RunFile> parsed = Parse(text, sets);
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(parsed.status().message());
}

std::string ErrorOfSet(const std::string& set) { return ErrorOf(kValid, {{set, "/home/a"}}); }

TEST(RunFileTest, ValidFileGivesItsValuesAndTheDefaults) {
  const absl::StatusOr<RunFile> parsed = Parse(kValid);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->run.name, "quickstart");
  EXPECT_EQ(parsed->run.project, "default");
  EXPECT_EQ(parsed->model.n_routed_experts, 8);
  EXPECT_EQ(parsed->train.learning_rate, 3e-3);
  EXPECT_EQ(parsed->train.reduction, "exact");
  EXPECT_EQ(parsed->failure.budget_ms, 5000);
  EXPECT_EQ(parsed->WorldSize(), 4);
  EXPECT_EQ(parsed->MicroBatchesPerRank(), 2);
}

TEST(RunFileTest, RelativePathsResolveAgainstTheFilesFolderAndCheckpointsStayRelative) {
  const absl::StatusOr<RunFile> parsed = Parse(kValid);
  ASSERT_TRUE(parsed.ok());
  ASSERT_EQ(parsed->data.train.size(), 1u);
  EXPECT_EQ(parsed->data.train[0].path, "/data/recipes/corpus/train");
  EXPECT_EQ(parsed->checkpoint.dir, "checkpoints");
  EXPECT_EQ(parsed->checkpoint.init, "");
}

TEST(RunFileTest, HeadCountsDefaultAsInHuggingFace) {
  std::string text = With("head_dim = 32", "");
  text.erase(text.find("num_key_value_heads = 2"), std::string("num_key_value_heads = 2").size());
  const absl::StatusOr<RunFile> parsed = Parse(text);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->model.head_dim, 32);
  EXPECT_EQ(parsed->model.num_key_value_heads, 4);
}

TEST(RunFileTest, UnknownKeyNamesLineValueAndTheNearestKey) {
  EXPECT_EQ(ErrorOf(With("steps = 300", "stpes = 300\nsteps = 300")),
            "run.toml:27: [train] stpes = 300: there is no such key; did you mean steps?");
}

TEST(RunFileTest, KeyOfAnotherSectionIsSentHome) {
  EXPECT_THAT(ErrorOf(With("pipeline = 1", "slots_per_node = 1")),
              HasSubstr("did you mean [launch] slots_per_node?"));
}

TEST(RunFileTest, UnknownSectionNamesTheNearest) {
  EXPECT_THAT(ErrorOf(With("[layout]", "[layuot]")),
              HasSubstr("run.toml:31: [layuot]: there is no such section; did you mean [layout]?"));
}

TEST(RunFileTest, KeyOutsideASectionIsSentHome) {
  EXPECT_THAT(
      ErrorOf("steps = 5\n" + std::string(kValid)),
      HasSubstr("run.toml:1: steps: stands outside a section; did you mean [train] steps?"));
}

TEST(RunFileTest, WrongTypeNamesBothTypes) {
  EXPECT_EQ(ErrorOf(With("vocab_size = 256", "vocab_size = \"256\"")),
            "run.toml:6: [model] vocab_size = \"256\": is a string; it must be an integer from 2 "
            "to 2147483648");
  EXPECT_THAT(ErrorOf(With("steps = 300", "steps = 300.0")),
              HasSubstr("[train] steps = 300.0: is a number with a fraction"));
  EXPECT_THAT(ErrorOf(With("learning_rate = 3e-3", "learning_rate = true")),
              HasSubstr("learning_rate = true: is a boolean"));
}

TEST(RunFileTest, AnIntegerIsAllowedWhereANumberIs) {
  const absl::StatusOr<RunFile> parsed = Parse(With("learning_rate = 3e-3", "learning_rate = 1"));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->train.learning_rate, 1.0);
}

TEST(RunFileTest, ValuesOutOfRangeAreRefusedWithTheRange) {
  EXPECT_THAT(ErrorOf(With("vocab_size = 256", "vocab_size = 2147483649")),
              HasSubstr("must be an integer from 2 to 2147483648"));
  EXPECT_THAT(ErrorOf(With("learning_rate = 3e-3", "learning_rate = nan")),
              HasSubstr("[train] learning_rate = nan: it must be a number above 0"));
  EXPECT_THAT(ErrorOf(With("learning_rate = 3e-3", "learning_rate = inf")),
              HasSubstr("learning_rate = inf"));
  EXPECT_THAT(ErrorOf(With("rms_norm_eps = 1e-5", "rms_norm_eps = 0.0")),
              HasSubstr("a number above 0 and at most 1"));
  EXPECT_THAT(ErrorOf(With("warmup_steps = 20", "adam_beta2 = 1.0")),
              HasSubstr("a number of at least 0 and below 1"));
  EXPECT_THAT(ErrorOf(With("seed = 1", "seed = -1")), HasSubstr("seed = -1"));
  EXPECT_THAT(ErrorOf(With("steps = 300", "steps = 99999999999999999999")),
              HasSubstr("run.toml:27: not valid TOML"));
}

TEST(RunFileTest, WordsAreRefusedWithTheChoices) {
  EXPECT_THAT(ErrorOf(With("scoring_func = \"sigmoid\"", "scoring_func = \"relu\"")),
              HasSubstr("it must be \"softmax\" or \"sigmoid\""));
  EXPECT_THAT(ErrorOf(With("warmup_steps = 20", "lr_schedule = \"linear\"")),
              HasSubstr("\"cosine\", \"constant\" or \"wsd\""));
}

TEST(RunFileTest, NamesThatCannotBeFoldersAreRefused) {
  for (const char* name : {"", "..", "-a", "a b", "a/b", "ä", "a\\nb"}) {
    EXPECT_THAT(ErrorOf(With("name = \"quickstart\"", "name = \"" + std::string(name) + "\"")),
                HasSubstr("[run] name = "));
  }
  EXPECT_THAT(ErrorOf(With("seed = 1", "project = \"a b\"")), HasSubstr("[run] project"));
}

TEST(RunFileTest, MissingKeysAreNamedAtTheirSection) {
  const std::string error = ErrorOf(With("steps = 300", ""));
  EXPECT_THAT(error, HasSubstr("run.toml:23: [train] steps: is missing"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("run.toml:1: [run] name: is missing"));
}

TEST(RunFileTest, HeadCountsMustFit) {
  EXPECT_THAT(ErrorOf(With("num_key_value_heads = 2", "num_key_value_heads = 3")),
              HasSubstr("must divide num_attention_heads = 4"));
  EXPECT_THAT(ErrorOf(With("head_dim = 32", "head_dim = 33")), HasSubstr("must be even"));
  std::string odd = With("head_dim = 32", "");
  odd.replace(odd.find("hidden_size = 128"), 17, "hidden_size = 126");
  EXPECT_THAT(ErrorOf(odd), HasSubstr("[model] head_dim: is missing, and its default"));
}

TEST(RunFileTest, HiddenSizeMustBeAMultipleOf16) {
  EXPECT_THAT(ErrorOf(With("hidden_size = 128", "hidden_size = 130")),
              HasSubstr("[model] hidden_size = 130: must be a multiple of 16; try 144"));
}

TEST(RunFileTest, ExpertKeysMustFit) {
  EXPECT_THAT(ErrorOf(With("num_experts_per_tok = 2", "num_experts_per_tok = 9")),
              HasSubstr("must be at most n_routed_experts = 8"));
  EXPECT_THAT(ErrorOf(With("num_experts_per_tok = 2", "")),
              HasSubstr("[model] num_experts_per_tok: must be at least 1"));
  EXPECT_THAT(ErrorOf(With("moe_intermediate_size = 96", "")),
              HasSubstr("[model] moe_intermediate_size: must be at least 1"));
  EXPECT_THAT(ErrorOf(With("first_k_dense_replace = 1", "first_k_dense_replace = 5")),
              HasSubstr("must be at most num_hidden_layers = 4"));
  EXPECT_THAT(ErrorOf(With("intermediate_size = 384", "")),
              HasSubstr("[model] intermediate_size: must be at least 1"));
}

TEST(RunFileTest, DenseModelNeedsNoExpertKeys) {
  EXPECT_TRUE(Parse(kValid, {{"model.n_routed_experts=0", "."}}).ok());
}

TEST(RunFileTest, BatchThatDoesNotFitIsToldTheNearestThatDoes) {
  EXPECT_THAT(ErrorOf(With("global_batch_size = 16", "global_batch_size = 19")),
              HasSubstr("must be a multiple of micro_batch_size x data parallel = 2 x 4 = 8 on 4 "
                        "ranks (nodes = 2 x slots_per_node = 2); the nearest that fits is 16"));
  EXPECT_THAT(ErrorOf(With("global_batch_size = 16", "global_batch_size = 2")),
              HasSubstr("the nearest that fits is 8"));
}

TEST(RunFileTest, ALayoutMustFitRanksLayersExpertsAndBatch) {
  EXPECT_THAT(ErrorOfSet("layout.pipeline=3"), HasSubstr("must divide the 4 ranks"));
  EXPECT_THAT(ErrorOfSet("layout.expert=3"), HasSubstr("must divide the data parallel size 4"));
  EXPECT_THAT(ErrorOf(kValid, {{"model.n_routed_experts=6", "."}, {"layout.expert=4", "."}}),
              HasSubstr("must divide [model] n_routed_experts = 6"));
  EXPECT_THAT(ErrorOf(kValid, {{"model.n_routed_experts=0", "."}, {"layout.expert=2", "."}}),
              HasSubstr("n_routed_experts = 0, a dense model; give 1"));
  EXPECT_THAT(ErrorOf(kValid, {{"model.num_hidden_layers=1", "."}, {"layout.pipeline=2", "."}}),
              HasSubstr("is more than num_hidden_layers = 1"));
  EXPECT_THAT(
      ErrorOf(kValid, {{"model.tie_word_embeddings=true", "."}, {"layout.pipeline=2", "."}}),
      HasSubstr("must be 1 with [model] tie_word_embeddings = true"));
  EXPECT_THAT(ErrorOf(kValid, {{"layout.schedule=interleaved", "."}, {"layout.pipeline=2", "."}}),
              HasSubstr("needs at least 2 segments a stage"));
  EXPECT_THAT(
      ErrorOf(kValid, {{"layout.schedule=interleaved", "."}, {"layout.virtual_stages=2", "."}}),
      HasSubstr("needs at least 2 stages, not 1"));
  EXPECT_THAT(ErrorOfSet("layout.virtual_stages=2"), HasSubstr("has one segment a stage"));
  EXPECT_THAT(ErrorOfSet("layout.schedule=gpipe"), HasSubstr("\"zero-bubble\""));
  EXPECT_THAT(ErrorOfSet("layout.zero=2"), HasSubstr("an integer from 0 to 1"));
}

TEST(RunFileTest, WhatThisVersionCannotDoIsRefusedByName) {
  EXPECT_THAT(ErrorOfSet("launch.device=cuda"),
              HasSubstr("is not available in this build; it must be \"cpu\""));
  EXPECT_THAT(ErrorOfSet("launch.launcher=slurm"), HasSubstr("is not available in this build"));
  EXPECT_THAT(ErrorOfSet("launch.transport=nccl"), HasSubstr("is not available in this build"));
  EXPECT_THAT(ErrorOfSet("launch.transport=tcp"),
              HasSubstr("it must be \"gloo\", \"mpi\" or \"nccl\""));
}

// Refused either way: by a build without MPI because it has none, by others because no rank of
// such a run is in an MPI job.
TEST(RunFileTest, MpiTransportNeedsTheMpiLauncher) {
  EXPECT_THAT(ErrorOfSet("launch.transport=mpi"),
              AnyOf(HasSubstr("transport = \"mpi\": needs launcher = \"mpi\""),
                    HasSubstr("transport=mpi: needs launcher = \"mpi\""),
                    HasSubstr("is not available in this build; it must be \"gloo\"")));
}

// A run's folder has its run file with all values; `resume` may change `nodes` of it.
TEST(RunFileTest, TheLeastNumberOfNodesFollowsNodesUnlessItWasGiven) {
  const auto resumed = [](const std::string& text, const std::string& set) {
    const absl::StatusOr<RunFile> first = Parse(text);
    return ParseRunFile(ToToml(*first), "run.toml", "/runs/a", {{set, "."}});
  };
  EXPECT_EQ(Parse(kValid)->launch.MinNodes(), 1) << "of two";
  EXPECT_EQ(resumed(kValid, "launch.nodes=4")->launch.MinNodes(), 2);
  EXPECT_EQ((LaunchSection{.nodes = 3, .launcher = "mpi"}.MinNodes()), 3);
  EXPECT_EQ(
      resumed(With("nodes = 2", "nodes = 2\nmin_nodes = 1"), "launch.nodes=4")->launch.MinNodes(),
      1);
  EXPECT_THAT(
      resumed(With("nodes = 2", "nodes = 2\nmin_nodes = 2"), "launch.nodes=1").status().message(),
      AllOf(HasSubstr("[launch] min_nodes = 2: must be at most nodes = 1"),
            HasSubstr("Lower it as well, or give 0")));
}

TEST(RunFileTest, ScheduleMustFit) {
  EXPECT_THAT(ErrorOf(With("min_learning_rate = 3e-4", "min_learning_rate = 1.0")),
              HasSubstr("must be at most learning_rate = 0.003"));
  EXPECT_THAT(ErrorOf(With("warmup_steps = 20", "warmup_steps = 300")),
              HasSubstr("must be below steps = 300"));
  EXPECT_THAT(ErrorOf(kValid, {{"train.lr_schedule=wsd", "."}, {"train.decay_fraction=1.0", "."}}),
              HasSubstr("the decay must fit behind the warm-up"));
  EXPECT_THAT(ErrorOfSet("failure.budget_ms=99"), HasSubstr("an integer from 100"));
}

TEST(RunFileTest, TimeOutsThatDoNotFitTheBudgetAreRefusedByNameAndValue) {
  EXPECT_THAT(ErrorOfSet("failure.startup_ms=5000"),
              HasSubstr("failure.startup_ms=5000: must exceed budget_ms = 5000"));
  EXPECT_THAT(ErrorOfSet("failure.collective_ms=10000"),
              HasSubstr("failure.collective_ms=10000: must exceed 2 x budget_ms = 2 x 5000 = "
                        "10000: the coordinator"));
  EXPECT_THAT(ErrorOf(kValid, {{"failure.budget_ms=60000", "."},
                               {"failure.evaluation_ms=30000", "."},
                               {"failure.checkpoint_ms=60001", "."}}),
              HasSubstr("evaluation_ms=30000: must exceed budget_ms = 60000"));
  EXPECT_THAT(ErrorOfSet("failure.checkpoint_ms=-1"), HasSubstr("an integer from 0"));
}

TEST(RunFileTest, TimeOutsThatAreSetStandAndTheOthersFollowTheBudget) {
  using std::chrono::milliseconds;
  const absl::StatusOr<RunFile> parsed =
      Parse(kValid, {{"failure.budget_ms=10000", "."}, {"failure.collective_ms=20001", "."}});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const Timeouts timeouts = TimeoutsFor(parsed->failure);
  EXPECT_EQ(timeouts.collective, milliseconds(20'001));
  EXPECT_EQ(timeouts.startup, milliseconds(240'000));
  EXPECT_EQ(timeouts.progress, milliseconds(10'000));
  const absl::StatusOr<RunFile> again = Parse(ToToml(*parsed));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->failure.collective_ms, 20'001);
  EXPECT_EQ(again->failure.startup_ms, 0);
  for (const TimeoutEntry& entry : ExplainTimeouts(*parsed)) {
    EXPECT_EQ(entry.source == "[failure] collective_ms", entry.name == "collective");
    EXPECT_FALSE(entry.bounds.empty());
    EXPECT_GT(entry.limit.count(), 0) << entry.name;
  }
}

TEST(RunFileTest, SizesThatWouldOverflowAreRefused) {
  EXPECT_THAT(ErrorOf(With("n_routed_experts = 8", "n_routed_experts = 65536\n"),
                      {{"model.hidden_size=1048576", "."},
                       {"model.moe_intermediate_size=1048576", "."},
                       {"model.num_hidden_layers=4096", "."}}),
              HasSubstr("parameters; at most 1e15"));
  EXPECT_THAT(ErrorOf(kValid, {{"train.steps=1099511627776", "."},
                               {"train.global_batch_size=16777216", "."},
                               {"train.sequence_length=1048576", "."}}),
              HasSubstr("at most 4e18 tokens"));
}

TEST(RunFileTest, AllProblemsAreReportedAtOnceInTheOrderOfLines) {
  std::string text = With("vocab_size = 256", "vocab_size = 1");
  text.replace(text.find("steps = 300"), 11, "stpes = 300");
  text.replace(text.find("pipeline = 1"), 12, "pipeline = 3");
  const std::string error = ErrorOf(text, {{"launch.device=gpu", "."}});
  const std::vector<std::string> parts = {
      "run.toml:6: [model] vocab_size", "[train] steps: is missing", "run.toml:27: [train] stpes",
      "[layout] pipeline = 3", "--set launch.device=gpu: it must be"};
  std::size_t at = 0;
  for (const std::string& part : parts) {
    at = error.find(part, at);
    ASSERT_NE(at, std::string::npos) << part << "\n in\n" << error;
  }
}

TEST(RunFileTest, BrokenTomlNamesTheLine) {
  EXPECT_THAT(ErrorOf("[run]\nname = \n"), HasSubstr("run.toml:2: not valid TOML"));
  EXPECT_THAT(ErrorOf("[run]\nname = \"a\"\nname = \"b\"\n"), HasSubstr("run.toml:3: not valid"));
}

TEST(RunFileTest, SourcesMayBeAListWithWeights) {
  const absl::StatusOr<RunFile> parsed =
      Parse(With("train = \"corpus/train\"",
                 "train = [{path = \"a\", weight = 0.25}, {path = \"/b/c\"}, \"d\"]"));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->data.train.size(), 3u);
  EXPECT_EQ(parsed->data.train[0].path, "/data/recipes/a");
  EXPECT_EQ(parsed->data.train[0].weight, 0.25);
  EXPECT_EQ(parsed->data.train[1].path, "/b/c");
  EXPECT_EQ(parsed->data.train[2].weight, 1.0);
}

TEST(RunFileTest, BadSourcesAreRefused) {
  const std::string line = "train = \"corpus/train\"";
  EXPECT_THAT(ErrorOf(With(line, "train = []")), HasSubstr("must name at least one corpus"));
  EXPECT_THAT(ErrorOf(With(line, "train = \"\"")), HasSubstr("[data] train = \"\": it must be"));
  EXPECT_THAT(ErrorOf(With(line, "train = [{path = \"a\", weight = 0}]")),
              HasSubstr("entry 1: weight = 0: must be a number above 0"));
  EXPECT_THAT(ErrorOf(With(line, "train = [{path = \"a\", wieght = 1.0}]")),
              HasSubstr("entry 1: wieght: there is no such key; did you mean weight?"));
  EXPECT_THAT(ErrorOf(With(line, "train = [{weight = 1.0}]")), HasSubstr("entry 1: it must be"));
  EXPECT_THAT(ErrorOf(With(line, "train = 5")), HasSubstr("is an integer; it must be a path"));
  EXPECT_THAT(ErrorOf(With(line, "train = \"a\\u0000b\"")), HasSubstr("a control character"));
}

TEST(RunFileTest, OverrideReplacesTheFilesValue) {
  const absl::StatusOr<RunFile> parsed = Parse(kValid, {{"train.steps=100", "/home/a"},
                                                        {"run.name=other", "/home/a"},
                                                        {"data.train=texts/b", "/home/a"},
                                                        {"data.valid=", "/home/a"},
                                                        {"train.learning_rate=1e-3", "/home/a"},
                                                        {"run.member=2024-01-01", "/home/a"},
                                                        {"checkpoint.dir=ck", "/home/a"}});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->train.steps, 100);
  EXPECT_EQ(parsed->run.name, "other");
  EXPECT_EQ(parsed->run.member, "2024-01-01");
  EXPECT_EQ(parsed->data.train[0].path, "/home/a/texts/b");
  EXPECT_TRUE(parsed->data.valid.empty());
  EXPECT_EQ(parsed->train.learning_rate, 1e-3);
  EXPECT_EQ(parsed->checkpoint.dir, "/home/a/ck");
}

TEST(RunFileTest, OverrideMendsABadValueOfTheFile) {
  EXPECT_TRUE(Parse(With("steps = 300", "steps = \"many\""), {{"train.steps=30", "."}}).ok());
}

TEST(RunFileTest, BadOverridesAreNamedAsTheyWereGiven) {
  EXPECT_THAT(ErrorOfSet("train.stpes=5"),
              HasSubstr("--set train.stpes=5: there is no such key; did you mean train.steps?"));
  EXPECT_THAT(ErrorOfSet("trian.steps=5"), HasSubstr("did you mean [train]?"));
  EXPECT_THAT(ErrorOfSet("steps=5"), HasSubstr("did you mean train.steps?"));
  EXPECT_THAT(ErrorOfSet("train.steps"), HasSubstr("must be section.key=value"));
  EXPECT_THAT(ErrorOfSet("train.steps=few"),
              HasSubstr("--set train.steps=few: is a string; it must be an integer from 1"));
  EXPECT_THAT(ErrorOfSet("train.steps=\"5"), HasSubstr("not valid TOML"));
  EXPECT_THAT(ErrorOfSet("train.steps=5\n[run]"), HasSubstr("must be one line"));
}

TEST(RunFileTest, PrintedFileReadsBackTheSameBits) {
  std::mt19937_64 random(20240611);
  for (int round = 0; round < 200; ++round) {
    absl::StatusOr<RunFile> first = Parse(kValid);
    ASSERT_TRUE(first.ok());
    // Any finite bits between the ends of the range.
    const auto real = [&random](double low, double high) {
      const std::uint64_t from = std::bit_cast<std::uint64_t>(low);
      const std::uint64_t to = std::bit_cast<std::uint64_t>(high);
      return std::bit_cast<double>(from + random() % (to - from));
    };
    first->train.learning_rate = real(1e-3, 100.0);
    first->train.min_learning_rate = real(1e-300, 1e-3);
    first->train.adam_eps = real(1e-30, 1.0);
    first->model.rope_theta = real(1.0, 1e12);
    first->rates.slot_hour = real(5e-324, 1e6);
    first->run.seed = random() >> 1;
    first->data.train = {{"/a \"b\\ ü", 1.0}, {"/c", real(1e-9, 1e9)}};
    const absl::StatusOr<RunFile> again =
        ParseRunFile(ToToml(*first), "run.toml", "/elsewhere", {});
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(ToToml(*again), ToToml(*first));
    const auto bits = [](double value) { return std::bit_cast<std::uint64_t>(value); };
    EXPECT_EQ(bits(again->train.learning_rate), bits(first->train.learning_rate));
    EXPECT_EQ(bits(again->train.adam_eps), bits(first->train.adam_eps));
    EXPECT_EQ(bits(again->rates.slot_hour), bits(first->rates.slot_hour));
    EXPECT_EQ(bits(again->data.train[1].weight), bits(first->data.train[1].weight));
    EXPECT_EQ(again->run.seed, first->run.seed);
    EXPECT_EQ(again->data.train[0].path, first->data.train[0].path);
  }
}

TEST(RunFileTest, MutatedFilesNeverCrashAndWhatIsAcceptedPrintsAndReadsBack) {
  std::mt19937_64 random(7);
  const std::string alphabet = "[]{}=\"'.,#\n0123456789eE+-_ truefalsnainf\\\x00\xff\x7f";
  int accepted = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string text = kValid;
    const int edits = 1 + static_cast<int>(random() % 4);
    for (int edit = 0; edit < edits && !text.empty(); ++edit) {
      const std::size_t at = random() % text.size();
      switch (random() % 4) {
        case 0:
          text[at] = alphabet[random() % alphabet.size()];
          break;
        case 1:
          text.insert(at, 1, alphabet[random() % alphabet.size()]);
          break;
        case 2:
          text.erase(at, 1 + random() % 8);
          break;
        default:
          text.insert(at, text.substr(random() % text.size(), random() % 40));
      }
    }
    const absl::StatusOr<RunFile> parsed = Parse(text);
    if (!parsed.ok()) {
      EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_FALSE(parsed.status().message().empty());
      continue;
    }
    ++accepted;
    const absl::StatusOr<RunFile> again = Parse(ToToml(*parsed));
    ASSERT_TRUE(again.ok()) << again.status() << "\n" << text;
    EXPECT_EQ(ToToml(*again), ToToml(*parsed));
  }
  EXPECT_GT(accepted, 10);
}

TEST(RunFileTest, DeepNestingAndHugeFilesAreRefused) {
  EXPECT_THAT(ErrorOf("a = " + std::string(5000, '[')), HasSubstr("not valid TOML"));
  EXPECT_THAT(ErrorOf(std::string(2 << 20, '#')), HasSubstr("larger than 1 MiB"));
  EXPECT_THAT(ErrorOfSet("data.train=" + std::string(5000, '[')), HasSubstr("not valid TOML"));
}

TEST(RunFileTest, ManyProblemsAreCounted) {
  std::string text = kValid;
  for (int i = 0; i < 100; ++i) text += "unknown_" + std::to_string(i) + " = 1\n";
  EXPECT_THAT(ErrorOf(text), HasSubstr("run.toml: 50 more problems"));
}

TEST(RunFileTest, MissingFileIsNotFound) {
  EXPECT_EQ(LoadRunFile("/nonexistent/run.toml", {}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(LoadRunFile("/", {}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(RunFileTest, LoadedFileResolvesAgainstItsOwnFolder) {
  const std::filesystem::path folder = std::filesystem::path(::testing::TempDir()) / "run-file";
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "run.toml") << kValid;
  const absl::StatusOr<RunFile> parsed = LoadRunFile((folder / "run.toml").string(), {});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->data.train[0].path, (folder / "corpus/train").lexically_normal().string());
  EXPECT_THAT(parsed->data.train[0].path, Not(HasSubstr("//")));
}

}  // namespace
}  // namespace paceline
