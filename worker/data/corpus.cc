#include "worker/data/corpus.h"

#include <algorithm>
#include <filesystem>
#include <limits>

#include "absl/strings/str_cat.h"
#include "worker/data/digest.h"
#include "worker/data/shard.h"

namespace paceline {
namespace {

namespace fs = std::filesystem;

bool Exists(const std::string& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// What a manifest says of a file, against the file.
absl::Status CheckSize(const std::string& path, std::int64_t bytes, std::int64_t expected) {
  if (bytes == expected) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(path, ": ", bytes, " bytes, but the manifest says ",
                                          expected, "; restore the file or prepare it anew"));
}

absl::Status CheckDigest(const std::string& path, const std::string& expected) {
  ASSIGN_OR_RETURN(const std::string digest, Sha256OfFile(path));
  if (digest == expected) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(path, ": sha256 is ", digest, ", but the manifest says ",
                                          expected, "; restore the file or prepare it anew"));
}

struct OpenedShards {
  CorpusManifest manifest;
  std::vector<Shard> shards;
  bool has_digests = false;
};

absl::StatusOr<OpenedShards> OpenFolder(const std::string& folder) {
  if (!Exists((fs::path(folder) / kCorpusManifestFile).string())) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder, ": the folder has no ", kCorpusManifestFile,
                     "; `paceline data prepare` writes one, or name a .bin file"));
  }
  OpenedShards opened;
  opened.has_digests = true;
  ASSIGN_OR_RETURN(opened.manifest, LoadCorpusManifest(folder));
  const ShardFormat format =
      opened.manifest.format == "megatron" ? ShardFormat::kMegatron : ShardFormat::kLlmC;
  for (const ShardEntry& entry : opened.manifest.shards) {
    const std::string path = (fs::path(folder) / entry.file).string();
    ASSIGN_OR_RETURN(Shard shard, Shard::Open(path, format));
    RETURN_IF_ERROR(CheckSize(path, shard.bytes(), entry.bytes));
    if (format == ShardFormat::kMegatron) {
      RETURN_IF_ERROR(CheckSize(IndexPathOf(path), shard.index_bytes(), entry.index_bytes));
    }
    if (shard.tokens() != entry.tokens) {
      return absl::DataLossError(absl::StrCat(path, ": ", shard.tokens(),
                                              " tokens, but the manifest says ", entry.tokens));
    }
    opened.shards.push_back(std::move(shard));
  }
  return opened;
}

// The .bin that `path` (a .bin, an .idx or a Megatron prefix) means.
std::string BinPathOf(const std::string& path) {
  if (path.ends_with(".bin")) return path;
  if (path.ends_with(".idx")) return path.substr(0, path.size() - 4) + ".bin";
  return path + ".bin";
}

absl::StatusOr<OpenedShards> OpenFile(const std::string& path) {
  const std::string bin = BinPathOf(path);
  if (!Exists(bin)) {
    if (!Exists(path)) return absl::NotFoundError(absl::StrCat(path, ": there is no such corpus"));
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a corpus: a corpus is a folder with ", kCorpusManifestFile,
                     ", a Megatron .bin with its .idx, or an llm.c .bin"));
  }
  const bool megatron = path != bin || Exists(IndexPathOf(bin));
  OpenedShards opened;
  ASSIGN_OR_RETURN(Shard shard,
                   Shard::Open(bin, megatron ? ShardFormat::kMegatron : ShardFormat::kLlmC));
  opened.manifest.format = Name(shard.format());
  opened.manifest.tokens = shard.tokens();
  opened.manifest.documents = shard.documents();
  opened.manifest.shards.push_back({.file = fs::path(bin).filename().string(),
                                    .tokens = shard.tokens(),
                                    .documents = shard.documents(),
                                    .bytes = shard.bytes(),
                                    .index_bytes = shard.index_bytes()});
  opened.shards.push_back(std::move(shard));
  return opened;
}

}  // namespace

struct Corpus::Impl {
  std::string path;
  CorpusManifest manifest;
  std::vector<Shard> shards;
  std::vector<std::int64_t> begins;  // first token of each shard, then the total
  bool has_digests = false;
  std::string digest;

  absl::Status ComputeDigest() {
    Sha256 sha;
    sha.Update("paceline corpus 1\n");
    for (std::size_t i = 0; i < shards.size(); ++i) {
      std::string content = manifest.shards[i].sha256;
      if (!has_digests) {
        ASSIGN_OR_RETURN(content, FingerprintOfFile(shards[i].path()));
      }
      sha.Update(absl::StrCat(content, " ", Name(shards[i].type()), " ", shards[i].tokens(), "\n"));
    }
    digest = sha.Finish();
    return absl::OkStatus();
  }

  // Calls visit(shard, begin in shard, count, offset in the range) for each part of the range.
  template <typename Visit>
  absl::Status ForParts(std::int64_t begin, std::int64_t count, Visit visit) const {
    auto next = std::upper_bound(begins.begin(), begins.end(), begin);
    std::size_t index = next - begins.begin() - 1;
    for (std::int64_t done = 0; done < count; ++index) {
      const std::int64_t at = begin + done - begins[index];
      const std::int64_t part = std::min(count - done, shards[index].tokens() - at);
      if (part > 0) RETURN_IF_ERROR(visit(shards[index], at, part, done));
      done += part;
    }
    return absl::OkStatus();
  }
};

Corpus::Corpus() : impl_(std::make_unique<Impl>()) {}
Corpus::~Corpus() = default;

absl::StatusOr<std::unique_ptr<Corpus>> Corpus::Open(const std::string& path) {
  std::error_code ignored;
  ASSIGN_OR_RETURN(OpenedShards opened,
                   fs::is_directory(path, ignored) ? OpenFolder(path) : OpenFile(path));
  std::unique_ptr<Corpus> corpus(new Corpus());
  Impl& impl = *corpus->impl_;
  impl.path = path;
  impl.manifest = std::move(opened.manifest);
  impl.shards = std::move(opened.shards);
  impl.has_digests = opened.has_digests;
  impl.begins.push_back(0);
  for (const Shard& shard : impl.shards) {
    impl.begins.push_back(impl.begins.back() + shard.tokens());
  }
  if (corpus->tokens() == 0) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": the corpus is empty: 0 tokens"));
  }
  RETURN_IF_ERROR(impl.ComputeDigest());
  return corpus;
}

std::int64_t Corpus::tokens() const { return impl_->begins.back(); }

std::int64_t Corpus::Samples(std::int64_t sequence) const { return (tokens() - 1) / sequence; }

const std::string& Corpus::digest() const { return impl_->digest; }

const CorpusManifest& Corpus::manifest() const { return impl_->manifest; }

absl::Status Corpus::VerifyDigests() const {
  if (!impl_->has_digests) return absl::OkStatus();
  for (std::size_t i = 0; i < impl_->shards.size(); ++i) {
    const Shard& shard = impl_->shards[i];
    const ShardEntry& entry = impl_->manifest.shards[i];
    RETURN_IF_ERROR(CheckDigest(shard.path(), entry.sha256));
    if (shard.format() == ShardFormat::kMegatron) {
      RETURN_IF_ERROR(CheckDigest(IndexPathOf(shard.path()), entry.index_sha256));
    }
  }
  return absl::OkStatus();
}

absl::Status Corpus::Read(std::int64_t begin, std::int64_t vocab_size,
                          std::span<std::int32_t> out) const {
  const auto count = static_cast<std::int64_t>(out.size());
  if (begin < 0 || count > tokens() || begin > tokens() - count) {
    return absl::InvalidArgumentError(absl::StrCat(impl_->path, ": tokens [", begin, ", ",
                                                   begin + count, ") are not all within its ",
                                                   tokens()));
  }
  if (vocab_size < 1 || vocab_size > std::numeric_limits<std::int32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("vocab_size = ", vocab_size, "; it must be 1 to 2147483647"));
  }
  return impl_->ForParts(
      begin, count, [&](const Shard& shard, std::int64_t at, std::int64_t part, std::int64_t done) {
        return shard.Read(at, vocab_size, out.subspan(done, part));
      });
}

void Corpus::WillNeed(std::int64_t begin, std::int64_t count) const {
  begin = std::clamp<std::int64_t>(begin, 0, tokens());
  count = std::clamp<std::int64_t>(count, 0, tokens() - begin);
  (void)impl_->ForParts(begin, count,
                        [](const Shard& shard, std::int64_t at, std::int64_t part, std::int64_t) {
                          shard.WillNeed(at, part);
                          return absl::OkStatus();
                        });
}

}  // namespace paceline
