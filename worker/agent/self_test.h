// What a node must get right before it joins a run that is under way: a matrix product whose result
// is known to the last bit, and a file that reads back as it was written.
// Threading: any thread; may take as long as the disk does.
#pragma once

#include <span>
#include <string>

#include "common/status.h"

namespace paceline {

// Multiplies, then writes, fsyncs, reads and removes `file`, whose folder is made where it is
// missing. kInternal: the processor or the disk gave another result than it must, and where. Else
// the disk's error, which names the file.
absl::Status RunSelfTest(const std::string& file);

// --- its parts, for tests ---
inline constexpr int kSelfTestSize = 192;  // rows and columns
// c = a * b of the test's matrices, by float32 products in this machine's vector units.
void MultiplySelfTest(std::span<float> c);
// kInternal: an element of `c` is not the product's, which is computed in integers.
absl::Status CheckSelfTest(std::span<const float> c);

}  // namespace paceline
