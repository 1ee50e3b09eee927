// xxh3-128, the checksum of what Paceline writes: fast enough to take on the way to the disk. It
// finds damage, not forgery.
// Invariant: equal bytes give equal text on every machine.
// Threading: an object belongs to one thread; the function is for any.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace paceline {

class Xxh128 {
 public:
  Xxh128();
  ~Xxh128();
  Xxh128(const Xxh128&) = delete;
  Xxh128& operator=(const Xxh128&) = delete;

  void Update(const void* data, std::size_t bytes);
  // Of all bytes so far: 32 lower-case hex digits.
  std::string Hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string Xxh128Of(std::string_view bytes);

}  // namespace paceline
