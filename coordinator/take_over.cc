#include "coordinator/take_over.h"

#include <poll.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/files.h"

namespace paceline {
namespace {

constexpr int kTakeAttempts = 3;
constexpr std::size_t kRoomBytes = 4096;  // the first words of an epoch

// False: `event` is readable.
bool Pause(int event, std::chrono::milliseconds pause) {
  pollfd waited{event, POLLIN, 0};
  const SteadyTime end = ReadClock().steady + pause;
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - ReadClock().steady);
    if (left.count() <= 0) return true;
    const int ready = ::poll(&waited, 1, static_cast<int>(left.count()));
    if (ready > 0) return false;
    if (ready < 0 && errno != EINTR) return true;
  }
}

// Until nobody leads.
absl::Status WaitForLease(const TakeOverOptions& options) {
  storage::LeaseWatch watch(options.state_dir, options.lease);
  std::string told;
  while (true) {
    const absl::StatusOr<storage::LeaseWatch::View> view = watch.Look(ReadClock().steady);
    // A folder that is not there yet is made; one that does not answer is waited for.
    if (absl::IsNotFound(view.status())) return absl::OkStatus();
    if (!view.ok() && !options.standby) return view.status();
    const std::string text = view.ok() ? view->text : std::string(view.status().message());
    if (view.ok() && view->free) {
      if (view->epoch.value() > 0) spdlog::info("taking over: {}", text);
      return absl::OkStatus();
    }
    if (view.ok() && view->renewed && !options.standby) {
      return absl::AlreadyExistsError(absl::StrCat(
          "the state folder ", options.state_dir, " belongs to another coordinator that runs (",
          text, "); stop it, choose another folder, or wait for its end with --standby"));
    }
    if (text != told) spdlog::info("waiting: {}", text);
    told = text;
    if (view.ok() && options.on_wait) options.on_wait(*view);
    if (!Pause(options.stop_event, options.look_interval)) {
      return absl::CancelledError("asked to end before it led");
    }
  }
}

// An epoch's file that its maker can write nothing into would end the former coordinator for
// nothing.
absl::Status CheckRoom(const std::string& state_dir) {
  const std::string path = absl::StrCat(state_dir, "/room-", ::getpid());
  const absl::Status status = WriteFileAtomically(path, std::string(kRoomBytes, '\0'), 0600);
  ::unlink(path.c_str());
  return status;
}

absl::StatusOr<Taken> TakeOnce(const TakeOverOptions& options) {
  Taken taken;
  ASSIGN_OR_RETURN(taken.journal, storage::OpenFileJournal(options.state_dir, /*read_only=*/false,
                                                           options.history_bytes_max));
  // The core wants its epoch first, and only the end of the replay tells which is free.
  std::optional<v1::StateSnapshot> snapshot;
  std::vector<v1::Fact> facts;
  ASSIGN_OR_RETURN(const storage::Replay replay, taken.journal->Read(
                                                     [&](const v1::StateSnapshot& found) {
                                                       snapshot = found;
                                                       return absl::OkStatus();
                                                     },
                                                     [&](const v1::Fact& fact) {
                                                       facts.push_back(fact);
                                                       return absl::OkStatus();
                                                     }));
  taken.epoch = Epoch{replay.last_epoch.value() + 1};
  taken.core = std::make_unique<core::Core>(core::CoreOptions{.epoch = taken.epoch});
  if (snapshot) RETURN_IF_ERROR(taken.core->Restore(*snapshot));
  for (const v1::Fact& fact : facts) {
    RETURN_IF_ERROR(
        Annotate(taken.core->Evolve(fact),
                 absl::StrCat("journal in ", options.state_dir, ", fact ", fact.index())));
  }
  RETURN_IF_ERROR(CheckRoom(options.state_dir));
  RETURN_IF_ERROR(taken.journal->OpenEpoch(taken.epoch));
  taken.lease = storage::LeaseHere(taken.epoch, options.lease);
  RETURN_IF_ERROR(storage::WriteLease(options.state_dir, taken.lease));
  for (const std::string& note : replay.notes) spdlog::warn("journal: {}", note);
  spdlog::info("epoch {}: replayed {} facts{} from {}", taken.epoch.value(), facts.size(),
               snapshot ? absl::StrCat(" after the snapshot of fact ", snapshot->index()) : "",
               options.state_dir);
  return taken;
}

}  // namespace

absl::StatusOr<Taken> TakeOver(const TakeOverOptions& options) {
  for (int attempt = 1;; ++attempt) {
    RETURN_IF_ERROR(WaitForLease(options));
    absl::StatusOr<Taken> taken = TakeOnce(options);
    // kAlreadyExists: another was faster. kAborted: the former coordinator has appended since it
    // was read; its epoch is taken from it, and it appends no more.
    const bool again = absl::IsAlreadyExists(taken.status()) || absl::IsAborted(taken.status());
    const bool full = absl::IsResourceExhausted(taken.status()) && options.standby;
    if (taken.ok() || !(again || full)) return taken;
    spdlog::warn("not taken over: {}", taken.status().ToString());
    if (attempt >= kTakeAttempts && !options.standby) return taken;
    if (full && !Pause(options.stop_event, options.lease)) {
      return absl::CancelledError("asked to end before it led");
    }
  }
}

}  // namespace paceline
