// How fast a checkpoint part is written, beside what the disk gives a plain sequential write of
// as many bytes: both write and fsync, in turns, and the median of each counts.
//   checkpoint_bench FOLDER [GIB] [ROUNDS]
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "common/clock.h"
#include "worker/checkpoint/checkpoint.h"

namespace paceline {
namespace {

constexpr std::int64_t kTensorElements = 4 << 20;

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Seconds of writing `data` to a new file with large writes, and of the fsync after it.
struct PlainWrite {
  double seconds = 0;
  double fsync_seconds = 0;
};
PlainWrite WritePlainly(const std::string& path, const std::vector<float>& data) {
  const SteadyTime begin = std::chrono::steady_clock::now();
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  const char* from = reinterpret_cast<const char*>(data.data());
  std::size_t left = data.size() * sizeof(float);
  while (left > 0) {
    const ssize_t count = ::write(file, from, std::min<std::size_t>(left, 8 << 20));
    if (count <= 0) {
      std::perror(path.c_str());
      std::exit(1);
    }
    from += count;
    left -= static_cast<std::size_t>(count);
  }
  const SteadyTime before_fsync = std::chrono::steady_clock::now();
  if (::fsync(file) != 0) {
    std::perror(path.c_str());
    std::exit(1);
  }
  const SteadyTime end = std::chrono::steady_clock::now();
  ::close(file);
  return {SecondsBetween(begin, end), SecondsBetween(before_fsync, end)};
}

int Run(const std::string& folder, double gib, int rounds) {
  const auto tensors =
      std::max<std::int64_t>(1, static_cast<std::int64_t>(gib * (1 << 28)) / kTensorElements);
  std::vector<float> state(static_cast<std::size_t>(tensors * kTensorElements));
  for (std::size_t i = 0; i < state.size(); ++i) state[i] = static_cast<float>(i * 2654435761u);
  std::vector<SliceView> slices;
  for (std::int64_t i = 0; i < tensors; ++i) {
    slices.push_back(
        {{"tensor." + std::to_string(i), "F32", {kTensorElements}, {0}, {kTensorElements}, ""},
         state.data() + i * kTensorElements});
  }
  const double megabytes = static_cast<double>(state.size() * sizeof(float)) / 1e6;

  absl::StatusOr<WrittenPart> written = absl::InternalError("not written");
  PartWriter writer(
      0, [&](absl::StatusOr<WrittenPart> part, std::int64_t) { written = std::move(part); });
  std::vector<double> plain_rates, part_rates, ratios;
  std::printf("%.0f MB, %d rounds in %s\n", megabytes, rounds, folder.c_str());
  std::printf("%-6s %12s %12s %8s %12s %12s %10s\n", "round", "plain MB/s", "part MB/s", "ratio",
              "plain fsync", "part fsync", "stall s");
  for (int round = 0; round <= rounds; ++round) {
    const std::string plain_path = folder + "/plain.bin";
    const PlainWrite plain = WritePlainly(plain_path, state);
    std::filesystem::remove(plain_path);
    if (const auto status = writer.Snapshot({round, 1}, folder, slices); !status.ok()) {
      std::fprintf(stderr, "%s\n", status.ToString().c_str());
      return 1;
    }
    writer.Flush();
    if (!written.ok()) {
      std::fprintf(stderr, "%s\n", written.status().ToString().c_str());
      return 1;
    }
    std::filesystem::remove_all(folder + "/" + CheckpointFolderName({round, 1}));
    const double plain_rate = megabytes / plain.seconds;
    const double part_rate = megabytes / written->write_seconds;
    std::printf("%-6s %12.0f %12.0f %8.3f %12.3f %12.3f %10.4f\n",
                round == 0 ? "warm" : std::to_string(round).c_str(), plain_rate, part_rate,
                part_rate / plain_rate, plain.fsync_seconds, written->fsync_seconds,
                written->stall_seconds);
    if (round == 0) continue;
    plain_rates.push_back(plain_rate);
    part_rates.push_back(part_rate);
    ratios.push_back(part_rate / plain_rate);
  }
  std::printf("median %12.0f %12.0f %8.3f\n", Median(plain_rates), Median(part_rates),
              Median(ratios));
  return 0;
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) {
  const double gib = argc > 2 ? std::strtod(argv[2], nullptr) : 1.0;
  const long rounds = argc > 3 ? std::strtol(argv[3], nullptr, 10) : 5;
  if (argc < 2 || !(gib > 0 && gib < 1024) || rounds < 1 || rounds > 1000) {
    std::fprintf(stderr, "usage: checkpoint_bench FOLDER [GIB] [ROUNDS]\n");
    return 2;
  }
  return paceline::Run(argv[1], gib, static_cast<int>(rounds));
}
