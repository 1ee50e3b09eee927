#include "launch/local/coordinator_file.h"

#include "common/files.h"
#include "common/status.h"
#include "nlohmann/json.hpp"

namespace paceline {

absl::StatusOr<CoordinatorFile> ReadCoordinatorFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 1 << 16));
  CoordinatorFile file;
  try {
    const nlohmann::json json = nlohmann::json::parse(text);
    file.address = json.at("address").get<std::string>();
    file.epoch = json.at("epoch").get<std::uint64_t>();
    file.pid = json.at("pid").get<std::int64_t>();
    file.host = json.value("host", "");
    file.metrics_address = json.value("metrics_address", "");
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(path + " is not a coordinator's: " + error.what());
  }
  return file;
}

}  // namespace paceline
