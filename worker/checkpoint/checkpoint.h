// Checkpoint folders: step-00000100-g1/ (common/checkpoint_name.h) with rank-00000.safetensors,
// ... and manifest.json, which names every global tensor's slices (common/manifest.h). A folder
// without manifest.json is not a checkpoint. The coordinator alone puts manifest.json into place.
// Invariant: nothing that was committed is ever opened for writing again.
// Threading: a PartWriter's methods belong to the step thread; it writes on a thread of its own.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/checkpoint_name.h"
#include "common/manifest.h"
#include "common/status.h"

namespace paceline {

// A tensor slice as it lies in memory.
struct SliceView {
  TensorSliceInfo info;  // name, dtype, global shape, start, shape (digest empty)
  const void* data = nullptr;
};

struct WrittenPart {
  std::int64_t step = 0;
  std::string file;  // relative to the checkpoint's folder
  std::int64_t bytes = 0;
  std::vector<TensorSliceInfo> slices;  // with digests
  double stall_seconds = 0;             // that Snapshot kept the step thread
  double write_seconds = 0;
  double fsync_seconds = 0;  // of these
};

// Writes one rank's part in the background from a private copy of the slices.
class PartWriter {
 public:
  using Done = std::function<void(absl::StatusOr<WrittenPart>, std::int64_t step)>;

  // `done` is called on the writer's thread, once a Snapshot.
  PartWriter(int rank, Done done);
  ~PartWriter();  // finishes what was begun

  // Copies the slices and returns; writing FOLDER/step-N-gG/rank-R.safetensors and fsyncing it and
  // its folder happens behind. One part at a time: a Snapshot while the last is still being
  // written waits for it. The copy's memory is kept for the next one.
  absl::Status Snapshot(const CheckpointName& name, const std::string& folder,
                        std::span<const SliceView> slices);
  // Waits until everything begun is durable or has failed. False: `patience` has run out.
  bool FlushFor(std::chrono::milliseconds patience);
  void Flush();
  // What is being written fails with kCancelled before its next few megabytes, and what later
  // Snapshots copy before its first. From any thread.
  void GiveUp();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// An opened checkpoint: its manifest has been read and its parts' sizes and headers checked.
class CheckpointReader {
 public:
  // kNotFound: no manifest. kDataLoss: names the file and what is wrong. kFailedPrecondition:
  // written by a newer version.
  static absl::StatusOr<std::unique_ptr<CheckpointReader>> Open(const std::string& folder);
  ~CheckpointReader();

  const Manifest& manifest() const;

  // Reads the slice [start, start + shape) of global tensor `name` into `out` (float32, dense),
  // straight from the parts that hold it; every part slice touched is checked against its
  // digest once. kDataLoss: a digest is off, or the slices do not cover it; names tensor and
  // file. kInvalidArgument: no such tensor, or another shape.
  absl::Status Read(const std::string& name, std::span<const std::int64_t> start,
                    std::span<const std::int64_t> shape, std::span<float> out) const;
  // Checks every digest of every part, and that a folder called after a step holds that step.
  absl::Status Verify() const;

 private:
  CheckpointReader();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Committed checkpoints of `dir`, newest first (folders that hold a manifest.json).
std::vector<std::string> ListCheckpoints(const std::string& dir);

}  // namespace paceline
