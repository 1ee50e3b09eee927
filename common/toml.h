// toml++ with its assertions turned into exceptions. Version 3.3 asserts on some malformed keys
// where it should report them, and in release builds assumes its assertions instead of testing
// them, so a malformed file would be undefined behaviour. Include this, never toml++ itself:
// its functions are inline, and every translation unit must see them alike.
// Threading: any thread.
#pragma once

#include <stdexcept>

namespace paceline::run_file {
[[noreturn]] inline void ThrowMalformed() {
  throw std::logic_error("malformed text near a key or value");
}
}  // namespace paceline::run_file

#pragma push_macro("NDEBUG")
#undef NDEBUG
#define TOML_ASSERT(expression) ((expression) ? void() : ::paceline::run_file::ThrowMalformed())
#include "toml++/toml.h"
#pragma pop_macro("NDEBUG")
