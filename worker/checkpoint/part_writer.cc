#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <stop_token>
#include <thread>
#include <utility>

#include "common/clock.h"
#include "common/files.h"
#include "common/xxh128.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/checkpoint/open_file.h"
#include "worker/checkpoint/safetensors.h"

namespace paceline {
namespace {

// What is digested, written and handed to the disk at a time: the digest leaves it in the cache
// for the write, and the disk is kept busy from the first chunk on.
constexpr std::int64_t kChunkBytes = 4 << 20;

// The copy of a part, kept from one checkpoint to the next.
class Image {
 public:
  Image() = default;
  ~Image() { Free(); }
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;

  absl::Status Reserve(std::int64_t bytes) {
    if (bytes <= bytes_) return absl::OkStatus();
    Free();
    void* memory = ::mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      return absl::ResourceExhaustedError("no memory for a copy of " + std::to_string(bytes) +
                                          " bytes for a checkpoint");
    }
    // Fewer page faults while the step thread waits for the copy. Only advice.
    ::madvise(memory, static_cast<std::size_t>(bytes), MADV_HUGEPAGE);
    data_ = static_cast<std::byte*>(memory);
    bytes_ = bytes;
    return absl::OkStatus();
  }

  std::byte* data() const { return data_; }

 private:
  void Free() {
    if (data_ != nullptr) ::munmap(data_, static_cast<std::size_t>(bytes_));
    data_ = nullptr;
    bytes_ = 0;
  }

  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

struct Job {
  std::string folder;  // of the checkpoint
  std::int64_t header_bytes = 0;
  std::vector<std::int64_t> slice_bytes;
  WrittenPart part;  // what is known before it has been written
};

std::string PartFileName(int rank) {
  char name[40];
  std::snprintf(name, sizeof(name), "rank-%05d.safetensors", rank);
  return name;
}

// Asks for all the space at once: a full disk shows before anything is written.
absl::Status Allocate(const OpenFile& file, std::int64_t bytes) {
  int result = 0;
  do {
    result = ::fallocate(file.fd(), 0, 0, bytes);
  } while (result != 0 && errno == EINTR);
  // Not every file system can; then the write finds out.
  if (result == 0 || errno == EOPNOTSUPP || errno == ENOSYS) return absl::OkStatus();
  return ErrnoStatus(errno, "allocating " + std::to_string(bytes) + " bytes for " + file.path());
}

// Takes the digests of the slices as their bytes pass by, in order.
class SliceDigests {
 public:
  explicit SliceDigests(const Job& job) : left_(job.slice_bytes) { FinishEmpty(); }

  void Update(const std::byte* data, std::int64_t bytes) {
    while (bytes > 0 && done_.size() < left_.size()) {
      std::int64_t& left = left_[done_.size()];
      const std::int64_t count = std::min(left, bytes);
      digest_->Update(data, static_cast<std::size_t>(count));
      left -= count;
      data += count;
      bytes -= count;
      FinishEmpty();
    }
  }

  const std::vector<std::string>& done() const { return done_; }

 private:
  void FinishEmpty() {
    while (done_.size() < left_.size() && left_[done_.size()] == 0) {
      done_.push_back(digest_->Hex());
      digest_ = std::make_unique<Xxh128>();
    }
  }

  std::vector<std::int64_t> left_;  // of each slice
  std::vector<std::string> done_;
  std::unique_ptr<Xxh128> digest_ = std::make_unique<Xxh128>();
};

// Writes the image, and its slices' digests into `part`.
absl::Status WriteImage(const OpenFile& file, const Image& image, const Job& job,
                        const std::atomic<bool>& given_up, WrittenPart* part) {
  RETURN_IF_ERROR(Allocate(file, part->bytes));
  SliceDigests digests(job);
  for (std::int64_t begin = 0; begin < part->bytes; begin += kChunkBytes) {
    if (given_up) return absl::CancelledError(file.path() + " was given up");
    const std::int64_t count = std::min(kChunkBytes, part->bytes - begin);
    const std::int64_t data_begin = std::max(begin, job.header_bytes);
    digests.Update(image.data() + data_begin, begin + count - data_begin);
    RETURN_IF_ERROR(file.WriteAt(begin, image.data() + begin, count));
    // Only a hint: where it fails, fsync does all the work.
    ::sync_file_range(file.fd(), begin, count, SYNC_FILE_RANGE_WRITE);
  }
  const SteadyTime before_fsync = std::chrono::steady_clock::now();
  if (::fsync(file.fd()) != 0) return ErrnoStatus(errno, "fsync of " + file.path());
  part->fsync_seconds = SecondsBetween(before_fsync, std::chrono::steady_clock::now());
  for (std::size_t i = 0; i < part->slices.size(); ++i) part->slices[i].digest = digests.done()[i];
  return absl::OkStatus();
}

absl::Status MakeFolder(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return ErrnoStatus(error.value(), "making folder " + folder);
  return absl::OkStatus();
}

absl::StatusOr<WrittenPart> WritePart(const Image& image, const Job& job,
                                      const std::atomic<bool>& given_up) {
  const SteadyTime begin = std::chrono::steady_clock::now();
  WrittenPart part = job.part;
  const std::string path = job.folder + "/" + part.file;
  // A name of its own: an earlier process may still be writing a part of the same name.
  const std::string draft = path + ".tmp-" + std::to_string(::getpid());
  if (::access((job.folder + "/manifest.json").c_str(), F_OK) == 0) {
    return absl::FailedPreconditionError(job.folder +
                                         " is a committed checkpoint, which is never "
                                         "written again; remove it if it is damaged");
  }
  RETURN_IF_ERROR(MakeFolder(job.folder));
  ::unlink(draft.c_str());
  absl::Status status;
  {
    ASSIGN_OR_RETURN(const OpenFile file, OpenFile::New(draft));
    status = WriteImage(file, image, job, given_up, &part);
  }
  if (status.ok() && std::rename(draft.c_str(), path.c_str()) != 0) {
    status = ErrnoStatus(errno, "renaming " + draft);
  }
  if (!status.ok()) {
    ::unlink(draft.c_str());
    return status;
  }
  RETURN_IF_ERROR(SyncFolder(job.folder));
  RETURN_IF_ERROR(SyncFolder(std::filesystem::path(job.folder).parent_path()));
  part.write_seconds = SecondsBetween(begin, std::chrono::steady_clock::now());
  return part;
}

absl::StatusOr<WrittenPart> WritePartOrAdvise(const Image& image, const Job& job,
                                              const std::atomic<bool>& given_up) {
  absl::StatusOr<WrittenPart> part = WritePart(image, job, given_up);
  if (part.ok() || !absl::IsResourceExhausted(part.status())) return part;
  return absl::ResourceExhaustedError(std::string(part.status().message()) +
                                      "; free space there, lower [checkpoint] keep or point "
                                      "[checkpoint] dir elsewhere. The last committed checkpoint "
                                      "stays");
}

}  // namespace

// Threading: `mutex` guards `busy`; job and image belong to the writer's thread while busy is
// true, to the step thread otherwise.
struct PartWriter::Impl {
  int rank = 0;
  Done done;
  Job job;
  Image image;

  std::mutex mutex;
  std::condition_variable_any work;
  std::condition_variable idle;
  bool busy = false;  // from Snapshot's return to done's
  std::atomic<bool> given_up = false;

  std::jthread thread;  // last: it ends before what it uses

  void Loop(const std::stop_token& stop);
  void WaitUntilIdle();
};

void PartWriter::Impl::Loop(const std::stop_token& stop) {
  // The program's signals are for its main thread; and a file-size limit is to be an error of
  // write, not a SIGXFSZ.
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  std::unique_lock lock(mutex);
  while (work.wait(lock, stop, [this] { return busy; })) {
    lock.unlock();
    done(WritePartOrAdvise(image, job, given_up), job.part.step);
    lock.lock();
    busy = false;
    idle.notify_all();
  }
}

void PartWriter::Impl::WaitUntilIdle() {
  std::unique_lock lock(mutex);
  idle.wait(lock, [this] { return !busy; });
}

PartWriter::PartWriter(int rank, Done done) : impl_(std::make_unique<Impl>()) {
  impl_->rank = rank;
  impl_->done = std::move(done);
  impl_->thread = std::jthread([impl = impl_.get()](std::stop_token stop) { impl->Loop(stop); });
  pthread_setname_np(impl_->thread.native_handle(), "checkpoint");
}

PartWriter::~PartWriter() { Flush(); }

absl::Status PartWriter::Snapshot(const CheckpointName& name, const std::string& folder,
                                  std::span<const SliceView> slices) {
  const SteadyTime begin = std::chrono::steady_clock::now();
  Job job;
  job.folder = folder + "/" + CheckpointFolderName(name);
  job.part.step = name.step;
  job.part.file = PartFileName(impl_->rank);
  for (const SliceView& slice : slices) job.part.slices.push_back(slice.info);
  ASSIGN_OR_RETURN(const std::string header, BuildSafetensorsHeader(job.part.slices));
  job.header_bytes = std::ssize(header);
  job.part.bytes = job.header_bytes;
  for (const SliceView& slice : slices) {
    ASSIGN_OR_RETURN(const std::int64_t bytes, BytesOf(slice.info));
    job.slice_bytes.push_back(bytes);
    job.part.bytes += bytes;
  }

  impl_->WaitUntilIdle();
  RETURN_IF_ERROR(impl_->image.Reserve(job.part.bytes));
  std::byte* to = impl_->image.data();
  std::memcpy(to, header.data(), header.size());
  to += header.size();
  for (std::size_t i = 0; i < slices.size(); ++i) {
    const auto bytes = static_cast<std::size_t>(job.slice_bytes[i]);
    if (bytes > 0) std::memcpy(to, slices[i].data, bytes);
    to += bytes;
  }
  job.part.stall_seconds = SecondsBetween(begin, std::chrono::steady_clock::now());
  impl_->job = std::move(job);
  std::lock_guard lock(impl_->mutex);
  impl_->busy = true;
  impl_->work.notify_one();
  return absl::OkStatus();
}

void PartWriter::Flush() { impl_->WaitUntilIdle(); }

bool PartWriter::FlushFor(std::chrono::milliseconds patience) {
  std::unique_lock lock(impl_->mutex);
  return impl_->idle.wait_for(lock, patience, [this] { return !impl_->busy; });
}

void PartWriter::GiveUp() { impl_->given_up = true; }

}  // namespace paceline
