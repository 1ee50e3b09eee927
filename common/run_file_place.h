// Where a key of a run file got its value: for what is wrong with the thing that it names, which is
// found out only after the file was read.
// Threading: pure; reads the file.
#pragma once

#include <string>
#include <vector>

#include "common/run_file.h"

namespace paceline {

// "FILE:7: [data] train", or "--set data.train=x".
std::string KeyPlace(const std::string& path, const std::vector<Override>& overrides,
                     const std::string& section, const std::string& key);

}  // namespace paceline
