#include "common/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "common/xxh128.h"

namespace paceline {
namespace {

using ::testing::HasSubstr;

Manifest Example() {
  Manifest manifest;
  manifest.run_id = "quickstart-1";
  manifest.generation = 3;
  manifest.step = 100;
  manifest.sample = 1600;
  manifest.tokens = 409600;
  manifest.seed = 18446744073709551615u;
  manifest.corpus_digest = "c0";
  manifest.ledger_digest = "1ed9e4";
  manifest.run_file = "[run]\nname = \"quick\\start\"\n# \u00e9 \",\n\"digest\": \"\n";
  for (int rank = 0; rank < 2; ++rank) {
    ManifestPart part;
    part.file = "rank-0000" + std::to_string(rank) + ".safetensors";
    part.bytes = 1000 + rank;
    part.slices.push_back(
        {"model.norm.weight", "F32", {8, 4}, {rank * 4, 0}, {4, 4}, std::string(32, 'a')});
    part.slices.push_back({"scalar", "I64", {}, {}, {}, std::string(32, 'b')});
    manifest.parts.push_back(part);
  }
  return manifest;
}

// The text with `from` replaced, and a digest that fits it: what only a writer could make.
std::string Rewritten(const std::string& from, const std::string& to) {
  std::string text = ToJson(Example());
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
  const std::size_t key = text.rfind(",\n\"digest\"");
  text.resize(key);
  return text + ",\n\"digest\": \"" + Xxh128Of(text) + "\"\n}\n";
}

TEST(ManifestTest, WhatWasWrittenIsRead) {
  const std::string json = ToJson(Example());

  const auto manifest = ParseManifest(json);

  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(ToJson(*manifest), json);
  EXPECT_EQ(manifest->seed, 18446744073709551615u);
  EXPECT_EQ(manifest->run_file, Example().run_file);
  ASSERT_EQ(manifest->parts.size(), 2u);
  EXPECT_EQ(manifest->parts[1].slices[0].start, (std::vector<std::int64_t>{4, 0}));
  EXPECT_TRUE(manifest->parts[1].slices[1].shape.empty());
}

TEST(ManifestTest, IsJsonThatEndsWithItsDigest) {
  const std::string text = ToJson(Example());
  const auto json = nlohmann::json::parse(text);
  EXPECT_EQ(json["digest"], DigestOf(Example()));
  EXPECT_THAT(text, testing::EndsWith("\"digest\": \"" + DigestOf(Example()) + "\"\n}\n"));
}

TEST(ManifestTest, ManifestWithoutPartsIsWhole) {
  EXPECT_TRUE(ParseManifest(ToJson(Manifest{})).ok());
}

TEST(ManifestTest, EveryFlippedBitIsFound) {
  const std::string json = ToJson(Example());
  for (std::size_t i = 0; i < json.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = json;
      flipped[i] = static_cast<char>(flipped[i] ^ (1 << bit));
      ASSERT_EQ(ParseManifest(flipped).status().code(), absl::StatusCode::kDataLoss)
          << "byte " << i << " bit " << bit;
    }
  }
}

TEST(ManifestTest, EveryTruncationIsFound) {
  const std::string json = ToJson(Example());
  for (std::size_t size = 0; size < json.size(); ++size) {
    ASSERT_EQ(ParseManifest(json.substr(0, size)).status().code(), absl::StatusCode::kDataLoss);
  }
  EXPECT_EQ(ParseManifest(json + "\n").status().code(), absl::StatusCode::kDataLoss);
}

TEST(ManifestTest, NewerVersionIsRefusedAsSuch) {
  const auto manifest = ParseManifest(Rewritten("\"version\": 1", "\"version\": 2"));
  EXPECT_EQ(manifest.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(manifest.status().message()), HasSubstr("version 2"));
}

TEST(ManifestTest, FieldsThatCannotBeAreNamed) {
  const std::pair<const char*, std::pair<const char*, const char*>> cases[] = {
      {"\"step\": 100", {"\"step\": -1", "step is not an integer"}},
      {"\"step\": 100", {"\"step\": \"100\"", "step is not an integer"}},
      {"\"step\": 100", {"\"step\": 9223372036854775808", "step is not an integer"}},
      {"\"step\": 100", {"\"stop\": 100", "step is not there"}},
      {"\"run_id\": \"quickstart-1\"", {"\"run_id\": 7", "run_id is not a text"}},
      {"rank-00001.safetensors", {"../../etc/passwd", "parts[1].file"}},
      {"\"start\":[4,0]", {"\"start\":[5,0]", "parts[1].slices[0].tensor \"model.norm.weight\""}},
      {"\"start\":[4,0]", {"\"start\":[4]", "differ in length"}},
      {"\"F32\"", {"\"F31\"", "dtype \"F31\""}},
      {"\"global_shape\":[8,4]",
       {"\"global_shape\":[9223372036854775807,9223372036854775807]", "overflows"}},
      {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", {"short", "digest \"short\""}},
  };
  for (const auto& [from, expectation] : cases) {
    const auto manifest = ParseManifest(Rewritten(from, expectation.first));
    EXPECT_EQ(manifest.status().code(), absl::StatusCode::kDataLoss) << expectation.first;
    EXPECT_THAT(std::string(manifest.status().message()), HasSubstr(expectation.second));
  }
}

// Text that is well-signed and wrong anywhere must give an error, never a crash.
TEST(ManifestTest, RandomEditsNeverCrash) {
  std::mt19937 random(20240601);
  const std::string alphabet = "{}[]\",:0123456789-eE.tfn\\ua\n ";
  for (int round = 0; round < 3000; ++round) {
    std::string text = ToJson(Example());
    text.resize(text.rfind(",\n\"digest\""));
    for (int edit = 0; edit < 3; ++edit) {
      const std::size_t at = random() % text.size();
      switch (random() % 3) {
        case 0:
          text[at] = alphabet[random() % alphabet.size()];
          break;
        case 1:
          text.erase(at, 1 + random() % 5);
          break;
        default:
          text.insert(at, 1 + random() % 3, alphabet[random() % alphabet.size()]);
      }
    }
    ParseManifest(text + ",\n\"digest\": \"" + Xxh128Of(text) + "\"\n}\n").status().IgnoreError();
  }
}

TEST(Xxh128Test, PiecesGiveTheDigestOfTheWhole) {
  const std::string text(100'000, 'x');
  Xxh128 digest;
  digest.Update(text.data(), 1);
  digest.Update(text.data() + 1, 99'999);
  EXPECT_EQ(digest.Hex(), Xxh128Of(text));
  // As `xxh128sum` prints it for an empty file.
  EXPECT_EQ(Xxh128Of(""), "99aa06d3014798d86001c324468d497f");
}

}  // namespace
}  // namespace paceline
