// What every program of Paceline exits with.
// Threading: any thread.
#pragma once

#include "absl/status/status.h"

namespace paceline {

enum class ExitCode : int {
  kDone = 0,
  kBadInput = 2,      // the user's file, flag or data; the message names it
  kBroken = 70,       // a defect, or damage that an operator must look at
  kRetry = 75,        // a passing failure; the same command may succeed
  kInterrupted = 130  // stopped by the user, with a checkpoint where one was possible
};

// kInvalidArgument, kNotFound, kOutOfRange, kAlreadyExists: bad input. kUnavailable,
// kDeadlineExceeded, kResourceExhausted, kAborted: retry. kCancelled: interrupted. Else: broken.
ExitCode ExitCodeFor(const absl::Status& status);

}  // namespace paceline
