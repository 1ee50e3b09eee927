// Errors across modules are absl::Status. Codes mean actions:
//   kUnavailable         retry
//   kFailedPrecondition  stale (a newer generation, incarnation or epoch exists): stop
//   kDataLoss            an operator must look
//   kInvalidArgument     names the field and what it may be
//   kDeadlineExceeded    names the operation and its limit
//   kAborted             somebody called Abort; its reason is the text
// Threading: any thread.
#pragma once

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace paceline {

// "CONTEXT: message", with the code of `status` kept. OK stays OK.
absl::Status Annotate(const absl::Status& status, const std::string& context);

}  // namespace paceline

#define PACELINE_CONCAT_INNER(a, b) a##b
#define PACELINE_CONCAT(a, b) PACELINE_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expression)                                         \
  do {                                                                      \
    if (absl::Status paceline_status = (expression); !paceline_status.ok()) \
      return paceline_status;                                               \
  } while (false)

#define ASSIGN_OR_RETURN(target, expression) \
  ASSIGN_OR_RETURN_INNER(PACELINE_CONCAT(paceline_or_, __LINE__), target, expression)
#define ASSIGN_OR_RETURN_INNER(holder, target, expression) \
  auto holder = (expression);                              \
  if (!holder.ok()) return holder.status();                \
  target = *std::move(holder)
