#include "worker/model/parameters.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "common/check.h"
#include "worker/kernels/elementwise.h"
#include "worker/model/philox.h"

namespace paceline {
namespace {

// FNV-1a, 64 bits: short, and the same everywhere for ever, which is all that is asked of it.
std::uint64_t HashName(const std::string& name) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) {
    hash ^= static_cast<unsigned char>(c);
    hash *= 0x100000001b3u;
  }
  return hash;
}

// Four independent standard normals: those of elements 4 * block ... 4 * block + 3.
std::array<double, 4> FourNormals(std::uint64_t seed, std::uint64_t name_hash,
                                  std::uint64_t block) {
  const std::array<std::uint32_t, 4> bits = Philox4x32(
      {static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32),
       static_cast<std::uint32_t>(name_hash), static_cast<std::uint32_t>(name_hash >> 32)},
      {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  std::array<double, 4> normals;
  for (int pair = 0; pair < 4; pair += 2) {
    // Half a step off zero, so that the logarithm stays finite.
    const double uniform0 = (bits[pair] + 0.5) * 0x1p-32;
    const double uniform1 = (bits[pair + 1] + 0.5) * 0x1p-32;
    const double radius = std::sqrt(-2.0 * std::log(uniform0));
    const double angle = 2.0 * std::numbers::pi * uniform1;
    normals[pair] = radius * std::cos(angle);
    normals[pair + 1] = radius * std::sin(angle);
  }
  return normals;
}

}  // namespace

float InitialNormal(std::uint64_t seed, const std::string& name, std::int64_t index,
                    double stddev) {
  PACELINE_CHECK(index >= 0);
  const auto position = static_cast<std::uint64_t>(index);
  return static_cast<float>(stddev * FourNormals(seed, HashName(name), position / 4)[position % 4]);
}

void FillInitialNormal(std::uint64_t seed, const std::string& name, double stddev,
                       std::span<float> values) {
  const std::uint64_t name_hash = HashName(name);
  for (std::size_t start = 0; start < values.size(); start += 4) {
    const std::array<double, 4> normals = FourNormals(seed, name_hash, start / 4);
    const std::size_t count = std::min<std::size_t>(4, values.size() - start);
    for (std::size_t i = 0; i < count; ++i) {
      values[start + i] = static_cast<float>(stddev * normals[i]);
    }
  }
}

std::string FirstNonFinite(Stream& stream, const std::vector<Parameter>& parameters,
                           std::span<const float> flat, std::int64_t begin, std::int64_t count) {
  std::int64_t index = -1;
  kernels::FirstNonFinite(stream, &index, flat.data() + begin, count);
  if (!stream.Synchronize().ok() || index < 0) return "";
  for (const Parameter& parameter : parameters) {
    const std::int64_t at = begin + index - parameter.offset;
    if (at >= 0 && at < parameter.elements) return parameter.name;
  }
  return "";
}

}  // namespace paceline
