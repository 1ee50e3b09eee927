// How a coordinator comes to lead: it waits until the state folder's lease is free, replays the
// journal, makes the next epoch's file, which nobody else can make, and puts its own lease there.
// Invariant: whoever returns from TakeOver alone has its epoch, and what it has replayed is all
// that counts of those before.
// Threading: one thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "common/ids.h"
#include "common/status.h"
#include "coordinator/core/core.h"
#include "coordinator/storage/journal.h"
#include "coordinator/storage/lease.h"

namespace paceline {

struct TakeOverOptions {
  std::string state_dir;
  std::int64_t history_bytes_max = 0;
  std::chrono::milliseconds look_interval{0};  // at who leads
  std::chrono::milliseconds lease{0};  // one's own; also how long an epoch without one is given
  bool standby = false;                // waits for as long as somebody leads
  int stop_event = -1;                 // readable: wait no more. -1: none
  std::function<void(const storage::LeaseWatch::View&)> on_wait = nullptr;  // while another leads
};

// The journal, taken for a new epoch, and the core that its facts give.
struct Taken {
  std::unique_ptr<storage::Journal> journal;
  std::unique_ptr<core::Core> core;
  storage::Lease lease;
  Epoch epoch;
};

// kAlreadyExists: another coordinator leads; kResourceExhausted: the disk is full, and nobody's
// epoch was ended (neither with `standby`, which waits). kCancelled: `stop_event`. Others as
// Journal::Read and OpenEpoch.
absl::StatusOr<Taken> TakeOver(const TakeOverOptions& options);

}  // namespace paceline
