// A rank's whole state of one step in a file of shared memory (tmpfs): it outlives the worker and
// its agent, not the machine, and is never fsynced.
//
//   NODE-FOLDER/rank-00003.0, .1      two files a rank, written in turn, so that one stays whole
//
// A file begins with a head of 4096 bytes, which names run, generation, rank and step and has the
// xxh3-128 of the rest: the state's arrays, one after the other.
// Invariant: a head is whole only while the rest is what it tells of.
// Threading: an object belongs to one thread at a time; the functions are for any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/status.h"

namespace paceline {

struct SnapshotHead {
  std::string run_id;
  std::uint64_t generation = 0;  // that wrote it
  std::int32_t rank = 0;
  std::int64_t step = 0;
};

std::string SnapshotPath(const std::string& folder, std::int32_t rank, int which);

// Which of a rank's two files a generation that began at `base_step` writes next: the one that
// holds nothing of its lineage, else the older one.
struct SnapshotTurn {
  int which = 0;
  std::int64_t loses_step = -1;  // that this costs; -1: nothing of the lineage
};
SnapshotTurn NextSnapshot(const std::string& folder, const SnapshotHead& next,
                          std::int64_t base_step);

class SnapshotFile {
 public:
  SnapshotFile() = default;
  SnapshotFile(SnapshotFile&& other) noexcept { *this = std::move(other); }
  SnapshotFile& operator=(SnapshotFile&& other) noexcept;
  ~SnapshotFile();

  // Opens or makes a file for `bytes` of state, all its memory reserved. What it held stays until
  // Begin. kResourceExhausted: there is not so much memory.
  static absl::StatusOr<SnapshotFile> Open(const std::string& path, std::size_t bytes);

  // From here to Finish the file holds nothing of use.
  void Begin();
  std::span<std::byte> bytes() const { return bytes_; }
  // Begin, and the state from `arrays`, which have its size together: digested as it is copied,
  // while the caches hold it. Returns the digest.
  std::string Fill(std::span<const std::span<std::byte>> arrays);
  void Finish(const SnapshotHead& head, const std::string& digest);
  // Of a copy. kDataLoss, and it holds nothing: what was written has not this digest.
  absl::Status FinishCopy(const SnapshotHead& head, const std::string& digest);

 private:
  void* memory_ = nullptr;      // the head, and then
  std::span<std::byte> bytes_;  // the state
};

// A snapshot that is read while its owner may write it over: never mapped, so that nobody can take
// the memory away.
class SnapshotReader {
 public:
  SnapshotReader(SnapshotReader&& other) noexcept { *this = std::move(other); }
  SnapshotReader& operator=(SnapshotReader&& other) noexcept;
  ~SnapshotReader();

  // kNotFound: there is no such file. kDataLoss: it is not whole, or of another version.
  static absl::StatusOr<SnapshotReader> Open(const std::string& path);

  const SnapshotHead& head() const { return head_; }
  std::size_t bytes() const { return bytes_; }  // of the state
  const std::string& digest() const { return digest_; }
  // The state's bytes from `at` on. kAborted: they are not there any more.
  absl::Status Read(std::size_t at, std::span<char> to) const;
  // kAborted: it was written over since it was opened. Where it was not, what was read is most
  // likely what the digest is of; only the digest proves it.
  absl::Status CheckUnchanged() const;

 private:
  SnapshotReader() = default;

  int file_ = -1;
  std::string path_;
  SnapshotHead head_;
  std::size_t bytes_ = 0;
  std::string digest_;
};

// kNotFound: there is no such file. kDataLoss: it is not whole, or of another version.
absl::StatusOr<SnapshotHead> ReadSnapshotHead(const std::string& path);

// Reads rank `rank`'s snapshot of `step` into `arrays`; of two the later generation's.
// kNotFound: `folder` has none. kDataLoss: it is damaged, or of another size.
absl::Status ReadSnapshot(const std::string& folder, const std::string& run_id, std::int32_t rank,
                          std::int64_t step, const std::vector<std::span<std::byte>>& arrays);

// The whole snapshots in `folder`, whose digests are not looked at, by rank and step.
std::vector<SnapshotHead> ListSnapshots(const std::string& folder);

}  // namespace paceline
