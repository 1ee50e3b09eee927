// Corpora: the independently written fixtures read back, and every kind of damage is named.
#include "worker/data/corpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <random>

#include "tests/support/temp_folder.h"
#include "worker/data/digest.h"

namespace paceline {
namespace {

using ::testing::HasSubstr;

constexpr std::int64_t kTokens = 300;
constexpr std::int64_t kVocab = 251;

std::string Fixture(const std::string& name) {
  const char* source = std::getenv("PACELINE_SOURCE_DIR");
  return std::string(source != nullptr ? source : ".") + "/tests/fixtures/data/" + name;
}

// As tests/fixtures/data/write_shards.py says.
std::vector<std::int32_t> FixtureTokens() {
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < kTokens; ++i) {
    tokens.push_back(static_cast<std::int32_t>((7 * i * i + 3 * i + i / 5) % kVocab));
  }
  return tokens;
}

std::vector<std::int32_t> ReadAll(const Corpus& corpus) {
  std::vector<std::int32_t> tokens(corpus.tokens());
  EXPECT_TRUE(corpus.Read(0, kVocab, tokens).ok());
  return tokens;
}

std::string OpenError(const std::string& path) {
  const auto corpus = Corpus::Open(path);
  return corpus.ok() ? "opened" : std::string(corpus.status().message());
}

template <typename T>
void Poke(std::string& bytes, std::size_t at, T value) {
  ASSERT_LE(at + sizeof(T), bytes.size());
  std::memcpy(bytes.data() + at, &value, sizeof(T));
}

// A folder with copies of the u16 fixtures that a test may damage.
class CorpusTest : public ::testing::Test {
 protected:
  CorpusTest() {
    for (const char* name : {"megatron-u16.bin", "megatron-u16.idx", "llmc-u16.bin"}) {
      std::filesystem::copy_file(Fixture(name), folder_ / name);
    }
  }

  // Writes what `change` makes of the file's bytes.
  template <typename Change>
  void Damage(const std::string& name, Change change) {
    std::string bytes = ReadWhole(folder_ / name);
    change(bytes);
    WriteWhole(folder_ / name, bytes);
  }

  ShardEntry Entry(const std::string& name) {
    const std::string bin = ReadWhole(folder_ / (name + ".bin"));
    const std::string idx = ReadWhole(folder_ / (name + ".idx"));
    return {.file = name + ".bin",
            .tokens = kTokens,
            .documents = 3,
            .bytes = static_cast<std::int64_t>(bin.size()),
            .sha256 = Sha256Of(bin),
            .index_bytes = static_cast<std::int64_t>(idx.size()),
            .index_sha256 = Sha256Of(idx),
            .site = "site-a"};
  }

  // A manifest of two shards with the same content.
  CorpusManifest TwoShards() {
    for (const char* suffix : {".bin", ".idx"}) {
      std::filesystem::copy_file(folder_ / (std::string("megatron-u16") + suffix),
                                 folder_ / (std::string("second") + suffix));
    }
    return {.format = "megatron",
            .vocab_size = kVocab,
            .tokenizer = "",
            .source = "a test",
            .licence = "none",
            .tokens = 2 * kTokens,
            .documents = 6,
            .shards = {Entry("megatron-u16"), Entry("second")}};
  }
  void WriteManifest(const CorpusManifest& manifest) {
    WriteWhole(folder_ / "manifest.json", ToJson(manifest));
  }

  TempFolder folder_;
};

TEST_F(CorpusTest, IndependentlyWrittenShardsReadAlike) {
  for (const char* name : {"megatron-u16", "megatron-u16.bin", "megatron-u16.idx",
                           "megatron-i32-modes", "megatron-u8", "llmc-u16.bin", "llmc-u32.bin"}) {
    const auto corpus = Corpus::Open(Fixture(name));
    ASSERT_TRUE(corpus.ok()) << corpus.status();
    EXPECT_EQ((*corpus)->tokens(), kTokens) << name;
    EXPECT_EQ(ReadAll(**corpus), FixtureTokens()) << name;
    EXPECT_EQ((*corpus)->manifest().documents, std::string(name).starts_with("mega") ? 3 : 0);
    EXPECT_TRUE((*corpus)->VerifyDigests().ok());
  }
}

TEST_F(CorpusTest, AnyRangeReadsWhatLiesThere) {
  const auto corpus = Corpus::Open(Fixture("llmc-u32.bin"));
  ASSERT_TRUE(corpus.ok());
  const auto all = FixtureTokens();
  std::vector<std::int32_t> part(17);
  for (std::int64_t begin = 0; begin + 17 <= kTokens; ++begin) {
    ASSERT_TRUE((*corpus)->Read(begin, kVocab, part).ok());
    EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + begin));
  }
  EXPECT_FALSE((*corpus)->Read(kTokens - 16, kVocab, part).ok());
  EXPECT_FALSE((*corpus)->Read(-1, kVocab, part).ok());
}

TEST_F(CorpusTest, SamplesLeaveRoomForTheLastTarget) {
  const auto corpus = Corpus::Open(Fixture("llmc-u16.bin"));
  ASSERT_TRUE(corpus.ok());
  EXPECT_EQ((*corpus)->Samples(299), 1);
  EXPECT_EQ((*corpus)->Samples(300), 0);
  EXPECT_EQ((*corpus)->Samples(100), 2);
  EXPECT_EQ((*corpus)->Samples(1), 299);
}

TEST_F(CorpusTest, FolderJoinsItsShardsAndReadsAcrossThem) {
  WriteManifest(TwoShards());
  const auto corpus = Corpus::Open(folder_.path());
  ASSERT_TRUE(corpus.ok()) << corpus.status();
  EXPECT_EQ((*corpus)->tokens(), 2 * kTokens);
  EXPECT_EQ((*corpus)->manifest().shards[1].site, "site-a");
  EXPECT_TRUE((*corpus)->VerifyDigests().ok());
  std::vector<std::int32_t> across(20);
  ASSERT_TRUE((*corpus)->Read(kTokens - 10, kVocab, across).ok());
  const auto all = FixtureTokens();
  EXPECT_TRUE(std::equal(across.begin(), across.begin() + 10, all.end() - 10));
  EXPECT_TRUE(std::equal(across.begin() + 10, across.end(), all.begin()));
  (*corpus)->WillNeed(-5, 4 * kTokens);  // a hint beyond both ends is cut
}

TEST_F(CorpusTest, DigestNamesContent) {
  const auto first = Corpus::Open(folder_ / "megatron-u16.bin");
  const auto same = Corpus::Open(Fixture("megatron-u16.bin"));
  const auto other = Corpus::Open(Fixture("megatron-u8.bin"));
  EXPECT_EQ((*first)->digest().size(), 64);
  EXPECT_EQ((*first)->digest(), (*same)->digest());
  EXPECT_NE((*first)->digest(), (*other)->digest());
  Damage("megatron-u16.bin", [](std::string& bytes) { bytes[100] ^= 1; });
  EXPECT_NE((*Corpus::Open(folder_ / "megatron-u16.bin"))->digest(), (*same)->digest());
}

TEST_F(CorpusTest, FingerprintOfALargeFileSeesItsLengthAndEnds) {
  const std::string path = folder_ / "large";
  WriteWhole(path, "start");
  std::filesystem::resize_file(path, 40 << 20);
  const std::string before = *FingerprintOfFile(path);
  std::filesystem::resize_file(path, (40 << 20) + 1);
  EXPECT_NE(*FingerprintOfFile(path), before);
  std::filesystem::resize_file(path, 40 << 20);
  EXPECT_EQ(*FingerprintOfFile(path), before);
}

TEST_F(CorpusTest, ChangedShardIsFoundByItsDigest) {
  WriteManifest(TwoShards());
  Damage("second.bin", [](std::string& bytes) { bytes[7] ^= 1; });
  const auto corpus = Corpus::Open(folder_.path());
  ASSERT_TRUE(corpus.ok()) << "sizes are right, so it opens";
  const absl::Status status = (*corpus)->VerifyDigests();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("second.bin: sha256 is"));
}

TEST_F(CorpusTest, ManifestWhoseDigestIsOffIsFound) {
  CorpusManifest manifest = TwoShards();
  manifest.shards[1].index_sha256[3] ^= 1;
  if (manifest.shards[1].index_sha256.find_first_not_of("0123456789abcdef") != std::string::npos) {
    manifest.shards[1].index_sha256[3] = '0';
  }
  WriteManifest(manifest);
  const auto corpus = Corpus::Open(folder_.path());
  ASSERT_TRUE(corpus.ok());
  const absl::Status status = (*corpus)->VerifyDigests();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("second.idx"));
}

TEST_F(CorpusTest, SizesThatDifferFromTheManifestAreDataLoss) {
  CorpusManifest manifest = TwoShards();
  manifest.shards[1].bytes += 2;
  WriteManifest(manifest);
  const auto corpus = Corpus::Open(folder_.path());
  EXPECT_EQ(corpus.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(corpus.status().message()), HasSubstr("the manifest says 602"));
}

TEST_F(CorpusTest, BadManifestsAreRefusedByField) {
  const std::string good = ToJson(TwoShards());
  const auto error_with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const std::size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    WriteWhole(folder_ / "manifest.json", text.replace(at, from.size(), to));
    return OpenError(folder_.path());
  };
  EXPECT_THAT(error_with("{", "["), HasSubstr("not a JSON object"));
  EXPECT_THAT(error_with("\"version\": 1", "\"version\": 2"), HasSubstr("newer Paceline"));
  EXPECT_THAT(error_with("\"version\": 1", "\"version\": 0"), HasSubstr("\"version\" must be 1"));
  EXPECT_THAT(error_with("\"megatron\"", "\"tfrecord\""), HasSubstr("\"format\" is \"tfrecord\""));
  EXPECT_THAT(error_with("\"vocab_size\": 251", "\"vocab_size\": \"251\""),
              HasSubstr("\"vocab_size\" must be an integer"));
  EXPECT_THAT(error_with("\"vocab_size\": 251", "\"vocab_size\": -1"), HasSubstr("0 or more"));
  EXPECT_THAT(error_with("\"tokens\": 600", "\"tokens\": 601"), HasSubstr("shards sum to 600"));
  EXPECT_THAT(error_with("\"file\": \"second.bin\"", "\"file\": \"../second.bin\""),
              HasSubstr("shards[1]: \"file\" is \"../second.bin\""));
  EXPECT_THAT(error_with("\"file\": \"second.bin\"", "\"file\": \"/etc/second.bin\""),
              HasSubstr("inside the folder"));
  EXPECT_THAT(error_with("\"file\": \"second.bin\"", "\"file\": \"third.bin\""),
              HasSubstr("third.bin: cannot open"));
  EXPECT_THAT(error_with("\"index_bytes\"", "\"note\""), HasSubstr("\"index_bytes\" is missing"));
  EXPECT_THAT(error_with("\"sha256\": \"", "\"sha256\": \"X"), HasSubstr("64 lower-case hex"));
  EXPECT_THAT(error_with("\"shards\"", "\"shard\""), HasSubstr("\"shards\" must be an array"));
}

TEST_F(CorpusTest, EmptyCorporaAreRefused) {
  WriteManifest({.format = "megatron", .vocab_size = 256});
  EXPECT_THAT(OpenError(folder_.path()), HasSubstr("the corpus is empty: 0 tokens"));

  Damage("llmc-u16.bin", [](std::string& bytes) {
    bytes.resize(1024);
    Poke<std::int32_t>(bytes, 8, 0);
  });
  EXPECT_THAT(OpenError(folder_ / "llmc-u16.bin"), HasSubstr("empty"));
}

TEST_F(CorpusTest, MissingAndForeignFilesAreNamed) {
  EXPECT_THAT(OpenError(folder_ / "nothing"), HasSubstr("nothing: there is no such corpus"));
  EXPECT_THAT(OpenError(folder_.path()), HasSubstr("has no manifest.json"));
  WriteWhole(folder_ / "text.txt", "hello");
  EXPECT_THAT(OpenError(folder_ / "text.txt"), HasSubstr("not a corpus"));
  std::filesystem::remove(folder_ / "megatron-u16.idx");
  EXPECT_THAT(OpenError(folder_ / "megatron-u16.bin"), HasSubstr("needs its .idx beside it"));
}

TEST_F(CorpusTest, TruncatedIndexIsRefusedAtEveryLength) {
  const std::string whole = ReadWhole(folder_ / "megatron-u16.idx");
  for (std::size_t size = 0; size < whole.size(); ++size) {
    WriteWhole(folder_ / "megatron-u16.idx", whole.substr(0, size));
    EXPECT_THAT(OpenError(folder_ / "megatron-u16.bin"), HasSubstr("truncated")) << size;
  }
}

TEST_F(CorpusTest, TruncatedAndOverlongTokensAreRefused) {
  for (const char* name : {"megatron-u16.bin", "llmc-u16.bin"}) {
    Damage(name, [](std::string& bytes) { bytes.resize(bytes.size() - 1); });
    EXPECT_THAT(OpenError(folder_ / name), HasSubstr("truncated")) << name;
    Damage(name, [](std::string& bytes) { bytes.append(3, '\0'); });
    EXPECT_THAT(OpenError(folder_ / name), HasSubstr("too long")) << name;
  }
}

TEST_F(CorpusTest, DamagedIndexFieldsAreNamed) {
  const std::string whole = ReadWhole(folder_ / "megatron-u16.idx");
  const auto error_with = [&](std::size_t at, auto value) {
    std::string bytes = whole;
    Poke(bytes, at, value);
    WriteWhole(folder_ / "megatron-u16.idx", bytes);
    return OpenError(folder_ / "megatron-u16.idx");
  };
  constexpr std::size_t kLengths = 34, kOffsets = kLengths + 4 * 4, kDocuments = kOffsets + 4 * 8;
  EXPECT_THAT(error_with(0, 'X'), HasSubstr("bad magic"));
  EXPECT_THAT(error_with(9, std::uint64_t{2}), HasSubstr("version 2"));
  for (const int code : {0, 6, 7, 9, 255}) {
    EXPECT_THAT(error_with(17, static_cast<std::uint8_t>(code)), HasSubstr("dtype code"));
  }
  EXPECT_THAT(error_with(17, std::uint8_t{4}), HasSubstr("starts at byte"));
  EXPECT_THAT(error_with(18, ~std::uint64_t{0}), HasSubstr("truncated"));
  EXPECT_THAT(error_with(26, ~std::uint64_t{0}), HasSubstr("truncated"));
  EXPECT_THAT(error_with(kLengths, std::int32_t{-1}), HasSubstr("sequence 0 has length -1"));
  EXPECT_THAT(error_with(kOffsets + 8, std::int64_t{0}), HasSubstr("sequence 1 starts at byte 0"));
  EXPECT_THAT(error_with(kDocuments, std::int64_t{1}), HasSubstr("document entry 0 is 1"));
  EXPECT_THAT(error_with(kDocuments + 24, std::int64_t{5}), HasSubstr("document entry 3 is 5"));
  EXPECT_THAT(error_with(kDocuments + 16, std::int64_t{0}), HasSubstr("document entry 2 is 0"));
}

TEST_F(CorpusTest, DamagedLlmCHeadersAreNamed) {
  const std::string whole = ReadWhole(folder_ / "llmc-u16.bin");
  const auto error_with = [&](std::size_t at, std::int32_t value) {
    std::string bytes = whole;
    Poke(bytes, at, value);
    WriteWhole(folder_ / "llmc-u16.bin", bytes);
    return OpenError(folder_ / "llmc-u16.bin");
  };
  EXPECT_THAT(error_with(0, 1), HasSubstr("magic 1"));
  EXPECT_THAT(error_with(4, 7), HasSubstr("version 7"));
  EXPECT_THAT(error_with(8, -4), HasSubstr("-4 tokens"));
  EXPECT_THAT(error_with(8, 301), HasSubstr("truncated"));
  WriteWhole(folder_ / "llmc-u16.bin", whole.substr(0, 1023));
  EXPECT_THAT(OpenError(folder_ / "llmc-u16.bin"), HasSubstr("truncated"));
}

TEST_F(CorpusTest, TokenOutsideTheVocabularyIsNamedWithItsPlace) {
  Damage("megatron-u16.bin", [](std::string& bytes) { Poke<std::uint16_t>(bytes, 2 * 123, 300); });
  const auto corpus = Corpus::Open(folder_ / "megatron-u16");
  ASSERT_TRUE(corpus.ok());
  std::vector<std::int32_t> part(50);
  EXPECT_TRUE((*corpus)->Read(0, 251, part).ok());
  const absl::Status status = (*corpus)->Read(100, 251, part);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  const std::string message(status.message());
  EXPECT_THAT(message, HasSubstr("megatron-u16.bin: token 300 at position 123"));
  EXPECT_THAT(message, HasSubstr("vocab_size = 251"));
  EXPECT_TRUE((*corpus)->Read(100, 301, part).ok());
  EXPECT_EQ(part[23], 300);
}

TEST_F(CorpusTest, NegativeTokensAreOutsideTheVocabulary) {
  for (const char* suffix : {".bin", ".idx"}) {
    std::filesystem::copy_file(Fixture(std::string("megatron-i32-modes") + suffix),
                               folder_ / (std::string("signed") + suffix));
  }
  Damage("signed.bin", [](std::string& bytes) { Poke<std::int32_t>(bytes, 4 * 5, -2); });
  std::vector<std::int32_t> part(10);
  const absl::Status status = (*Corpus::Open(folder_ / "signed"))->Read(0, 251, part);
  EXPECT_THAT(std::string(status.message()), HasSubstr("token -2 at position 5"));
}

// Damage of any kind either still is a corpus that can be read or is refused; it never crashes.
TEST_F(CorpusTest, RandomDamageNeverCrashes) {
  constexpr int kSeed = 20251;
  SCOPED_TRACE(kSeed);
  std::mt19937_64 random(kSeed);
  for (const std::string name : {"megatron-u16.idx", "llmc-u16.bin"}) {
    const std::string whole = ReadWhole(folder_ / name);
    const std::size_t header = name.ends_with(".idx") ? whole.size() : 16;
    for (int turn = 0; turn < 1500; ++turn) {
      std::string bytes = whole;
      for (auto changes = random() % 4 + 1; changes > 0; --changes) {
        bytes[random() % header] = static_cast<char>(random() % 3 == 0 ? 0xff : random());
      }
      if (random() % 4 == 0) bytes.resize(random() % (bytes.size() + 40));
      WriteWhole(folder_ / name, bytes);
      const auto corpus = Corpus::Open(folder_ / name);
      if (!corpus.ok()) continue;
      std::vector<std::int32_t> tokens((*corpus)->tokens());
      ASSERT_LE(tokens.size(), 1u << 20);
      (void)(*corpus)->Read(0, kVocab, tokens);
    }
  }
}

TEST_F(CorpusTest, RandomlyDamagedManifestNeverCrashes) {
  constexpr int kSeed = 31;
  std::mt19937_64 random(kSeed);
  const std::string good = ToJson(TwoShards());
  for (int turn = 0; turn < 2000; ++turn) {
    std::string text = good;
    for (auto changes = random() % 3 + 1; changes > 0; --changes) {
      text[random() % text.size()] = static_cast<char>(random());
    }
    (void)ParseCorpusManifest(text, "manifest.json");
  }
  const auto parsed = ParseCorpusManifest(good, "manifest.json");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(ToJson(*parsed), good);
}

}  // namespace
}  // namespace paceline
