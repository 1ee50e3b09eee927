// Whether this build runs under a sanitizer: everything is then many times slower, what passes a
// socket most of all, and tests do less of the same.
// Threading: a constant.
#pragma once

namespace paceline {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace paceline
