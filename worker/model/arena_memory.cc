#include "worker/model/arena_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace paceline {

ArenaMemory::~ArenaMemory() {
  if (data_ != nullptr) munmap(data_, static_cast<std::size_t>(bytes_));
}

absl::StatusOr<ArenaMemory> ArenaMemory::Map(std::int64_t bytes) {
  const auto size = static_cast<std::size_t>(bytes);
  void* mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the model needs ", bytes, " bytes of memory in one piece (", std::strerror(errno),
        "): use a smaller model, micro_batch_size or sequence_length"));
  }
  // Huge pages save the matrix products many TLB misses; a kernel without them trains too.
  madvise(mapped, size, MADV_HUGEPAGE);
  ArenaMemory memory;
  memory.data_ = static_cast<std::byte*>(mapped);
  memory.bytes_ = bytes;
  return memory;
}

}  // namespace paceline
