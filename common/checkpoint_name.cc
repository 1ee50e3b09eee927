#include "common/checkpoint_name.h"

#include <cinttypes>
#include <cstdio>

namespace paceline {

std::string CheckpointFolderName(const CheckpointName& name) {
  char text[64];
  std::snprintf(text, sizeof(text), "step-%08" PRId64 "-g%" PRIu64, name.step, name.generation);
  return text;
}

std::optional<CheckpointName> ParseCheckpointFolderName(std::string_view name) {
  const std::string text(name);
  CheckpointName found;
  if (std::sscanf(text.c_str(), "step-%" SCNd64 "-g%" SCNu64, &found.step, &found.generation) !=
          2 ||
      found.step < 0 || text != CheckpointFolderName(found)) {
    return std::nullopt;
  }
  return found;
}

}  // namespace paceline
