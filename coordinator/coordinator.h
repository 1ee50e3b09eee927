// A whole coordinator: takes its state folder, replays the journal, listens, and decides until it
// is stopped.
// Invariant: one state folder has one coordinator at a time, and one that has lost its journal
// says nothing more to anybody.
// Threading: one owner; broken_event() may be polled by it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common/status.h"

namespace paceline {

struct CoordinatorOptions {
  std::string state_dir;
  std::string listen = "127.0.0.1:0";
  std::string metrics_listen = "127.0.0.1:0";
  std::string token_file;                                  // empty: STATE_DIR/token
  std::int64_t history_bytes_max = std::int64_t{1} << 30;  // of the journal; 0: none is kept
};

class Coordinator {
 public:
  // kInvalidArgument: an option (the text names its flag); kAlreadyExists: an address is in use,
  // or the state folder has a coordinator; kDataLoss, kFailedPrecondition: as Journal::Read.
  static absl::StatusOr<std::unique_ptr<Coordinator>> Start(const CoordinatorOptions& options);
  ~Coordinator();

  // A descriptor that becomes readable when the journal has failed: Stop then, and exit.
  int broken_event() const;

  // Refuses new work, decides what was taken, lets files and answers leave, and removes
  // coordinator.json everywhere. The journal's error, if that is why.
  absl::Status Stop();

 private:
  struct Impl;
  explicit Coordinator(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline
