// Keeps a coordinator that was replaced from changing files, also where it stood still for any time
// between any two steps and goes on without knowing.
//
//   writes  PATH.draft-e7  ->  looks whether an epoch above 7 exists  ->  renames it to PATH
//
// The coordinator of the next epoch removes, after its journal file was made and before it writes
// there itself, the drafts of earlier ones (RemoveDrafts). A former coordinator that looked in time
// finds its draft gone; one that wrote its draft later sees the newer epoch.
// Invariant: nothing of a replaced coordinator takes a name after its successor's RemoveDrafts of
// that folder.
// Threading: any thread.
#pragma once

#include <string>

#include "common/ids.h"
#include "common/status.h"

namespace paceline::storage {

class EpochFence {
 public:
  EpochFence(std::string state_folder, Epoch epoch)
      : folder_(std::move(state_folder)), epoch_(epoch) {}

  Epoch epoch() const { return epoch_; }
  // kFailedPrecondition: a newer epoch exists. Other codes: the state folder cannot be looked at.
  absl::Status Check() const;
  // As WriteFileAtomically; kFailedPrecondition and nothing changed where a newer epoch exists.
  absl::Status Write(const std::string& path, const std::string& content, int mode) const;
  // Removes from `folder` what coordinators of earlier epochs have left half written. No folder:
  // OK.
  absl::Status RemoveDrafts(const std::string& folder) const;

 private:
  std::string folder_;
  Epoch epoch_;
};

}  // namespace paceline::storage
