#include "worker/data/digest.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace paceline {
namespace {

constexpr std::int64_t kWholeFileMax = 16 << 20;
constexpr std::int64_t kEndBytes = 256 << 10;
constexpr std::int64_t kBlockBytes = 64 << 10;
constexpr std::int64_t kBlocks = 16;
constexpr std::size_t kReadBytes = 1 << 20;

class ReadOnlyFile {
 public:
  static absl::StatusOr<ReadOnlyFile> Open(const std::string& path) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return Failure(path, "cannot open", errno);
    ReadOnlyFile file(path, descriptor);
    struct stat info {};
    if (::fstat(descriptor, &info) != 0) return Failure(path, "cannot stat", errno);
    file.size_ = info.st_size;
    return file;
  }
  ReadOnlyFile(ReadOnlyFile&& other) noexcept
      : path_(std::move(other.path_)),
        descriptor_(std::exchange(other.descriptor_, -1)),
        size_(other.size_) {}
  ~ReadOnlyFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  std::int64_t size() const { return size_; }
  int descriptor() const { return descriptor_; }

  // Feeds bytes [begin, begin + count) to `digest`.
  absl::Status Feed(std::int64_t begin, std::int64_t count, Sha256& digest) const {
    std::vector<std::byte> buffer(std::min<std::size_t>(kReadBytes, count));
    while (count > 0) {
      const std::size_t want = std::min<std::size_t>(buffer.size(), count);
      const ssize_t got = ::pread(descriptor_, buffer.data(), want, begin);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return Failure(path_, "cannot read", errno);
      if (got == 0) return absl::DataLossError(absl::StrCat(path_, ": shrank while it was read"));
      digest.Update(std::span(buffer.data(), static_cast<std::size_t>(got)));
      begin += got;
      count -= got;
    }
    return absl::OkStatus();
  }

 private:
  ReadOnlyFile(std::string path, int descriptor)
      : path_(std::move(path)), descriptor_(descriptor) {}

  static absl::Status Failure(const std::string& path, const char* what, int error) {
    const std::string text = absl::StrCat(path, ": ", what, ": ", std::strerror(error));
    return error == ENOENT ? absl::NotFoundError(text) : absl::UnavailableError(text);
  }

  std::string path_;
  int descriptor_;
  std::int64_t size_ = 0;
};

}  // namespace

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  PACELINE_CHECK(state_->context != nullptr);
  PACELINE_CHECK(EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr) == 1);
}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::Update(std::span<const std::byte> bytes) {
  PACELINE_CHECK(EVP_DigestUpdate(state_->context, bytes.data(), bytes.size()) == 1);
}

void Sha256::Update(std::string_view text) {
  Update(std::as_bytes(std::span(text.data(), text.size())));
}

std::string Sha256::Finish() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> raw;
  unsigned size = 0;
  PACELINE_CHECK(EVP_DigestFinal_ex(state_->context, raw.data(), &size) == 1);
  PACELINE_CHECK(EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr) == 1);
  static constexpr char kHex[] = "0123456789abcdef";
  std::string text;
  for (unsigned i = 0; i < size; ++i) {
    text.push_back(kHex[raw[i] >> 4]);
    text.push_back(kHex[raw[i] & 15]);
  }
  return text;
}

std::string Sha256Of(std::string_view text) {
  Sha256 digest;
  digest.Update(text);
  return digest.Finish();
}

absl::StatusOr<std::string> Sha256OfFile(const std::string& path) {
  ASSIGN_OR_RETURN(const ReadOnlyFile file, ReadOnlyFile::Open(path));
  // Advice only: a refusal costs speed, not correctness.
  (void)::posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_SEQUENTIAL);
  Sha256 digest;
  RETURN_IF_ERROR(file.Feed(0, file.size(), digest));
  return digest.Finish();
}

absl::StatusOr<std::string> FingerprintOfFile(const std::string& path) {
  ASSIGN_OR_RETURN(const ReadOnlyFile file, ReadOnlyFile::Open(path));
  const std::int64_t size = file.size();
  Sha256 digest;
  digest.Update(absl::StrCat("bytes ", size, "\n"));
  if (size <= kWholeFileMax) {
    RETURN_IF_ERROR(file.Feed(0, size, digest));
    return digest.Finish();
  }
  RETURN_IF_ERROR(file.Feed(0, kEndBytes, digest));
  const std::int64_t between = size - 2 * kEndBytes - kBlockBytes;
  for (std::int64_t block = 0; block < kBlocks; ++block) {
    const std::int64_t begin = kEndBytes + between / (kBlocks - 1) * block;
    RETURN_IF_ERROR(file.Feed(begin, kBlockBytes, digest));
  }
  RETURN_IF_ERROR(file.Feed(size - kEndBytes, kEndBytes, digest));
  return digest.Finish();
}

}  // namespace paceline
