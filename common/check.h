// PACELINE_CHECK: for programmers' errors only, on in release builds. Peers, disks and
// users never trip it; their mistakes are absl::Status.
// Threading: any thread.
#pragma once

#include <cstdio>
#include <cstdlib>

#define PACELINE_CHECK(condition)                                                        \
  do {                                                                                   \
    if (!(condition)) [[unlikely]] {                                                     \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (false)
