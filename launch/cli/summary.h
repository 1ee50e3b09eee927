// What is said at a run's end: what came out, what it cost, and what to do next.
// Threading: pure functions.
#pragma once

#include <string>
#include <vector>

#include "common/exit_code.h"
#include "launch/cli/run_folder.h"
#include "nlohmann/json_fwd.hpp"
#include "paceline/v1/coordinator.pb.h"

namespace paceline::cli {

struct Conclusion {
  std::vector<std::string> lines;  // the last one says what to do
  ExitCode exit_code = ExitCode::kDone;
};

// Of a run that has ended; `summary` is its summary.json.
Conclusion ConclusionOf(const RunFolder& folder, const std::string& run_dir,
                        const v1::RunStatus& status, const nlohmann::json& summary);

// "paceline resume RUN_ID --run-dir DIR", without the flag where DIR is the default.
std::string ResumeCommand(const RunFolder& folder, const std::string& run_dir);
std::string VerbCommand(const std::string& verb, const RunFolder& folder,
                        const std::string& run_dir);

// What ended the run's last generation: rank, host, cause. Empty: nothing did.
std::string FailureText(const v1::RunStatus& status);

}  // namespace paceline::cli
