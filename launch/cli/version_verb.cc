#include <cstdio>
#include <memory>

#include "launch/cli/status_json.h"
#include "launch/cli/verb.h"
#include "nlohmann/json.hpp"

namespace paceline::cli {
namespace {

absl::StatusOr<ExitCode> RunVersion(const CommonOptions& options) {
  constexpr bool kCuda = PACELINE_HAVE_CUDA != 0;
  nlohmann::json transports = {"gloo"};
  if (PACELINE_HAVE_MPI != 0) transports.push_back("mpi");
  if (options.json) {
    PrintJson({{"version", PACELINE_VERSION},
               {"transports", transports},
               {"devices", nlohmann::json::array({"cpu"})},
               {"cuda_kernels_compiled", kCuda}});
  } else {
    std::printf("paceline %s\ntransports: %s\ndevices: cpu\nCUDA kernels: %s\n", PACELINE_VERSION,
                PACELINE_HAVE_MPI != 0 ? "gloo, mpi" : "gloo",
                kCuda ? "compiled, not yet used for training" : "not compiled");
  }
  return ExitCode::kDone;
}

}  // namespace

void AddVersionVerb(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<CommonOptions>();
  Verb verb(app, invocation,
            {.name = "version",
             .help = "Print the version and what was built in",
             .examples = {"paceline version", "paceline version -o json"}},
            *options);
  verb.OutputForm();
  verb.Does([options] { return RunVersion(*options); });
}

}  // namespace paceline::cli
