// One rank's training of one generation: the step loop. Speaks through one function (messages
// for the agent) and listens to one object (GenerationControl), so it runs the same in a worker
// process and in a test's thread.
//
// A step: wait for its window; the passes of the rank's pipeline schedule, buckets reducing
// behind; one all-reduce of the step's scalars (loss, stop flag, expert loads); norm, clipping,
// AdamW, balancing bias. Then, where due, evaluation and checkpoint.
// Invariant: all ranks take the same decisions at the same step, because each is made from
// reduced values, the run file and the step number alone.
// Threading: Create and Run belong to the step thread; progress() from any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/parallel_layout.h"
#include "common/pipeline_schedule.h"
#include "common/run_file.h"
#include "common/status.h"
#include "paceline/v1/agent.pb.h"
#include "worker/collectives/parallel_groups.h"
#include "worker/kernels/wait_gauge.h"
#include "worker/model/model.h"
#include "worker/trainer/batch_loader.h"
#include "worker/trainer/checkpointer.h"
#include "worker/trainer/generation_control.h"
#include "worker/trainer/gradient_reducer.h"
#include "worker/trainer/pipeline_executor.h"
#include "worker/trainer/snapshots.h"
#include "worker/trainer/training_state.h"

namespace paceline {

// Status payload of Trainer::Create: the folder of the checkpoint that could not be loaded.
inline constexpr char kDamagedCheckpoint[] = "paceline/damaged-checkpoint";

class Trainer {
 public:
  using SendFunction = std::function<void(v1::WorkerMessage)>;

  // Builds model, optimizer and, unless `corpora` has them, readers, and loads the checkpoint that
  // `start` names, or goes on from `held`, which is empty after.
  // kInvalidArgument, kDataLoss, kNotFound, kFailedPrecondition: name the field, file or tensor.
  // Where `start`'s checkpoint is damaged, the payload kDamagedCheckpoint says so; that it is not
  // found may be this node's fault, and does not.
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(
      const RunFile& run_file, const v1::RankStart& start, GenerationControl& control,
      SendFunction send, std::optional<LiveState> held = {}, Corpora corpora = {});

  // Trains over `groups` to the last step, or to the step a stop was agreed on, writes
  // the last checkpoint, and says RankFinished. kAborted: the generation was aborted.
  // kDataLoss: a loss or gradient is not finite; names rank, step and tensor.
  absl::Status Run(ParallelGroups& groups);

  // After Run, or instead of it: the state, if it is whole (no update was under way). The trainer
  // is of no use then.
  std::optional<LiveState> TakeState();
  // For the next trainer of the run. This one is of no use then.
  Corpora TakeCorpora() { return std::exchange(corpora_, {}); }

  // Where the rank stands; cheap, for the telemetry of another thread.
  v1::RankProgress progress() const;

  const Model& model() const { return *model_; }
  const ParallelLayout& layout() const { return layout_; }

 private:
  Trainer(const RunFile& run_file, const v1::RankStart& start, GenerationControl& control,
          SendFunction send);

  absl::Status Load(std::optional<LiveState> held);
  absl::Status LoadCheckpoint();
  absl::Status AwaitManifest();
  absl::Status TakeUp(std::optional<LiveState> held);
  // Ranks that lack the state get it from those that hold it; then what was due at its step.
  absl::Status ShareState();
  absl::Status TrainSteps();
  // Tells the agent, where the step's record is known.
  void SendRecord(std::int64_t step);
  void LeaveGroups(const absl::Status& reason);
  absl::Status WaitForWindow();
  absl::Status Step();
  absl::Status ForwardBackward();
  absl::Status ReduceScalars();
  // Over all parameters of the model.
  absl::StatusOr<double> GradientNorm();
  // Names the culprit, and stops or goes on as the run file says.
  absl::Status ReportNonFinite();
  // Weights that other ranks update are here when the reducer has finished.
  void Update(double grad_norm);
  void NoteExpertLoads();
  absl::Status EvaluateIfDue();
  void TakesSnapshots();
  void SnapshotIfDue();
  bool IsCheckpointDue() const;
  void CheckpointIfDue();
  absl::StatusOr<MicroBatch> LoadMicroBatch(std::int64_t index);
  bool finished() const { return step_ == run_file_.train.steps || stop_agreed_; }
  void PublishProgress();

  const RunFile run_file_;
  const v1::RankStart start_;
  GenerationControl& control_;
  const SendFunction send_;
  const ParallelLayout layout_;
  const RankCoordinates at_;
  const MicroBatchRange micro_batches_;  // of this rank in a step
  const std::int64_t step_tokens_;       // of all ranks

  const std::vector<PipelineAction> actions_;
  const ModelPart model_part_;

  Stream compute_;
  Stream communication_;
  Stream expert_communication_;
  std::unique_ptr<Model> model_;
  OptimizerMoments moments_;
  Corpora corpora_;
  ParallelGroups* groups_ = nullptr;  // while Run runs
  std::unique_ptr<PipelineExecutor> executor_;
  std::unique_ptr<GradientReducer> reducer_;
  std::unique_ptr<Checkpointer> checkpointer_;
  std::vector<std::span<std::byte>> state_arrays_;  // of model_, moments_ and history_
  std::unique_ptr<Snapshots> snapshots_;            // null: none are taken

  std::int64_t step_ = 0;  // completed
  bool whole_ = false;     // the state is that of step_
  StepHistory history_;
  std::int64_t asked_until_ = 0;
  bool stop_agreed_ = false;
  bool moves_ = false;  // with it: the run goes on with other nodes
  // Summed over ranks at the end of a step, all of it exact in float64: the loss (a sum of
  // float32 values), the number of ranks told to stop, tokens by layer and expert.
  std::vector<double> scalars_;
  v1::RankProgress totals_;  // the step thread's; published once a step
  std::atomic<v1::RankPhase> phase_{v1::RANK_PHASE_UNSPECIFIED};
  WaitGauge waits_;  // the step thread's

  mutable std::mutex progress_mutex_;
  v1::RankProgress progress_;
};

}  // namespace paceline
