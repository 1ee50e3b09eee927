#include "tests/support/in_process_ranks.h"

#include <sched.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "common/check.h"
#include "common/logging.h"
#include "common/manifest.h"
#include "tests/support/temp_folder.h"
#include "worker/collectives/gloo/gloo_communicator.h"
#include "worker/trainer/checkpointer.h"
#include "worker/trainer/trainer.h"
#include "worker/trainer/training_state.h"

namespace paceline {
namespace {

constexpr std::chrono::seconds kDeadline{60};

// Where the ranks of one test find each other.
class Rendezvous {
 public:
  explicit Rendezvous(int ranks) : addresses_(static_cast<std::size_t>(ranks)) {}

  absl::StatusOr<std::vector<std::string>> Exchange(int rank, const std::string& own) {
    std::unique_lock lock(mutex_);
    addresses_[static_cast<std::size_t>(rank)] = own;
    ++arrived_;
    changed_.notify_all();
    if (!changed_.wait_for(lock, kDeadline, [&] { return arrived_ == addresses_.size(); })) {
      return absl::DeadlineExceededError("not every rank came");
    }
    return addresses_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> addresses_;
  std::size_t arrived_ = 0;
};

absl::Status TrainRank(const RunFile& run_file, const v1::RankStart& start,
                       const InProcessOptions& options, Rendezvous& rendezvous,
                       RankOutcome& outcome) {
  GenerationControl control(start);
  std::mutex messages_mutex;  // the checkpoint thread speaks too
  const auto send = [&](v1::WorkerMessage message) {
    if (options.on_message) options.on_message(start.rank(), message, control);
    const std::lock_guard lock(messages_mutex);
    outcome.messages.push_back(std::move(message));
  };
  CommunicatorOptions communicator_options;
  communicator_options.rank = start.rank();
  communicator_options.size = start.layout().pipeline() * start.layout().data();
  communicator_options.operation_timeout = kDeadline;
  communicator_options.connect_timeout = kDeadline;
  ASSIGN_OR_RETURN(const auto trainer, Trainer::Create(run_file, start, control, send));
  std::unique_ptr<Communicator> communicator = MakeSelfCommunicator();
  if (communicator_options.size > 1) {
    ASSIGN_OR_RETURN(communicator,
                     MakeGlooCommunicator(communicator_options, [&](const std::string& own) {
                       return rendezvous.Exchange(start.rank(), own);
                     }));
  }
  ParallelGroups groups(std::move(communicator), trainer->layout());
  control.Attach(&groups);
  absl::Status trained = groups.Connect();
  if (trained.ok()) trained = trainer->Run(groups);
  control.Detach();
  const auto weights = const_cast<Model&>(trainer->model()).weights();
  outcome.weights.assign(weights.begin(), weights.end());
  outcome.progress = trainer->progress();
  return trained;
}

}  // namespace

void PinToCore(int index) {
  cpu_set_t allowed;
  PACELINE_CHECK(sched_getaffinity(0, sizeof(allowed), &allowed) == 0);
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &allowed) || index-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    PACELINE_CHECK(sched_setaffinity(0, sizeof(one), &one) == 0);
    return;
  }
  PACELINE_CHECK(false);  // more ranks than cores
}

std::vector<double> RankOutcome::losses() const {
  std::vector<double> losses;
  for (const v1::WorkerMessage& message : messages) {
    if (message.has_step()) losses.push_back(message.step().loss());
  }
  return losses;
}

std::vector<v1::CheckpointPart> RankOutcome::parts(std::int64_t step) const {
  std::vector<v1::CheckpointPart> parts;
  for (const v1::WorkerMessage& message : messages) {
    if (message.has_checkpoint_part() && message.checkpoint_part().position().step() == step) {
      parts.push_back(message.checkpoint_part());
    }
  }
  return parts;
}

std::int64_t RankOutcome::finished_step() const {
  for (const v1::WorkerMessage& message : messages) {
    if (message.has_finished()) return message.finished().step();
  }
  return -1;
}

std::vector<RankOutcome> TrainInProcess(const RunFile& run_file, int ranks,
                                        const InProcessOptions& options) {
  // As the programs do: the logger is made before the threads that use it.
  static const absl::Status logging = SetUpLogging({.program = "test", .level = "warning"});
  PACELINE_CHECK(logging.ok());
  std::vector<RankOutcome> outcomes(static_cast<std::size_t>(ranks));
  Rendezvous rendezvous(ranks);
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < ranks; ++rank) {
      v1::RankStart start;
      start.mutable_key()->set_run_id("test");
      start.mutable_key()->set_generation(1);
      start.set_rank(rank);
      v1::Layout& layout = *start.mutable_layout();
      layout.set_pipeline(static_cast<int>(run_file.layout.pipeline));
      layout.set_data(ranks / layout.pipeline());
      layout.set_expert(static_cast<int>(run_file.layout.expert));
      layout.set_schedule(run_file.layout.schedule);
      layout.set_virtual_stages(static_cast<int>(run_file.layout.virtual_stages));
      layout.set_shard_optimizer(run_file.layout.zero == 1);
      start.set_checkpoint(options.checkpoint);
      start.set_start_step(options.start_step);
      v1::Window& window = *start.add_windows();
      window.set_first_step(options.start_step);
      window.set_end_step(options.granted_until < 0 ? run_file.train.steps : options.granted_until);
      threads.emplace_back([&, start, rank] {
        if (options.pin) PinToCore(rank);
        RankOutcome& outcome = outcomes[static_cast<std::size_t>(rank)];
        outcome.status = TrainRank(run_file, start, options, rendezvous, outcome);
      });
    }
  }
  return outcomes;
}

std::string CommitCheckpoint(const RunFile& run_file, const std::vector<RankOutcome>& outcomes,
                             std::int64_t step) {
  const ParallelLayout layout = LayoutOf(run_file);
  std::map<int, std::string> replicas;  // by share of the model
  Manifest manifest;
  manifest.run_id = "test";
  manifest.generation = 1;
  manifest.step = step;
  manifest.seed = run_file.run.seed;
  manifest.run_file = ToToml(run_file);
  for (const RankOutcome& outcome : outcomes) {
    for (const v1::CheckpointPart& part : outcome.parts(step)) {
      ManifestPart& entry = manifest.parts.emplace_back();
      const std::string& digest =
          replicas
              .try_emplace(part.rank() % (layout.pipeline * layout.expert), part.replica_digest())
              .first->second;
      PACELINE_CHECK(digest == part.replica_digest());
      entry.file = part.file();
      entry.bytes = part.bytes();
      manifest.sample = part.position().sample();
      manifest.corpus_digest = part.position().corpus_digest();
      for (const v1::TensorSlice& slice : part.slices()) {
        entry.slices.push_back({slice.name(),
                                slice.dtype(),
                                {slice.global_shape().begin(), slice.global_shape().end()},
                                {slice.start().begin(), slice.start().end()},
                                {slice.shape().begin(), slice.shape().end()},
                                slice.digest()});
      }
    }
  }
  const std::string folder =
      run_file.checkpoint.dir + "/" + CheckpointFolderName({step, manifest.generation});
  WriteWhole(folder + "/manifest.json", ToJson(manifest));
  return folder;
}

std::string SaveAgain(const RunFile& run_file, int ranks, const std::string& checkpoint) {
  const auto reader = CheckpointReader::Open(checkpoint);
  PACELINE_CHECK(reader.ok());
  const std::int64_t step = (*reader)->manifest().step;
  const ParallelLayout layout = LayoutOf(run_file);
  std::vector<RankOutcome> outcomes(static_cast<std::size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    RankOutcome& outcome = outcomes[static_cast<std::size_t>(rank)];
    Stream compute(Stream::Mode::kInline, "compute");
    auto model = Model::Create(
        run_file.model,
        {.micro_batch_size = 1, .sequence_length = 1, .part = PartOf(run_file, layout, rank)},
        compute);
    PACELINE_CHECK(model.ok());
    const RankCoordinates at = CoordinatesOf(layout, rank);
    OptimizerMoments moments(OwnedRanges((*model)->buckets(), layout, at));
    PACELINE_CHECK(LoadState(**reader, **model, moments).ok());
    v1::GenerationKey key;
    key.set_run_id("test");
    key.set_generation(1);
    Checkpointer checkpointer(
        rank, key, run_file.checkpoint.dir,
        [&](v1::WorkerMessage message) { outcome.messages.push_back(std::move(message)); },
        [] { return false; });
    v1::DataPosition position;
    position.set_step(step);
    checkpointer.Write(position, v1::CHECKPOINT_REASON_END,
                       SlicesToWrite(**model, moments, layout, at),
                       ReplicatedArrays(**model, moments, layout));
    checkpointer.Flush();
  }
  return CommitCheckpoint(run_file, outcomes, step);
}

RunFile TinyRun(const std::string& folder, std::int64_t tokens) {
  std::vector<std::int32_t> header(256, 0);
  header[0] = 20240520;
  header[1] = 1;
  header[2] = static_cast<std::int32_t>(tokens);
  // A walk with few continuations of each token, so that there is something to learn.
  std::mt19937 random(3);
  std::vector<std::uint16_t> text(static_cast<std::size_t>(tokens));
  std::uint32_t token = 0;
  for (std::uint16_t& value : text) {
    token = (token * 5 + 1 + random() % 3) % 64;
    value = static_cast<std::uint16_t>(token);
  }
  std::string file(header.size() * 4 + text.size() * 2, '\0');
  std::memcpy(file.data(), header.data(), header.size() * 4);
  std::memcpy(file.data() + header.size() * 4, text.data(), text.size() * 2);
  WriteWhole(folder + "/tokens.bin", file);

  RunFile run;
  run.run.name = "tiny";
  run.model = {.vocab_size = 64,
               .hidden_size = 32,
               .num_hidden_layers = 2,
               .num_attention_heads = 4,
               .num_key_value_heads = 2,
               .head_dim = 8,
               .intermediate_size = 64,
               .n_routed_experts = 4,
               .n_shared_experts = 1,
               .num_experts_per_tok = 2,
               .moe_intermediate_size = 16,
               .first_k_dense_replace = 1,
               .scoring_func = "sigmoid"};
  run.data.train = {{folder + "/tokens.bin", 1.0}};
  run.data.valid = {{folder + "/tokens.bin", 1.0}};
  run.train.sequence_length = 16;
  run.train.global_batch_size = 8;
  run.train.micro_batch_size = 1;
  run.train.steps = 20;
  run.train.learning_rate = 1e-2;
  run.train.min_learning_rate = 1e-3;
  run.train.warmup_steps = 3;
  run.train.eval_batches = 2;
  run.checkpoint.dir = folder + "/checkpoints";
  return run;
}

}  // namespace paceline
