#include "worker/data/prepare.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/files.h"
#include "worker/data/corpus_writer.h"
#include "worker/data/text_input.h"
#include "worker/data/tokenizer.h"

namespace paceline {
namespace {

namespace fs = std::filesystem;

// Text is tokenized in pieces of at most this size, each up to a line's end, so that memory is
// bounded whatever a file's size.
constexpr std::size_t kPieceBytes = 1 << 20;
constexpr char kModelFile[] = "tokenizer.model";

absl::Status CheckOptions(const PrepareOptions& options) {
  if (options.inputs.empty()) {
    return absl::InvalidArgumentError("--input: name one text file or more");
  }
  if (options.output.empty()) return absl::InvalidArgumentError("--output: name a folder");
  if (!(options.valid_fraction >= 0 && options.valid_fraction < 1)) {
    return absl::InvalidArgumentError(absl::StrCat("--valid-fraction ", options.valid_fraction,
                                                   ": it must be at least 0 and less than 1"));
  }
  if (options.shard_tokens < 1 || options.shard_tokens > INT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("--shard-tokens ", options.shard_tokens, ": it must be 1 to ", INT32_MAX));
  }
  return absl::OkStatus();
}

// Where the character that holds byte `at` begins; `at` itself in text that is no UTF-8.
std::size_t CharacterBegin(std::string_view text, std::size_t at) {
  for (std::size_t begin = at; at - begin < 4; --begin) {
    if ((static_cast<unsigned char>(text[begin]) & 0xc0) != 0x80) return begin;
    if (begin == 0) break;
  }
  return at;
}

// Where to cut `text` near byte `target`, inside it: behind the last line that ends there or
// before, else behind the first one after, else between two characters.
std::size_t CutNear(std::string_view text, std::size_t target) {
  if (target == 0) return 0;
  if (const auto before = text.rfind('\n', target - 1); before != text.npos) return before + 1;
  if (const auto after = text.find('\n', target); after != text.npos) return after + 1;
  return CharacterBegin(text, target);
}

// A file as pieces.
class Pieces {
 public:
  explicit Pieces(TextInput input) : input_(std::move(input)) {}

  // Empty at the end.
  absl::StatusOr<std::string> Next() {
    if (!ended_) {
      const std::size_t have = rest_.size();
      rest_.resize(kPieceBytes);
      ASSIGN_OR_RETURN(const std::size_t got,
                       input_.Read(std::span(rest_.data() + have, kPieceBytes - have)));
      rest_.resize(have + got);
      ended_ = rest_.size() < kPieceBytes;
    }
    if (ended_) return std::exchange(rest_, "");
    const std::size_t cut = CutNear(rest_, rest_.size() - 1);
    std::string piece = rest_.substr(0, cut);
    rest_.erase(0, cut);
    return piece;
  }

 private:
  TextInput input_;
  std::string rest_;
  bool ended_ = false;
};

// Reads all inputs once, to know the text's length and that none is unfit.
absl::StatusOr<std::int64_t> MeasureInputs(const std::vector<std::string>& inputs) {
  std::int64_t total = 0;
  std::vector<char> buffer(kPieceBytes);
  for (const std::string& path : inputs) {
    ASSIGN_OR_RETURN(TextInput input, TextInput::Open(path));
    std::int64_t bytes = 0;
    for (std::size_t got = 1; got > 0; bytes += static_cast<std::int64_t>(got)) {
      ASSIGN_OR_RETURN(got, input.Read(buffer));
    }
    if (bytes == 0) return absl::InvalidArgumentError(absl::StrCat("--input ", path, ": empty"));
    total += bytes;
  }
  return total;
}

// One of the two corpora while it is written.
struct Side {
  std::string name;  // "train" or "valid"
  std::string folder;
  CorpusWriter writer;
  std::vector<std::int64_t> counts;  // of each token

  absl::Status Add(Tokenizer& tokenizer, std::string_view text) {
    if (text.empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(const std::vector<std::int32_t> tokens, tokenizer.Encode(text));
    return Append(tokens);
  }
  absl::Status Append(std::span<const std::int32_t> tokens) {
    for (const std::int32_t token : tokens) ++counts[token];
    return writer.Append(tokens);
  }
};

absl::StatusOr<Side> MakeSide(const std::string& draft, const std::string& name,
                              std::int64_t vocab_size, std::int64_t shard_tokens) {
  const std::string folder = (fs::path(draft) / name).string();
  std::error_code error;
  if (!fs::create_directories(folder, error)) {
    return ErrnoStatus(error.value(), absl::StrCat("making ", folder));
  }
  return Side{name, folder, CorpusWriter(folder, vocab_size, shard_tokens),
              std::vector<std::int64_t>(vocab_size, 0)};
}

// Tokenizes all inputs: the text's first `train_bytes` bytes (to a line's end) to `train`, what
// follows to `valid`.
absl::Status Tokenize(const PrepareOptions& options, std::int64_t train_bytes, Tokenizer& tokenizer,
                      Side& train, Side* valid) {
  std::int64_t at = 0;
  bool in_valid = false;
  for (const std::string& path : options.inputs) {
    ASSIGN_OR_RETURN(TextInput input, TextInput::Open(path));
    Pieces pieces(std::move(input));
    while (true) {
      ASSIGN_OR_RETURN(const std::string piece, pieces.Next());
      if (piece.empty()) break;
      const auto size = static_cast<std::int64_t>(piece.size());
      if (valid == nullptr || in_valid || at + size <= train_bytes) {
        RETURN_IF_ERROR((in_valid ? *valid : train).Add(tokenizer, piece));
      } else {
        const std::size_t cut = CutNear(piece, static_cast<std::size_t>(train_bytes - at));
        RETURN_IF_ERROR(train.Add(tokenizer, std::string_view(piece).substr(0, cut)));
        train.writer.EndDocument();
        RETURN_IF_ERROR(valid->Add(tokenizer, std::string_view(piece).substr(cut)));
        in_valid = true;
      }
      at += size;
    }
    Side& side = in_valid ? *valid : train;
    if (const auto end = tokenizer.end_of_document(); end && side.writer.tokens() > 0) {
      RETURN_IF_ERROR(side.Append({{*end}}));
    }
    side.writer.EndDocument();
  }
  return absl::OkStatus();
}

absl::StatusOr<PreparedCorpus> FinishSide(const PrepareOptions& options, Side& side) {
  if (side.writer.tokens() == 0) {
    return absl::InvalidArgumentError(absl::StrCat("--valid-fraction ", options.valid_fraction,
                                                   " leaves no text for ", side.name,
                                                   "; choose another fraction, or give more text"));
  }
  CorpusManifest notes;
  notes.tokenizer = options.tokenizer;
  notes.licence = options.licence;
  notes.source = options.source;
  if (notes.source.empty()) {
    notes.source = absl::StrJoin(options.inputs, ", ", [](std::string* out, const auto& path) {
      out->append(fs::path(path).filename().string());
    });
  }
  if (const std::string model = SentencePieceFile(options.tokenizer); !model.empty()) {
    notes.tokenizer = absl::StrCat("sentencepiece:", kModelFile);
    std::error_code error;
    fs::copy_file(model, fs::path(side.folder) / kModelFile, error);
    if (error) return ErrnoStatus(error.value(), absl::StrCat("copying ", model));
  }
  PreparedCorpus prepared;
  ASSIGN_OR_RETURN(prepared.manifest, side.writer.Finish(std::move(notes)));
  prepared.folder = (fs::path(options.output) / side.name).string();
  prepared.unigram_entropy = EntropyOf(side.counts);
  return prepared;
}

// A folder beside the output, removed with all that is in it unless it was renamed away.
class Draft {
 public:
  static absl::StatusOr<Draft> Make(const std::string& output) {
    fs::path path = fs::path(output).lexically_normal();
    if (!path.has_filename()) path = path.parent_path();  // "corpus/"
    path += absl::StrCat(".tmp-", ::getpid());
    std::error_code error;
    fs::remove_all(path, error);  // of a dead process that had this id
    fs::create_directories(path, error);
    if (error) return ErrnoStatus(error.value(), absl::StrCat("making ", path.string()));
    return Draft(path.string());
  }
  Draft(Draft&& other) noexcept : path_(std::exchange(other.path_, "")) {}
  ~Draft() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  explicit Draft(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

absl::Status Rename(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  if (!error) return absl::OkStatus();
  return ErrnoStatus(error.value(), absl::StrCat("renaming ", from.string(), " to ", to.string()));
}

// Puts the draft's corpora in the output's place. A new output appears in one rename. In an old
// one train and valid are replaced one after the other, and nothing else is touched.
absl::Status Publish(const std::string& draft, const std::string& output, bool replace) {
  if (!replace) {
    RETURN_IF_ERROR(Rename(draft, output));
  } else {
    for (const char* name : {"train", "valid"}) {
      const fs::path old = fs::path(output) / name;
      if (fs::exists(old))
        RETURN_IF_ERROR(Rename(old, fs::path(draft) / absl::StrCat("old-", name)));
      if (const fs::path made = fs::path(draft) / name; fs::exists(made)) {
        RETURN_IF_ERROR(Rename(made, old));
      }
    }
    RETURN_IF_ERROR(SyncFolder(output));
  }
  return SyncFolder(fs::absolute(draft).parent_path().string());
}

// True where `output` holds something already. kAlreadyExists: and may not be touched.
absl::StatusOr<bool> MustReplace(const PrepareOptions& options) {
  std::error_code error;
  if (!fs::exists(options.output, error)) return false;
  if (!fs::is_directory(options.output, error)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--output ", options.output, ": it is a file; name a folder"));
  }
  if (fs::is_empty(options.output, error) && !error) return false;
  if (options.force) return true;
  return absl::AlreadyExistsError(absl::StrCat("--output ", options.output,
                                               ": the folder is not empty; --force replaces the "
                                               "train and valid in it"));
}

}  // namespace

double EntropyOf(const std::vector<std::int64_t>& counts) {
  double total = 0;
  for (const std::int64_t count : counts) total += static_cast<double>(count);
  double entropy = 0;
  for (const std::int64_t count : counts) {
    const double share = static_cast<double>(count) / total;
    if (count > 0) entropy -= share * std::log(share);
  }
  return entropy;
}

absl::StatusOr<PrepareReport> PrepareCorpus(const PrepareOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  ASSIGN_OR_RETURN(const bool replace, MustReplace(options));
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                   LoadTokenizer(options.tokenizer, "", options.program_folder));
  PrepareReport report;
  ASSIGN_OR_RETURN(report.text_bytes, MeasureInputs(options.inputs));
  const auto train_bytes = static_cast<std::int64_t>(
      std::llround((1 - options.valid_fraction) * static_cast<double>(report.text_bytes)));

  ASSIGN_OR_RETURN(const Draft draft, Draft::Make(options.output));
  ASSIGN_OR_RETURN(Side train,
                   MakeSide(draft.path(), "train", tokenizer->vocab_size(), options.shard_tokens));
  std::optional<Side> valid;
  if (options.valid_fraction > 0) {
    ASSIGN_OR_RETURN(
        valid, MakeSide(draft.path(), "valid", tokenizer->vocab_size(), options.shard_tokens));
  }
  RETURN_IF_ERROR(Tokenize(options, train_bytes, *tokenizer, train, valid ? &*valid : nullptr));
  ASSIGN_OR_RETURN(report.train, FinishSide(options, train));
  if (valid) {
    ASSIGN_OR_RETURN(report.valid, FinishSide(options, *valid));
  }
  RETURN_IF_ERROR(Publish(draft.path(), options.output, replace));
  return report;
}

}  // namespace paceline
