// What the control plane costs: the real core forming a generation of many nodes and taking their
// heartbeats, and the real journal on a real disk. No network: gRPC's share is not in it.
//
//   control_plane_bench [NODES [SLOTS [FOLDER]]]      10000 nodes of 8 slots; journal in FOLDER
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "coordinator/core/core.h"
#include "coordinator/storage/journal.h"

namespace paceline {
namespace {

using std::chrono::milliseconds;

double CpuSeconds() {
  timespec spent = {};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &spent);
  return static_cast<double>(spent.tv_sec) + 1e-9 * static_cast<double>(spent.tv_nsec);
}

double WallSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Of this process now, MB.
double ResidentMb() {
  std::ifstream file("/proc/self/statm");
  std::int64_t all = 0;
  std::int64_t resident = 0;
  file >> all >> resident;
  return static_cast<double>(resident * ::sysconf(_SC_PAGESIZE)) / 1e6;
}

double Quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(q * static_cast<double>(values.size() - 1))];
}

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "control_plane_bench: %s\n", what.c_str());
  std::exit(1);
}

std::string RunFileText(int nodes, int slots) {
  return absl::StrCat(
      "[run]\nname = \"bench\"\nmember = \"uni-a\"\nproject = \"demo\"\nseed = 7\n"
      "[model]\nvocab_size = 256\nhidden_size = 32\nnum_hidden_layers = 1\n"
      "num_attention_heads = 2\nnum_key_value_heads = 1\nhead_dim = 16\nintermediate_size = 64\n"
      "[data]\ntrain = \"/corpus\"\n"
      "[train]\nsequence_length = 16\nmicro_batch_size = 1\nlearning_rate = 1e-3\nsteps = 1000000\n"
      "global_batch_size = ",
      nodes * slots, "\n[launch]\nnodes = ", nodes, "\nslots_per_node = ", slots, "\n");
}

// The core, with what it decides counted.
class Cluster {
 public:
  Cluster(int nodes, int slots) : nodes_(nodes), slots_(slots), core_(core::CoreOptions{}) {
    Take(core_.Open(now_));
  }

  // Submits a run of all nodes, registers them, and takes their ranks' addresses.
  void Form() {
    v1::SubmitRunRequest request;
    request.set_request_id("bench");
    request.set_run_id("run");
    request.set_run_file(RunFileText(nodes_, slots_));
    request.set_run_dir("/runs/run");
    request.set_corpus_digest("c0ffee");
    request.set_corpus_samples(1'000'000'000);
    Take(core_.Decide(core::SubmitRunCalled{core::CallId{1}, std::move(request)}, now_));
    for (int node = 0; node < nodes_; ++node) {
      v1::AgentMessage message;
      v1::RegisterNode& info = *message.mutable_register_();
      info.set_name(absl::StrCat("node-", node));
      info.set_incarnation(1);
      info.set_host(absl::StrCat("host-", node));
      info.set_slots(slots_);
      info.set_metrics_address(absl::StrCat("127.0.0.1:", 9000 + node));
      info.set_protocol_version(1);
      Say(node, std::move(message));
    }
    if (starts_ != static_cast<std::size_t>(nodes_)) {
      Fail(absl::StrCat(starts_, " of ", nodes_, " nodes were told to start"));
    }
  }

  // All nodes' heartbeats of `seconds` seconds, one a second each, as agents send them.
  void Heartbeats(int seconds) {
    v1::AgentMessage message;
    v1::NodeProgress& progress = *message.mutable_heartbeat()->add_progress();
    progress.mutable_key()->set_run_id("run");
    progress.mutable_key()->set_generation(1);
    for (int slot = 0; slot < slots_; ++slot) progress.add_ranks();
    for (int second = 0; second < seconds; ++second) {
      for (int node = 0; node < nodes_; ++node) {
        if (node % std::max(nodes_ / 100, 1) == 0) {
          now_.steady += milliseconds(10);
          now_.wall_ms += 10;
          if (core_.NextDeadline() <= now_.steady) Take(core_.Decide(core::Tick{}, now_));
        }
        for (int slot = 0; slot < slots_; ++slot) {
          v1::RankProgress& rank = *progress.mutable_ranks(slot);
          rank.set_rank(node * slots_ + slot);
          rank.set_step(++steps_ / (nodes_ * slots_));
        }
        Say(node, message);
      }
    }
    const auto status = core_.GetRun("run", now_);
    if (!status.ok() || status->generation() != 1 || core_.Nodes().size() != starts_) {
      Fail("a node was lost on the way");
    }
  }

  std::size_t facts() const { return facts_; }
  double sent_mb() const { return static_cast<double>(sent_bytes_) / 1e6; }

 private:
  void Say(int node, v1::AgentMessage message) {
    message.set_incarnation(1);
    Take(core_.Decide(
        core::AgentSaid{core::SessionId{static_cast<std::uint64_t>(node) + 1}, std::move(message)},
        now_));
  }
  void Take(const core::Decision& decision) {
    facts_ += decision.facts.size();
    for (const core::Effect& effect : decision.effects) {
      const auto* send = std::get_if<core::SendToAgent>(&effect);
      if (send == nullptr) continue;
      // What gRPC would be given.
      sent_bytes_ += send->message.SerializeAsString().size();
      if (send->message.has_start()) ++starts_;
    }
  }

  const int nodes_;
  const int slots_;
  core::Core core_;
  Now now_{SteadyTime{} + std::chrono::hours(1), 1'700'000'000'000};
  std::size_t facts_ = 0;
  std::size_t starts_ = 0;
  std::size_t sent_bytes_ = 0;
  std::int64_t steps_ = 0;
};

void BenchCore(int nodes, int slots) {
  constexpr int kSeconds = 20;
  const double before_mb = ResidentMb();
  Cluster cluster(nodes, slots);
  double began = CpuSeconds();
  cluster.Form();
  std::printf(
      "%d nodes of %d slots register and get their plan: %.2f CPU s, %zu facts, %.1f MB "
      "sent\n",
      nodes, slots, CpuSeconds() - began, cluster.facts(), cluster.sent_mb());
  const std::size_t facts = cluster.facts();
  began = CpuSeconds();
  cluster.Heartbeats(kSeconds);
  std::printf(
      "%d heartbeats/s, each of %d ranks: %.1f %% of a core, %zu facts in %d s, resident "
      "%.0f MB (%.0f MB before)\n",
      nodes, slots, 100 * (CpuSeconds() - began) / kSeconds, cluster.facts() - facts, kSeconds,
      ResidentMb(), before_mb);
}

// The disk's own: 256 bytes appended and made durable.
void BenchDisk(const std::string& folder) {
  const std::string path = absl::StrCat(folder, "/control-plane-bench-disk-", ::getpid());
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0) Fail(absl::StrCat("cannot make ", path));
  std::vector<double> seconds;
  const std::string bytes(256, 'x');
  for (int i = 0; i < 200; ++i) {
    if (::write(file, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) {
      Fail(absl::StrCat("cannot write ", path));
    }
    const double start = WallSeconds();
    if (::fdatasync(file) != 0) Fail("fdatasync fails");
    seconds.push_back(WallSeconds() - start);
  }
  ::close(file);
  ::unlink(path.c_str());
  std::printf("fdatasync of 256 bytes: median %.2f ms, p95 %.2f ms\n", 1e3 * Quantile(seconds, 0.5),
              1e3 * Quantile(seconds, 0.95));
}

void BenchJournal(const std::string& folder) {
  const std::string state = absl::StrCat(folder, "/control-plane-bench-", ::getpid());
  std::printf(
      "| facts an append | appends | append, median | p95 | facts/s | CPU | at 5 ms |\n"
      "|---|---|---|---|---|---|---|\n");
  std::uint64_t index = 0;
  auto journal = storage::OpenFileJournal(state, /*read_only=*/false);
  if (!journal.ok()) Fail(journal.status().ToString());
  const auto ignore = [](const auto&) { return absl::OkStatus(); };
  if (!(*journal)->Read(ignore, ignore).ok() || !(*journal)->OpenEpoch(Epoch{1}).ok()) {
    Fail("the journal does not open");
  }
  for (const int batch : {1, 16, 256}) {
    std::vector<double> seconds;
    const double cpu = CpuSeconds();
    const double began = WallSeconds();
    while (seconds.size() < 400 && (seconds.size() < 50 || WallSeconds() - began < 10)) {
      std::vector<v1::Fact> facts(static_cast<std::size_t>(batch));
      for (v1::Fact& fact : facts) {
        fact.set_index(++index);
        fact.set_at_ms(1'700'000'000'000);
        v1::ChargePosted& charge = *fact.mutable_charge_posted();
        charge.set_member("uni-a");
        charge.set_to_ms(10'000);
      }
      const double start = WallSeconds();
      if (const absl::Status status = (*journal)->Append(facts); !status.ok()) {
        Fail(status.ToString());
      }
      seconds.push_back(WallSeconds() - start);
    }
    const double all = WallSeconds() - began;
    const double count = static_cast<double>(seconds.size());
    const double cpu_each = (CpuSeconds() - cpu) / count;
    std::printf("| %d | %.0f | %.2f ms | %.2f ms | %.0f | %.3f ms | %.0f |\n", batch, count,
                1e3 * Quantile(seconds, 0.5), 1e3 * Quantile(seconds, 0.95), batch * count / all,
                1e3 * cpu_each, batch / (cpu_each + 5e-3));
  }
  journal->reset();
  std::error_code ignored;
  std::filesystem::remove_all(state, ignored);
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) {
  int nodes = 10'000;
  int slots = 8;
  if ((argc > 1 && !absl::SimpleAtoi(argv[1], &nodes)) ||
      (argc > 2 && !absl::SimpleAtoi(argv[2], &slots)) || nodes < 1 || slots < 1) {
    std::fprintf(stderr, "usage: control_plane_bench [NODES [SLOTS [FOLDER]]]\n");
    return 2;
  }
  paceline::BenchCore(nodes, slots);
  const std::string folder = argc > 3 ? argv[3] : ".";
  paceline::BenchDisk(folder);
  paceline::BenchJournal(folder);
  return 0;
}
