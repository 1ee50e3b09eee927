// A fact as a line of the log.
// Threading: pure functions.
#pragma once

#include <string>

#include "paceline/v1/journal.pb.h"

namespace paceline {

// Empty: not worth a line (windows and charges, which come all the time).
std::string FactText(const v1::Fact& fact);

}  // namespace paceline
