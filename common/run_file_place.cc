#include "common/run_file_place.h"

#include <exception>

#include "common/toml.h"

namespace paceline {

std::string KeyPlace(const std::string& path, const std::vector<Override>& overrides,
                     const std::string& section, const std::string& key) {
  // The last of several counts.
  for (auto given = overrides.rbegin(); given != overrides.rend(); ++given) {
    if (given->text.starts_with(section + "." + key + "=")) return "--set " + given->text;
  }
  std::string place = path;
  try {
    const toml::table document = toml::parse_file(path);
    if (const toml::node* node = document.at_path(section + "." + key).node()) {
      place += ":" + std::to_string(node->source().begin.line);
    }
  } catch (const std::exception&) {
    // The file has changed since; it is named without a line.
  }
  return place + ": [" + section + "] " + key;
}

}  // namespace paceline
