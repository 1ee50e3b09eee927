// A whole coordinator: comes to lead its state folder, replays the journal, listens, and decides
// until it is stopped or replaced.
// Invariant: of the coordinators of one state folder the one of the highest epoch leads; one that
// has lost its journal, or has seen a higher epoch, says nothing more to anybody.
// Threading: one owner; ended_event() may be polled by it.
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
  // How long this coordinator's own end may go unnoticed by a standby: its lease follows from it.
  std::int64_t budget_ms = 3000;
  bool standby = false;  // waits while another coordinator leads
  int stop_event = -1;   // a descriptor; once it is readable nothing is waited for
};

class Coordinator {
 public:
  // Returns when it leads. kInvalidArgument: an option (the text names its flag); kAlreadyExists:
  // an address is in use, or the state folder has a coordinator; kDataLoss, kFailedPrecondition: as
  // Journal::Read; kCancelled: stop_event.
  static absl::StatusOr<std::unique_ptr<Coordinator>> Start(const CoordinatorOptions& options);
  ~Coordinator();

  // A descriptor that becomes readable when the journal has failed, or another coordinator has
  // taken over: Stop then, and exit.
  int ended_event() const;

  // Refuses new work, decides what was taken, lets files and answers leave, removes
  // coordinator.json everywhere, and releases the lease. The journal's error, if that is why;
  // kFailedPrecondition: another coordinator has taken over.
  absl::Status Stop();

 private:
  struct Impl;
  explicit Coordinator(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace paceline
