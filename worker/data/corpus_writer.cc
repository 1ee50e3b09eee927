#include "worker/data/corpus_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/files.h"
#include "worker/data/digest.h"
#include "worker/data/shard.h"

namespace paceline {
namespace {

constexpr std::size_t kBufferBytes = 1 << 20;

// A file under construction, digested as it is written.
class DigestedFile {
 public:
  static absl::StatusOr<DigestedFile> Create(const std::string& path) {
    const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (descriptor < 0) return ErrnoStatus(errno, absl::StrCat("making ", path));
    return DigestedFile(path, descriptor);
  }
  DigestedFile(DigestedFile&& other) noexcept
      : path_(std::move(other.path_)),
        descriptor_(std::exchange(other.descriptor_, -1)),
        buffer_(std::move(other.buffer_)),
        digest_(std::move(other.digest_)),
        bytes_(other.bytes_) {}
  ~DigestedFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  template <typename T>
  absl::Status Put(T value) {
    return Write(&value, sizeof(value));
  }

  absl::Status Write(const void* from, std::size_t count) {
    const auto* at = static_cast<const char*>(from);
    buffer_.insert(buffer_.end(), at, at + count);
    bytes_ += static_cast<std::int64_t>(count);
    return buffer_.size() < kBufferBytes ? absl::OkStatus() : Flush();
  }

  // Makes the content durable and returns its digest.
  absl::StatusOr<std::string> Finish() {
    RETURN_IF_ERROR(Flush());
    if (::fsync(descriptor_) != 0) return ErrnoStatus(errno, absl::StrCat("fsync of ", path_));
    return digest_.Finish();
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  DigestedFile(std::string path, int descriptor)
      : path_(std::move(path)), descriptor_(descriptor) {}

  absl::Status Flush() {
    digest_.Update(std::string_view(buffer_.data(), buffer_.size()));
    for (std::size_t done = 0; done < buffer_.size();) {
      const ssize_t count = ::write(descriptor_, buffer_.data() + done, buffer_.size() - done);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return ErrnoStatus(errno, absl::StrCat("writing ", path_));
      done += static_cast<std::size_t>(count);
    }
    buffer_.clear();
    return absl::OkStatus();
  }

  std::string path_;
  int descriptor_;
  std::vector<char> buffer_;
  Sha256 digest_;
  std::int64_t bytes_ = 0;
};

}  // namespace

struct CorpusWriter::Impl {
  std::string folder;
  std::int64_t vocab_size = 0;
  std::int64_t shard_tokens = 0;
  CorpusManifest manifest{.format = "megatron"};
  std::optional<DigestedFile> bin;      // of the open shard
  std::vector<std::int32_t> documents;  // their lengths in the open shard
  std::int64_t in_document = 0;         // tokens of the open document in the open shard
  std::int64_t in_shard = 0;

  bool narrow() const { return vocab_size <= kMegatronU16VocabMax; }
  std::string PathOf(const std::string& file) const {
    return (std::filesystem::path(folder) / file).string();
  }
  std::string ShardName() const {
    return absl::StrFormat("shard-%05d", static_cast<int>(manifest.shards.size()));
  }

  absl::Status Put(std::span<const std::int32_t> tokens) {
    if (!bin) {
      ASSIGN_OR_RETURN(auto file, DigestedFile::Create(PathOf(ShardName() + ".bin")));
      bin.emplace(std::move(file));
    }
    if (!narrow()) return bin->Write(tokens.data(), tokens.size_bytes());
    std::vector<std::uint16_t> row(tokens.begin(), tokens.end());
    return bin->Write(row.data(), row.size() * sizeof(std::uint16_t));
  }

  void CloseDocument() {
    if (in_document > 0) documents.push_back(static_cast<std::int32_t>(in_document));
    in_document = 0;
  }

  absl::StatusOr<std::string> WriteIndex(const std::string& path, std::int64_t& bytes) const {
    ASSIGN_OR_RETURN(DigestedFile index, DigestedFile::Create(path));
    const TokenType type = narrow() ? TokenType::kU16 : TokenType::kI32;
    RETURN_IF_ERROR(index.Write(kMegatronMagic, sizeof(kMegatronMagic)));
    RETURN_IF_ERROR(index.Put(std::uint64_t{1}));
    RETURN_IF_ERROR(index.Put(static_cast<std::uint8_t>(type)));
    RETURN_IF_ERROR(index.Put(static_cast<std::uint64_t>(documents.size())));
    RETURN_IF_ERROR(index.Put(static_cast<std::uint64_t>(documents.size() + 1)));
    RETURN_IF_ERROR(index.Write(documents.data(), documents.size() * sizeof(std::int32_t)));
    std::int64_t offset = 0;
    for (const std::int32_t length : documents) {
      RETURN_IF_ERROR(index.Put(offset));
      offset += length * BytesOf(type);
    }
    for (std::size_t i = 0; i <= documents.size(); ++i) {
      RETURN_IF_ERROR(index.Put(static_cast<std::int64_t>(i)));
    }
    bytes = index.bytes();
    return index.Finish();
  }

  absl::Status CloseShard() {
    CloseDocument();
    if (!bin) return absl::OkStatus();
    const std::string name = ShardName();
    ShardEntry entry{.file = name + ".bin",
                     .tokens = in_shard,
                     .documents = static_cast<std::int64_t>(documents.size()),
                     .bytes = bin->bytes()};
    ASSIGN_OR_RETURN(entry.sha256, bin->Finish());
    ASSIGN_OR_RETURN(entry.index_sha256, WriteIndex(PathOf(name + ".idx"), entry.index_bytes));
    manifest.tokens += entry.tokens;
    manifest.documents += entry.documents;
    manifest.shards.push_back(std::move(entry));
    bin.reset();
    documents.clear();
    in_shard = 0;
    return absl::OkStatus();
  }
};

CorpusWriter::CorpusWriter(std::string folder, std::int64_t vocab_size, std::int64_t shard_tokens)
    : impl_(std::make_unique<Impl>()) {
  // Sequence lengths are 32-bit in an .idx.
  PACELINE_CHECK(shard_tokens >= 1 && shard_tokens <= INT32_MAX && vocab_size >= 1);
  impl_->folder = std::move(folder);
  impl_->vocab_size = vocab_size;
  impl_->shard_tokens = shard_tokens;
}
CorpusWriter::~CorpusWriter() = default;
CorpusWriter::CorpusWriter(CorpusWriter&&) noexcept = default;
CorpusWriter& CorpusWriter::operator=(CorpusWriter&&) noexcept = default;

absl::Status CorpusWriter::Append(std::span<const std::int32_t> tokens) {
  while (!tokens.empty()) {
    const auto room = static_cast<std::size_t>(impl_->shard_tokens - impl_->in_shard);
    const std::size_t count = std::min(tokens.size(), room);
    RETURN_IF_ERROR(impl_->Put(tokens.first(count)));
    impl_->in_document += static_cast<std::int64_t>(count);
    impl_->in_shard += static_cast<std::int64_t>(count);
    tokens = tokens.subspan(count);
    if (impl_->in_shard == impl_->shard_tokens) RETURN_IF_ERROR(impl_->CloseShard());
  }
  return absl::OkStatus();
}

void CorpusWriter::EndDocument() { impl_->CloseDocument(); }

std::int64_t CorpusWriter::tokens() const { return impl_->manifest.tokens + impl_->in_shard; }

absl::StatusOr<CorpusManifest> CorpusWriter::Finish(CorpusManifest notes) {
  RETURN_IF_ERROR(impl_->CloseShard());
  CorpusManifest& manifest = impl_->manifest;
  manifest.vocab_size = impl_->vocab_size;
  manifest.tokenizer = std::move(notes.tokenizer);
  manifest.source = std::move(notes.source);
  manifest.licence = std::move(notes.licence);
  RETURN_IF_ERROR(SyncFolder(impl_->folder));
  RETURN_IF_ERROR(WriteFileAtomically(impl_->PathOf(kCorpusManifestFile), ToJson(manifest), 0644));
  return manifest;
}

}  // namespace paceline
