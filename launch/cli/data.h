// `paceline data prepare` and `paceline data inspect`.
// Threading: one thread, the main one.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "worker/data/prepare.h"

namespace paceline::cli {

struct DataPrepareOptions {
  PrepareOptions prepare;
  bool json = false;
};

// Prepares a corpus and prints what it made: lines, or with `json` one object. The error is the
// caller's to print; nothing is on stdout then.
absl::Status RunDataPrepare(const DataPrepareOptions& options);

struct DataInspectOptions {
  std::string path;                  // a folder with a manifest, or a token file
  std::int64_t sequence_length = 0;  // 0: do not count samples
  bool verify = false;               // read all of it: digests and every token
  bool json = false;
};

// Prints what a corpus is. Without `verify` at most the first 2^28 tokens are looked at.
// kDataLoss: a digest is off. kInvalidArgument: no corpus, or damaged.
absl::Status RunDataInspect(const DataInspectOptions& options);

}  // namespace paceline::cli
