// Tokenizers give back the text they were given, and name what they cannot take.
#include "worker/data/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <numeric>

#include "tests/support/temp_folder.h"

namespace paceline {
namespace {

using ::testing::HasSubstr;

constexpr std::string_view kText =
    "In the beginning God created the heaven and the earth.\n  2 And the earth was without form,\n"
    "and void; caf\xc3\xa9 \xe2\x82\xac\n";

std::string Fixtures() {
  return std::string(std::getenv("PACELINE_SOURCE_DIR")) + "/tests/fixtures/data";
}
std::string Programs() { return std::getenv("PACELINE_BIN_DIR"); }

absl::StatusOr<std::unique_ptr<Tokenizer>> Tiny() {
  return LoadTokenizer("sentencepiece:tiny.model", Fixtures(), Programs());
}

TEST(TokenizerTest, BytesAreTheTextsOwn) {
  const auto tokenizer = LoadTokenizer("bytes", "");
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_EQ((*tokenizer)->vocab_size(), 256);
  EXPECT_FALSE((*tokenizer)->end_of_document().has_value());
  std::string all(256, '\0');
  std::iota(all.begin(), all.end(), '\0');
  const auto tokens = (*tokenizer)->Encode(all);
  ASSERT_EQ(tokens->size(), 256);
  for (int i = 0; i < 256; ++i) EXPECT_EQ((*tokens)[i], i);
  EXPECT_EQ(*(*tokenizer)->Decode(*tokens), all);
}

TEST(TokenizerTest, BytesBeyondTheVocabularyAreNamed) {
  const std::int32_t tokens[] = {65, 256};
  EXPECT_THAT(std::string(MakeBytesTokenizer()->Decode(tokens).status().message()),
              HasSubstr("token 256"));
}

TEST(TokenizerTest, SentencePieceGivesBackItsText) {
  const auto tokenizer = Tiny();
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 400);
  EXPECT_EQ((*tokenizer)->end_of_document(), 2);
  const auto tokens = (*tokenizer)->Encode(kText);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_LT(tokens->size(), kText.size());
  for (const std::int32_t token : *tokens) {
    EXPECT_GE(token, 0);
    EXPECT_LT(token, 400);
  }
  EXPECT_EQ(*(*tokenizer)->Decode(*tokens), kText);
  EXPECT_TRUE((*tokenizer)->Encode("")->empty());
  EXPECT_EQ(*(*tokenizer)->Decode({}), "");
}

TEST(TokenizerTest, SentencePieceTakesMoreThanASocketHolds) {
  const auto tokenizer = Tiny();
  ASSERT_TRUE(tokenizer.ok());
  std::string text;
  while (text.size() < 1 << 19) text += kText;
  const auto tokens = (*tokenizer)->Encode(text);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(*(*tokenizer)->Decode(*tokens), text);
}

TEST(TokenizerTest, SentencePieceSurvivesABadToken) {
  const auto tokenizer = Tiny();
  ASSERT_TRUE(tokenizer.ok());
  for (const std::int32_t bad : {-1, 400, 1 << 30}) {
    const absl::Status status = (*tokenizer)->Decode({{5, bad}}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("outside the vocabulary of 400"));
  }
  EXPECT_EQ(*(*tokenizer)->Decode(*(*tokenizer)->Encode("still here")), "still here");
}

TEST(TokenizerTest, UnfitModelsAreNamed) {
  TempFolder folder;
  WriteWhole(folder / "junk.model", "this is no model");
  const auto junk = LoadTokenizer("sentencepiece:junk.model", folder.path(), Programs());
  EXPECT_EQ(junk.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(junk.status().message(),
            folder / "junk.model: it is no SentencePiece model, or a damaged one");

  const auto missing = LoadTokenizer("sentencepiece:none.model", folder.path(), Programs());
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("none.model"));

  const auto program = LoadTokenizer("sentencepiece:tiny.model", Fixtures(), folder.path());
  EXPECT_THAT(std::string(program.status().message()), HasSubstr("paceline-sentencepiece"));
}

TEST(TokenizerTest, UnknownNamesSayWhatIsKnown) {
  for (const char* name : {"", "byte", "sentencepiece:", "gpt2"}) {
    const auto tokenizer = LoadTokenizer(name, "");
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("\"sentencepiece:MODEL\""));
  }
}

}  // namespace
}  // namespace paceline
