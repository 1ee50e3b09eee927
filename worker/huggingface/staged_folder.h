// A folder that appears whole or not at all: it is filled beside its place and renamed into it.
// Invariant: what stood in the place stands there until Commit; what was not committed is removed.
// Threading: one thread at a time.
#pragma once

#include <memory>
#include <string>

#include "common/status.h"

namespace paceline::huggingface {

class StagedFolder {
 public:
  // `replace`: what stands at `target` may go, if it is a folder that holds `marker`, a file that
  // says that it was made by the same verb. An empty folder may always go.
  // kAlreadyExists: something else stands there.
  static absl::StatusOr<std::unique_ptr<StagedFolder>> Begin(const std::string& target,
                                                             const std::string& marker,
                                                             bool replace);
  ~StagedFolder();
  StagedFolder(const StagedFolder&) = delete;
  StagedFolder& operator=(const StagedFolder&) = delete;

  // Where to write.
  const std::string& path() const { return draft_; }
  // The files in it are durable already; makes the folder so, and puts it into place.
  absl::Status Commit();

 private:
  StagedFolder(std::string target, std::string draft);

  const std::string target_;
  const std::string draft_;
};

}  // namespace paceline::huggingface
