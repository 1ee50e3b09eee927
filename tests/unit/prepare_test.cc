// Preparing a corpus: what goes in comes out, split at a line's end; bad input changes nothing.
#include "worker/data/prepare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>

#include "tests/support/temp_folder.h"
#include "worker/data/corpus.h"
#include "worker/data/tokenizer.h"

namespace paceline {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

std::string Lines(int count, int seed = 1) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    text += "line " + std::to_string(i * seed) + std::string((i * 7919 + seed) % 60, 'x') + "\n";
  }
  return text;
}

std::string TextOf(const std::string& folder, const std::string& tokenizer = "bytes") {
  const auto corpus = Corpus::Open(folder);
  EXPECT_TRUE(corpus.ok()) << corpus.status();
  EXPECT_TRUE((*corpus)->VerifyDigests().ok());
  std::vector<std::int32_t> tokens((*corpus)->tokens());
  EXPECT_TRUE((*corpus)->Read(0, (*corpus)->manifest().vocab_size, tokens).ok());
  return *(*LoadTokenizer(tokenizer, folder, std::getenv("PACELINE_BIN_DIR")))->Decode(tokens);
}

// Every file below `folder` with its content.
std::map<std::string, std::string> Snapshot(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    files[fs::relative(entry.path(), folder).string()] = ReadWhole(entry.path());
  }
  return files;
}

class PrepareTest : public ::testing::Test {
 protected:
  std::string Input(const std::string& name, const std::string& content) {
    WriteWhole(folder_ / name, content);
    return folder_ / name;
  }
  std::string Gzip(const std::string& name, const std::string& content) {
    gzFile file = ::gzopen((folder_ / name).c_str(), "wb");
    EXPECT_EQ(::gzwrite(file, content.data(), content.size()), static_cast<int>(content.size()));
    EXPECT_EQ(::gzclose(file), Z_OK);
    return folder_ / name;
  }
  PrepareOptions Options(std::vector<std::string> inputs) {
    return {.inputs = std::move(inputs), .output = folder_ / "corpus"};
  }
  std::string Error(const PrepareOptions& options, absl::StatusCode code) {
    const auto report = PrepareCorpus(options);
    EXPECT_EQ(report.status().code(), code) << report.status();
    return std::string(report.status().message());
  }
  std::set<std::string> Names() {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_.path())) {
      names.insert(entry.path().filename());
    }
    return names;
  }

  TempFolder folder_;
};

TEST_F(PrepareTest, TrainAndValidTogetherAreTheText) {
  const std::string text = Lines(2000);
  PrepareOptions options = Options({Input("a.txt", text)});
  options.valid_fraction = 0.1;
  const auto report = PrepareCorpus(options);
  ASSERT_TRUE(report.ok()) << report.status();
  const std::string train = TextOf(folder_ / "corpus/train");
  const std::string valid = TextOf(folder_ / "corpus/valid");
  EXPECT_TRUE(train + valid == text);
  EXPECT_EQ(train.back(), '\n');
  EXPECT_NEAR(static_cast<double>(valid.size()) / text.size(), 0.1, 0.002);
  EXPECT_EQ(report->text_bytes, text.size());
  EXPECT_EQ(report->train.manifest.tokens, train.size());
  EXPECT_EQ(report->valid.manifest.tokens, valid.size());
  EXPECT_EQ(report->train.manifest.vocab_size, 256);
  EXPECT_EQ(report->train.manifest.tokenizer, "bytes");
  EXPECT_EQ(report->train.manifest.source, "a.txt");
  EXPECT_EQ(report->train.manifest.documents, 1);
}

// Pieces of a megabyte meet lines, long characters and a text without any line.
TEST_F(PrepareTest, LargeTextsSurviveBeingCutIntoPieces) {
  std::string no_lines;
  while (no_lines.size() < (5 << 19)) no_lines += "\xe2\x82\xac\xc3\xa9z";
  for (const std::string& text : {Lines(60000), no_lines}) {
    PrepareOptions options = Options({Input("a.txt", text)});
    options.valid_fraction = 0.3;
    options.force = true;
    ASSERT_TRUE(PrepareCorpus(options).ok());
    const std::string train = TextOf(folder_ / "corpus/train");
    const std::string valid = TextOf(folder_ / "corpus/valid");
    EXPECT_TRUE(train + valid == text);
    EXPECT_NE(static_cast<unsigned char>(valid[0]) & 0xc0, 0x80) << "cut inside a character";
  }
}

TEST_F(PrepareTest, EachFileIsADocumentAndShardsAreCutAtTheirSize) {
  const std::string a = Lines(100), b = Lines(50, 3), c = Lines(10, 5);
  PrepareOptions options = Options({Input("a", a), Input("b", b), Gzip("c.gz", c)});
  options.valid_fraction = 0;
  options.shard_tokens = 1000;
  const auto report = PrepareCorpus(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(TextOf(folder_ / "corpus/train") == a + b + c);
  EXPECT_FALSE(fs::exists(folder_ / "corpus/valid"));
  EXPECT_TRUE(report->valid.folder.empty());
  const auto& shards = report->train.manifest.shards;
  ASSERT_EQ(shards.size(), ((a + b + c).size() + 999) / 1000);
  for (std::size_t i = 0; i + 1 < shards.size(); ++i) EXPECT_EQ(shards[i].tokens, 1000);
  // A document that spans shards counts in each.
  EXPECT_EQ(report->train.manifest.documents, shards.size() + 2);
}

TEST_F(PrepareTest, SameInputGivesTheSameBytes) {
  PrepareOptions options = Options({Input("a.txt", Lines(500))});
  ASSERT_TRUE(PrepareCorpus(options).ok());
  const auto first = Snapshot(folder_ / "corpus");
  options.force = true;
  ASSERT_TRUE(PrepareCorpus(options).ok());
  EXPECT_TRUE(Snapshot(folder_ / "corpus") == first);
  EXPECT_EQ(Names(), (std::set<std::string>{"a.txt", "corpus"}));
}

TEST_F(PrepareTest, EntropyIsThatOfTheTokenFrequencies) {
  EXPECT_DOUBLE_EQ(EntropyOf({1, 1, 1, 1}), std::log(4.0));
  EXPECT_DOUBLE_EQ(EntropyOf({0, 9, 0}), 0.0);
  EXPECT_DOUBLE_EQ(EntropyOf({}), 0.0);
  PrepareOptions options = Options({Input("a", "abcabc\nabcabc\n")});
  options.valid_fraction = 0;
  const auto report = PrepareCorpus(options);
  const double p = 4.0 / 14, q = 2.0 / 14;
  EXPECT_NEAR(report->train.unigram_entropy, -3 * p * std::log(p) - q * std::log(q), 1e-12);
}

TEST_F(PrepareTest, SentencePieceCorpusCarriesItsModel) {
  const std::string fixtures =
      std::string(std::getenv("PACELINE_SOURCE_DIR")) + "/tests/fixtures/data";
  const std::string text = Lines(300);
  PrepareOptions options = Options({Input("a.txt", text)});
  options.tokenizer = "sentencepiece:" + fixtures + "/tiny.model";
  options.program_folder = std::getenv("PACELINE_BIN_DIR");
  options.valid_fraction = 0.2;
  const auto report = PrepareCorpus(options);
  ASSERT_TRUE(report.ok()) << report.status();
  const CorpusManifest& manifest = report->train.manifest;
  EXPECT_EQ(manifest.tokenizer, "sentencepiece:tokenizer.model");
  EXPECT_EQ(manifest.vocab_size, 400);
  EXPECT_TRUE(TextOf(folder_ / "corpus/train", manifest.tokenizer) +
                  TextOf(folder_ / "corpus/valid", manifest.tokenizer) ==
              text);
  // The document ends in the validation text, with the model's end-of-document token.
  const auto valid = Corpus::Open(folder_ / "corpus/valid");
  std::int32_t last[1];
  ASSERT_TRUE((*valid)->Read((*valid)->tokens() - 1, 400, last).ok());
  EXPECT_EQ(last[0], 2);
}

TEST_F(PrepareTest, NonEmptyOutputIsKeptUnlessForced) {
  PrepareOptions options = Options({Input("a.txt", Lines(100))});
  fs::create_directories(folder_ / "corpus/train");
  WriteWhole(folder_ / "corpus/notes.txt", "mine");
  WriteWhole(folder_ / "corpus/train/old", "old");
  fs::create_directories(folder_ / "corpus/valid");
  EXPECT_THAT(Error(options, absl::StatusCode::kAlreadyExists), HasSubstr("--force"));
  options.force = true;
  options.valid_fraction = 0;
  ASSERT_TRUE(PrepareCorpus(options).ok());
  EXPECT_EQ(ReadWhole(folder_ / "corpus/notes.txt"), "mine");
  EXPECT_FALSE(fs::exists(folder_ / "corpus/train/old"));
  EXPECT_FALSE(fs::exists(folder_ / "corpus/valid")) << "a stale validation text";
  EXPECT_TRUE(TextOf(folder_ / "corpus/train") == Lines(100));
  EXPECT_EQ(Names(), (std::set<std::string>{"a.txt", "corpus"}));
}

TEST_F(PrepareTest, EmptyFolderIsAFineOutput) {
  fs::create_directories(folder_ / "corpus");
  PrepareOptions options = Options({Input("a.txt", Lines(100))});
  options.output += "/";
  EXPECT_TRUE(PrepareCorpus(options).ok());
  EXPECT_EQ(Names(), (std::set<std::string>{"a.txt", "corpus"}));
}

TEST_F(PrepareTest, BadInputIsNamedAndLeavesNothingBehind) {
  const std::string good = Input("good.txt", Lines(50));
  using enum absl::StatusCode;
  EXPECT_THAT(Error(Options({}), kInvalidArgument), HasSubstr("--input"));
  EXPECT_THAT(Error(Options({good, folder_ / "none"}), kNotFound), HasSubstr("none"));
  EXPECT_THAT(Error(Options({good, folder_.path()}), kInvalidArgument), HasSubstr("regular file"));
  EXPECT_THAT(Error(Options({good, Input("empty", "")}), kInvalidArgument),
              HasSubstr("empty: empty"));
  EXPECT_THAT(Error(Options({good, Input("binary", std::string("ab\0cd", 5))}), kInvalidArgument),
              HasSubstr("byte 2 is NUL"));
  std::string cut = ReadWhole(Gzip("cut.gz", Lines(5000)));
  EXPECT_THAT(Error(Options({Input("cut.gz", cut.substr(0, cut.size() / 2))}), kInvalidArgument),
              HasSubstr("cannot be read"));
  cut[cut.size() / 2] ^= 0x55;
  EXPECT_THAT(Error(Options({Input("cut.gz", cut)}), kInvalidArgument),
              HasSubstr("cannot be read"));

  PrepareOptions options = Options({good});
  for (const double fraction : {-0.1, 1.0, std::nan("")}) {
    options.valid_fraction = fraction;
    EXPECT_THAT(Error(options, kInvalidArgument), HasSubstr("--valid-fraction"));
  }
  options.valid_fraction = 1e-9;
  EXPECT_THAT(Error(options, kInvalidArgument), HasSubstr("no text for valid"));
  options.valid_fraction = 0.999999;
  EXPECT_THAT(Error(options, kInvalidArgument), HasSubstr("no text for train"));
  options = Options({good});
  options.shard_tokens = 0;
  EXPECT_THAT(Error(options, kInvalidArgument), HasSubstr("--shard-tokens 0"));
  options = Options({good});
  options.tokenizer = "words";
  EXPECT_THAT(Error(options, kInvalidArgument), HasSubstr("tokenizer \"words\""));
  options = Options({good});
  options.output = good;
  EXPECT_THAT(Error(options, kInvalidArgument), HasSubstr("name a folder"));
  EXPECT_EQ(Names(), (std::set<std::string>{"good.txt", "empty", "binary", "cut.gz"}));
}

}  // namespace
}  // namespace paceline
