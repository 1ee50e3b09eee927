#include "worker/trainer/trainer.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <thread>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/timeouts.h"
#include "spdlog/spdlog.h"
#include "worker/model/optimizer.h"
#include "worker/trainer/evaluation.h"
#include "worker/trainer/non_finite.h"
#include "worker/trainer/rank_layout.h"

namespace paceline {
namespace {

constexpr std::size_t kLossScalar = 0;
constexpr std::size_t kStopScalar = 1;
constexpr std::size_t kMoveScalar = 2;
constexpr std::size_t kExpertScalars = 3;

// Windows are asked for a quarter of an hour ahead, within these bounds.
constexpr double kWindowSeconds = 900;
constexpr std::int64_t kWindowStepsMin = 128;
constexpr std::int64_t kWindowStepsMax = 100'000;
constexpr std::chrono::milliseconds kAskAgain{1000};

constexpr std::chrono::milliseconds kLookAgain{20};

bool Holds(const ModelPart& part, std::int64_t layer) {
  return std::any_of(part.segments.begin(), part.segments.end(), [&](const LayerRange& segment) {
    return layer >= segment.first && layer < segment.end;
  });
}

SteadyTime Tick() { return std::chrono::steady_clock::now(); }

}  // namespace

Trainer::Trainer(const RunFile& run_file, const v1::RankStart& start, GenerationControl& control,
                 SendFunction send)
    : run_file_(run_file),
      start_(start),
      control_(control),
      send_(std::move(send)),
      layout_(LayoutOf(start.layout())),
      at_(CoordinatesOf(layout_, start.rank())),
      micro_batches_(MicroBatchesOf(
          layout_, at_.data, run_file.train.global_batch_size / run_file.train.micro_batch_size)),
      step_tokens_(run_file.train.global_batch_size * run_file.train.sequence_length),
      actions_(PipelineActions({.schedule = layout_.schedule,
                                .stages = layout_.pipeline,
                                .virtual_stages = layout_.virtual_stages,
                                .micro_batches = static_cast<int>(micro_batches_.count)},
                               at_.stage)),
      model_part_(PartOf(run_file_, layout_, start.rank())),
      compute_(Stream::Mode::kInline, "compute"),
      communication_(Stream::Mode::kThread, "communication"),
      expert_communication_(Stream::Mode::kThread, "expert communication"),
      step_(start.start_step()) {
  totals_.set_rank(start.rank());
}

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(
    const RunFile& run_file, const v1::RankStart& start, GenerationControl& control,
    SendFunction send, std::optional<LiveState> held, Corpora corpora) {
  RETURN_IF_ERROR(CheckRankStart(run_file, start));
  if (!start.live()) held.reset();  // its memory is wanted
  std::unique_ptr<Trainer> trainer(new Trainer(run_file, start, control, std::move(send)));
  trainer->corpora_ = std::move(corpora);
  const SteadyTime begin = Tick();
  RETURN_IF_ERROR(trainer->Load(std::move(held)));
  trainer->totals_.set_load_seconds(SecondsBetween(begin, Tick()));
  return trainer;
}

absl::Status Trainer::Load(std::optional<LiveState> held) {
  if (corpora_.train == nullptr) {
    ASSIGN_OR_RETURN(corpora_, OpenCorpora(run_file_));
  }
  if (!start_.corpus_digest().empty() &&
      corpora_.train->order().digest() != start_.corpus_digest()) {
    return absl::DataLossError(
        absl::StrCat("[data] train: the corpus is not the one the run began with (digest ",
                     corpora_.train->order().digest(), ", expected ", start_.corpus_digest(), ")"));
  }
  const ModelOptions options = {.micro_batch_size = run_file_.train.micro_batch_size,
                                .sequence_length = run_file_.train.sequence_length,
                                .training = true,
                                .part = model_part_,
                                .slots = ActivationSlots(actions_),
                                .split_backward = layout_.schedule == "zero-bubble"};
  ASSIGN_OR_RETURN(model_, Model::Create(run_file_.model, options, compute_));
  moments_ = OptimizerMoments(OwnedRanges(model_->buckets(), layout_, at_));
  scalars_.assign(kExpertScalars + model_->expert_tokens().size(), 0.0);

  if (start_.live()) return TakeUp(std::move(held));
  whole_ = true;
  if (!start_.checkpoint().empty()) {
    absl::Status loaded = LoadCheckpoint();
    // What is not found may be there for others: this node may not see the folder.
    if (absl::IsDataLoss(loaded)) {
      loaded.SetPayload(kDamagedCheckpoint, absl::Cord(start_.checkpoint()));
    }
    return loaded;
  }
  if (!run_file_.checkpoint.init.empty()) {
    ASSIGN_OR_RETURN(const auto reader, CheckpointReader::Open(run_file_.checkpoint.init));
    return Annotate(LoadWeights(*reader, *model_), "[checkpoint] init");
  }
  model_->Initialize(run_file_.run.seed);
  return absl::OkStatus();
}

absl::Status Trainer::TakeUp(std::optional<LiveState> held) {
  const bool receives = std::any_of(
      start_.transfers().begin(), start_.transfers().end(),
      [this](const v1::StateTransfer& transfer) { return transfer.to() == start_.rank(); });
  if (receives) return absl::OkStatus();
  const bool told = !start_.restore_folder().empty();
  // Where a snapshot is named, what the process holds of that step may be another share's.
  if (!told && held.has_value() && held->step == step_) {
    RETURN_IF_ERROR(PutLiveState(*std::move(held), *model_, moments_, history_));
  } else {
    const absl::Status read =
        ReadSnapshot(told ? start_.restore_folder() : start_.snapshot_folder(),
                     start_.key().run_id(), told ? start_.restore_rank() : start_.rank(), step_,
                     StateArrays(*model_, moments_, history_));
    if (!read.ok()) {
      return absl::UnknownError(absl::StrCat("rank ", start_.rank(),
                                             " does not hold the state of step ", step_,
                                             " any more: ", std::string(read.message())));
    }
  }
  whole_ = true;
  return absl::OkStatus();
}

// A state that was read from a checkpoint can be read again.
std::optional<LiveState> Trainer::TakeState() {
  if (!whole_ || history_.Find(step_) == nullptr) return std::nullopt;
  whole_ = false;
  // Their memory is wanted for the copy of the weights.
  snapshots_.reset();
  checkpointer_.reset();
  reducer_.reset();
  executor_.reset();
  return TakeLiveState(step_, history_, *model_, std::move(moments_));
}

absl::Status Trainer::ShareState() {
  const std::vector<std::span<std::byte>> arrays = StateArrays(*model_, moments_, history_);
  Communicator& world = groups_->world();
  for (const v1::StateTransfer& transfer : start_.transfers()) {
    for (const std::span<std::byte> array : arrays) {
      if (transfer.from() == start_.rank()) {
        world.Send(communication_, "state", array.data(), array.size(), DataType::kUint8,
                   transfer.to());
      } else if (transfer.to() == start_.rank()) {
        world.Recv(communication_, "state", array.data(), array.size(), DataType::kUint8,
                   transfer.from());
      }
    }
  }
  RETURN_IF_ERROR(communication_.Synchronize());
  whole_ = true;
  // What the agent of rank 0 had not written when it died is told again, and then the ranks that
  // completed the step may have been stopped before what follows it.
  if (start_.rank() == 0) {
    for (std::int64_t step = step_ - StepHistory::kSteps + 1; step <= step_; ++step)
      SendRecord(step);
  }
  RETURN_IF_ERROR(EvaluateIfDue());
  const bool committed = start_.windows().empty() || start_.windows(0).first_step() >= step_;
  if (!committed) CheckpointIfDue();
  return absl::OkStatus();
}

void Trainer::SendRecord(std::int64_t step) {
  const StepHistory::Entry* entry = history_.Find(step);
  if (entry == nullptr) return;
  v1::WorkerMessage message;
  v1::StepRecord& record = *message.mutable_step();
  record.set_step(step);
  record.set_loss(entry->loss);
  record.set_grad_norm(entry->grad_norm);
  record.set_learning_rate(LearningRate(run_file_.train, step));
  record.set_tokens(step_tokens_);
  record.set_step_seconds(entry->step_seconds);
  send_(std::move(message));
}

// A committed checkpoint's manifest may still be on its way to its name, behind a slow disk: that
// is no damage.
absl::Status Trainer::AwaitManifest() {
  const std::string manifest = start_.checkpoint() + "/manifest.json";
  const SteadyTime deadline = Tick() + kManifestLimit;
  while (::access(manifest.c_str(), F_OK) != 0 &&
         ::access((manifest + ".pending").c_str(), F_OK) == 0) {
    RETURN_IF_ERROR(control_.status());
    if (Tick() >= deadline) {
      return absl::UnavailableError(
          absl::StrCat(manifest, " has not been put in its place within ",
                       std::chrono::duration<double>(kManifestLimit).count(), " s"));
    }
    std::this_thread::sleep_for(kLookAgain);
  }
  return absl::OkStatus();
}

absl::Status Trainer::LoadCheckpoint() {
  RETURN_IF_ERROR(AwaitManifest());
  ASSIGN_OR_RETURN(const auto reader, CheckpointReader::Open(start_.checkpoint()));
  if (reader->manifest().step != step_) {
    return absl::DataLossError(absl::StrCat(start_.checkpoint(), " holds step ",
                                            reader->manifest().step, ", expected ", step_));
  }
  return LoadState(*reader, *model_, moments_);
}

absl::Status Trainer::Run(ParallelGroups& groups) {
  const WaitGauge::Attached attached(waits_);
  groups_ = &groups;
  if (layout_.expert > 1) model_->UseExpertGroup(groups.expert(), expert_communication_);
  executor_ = std::make_unique<PipelineExecutor>(
      *model_, groups, ActivationSlots(actions_),
      static_cast<std::size_t>(run_file_.train.micro_batch_size * run_file_.train.sequence_length *
                               run_file_.model.hidden_size),
      compute_);
  const Reduction reduction =
      run_file_.train.reduction == "exact" ? Reduction::kExact : Reduction::kFast;
  reducer_ = std::make_unique<GradientReducer>(reduction, model_->gradients(), model_->buckets(),
                                               groups, compute_, communication_);
  checkpointer_ =
      std::make_unique<Checkpointer>(start_.rank(), start_.key(), run_file_.checkpoint.dir, send_,
                                     [this] { return !control_.status().ok(); });
  TakesSnapshots();
  const absl::Status trained = TrainSteps();
  if (!trained.ok()) {
    // An abort's reason explains more than the collective error that it caused.
    const absl::Status told = control_.status();
    LeaveGroups(trained);
    return told.ok() ? trained : told;
  }

  phase_ = v1::RANK_PHASE_CHECKPOINT;
  checkpointer_->Flush();
  PublishProgress();
  v1::WorkerMessage message;
  v1::RankFinished& finished = *message.mutable_finished();
  *finished.mutable_key() = start_.key();
  finished.set_rank(start_.rank());
  finished.set_step(step_);
  finished.set_stopped(stop_agreed_ && step_ < run_file_.train.steps);
  send_(std::move(message));
  return absl::OkStatus();
}

// A stream may still wait for a peer that lives; nothing may be in use when `groups` go.
void Trainer::LeaveGroups(const absl::Status& reason) {
  groups_->Abort(std::string(reason.message()));
  executor_->Drain();
  communication_.Synchronize().IgnoreError();
  expert_communication_.Synchronize().IgnoreError();
}

absl::Status Trainer::TrainSteps() {
  if (start_.live()) RETURN_IF_ERROR(ShareState());
  const std::int64_t first = step_;
  while (!finished()) {
    phase_ = v1::RANK_PHASE_WINDOW;
    RETURN_IF_ERROR(WaitForWindow());
    if (step_ == first) {
      spdlog::info("generation {}: rank {} begins step {}", start_.key().generation(),
                   start_.rank(), step_ + 1);
    }
    phase_ = v1::RANK_PHASE_STEP;
    if (totals_.begin_seconds() == 0) {
      totals_.set_begin_seconds(std::max(1e-3, SecondsBetween(control_.peers_at(), Tick())));
      PublishProgress();
    }
    RETURN_IF_ERROR(Step());
    SnapshotIfDue();
    RETURN_IF_ERROR(EvaluateIfDue());
    CheckpointIfDue();
    PublishProgress();
  }
  return absl::OkStatus();
}

absl::Status Trainer::WaitForWindow() {
  const SteadyTime begin = Tick();
  const std::int64_t steps_done = std::max<std::int64_t>(step_ - start_.start_step(), 1);
  const double step_seconds = totals_.step_seconds() / static_cast<double>(steps_done);
  const std::int64_t ahead =
      step_seconds > 0
          ? std::clamp(static_cast<std::int64_t>(std::min(kWindowSeconds / step_seconds, 1e9)),
                       kWindowStepsMin, kWindowStepsMax)
          : kWindowStepsMin;
  const std::int64_t until = std::min(step_ + ahead, run_file_.train.steps);
  const auto ask = [&] {
    v1::WorkerMessage message;
    *message.mutable_window_request()->mutable_key() = start_.key();
    message.mutable_window_request()->set_until_step(until);
    send_(std::move(message));
    asked_until_ = until;
  };
  // Ask once half of what lies ahead is used up, so that most steps ask nothing.
  const std::int64_t granted = std::max(control_.granted_until(), asked_until_);
  if (granted < until && granted - step_ < std::max<std::int64_t>(ahead / 2, 1)) ask();
  absl::Status status = control_.WaitForStep(step_, kAskAgain);
  while (absl::IsDeadlineExceeded(status)) {
    ask();
    status = control_.WaitForStep(step_, kAskAgain);
  }
  totals_.set_control_wait_seconds(totals_.control_wait_seconds() + SecondsBetween(begin, Tick()));
  return status;
}

absl::StatusOr<MicroBatch> Trainer::LoadMicroBatch(std::int64_t index) {
  const std::int64_t rows = run_file_.train.micro_batch_size;
  const std::int64_t first =
      step_ * run_file_.train.global_batch_size + micro_batches_.At(index) * rows;
  return corpora_.train->Load(first, rows);
}

absl::Status Trainer::ForwardBackward() {
  std::fill(scalars_.begin(), scalars_.end(), 0.0);
  model_->ResetExpertTokens();
  PassHandlers handlers;
  handlers.load = [this](int micro_batch) -> absl::StatusOr<MicroBatch> {
    RETURN_IF_ERROR(groups_->status());
    const SteadyTime begin = Tick();
    absl::StatusOr<MicroBatch> batch = LoadMicroBatch(micro_batch);
    totals_.set_data_wait_seconds(totals_.data_wait_seconds() + SecondsBetween(begin, Tick()));
    return batch;
  };
  handlers.loss = [this](int, float loss) { scalars_[kLossScalar] += static_cast<double>(loss); };
  handlers.bucket_ready = [this](std::size_t bucket, int micro_batch) {
    reducer_->BucketReady(bucket, micro_batch, micro_batches_.count);
  };
  // The loss is the mean over the step's tokens; scaling each micro-batch's gradient here makes
  // its bits independent of the number of ranks.
  handlers.loss_scale = 1.0f / static_cast<float>(step_tokens_);
  handlers.accumulate = reducer_->backward_accumulates();
  return executor_->Run(actions_, handlers);
}

absl::Status Trainer::ReduceScalars() {
  scalars_[kStopScalar] = control_.stop_requested() ? 1 : 0;
  scalars_[kMoveScalar] = control_.move_requested(/*at_checkpoint=*/IsCheckpointDue()) ? 1 : 0;
  const auto expert_tokens = model_->expert_tokens();
  std::copy(expert_tokens.begin(), expert_tokens.end(), scalars_.begin() + kExpertScalars);
  groups_->world().AllReduceSum(communication_, "step scalars", scalars_.data(), scalars_.size(),
                                DataType::kFloat64);
  RETURN_IF_ERROR(communication_.Synchronize());
  std::transform(scalars_.begin() + kExpertScalars, scalars_.end(), expert_tokens.begin(),
                 [](double tokens) { return static_cast<std::int64_t>(tokens); });
  moves_ = scalars_[kMoveScalar] > 0 && !(scalars_[kStopScalar] > 0) &&
           step_ + 1 < run_file_.train.steps;
  stop_agreed_ = scalars_[kStopScalar] > 0 || moves_;
  return absl::OkStatus();
}

absl::StatusOr<double> Trainer::GradientNorm() {
  // Everything is here, unless stages, experts or the optimizer are spread over ranks. Then each
  // range counts on one of the ranks that hold it.
  const bool spread = layout_.pipeline > 1 || layout_.expert > 1 || layout_.shard_optimizer;
  double squares = 0;
  for (std::size_t i = 0; i < moments_.ranges().size(); ++i) {
    const int copy = model_->buckets()[i].expert ? at_.expert_data : at_.data;
    if (spread && !layout_.shard_optimizer && copy != 0) continue;
    const FlatRange& range = moments_.ranges()[i];
    squares +=
        SumOfSquares(compute_, model_->gradients().subspan(static_cast<std::size_t>(range.begin),
                                                           static_cast<std::size_t>(range.count)));
  }
  if (spread) {
    groups_->world().AllReduceSum(communication_, "gradient norm", &squares, 1, DataType::kFloat64);
    RETURN_IF_ERROR(communication_.Synchronize());
  }
  return std::sqrt(squares);
}

absl::Status Trainer::Step() {
  const SteadyTime begin = Tick();
  const double data_wait_before = totals_.data_wait_seconds();
  const double pipeline_wait_before = executor_->wait_seconds();
  const double expert_wait_before = model_->expert_wait_seconds();
  corpora_.train->WillNeed(
      (step_ + 1) * run_file_.train.global_batch_size +
          micro_batches_.first * run_file_.train.micro_batch_size,
      micro_batches_.count * micro_batches_.stride * run_file_.train.micro_batch_size);
  RETURN_IF_ERROR(ForwardBackward());
  const SteadyTime computed = Tick();
  RETURN_IF_ERROR(reducer_->Finish());
  const SteadyTime summed = Tick();
  RETURN_IF_ERROR(ReduceScalars());
  const SteadyTime agreed = Tick();
  ASSIGN_OR_RETURN(const double grad_norm, GradientNorm());
  const SteadyTime reduced = Tick();

  double loss = scalars_[kLossScalar] / static_cast<double>(step_tokens_);
  if (std::isfinite(loss) && std::isfinite(grad_norm)) {
    whole_ = false;
    Update(grad_norm);
  } else {
    RETURN_IF_ERROR(ReportNonFinite());
    loss = std::numeric_limits<double>::quiet_NaN();
  }
  const SteadyTime updated = Tick();
  RETURN_IF_ERROR(reducer_->Finish());
  ++step_;
  whole_ = true;
  const SteadyTime end = Tick();

  // The scalars wait for every rank: in a pipeline for stages that still compute.
  const double last_stage = layout_.pipeline > 1 ? SecondsBetween(summed, agreed) : 0;
  const double pipeline_wait = executor_->wait_seconds() - pipeline_wait_before + last_stage;
  const double exposed = SecondsBetween(computed, reduced) - last_stage +
                         SecondsBetween(updated, end) + model_->expert_wait_seconds() -
                         expert_wait_before;
  const double seconds = SecondsBetween(begin, end);
  const double data_wait = totals_.data_wait_seconds() - data_wait_before;
  totals_.set_step(step_);
  totals_.set_step_seconds(totals_.step_seconds() + seconds);
  totals_.set_exposed_communication_seconds(totals_.exposed_communication_seconds() + exposed);
  totals_.set_pipeline_wait_seconds(totals_.pipeline_wait_seconds() + pipeline_wait);
  totals_.set_compute_seconds(totals_.compute_seconds() + seconds - exposed - data_wait -
                              pipeline_wait);
  totals_.set_tokens((step_ - start_.start_step()) * micro_batches_.count *
                     run_file_.train.micro_batch_size * run_file_.train.sequence_length /
                     layout_.pipeline);
  history_.Add({.step = step_, .loss = loss, .grad_norm = grad_norm, .step_seconds = seconds});
  if (start_.rank() == 0) SendRecord(step_);
  return absl::OkStatus();
}

void Trainer::Update(double grad_norm) {
  const TrainSection& train = run_file_.train;
  AdamWStep step;
  step.step = step_ + 1;
  step.learning_rate = static_cast<float>(LearningRate(train, step_ + 1));
  step.beta1 = static_cast<float>(train.adam_beta1);
  step.beta2 = static_cast<float>(train.adam_beta2);
  step.eps = static_cast<float>(train.adam_eps);
  step.weight_decay = static_cast<float>(train.weight_decay);
  if (train.clip_grad_norm > 0) {
    step.gradient_scale =
        static_cast<float>(std::min(1.0, train.clip_grad_norm / (grad_norm + 1e-6)));
  }
  // From the end: the embedding's weights come last in the arrays and are needed first.
  for (std::size_t i = moments_.ranges().size(); i-- > 0;) {
    const FlatRange& range = moments_.ranges()[i];
    const auto begin = static_cast<std::size_t>(range.begin);
    const auto count = static_cast<std::size_t>(range.count);
    AdamWOverParameters(
        compute_, step, model_->parameters(), range.begin, model_->weights().subspan(begin, count),
        model_->gradients().subspan(begin, count), moments_.exp_avg(i), moments_.exp_avg_sq(i));
    reducer_->GatherWeights(i, model_->weights());
  }
  NoteExpertLoads();
  if (run_file_.model.router_bias_update_rate > 0) {
    model_->UpdateRouterBias(static_cast<float>(run_file_.model.router_bias_update_rate));
  }
}

// Loads are summed over the ranks by now, so one rank of each stage speaks for all.
void Trainer::NoteExpertLoads() {
  if (at_.data != 0) return;
  const auto experts = static_cast<std::size_t>(run_file_.model.n_routed_experts);
  std::size_t sparse = 0;
  int noted = 0;
  for (std::int64_t layer = 0; layer < run_file_.model.num_hidden_layers; ++layer) {
    if (!run_file_.model.IsSparse(layer)) continue;
    const std::size_t first = experts * sparse++;
    if (!Holds(model_part_, layer)) continue;
    const ExpertLoad load = ExpertLoadOf(model_->expert_tokens().subspan(first, experts));
    if (noted == totals_.expert_loads_size()) totals_.add_expert_loads();
    v1::ExpertLoad& entry = *totals_.mutable_expert_loads(noted++);
    entry.set_layer(layer);
    entry.set_max_over_mean(load.max_over_mean);
    entry.set_dead(load.dead);
  }
}

absl::Status Trainer::ReportNonFinite() {
  PassHandlers handlers;
  handlers.load = [this](int micro_batch) { return LoadMicroBatch(micro_batch); };
  handlers.loss_scale = 1.0f / static_cast<float>(step_tokens_);
  ASSIGN_OR_RETURN(const std::string mine,
                   FindNonFinite(*model_, *executor_, actions_, handlers, compute_));
  ASSIGN_OR_RETURN(const std::string found, FirstFinding(mine, groups_->world(), communication_));
  const std::string report = absl::StrCat(
      "step ", step_ + 1, ": ",
      found.empty() ? "the gradients of all ranks are finite, but not their sum" : found);
  if (run_file_.train.on_nonfinite == "skip") {
    spdlog::warn("{}; the step's update is skipped ([train] on_nonfinite = \"skip\")", report);
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat(
      report, "; lower [train] learning_rate, or set on_nonfinite = \"skip\" to go on"));
}

absl::Status Trainer::EvaluateIfDue() {
  const std::int64_t interval = run_file_.train.eval_interval_steps;
  // The end of a run is evaluated; where it only moves it comes back.
  const bool due = (finished() && !moves_) || (interval > 0 && step_ % interval == 0);
  if (corpora_.valid == nullptr || !due) return absl::OkStatus();
  phase_ = v1::RANK_PHASE_EVALUATION;
  ASSIGN_OR_RETURN(v1::EvalRecord record,
                   Evaluate(run_file_, *executor_, *corpora_.valid, *groups_, communication_));
  model_->ResetExpertTokens();
  if (start_.rank() != 0) return absl::OkStatus();
  record.set_step(step_);
  v1::WorkerMessage message;
  *message.mutable_eval() = std::move(record);
  send_(std::move(message));
  return absl::OkStatus();
}

// After the step that is under way.
bool Trainer::IsCheckpointDue() const {
  const std::int64_t interval = run_file_.checkpoint.interval_steps;
  return interval > 0 && (step_ + 1) % interval == 0;
}

void Trainer::CheckpointIfDue() {
  const std::int64_t interval = run_file_.checkpoint.interval_steps;
  v1::CheckpointReason reason = v1::CHECKPOINT_REASON_INTERVAL;
  if (step_ == run_file_.train.steps) {
    reason = v1::CHECKPOINT_REASON_END;
  } else if (stop_agreed_) {
    reason = v1::CHECKPOINT_REASON_STOP;
  } else if (interval == 0 || step_ % interval != 0) {
    return;
  }
  phase_ = v1::RANK_PHASE_CHECKPOINT;
  v1::DataPosition position;
  position.set_step(step_);
  position.set_sample(step_ * run_file_.train.global_batch_size);
  position.set_seed(run_file_.run.seed);
  position.set_corpus_digest(corpora_.train->order().digest());
  const std::vector<SliceView> slices = SlicesToWrite(*model_, moments_, layout_, at_);
  checkpointer_->Write(position, reason, slices, ReplicatedArrays(*model_, moments_, layout_));
}

void Trainer::TakesSnapshots() {
  const std::string& folder = start_.snapshot_folder();
  if (folder.empty() || run_file_.failure.snapshot_interval_steps == 0) return;
  state_arrays_ = StateArrays(*model_, moments_, history_);
  snapshots_ =
      std::make_unique<Snapshots>(folder, start_.key(), start_.rank(), step_, state_arrays_, send_);
}

// The last step's is of no use: its checkpoint follows at once.
void Trainer::SnapshotIfDue() {
  if (snapshots_ == nullptr || finished()) return;
  if (step_ % run_file_.failure.snapshot_interval_steps != 0) return;
  snapshots_->Take(step_);
}

void Trainer::PublishProgress() {
  if (snapshots_ != nullptr) {
    const Snapshots::Totals snapshots = snapshots_->totals();
    totals_.set_snapshots(snapshots.taken);
    totals_.set_snapshots_skipped(snapshots.skipped);
    totals_.set_snapshot_stall_seconds(snapshots.stall_seconds);
    totals_.set_snapshot_at_ms(snapshots.last_at_ms);
  }
  const Checkpointer::Totals checkpoints = checkpointer_->totals();
  totals_.set_checkpoint_at_ms(checkpoints.last_at_ms);
  totals_.set_checkpoint_stall_seconds(checkpoints.stall_seconds);
  totals_.set_checkpoint_write_seconds(checkpoints.write_seconds);
  totals_.set_checkpoint_bytes(checkpoints.bytes);
  const std::lock_guard lock(progress_mutex_);
  progress_ = totals_;
}

v1::RankProgress Trainer::progress() const {
  v1::RankProgress progress;
  {
    const std::lock_guard lock(progress_mutex_);
    progress = progress_;
  }
  progress.set_phase(phase_.load());
  progress.set_waiting(waits_.waiting());
  return progress;
}

}  // namespace paceline
