// Files that appear whole or not at all, and stay.
// Threading: any thread; two writers of one path need different processes or an order of their own.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "common/status.h"

namespace paceline {

// "CONTEXT PATH: strerror" with a code that says what to do: kNotFound, kAlreadyExists,
// kPermissionDenied, kResourceExhausted (disk or quota full), else kUnavailable.
absl::Status ErrnoStatus(int error, const std::string& context);

// Writes PATH.tmp-PID, fsyncs it, renames it to PATH and fsyncs the folder.
absl::Status WriteFileAtomically(const std::string& path, const std::string& content, int mode);
// Likewise by way of the file `draft` of the same folder, which takes the name of `path` only where
// `may_appear`, asked once it is durable, says OK.
absl::Status WriteFileAtomically(const std::string& path, const std::string& draft,
                                 const std::string& content, int mode,
                                 const std::function<absl::Status()>& may_appear);

// kResourceExhausted: longer than `bytes_max`.
absl::StatusOr<std::string> ReadFile(const std::string& path, std::int64_t bytes_max);

// Makes what was created, renamed or removed in `folder` durable.
absl::Status SyncFolder(const std::string& folder);

}  // namespace paceline
