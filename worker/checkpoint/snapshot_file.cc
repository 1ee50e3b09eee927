#include "worker/checkpoint/snapshot_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/files.h"
#include "common/xxh128.h"

namespace paceline {
namespace {

constexpr std::size_t kHeadBytes = 4096;
constexpr std::array<char, 8> kMagic = {'p', 'a', 'c', 'e', 's', 'n', 'a', 'p'};
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kDigestBytes = 32;
constexpr std::size_t kChunkBytes = std::size_t{128} << 10;  // a part of a core's own cache
constexpr std::size_t kRunIdBytes = 256;

// As it lies in the file, in the machine's own byte order: it never leaves the machine.
struct FileHead {
  std::array<char, 8> magic;
  std::uint32_t version;
  std::atomic<std::uint32_t> whole;
  std::uint64_t bytes;  // of the state
  std::uint64_t generation;
  std::int64_t step;
  std::int32_t rank;
  std::int32_t padding;
  std::array<char, kDigestBytes> digest;  // of the state
  std::array<char, kRunIdBytes> run_id;   // ended by a zero
  std::array<char, kDigestBytes> own;     // of everything before it but `whole`
};
static_assert(sizeof(FileHead) <= kHeadBytes);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

std::string DigestOf(const void* data, std::size_t bytes) {
  return Xxh128Of({static_cast<const char*>(data), bytes});
}

std::string DigestOfHead(const FileHead& head) {
  constexpr std::size_t kFirst = offsetof(FileHead, whole);
  constexpr std::size_t kSecond = offsetof(FileHead, bytes);
  Xxh128 digest;
  digest.Update(&head, kFirst);
  digest.Update(reinterpret_cast<const std::byte*>(&head) + kSecond,
                offsetof(FileHead, own) - kSecond);
  return digest.Hex();
}

// kDataLoss: it is none that is whole and of this version, in a file of `file_bytes`.
absl::Status CheckHead(const FileHead& head, std::size_t file_bytes, const std::string& path) {
  if (head.magic != kMagic || head.version != kVersion) {
    return absl::DataLossError("snapshot " + path + ": is none of this version");
  }
  const std::string own(head.own.data(), head.own.size());
  if (head.whole.load(std::memory_order_acquire) != 1 || own != DigestOfHead(head) ||
      head.bytes != file_bytes - kHeadBytes) {
    return absl::DataLossError("snapshot " + path + ": is not whole");
  }
  return absl::OkStatus();
}

SnapshotHead Told(const FileHead& from) {
  return {.run_id = std::string(from.run_id.data(), strnlen(from.run_id.data(), kRunIdBytes)),
          .generation = from.generation,
          .rank = from.rank,
          .step = from.step};
}

// A file mapped to be read.
class Mapped {
 public:
  Mapped() = default;
  Mapped(Mapped&& other) noexcept { *this = std::move(other); }
  Mapped& operator=(Mapped&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Mapped() {
    if (memory_ != nullptr) munmap(memory_, bytes_);
  }

  static absl::StatusOr<Mapped> Open(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file == -1) return ErrnoStatus(errno, "snapshot " + path);
    struct stat status = {};
    Mapped mapped;
    if (fstat(file, &status) == 0 && status.st_size >= static_cast<off_t>(kHeadBytes)) {
      void* memory =
          mmap(nullptr, static_cast<std::size_t>(status.st_size), PROT_READ, MAP_SHARED, file, 0);
      if (memory != MAP_FAILED) {
        mapped.memory_ = memory;
        mapped.bytes_ = static_cast<std::size_t>(status.st_size);
      }
    }
    close(file);
    if (mapped.memory_ == nullptr) return absl::DataLossError("snapshot " + path + ": is cut off");
    RETURN_IF_ERROR(CheckHead(mapped.head(), mapped.bytes_, path));
    return mapped;
  }

  const FileHead& head() const { return *static_cast<const FileHead*>(memory_); }
  const std::byte* state() const { return static_cast<const std::byte*>(memory_) + kHeadBytes; }
  SnapshotHead told() const { return Told(head()); }

 private:
  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

// False: the file has not so many bytes.
bool ReadAt(int file, std::size_t at, char* to, std::size_t bytes) {
  while (bytes > 0) {
    const ssize_t got = pread(file, to, bytes, static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += static_cast<std::size_t>(got);
    to += got;
    bytes -= static_cast<std::size_t>(got);
  }
  return true;
}

struct HeadBytes {
  alignas(FileHead) std::array<char, sizeof(FileHead)> bytes;
  const FileHead& head() const { return *reinterpret_cast<const FileHead*>(bytes.data()); }
};

}  // namespace

std::string SnapshotPath(const std::string& folder, std::int32_t rank, int which) {
  return absl::StrFormat("%s/rank-%05d.%d", folder, rank, which);
}

SnapshotFile& SnapshotFile::operator=(SnapshotFile&& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

SnapshotFile::~SnapshotFile() {
  if (memory_ != nullptr) munmap(memory_, kHeadBytes + bytes_.size());
}

absl::StatusOr<SnapshotFile> SnapshotFile::Open(const std::string& path, std::size_t state_bytes) {
  const std::string context = "snapshot " + path;
  const std::size_t bytes = kHeadBytes + state_bytes;
  const int file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file == -1) return ErrnoStatus(errno, context);
  struct stat status = {};
  int error = fstat(file, &status) == 0 ? 0 : errno;
  if (error == 0 && status.st_size != static_cast<off_t>(bytes)) {
    // New, or of another layout, of which nothing is of use: a new file takes its place, since
    // somebody may have the old one mapped.
    if (status.st_size != 0) {
      close(file);
      if (unlink(path.c_str()) != 0 && errno != ENOENT) return ErrnoStatus(errno, context);
      return Open(path, state_bytes);
    }
  }
  // Reserved whole, or a store into it could end the process (SIGBUS).
  if (error == 0) error = posix_fallocate(file, 0, static_cast<off_t>(bytes));
  void* memory =
      error != 0 ? MAP_FAILED : mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (error == 0 && memory == MAP_FAILED) error = errno;
  close(file);
  if (error != 0) {
    unlink(path.c_str());
    return ErrnoStatus(error, absl::StrCat(context, " (", bytes, " bytes)"));
  }
  SnapshotFile opened;
  opened.memory_ = memory;
  opened.bytes_ = {static_cast<std::byte*>(memory) + kHeadBytes, state_bytes};
  return opened;
}

void SnapshotFile::Begin() {
  static_cast<FileHead*>(memory_)->whole.store(0, std::memory_order_release);
}

std::string SnapshotFile::Fill(std::span<const std::span<std::byte>> arrays) {
  Begin();
  Xxh128 digest;
  std::byte* to = bytes_.data();
  for (std::span<std::byte> array : arrays) {
    while (!array.empty()) {
      const std::span<std::byte> chunk = array.first(std::min(array.size(), kChunkBytes));
      digest.Update(chunk.data(), chunk.size());
      std::memcpy(to, chunk.data(), chunk.size());
      to += chunk.size();
      array = array.subspan(chunk.size());
    }
  }
  return digest.Hex();
}

absl::Status SnapshotFile::FinishCopy(const SnapshotHead& head, const std::string& digest) {
  const std::string own = DigestOf(bytes_.data(), bytes_.size());
  if (own != digest) {
    return absl::DataLossError(absl::StrCat("the copy of rank ", head.rank, "'s snapshot of step ",
                                            head.step, " has digest ", own, ", its head says ",
                                            digest));
  }
  Finish(head, own);
  return absl::OkStatus();
}

void SnapshotFile::Finish(const SnapshotHead& told, const std::string& digest) {
  FileHead& head = *static_cast<FileHead*>(memory_);
  head.magic = kMagic;
  head.version = kVersion;
  head.bytes = bytes_.size();
  head.generation = told.generation;
  head.step = told.step;
  head.rank = told.rank;
  head.padding = 0;
  digest.copy(head.digest.data(), kDigestBytes);
  head.run_id.fill('\0');
  told.run_id.copy(head.run_id.data(), kRunIdBytes - 1);
  DigestOfHead(head).copy(head.own.data(), kDigestBytes);
  head.whole.store(1, std::memory_order_release);
}

SnapshotTurn NextSnapshot(const std::string& folder, const SnapshotHead& next,
                          std::int64_t base_step) {
  const auto worth = [&](int which) {
    const absl::StatusOr<SnapshotHead> head =
        ReadSnapshotHead(SnapshotPath(folder, next.rank, which));
    const bool counts = head.ok() && head->run_id == next.run_id &&
                        (head->step <= base_step || head->generation == next.generation);
    return counts ? head->step : -1;
  };
  const std::int64_t first = worth(0);
  const std::int64_t second = worth(1);
  return second < first ? SnapshotTurn{1, second} : SnapshotTurn{0, first};
}

SnapshotReader& SnapshotReader::operator=(SnapshotReader&& other) noexcept {
  std::swap(file_, other.file_);
  std::swap(path_, other.path_);
  std::swap(head_, other.head_);
  std::swap(bytes_, other.bytes_);
  std::swap(digest_, other.digest_);
  return *this;
}

SnapshotReader::~SnapshotReader() {
  if (file_ != -1) close(file_);
}

absl::StatusOr<SnapshotReader> SnapshotReader::Open(const std::string& path) {
  SnapshotReader reader;
  reader.path_ = path;
  reader.file_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (reader.file_ == -1) return ErrnoStatus(errno, "snapshot " + path);
  struct stat status = {};
  HeadBytes read;
  if (fstat(reader.file_, &status) != 0 || status.st_size < static_cast<off_t>(kHeadBytes) ||
      !ReadAt(reader.file_, 0, read.bytes.data(), read.bytes.size())) {
    return absl::DataLossError("snapshot " + path + ": is cut off");
  }
  const FileHead& head = read.head();
  RETURN_IF_ERROR(CheckHead(head, static_cast<std::size_t>(status.st_size), path));
  reader.head_ = Told(head);
  reader.bytes_ = head.bytes;
  reader.digest_.assign(head.digest.data(), kDigestBytes);
  return reader;
}

absl::Status SnapshotReader::Read(std::size_t at, std::span<char> to) const {
  if (at + to.size() <= bytes_ && ReadAt(file_, kHeadBytes + at, to.data(), to.size())) {
    return absl::OkStatus();
  }
  return absl::AbortedError("snapshot " + path_ + ": was cut off while it was read");
}

absl::Status SnapshotReader::CheckUnchanged() const {
  HeadBytes now;
  if (ReadAt(file_, 0, now.bytes.data(), now.bytes.size()) &&
      CheckHead(now.head(), kHeadBytes + bytes_, path_).ok() && now.head().step == head_.step &&
      now.head().generation == head_.generation &&
      std::string(now.head().digest.data(), kDigestBytes) == digest_) {
    return absl::OkStatus();
  }
  return absl::AbortedError("snapshot " + path_ + ": was written over while it was read");
}

absl::StatusOr<SnapshotHead> ReadSnapshotHead(const std::string& path) {
  ASSIGN_OR_RETURN(const SnapshotReader reader, SnapshotReader::Open(path));
  return reader.head();
}

absl::Status ReadSnapshot(const std::string& folder, const std::string& run_id, std::int32_t rank,
                          std::int64_t step, const std::vector<std::span<std::byte>>& arrays) {
  std::optional<Mapped> found;
  std::string path;
  for (const int which : {0, 1}) {
    absl::StatusOr<Mapped> mapped = Mapped::Open(SnapshotPath(folder, rank, which));
    if (!mapped.ok()) continue;
    const SnapshotHead head = mapped->told();
    if (head.run_id != run_id || head.rank != rank || head.step != step) continue;
    if (found.has_value() && found->head().generation >= head.generation) continue;
    found = *std::move(mapped);
    path = SnapshotPath(folder, rank, which);
  }
  if (!found.has_value()) {
    return absl::NotFoundError(
        absl::StrCat(folder, " holds no snapshot of rank ", rank, " at step ", step));
  }
  std::size_t bytes = 0;
  for (const std::span<std::byte> array : arrays) bytes += array.size();
  if (found->head().bytes != bytes) {
    return absl::DataLossError(absl::StrCat("snapshot ", path, " holds ", found->head().bytes,
                                            " bytes of state, expected ", bytes));
  }
  // Digested as they were copied: what is looked at is what is used.
  Xxh128 digest;
  const std::byte* from = found->state();
  for (const std::span<std::byte> array : arrays) {
    std::memcpy(array.data(), from, array.size());
    digest.Update(array.data(), array.size());
    from += array.size();
  }
  if (digest.Hex() != std::string(found->head().digest.data(), kDigestBytes)) {
    return absl::DataLossError("snapshot " + path +
                               ": what it holds has another digest than its head says");
  }
  return absl::OkStatus();
}

std::vector<SnapshotHead> ListSnapshots(const std::string& folder) {
  std::vector<SnapshotHead> heads;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    absl::StatusOr<SnapshotHead> head = ReadSnapshotHead(entry.path());
    if (head.ok()) heads.push_back(*std::move(head));
  }
  std::sort(heads.begin(), heads.end(), [](const SnapshotHead& a, const SnapshotHead& b) {
    return std::tie(a.rank, a.step, a.generation) < std::tie(b.rank, b.step, b.generation);
  });
  return heads;
}

}  // namespace paceline
