#include "common/xxh128.h"

#include <xxhash.h>
#ifdef PACELINE_XXH_DISPATCH
#include <xxh_x86dispatch.h>  // XXH3_ functions become those of the widest vectors there are
#endif

#include <new>

namespace paceline {
namespace {

std::string ToHex(XXH128_hash_t hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const unsigned char byte : canonical.digest) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

}  // namespace

struct Xxh128::State {
  XXH3_state_t* xxh = XXH3_createState();
  ~State() { XXH3_freeState(xxh); }
};

Xxh128::Xxh128() : state_(std::make_unique<State>()) {
  if (state_->xxh == nullptr) throw std::bad_alloc();
  XXH3_128bits_reset(state_->xxh);
}

Xxh128::~Xxh128() = default;

void Xxh128::Update(const void* data, std::size_t bytes) {
  XXH3_128bits_update(state_->xxh, data, bytes);
}

std::string Xxh128::Hex() const { return ToHex(XXH3_128bits_digest(state_->xxh)); }

std::string Xxh128Of(std::string_view bytes) {
  return ToHex(XXH3_128bits(bytes.data(), bytes.size()));
}

}  // namespace paceline
