#include "launch/cli/run_history.h"

#include <filesystem>
#include <system_error>

#include "common/status.h"
#include "coordinator/storage/history.h"

namespace paceline::cli {

absl::StatusOr<RunHistory> ReadRunHistory(const RunFolder& folder) {
  std::error_code error;
  if (!std::filesystem::is_directory(folder.CoordinatorState(), error)) {
    return absl::NotFoundError("run " + folder.run_id +
                               " has no journal: it was never submitted to a coordinator");
  }
  RunHistory history{.events = RunEvents(folder.run_id), .damage = {}};
  const absl::StatusOr<storage::HistoryRead> read = storage::ReadHistory(
      folder.CoordinatorState(),
      [&history](const v1::StateSnapshot& snapshot) {
        history.events.Take(snapshot);
        return absl::OkStatus();
      },
      [&history](const v1::Fact& fact) {
        history.events.Take(fact);
        return absl::OkStatus();
      });
  if (read.ok()) {
    history.first_fact = read->first_index;
  } else {
    history.damage = Annotate(read.status(), "the journal of run " + folder.run_id);
    if (!absl::IsDataLoss(history.damage)) return history.damage;
  }
  if (!history.events.known() && history.damage.ok()) {
    return absl::NotFoundError("the journal in " + folder.CoordinatorState() +
                               " says nothing of run " + folder.run_id);
  }
  return history;
}

}  // namespace paceline::cli
