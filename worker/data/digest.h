// sha256 of files and strings, as 64 lower-case hex digits.
// Invariant: equal content gives equal text on every machine.
// Threading: functions from any thread; one Sha256 object belongs to one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "common/status.h"

namespace paceline {

// An incremental sha256.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void Update(std::span<const std::byte> bytes);
  void Update(std::string_view text);
  // The digest of all that was given so far. The object starts afresh after it.
  std::string Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string Sha256Of(std::string_view text);

// Digest of the whole file. kNotFound, kUnavailable: it cannot be read.
absl::StatusOr<std::string> Sha256OfFile(const std::string& path);

// A fingerprint that opens quickly whatever the size: the whole content up to 16 MiB; of a larger
// file its length, its first and last 256 KiB and 16 blocks of 64 KiB evenly between them. It
// tells files of different origin apart and sees truncation and growth, but a change between the
// blocks escapes it: only Sha256OfFile proves content.
absl::StatusOr<std::string> FingerprintOfFile(const std::string& path);

}  // namespace paceline
