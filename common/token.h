// The secret that every call of a coordinator's users carries, kept in a file that its owner
// alone can read.
// Invariant: a token is 64 lower-case hex digits (32 random bytes).
// Threading: any thread.
#pragma once

#include <string>
#include <string_view>

#include "common/status.h"

namespace paceline {

// kNotFound: no such file. kInvalidArgument: others may read it, or it holds no token.
absl::StatusOr<std::string> ReadToken(const std::string& path);

// Reads the token, after making the file (mode 0600) with a new one where there is none. Of
// several callers at once all get the same.
absl::StatusOr<std::string> ReadOrMakeToken(const std::string& path);

// Value of the metadata key "authorization".
std::string BearerOf(const std::string& token);

// Equality in a time that depends on the lengths alone.
bool EqualSecrets(std::string_view a, std::string_view b);

}  // namespace paceline
