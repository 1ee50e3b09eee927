#include "worker/trainer/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "spdlog/spdlog.h"
#include "worker/model/optimizer.h"
#include "worker/trainer/evaluation.h"

namespace paceline {
namespace {

constexpr std::size_t kLossScalar = 0;
constexpr std::size_t kStopScalar = 1;
constexpr std::size_t kExpertScalars = 2;
constexpr std::size_t kReportBytes = 256;  // of one rank's non-finite report

// Windows are asked for a quarter of an hour ahead, within these bounds.
constexpr double kWindowSeconds = 900;
constexpr std::int64_t kWindowStepsMin = 128;
constexpr std::int64_t kWindowStepsMax = 100'000;
constexpr std::chrono::milliseconds kAskAgain{1000};

SteadyTime Tick() { return std::chrono::steady_clock::now(); }

}  // namespace

Trainer::Trainer(const RunFile& run_file, const v1::RankStart& start, GenerationControl& control,
                 Send send)
    : run_file_(run_file),
      start_(start),
      control_(control),
      send_(std::move(send)),
      micro_batches_(run_file.train.global_batch_size /
                     (run_file.train.micro_batch_size * start.layout().data())),
      step_tokens_(run_file.train.global_batch_size * run_file.train.sequence_length),
      compute_(Stream::Mode::kInline, "compute"),
      communication_(Stream::Mode::kThread, "communication"),
      step_(start.start_step()) {
  totals_.set_rank(start.rank());
}

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(const RunFile& run_file,
                                                         const v1::RankStart& start,
                                                         GenerationControl& control, Send send) {
  std::unique_ptr<Trainer> trainer(new Trainer(run_file, start, control, std::move(send)));
  RETURN_IF_ERROR(trainer->Load());
  return trainer;
}

absl::Status Trainer::Load() {
  ASSIGN_OR_RETURN(train_, BatchLoader::Open(run_file_.data.train, run_file_, /*shuffle=*/true));
  if (!start_.corpus_digest().empty() && train_->order().digest() != start_.corpus_digest()) {
    return absl::DataLossError(
        absl::StrCat("[data] train: the corpus is not the one the run began with (digest ",
                     train_->order().digest(), ", expected ", start_.corpus_digest(), ")"));
  }
  if (!run_file_.data.valid.empty()) {
    ASSIGN_OR_RETURN(valid_, BatchLoader::Open(run_file_.data.valid, run_file_, /*shuffle=*/false));
  }
  const ModelOptions options = {.micro_batch_size = run_file_.train.micro_batch_size,
                                .sequence_length = run_file_.train.sequence_length,
                                .training = true};
  ASSIGN_OR_RETURN(model_, Model::Create(run_file_.model, options, compute_));
  exp_avg_.assign(model_->weights().size(), 0.0f);
  exp_avg_sq_.assign(model_->weights().size(), 0.0f);
  scalars_.assign(kExpertScalars + model_->expert_tokens().size(), 0.0);

  if (!start_.checkpoint().empty()) {
    absl::Status loaded = LoadCheckpoint();
    if (absl::IsDataLoss(loaded) || absl::IsNotFound(loaded)) {
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

absl::Status Trainer::LoadCheckpoint() {
  ASSIGN_OR_RETURN(const auto reader, CheckpointReader::Open(start_.checkpoint()));
  if (reader->manifest().step != step_) {
    return absl::DataLossError(absl::StrCat(start_.checkpoint(), " holds step ",
                                            reader->manifest().step, ", expected ", step_));
  }
  return LoadState(*reader, *model_, {exp_avg_, exp_avg_sq_});
}

absl::Status Trainer::Run(Communicator& communicator) {
  const Reduction reduction =
      run_file_.train.reduction == "exact" ? Reduction::kExact : Reduction::kFast;
  reducer_ = std::make_unique<GradientReducer>(reduction, model_->gradients(), model_->buckets(),
                                               communicator, compute_, communication_);
  checkpointer_ =
      std::make_unique<Checkpointer>(start_.rank(), start_.key(), run_file_.checkpoint.dir, send_);
  const absl::Status trained = TrainSteps(communicator);
  // An abort's reason explains more than the collective error that it caused.
  if (!trained.ok() && !control_.status().ok()) return control_.status();
  RETURN_IF_ERROR(trained);

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

absl::Status Trainer::TrainSteps(Communicator& communicator) {
  while (!finished()) {
    RETURN_IF_ERROR(WaitForWindow());
    RETURN_IF_ERROR(Step(communicator));
    RETURN_IF_ERROR(EvaluateIfDue(communicator));
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
      step_ * run_file_.train.global_batch_size + (start_.rank() * micro_batches_ + index) * rows;
  return train_->Load(first, rows);
}

absl::Status Trainer::ForwardBackward() {
  // The loss is the mean over the step's tokens; scaling each micro-batch's gradient here makes
  // its bits independent of the number of ranks.
  const float loss_scale = 1.0f / static_cast<float>(step_tokens_);
  std::fill(scalars_.begin(), scalars_.end(), 0.0);
  model_->ResetExpertTokens();
  for (std::int64_t i = 0; i < micro_batches_; ++i) {
    const SteadyTime begin = Tick();
    ASSIGN_OR_RETURN(const MicroBatch batch, LoadMicroBatch(i));
    totals_.set_data_wait_seconds(totals_.data_wait_seconds() + SecondsBetween(begin, Tick()));
    scalars_[kLossScalar] += static_cast<double>(model_->Forward(batch));
    model_->Backward(
        loss_scale, reducer_->backward_accumulates() && i > 0,
        [this, i](std::size_t bucket) { reducer_->BucketReady(bucket, i, micro_batches_); });
  }
  return absl::OkStatus();
}

absl::Status Trainer::ReduceScalars(Communicator& communicator) {
  scalars_[kStopScalar] = control_.stop_requested() ? 1 : 0;
  const auto expert_tokens = model_->expert_tokens();
  std::copy(expert_tokens.begin(), expert_tokens.end(), scalars_.begin() + kExpertScalars);
  communicator.AllReduceSum(communication_, "step scalars", scalars_.data(), scalars_.size(),
                            DataType::kFloat64);
  RETURN_IF_ERROR(reducer_->Finish());
  std::transform(scalars_.begin() + kExpertScalars, scalars_.end(), expert_tokens.begin(),
                 [](double tokens) { return static_cast<std::int64_t>(tokens); });
  stop_agreed_ = scalars_[kStopScalar] > 0;
  return absl::OkStatus();
}

absl::Status Trainer::Step(Communicator& communicator) {
  const SteadyTime begin = Tick();
  const double data_wait_before = totals_.data_wait_seconds();
  train_->WillNeed((step_ + 1) * run_file_.train.global_batch_size +
                       start_.rank() * micro_batches_ * run_file_.train.micro_batch_size,
                   micro_batches_ * run_file_.train.micro_batch_size);
  RETURN_IF_ERROR(ForwardBackward());
  const SteadyTime computed = Tick();
  RETURN_IF_ERROR(ReduceScalars(communicator));
  const SteadyTime reduced = Tick();

  double loss = scalars_[kLossScalar] / static_cast<double>(step_tokens_);
  const double grad_norm = std::sqrt(SumOfSquares(compute_, model_->gradients()));
  const double learning_rate = LearningRate(run_file_.train, step_ + 1);
  if (std::isfinite(loss) && std::isfinite(grad_norm)) {
    Update(grad_norm);
  } else {
    RETURN_IF_ERROR(ReportNonFinite(communicator));
    loss = std::numeric_limits<double>::quiet_NaN();
  }
  ++step_;
  const SteadyTime end = Tick();

  const double exposed = SecondsBetween(computed, reduced);
  const double seconds = SecondsBetween(begin, end);
  const double data_wait = totals_.data_wait_seconds() - data_wait_before;
  totals_.set_step(step_);
  totals_.set_step_seconds(totals_.step_seconds() + seconds);
  totals_.set_exposed_communication_seconds(totals_.exposed_communication_seconds() + exposed);
  totals_.set_compute_seconds(totals_.compute_seconds() + seconds - exposed - data_wait);
  totals_.set_tokens(totals_.tokens() + step_tokens_ / communicator.size());
  if (start_.rank() == 0) {
    v1::WorkerMessage message;
    v1::StepRecord& record = *message.mutable_step();
    record.set_step(step_);
    record.set_loss(loss);
    record.set_grad_norm(grad_norm);
    record.set_learning_rate(learning_rate);
    record.set_tokens(step_tokens_);
    record.set_step_seconds(seconds);
    send_(std::move(message));
  }
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
  AdamWOverParameters(compute_, step, model_->parameters(), 0,
                      static_cast<std::int64_t>(model_->weights().size()), model_->weights(),
                      model_->gradients(), exp_avg_, exp_avg_sq_);
  const ExpertLoad load = model_->expert_load();
  totals_.set_expert_load_max_over_mean(load.max_over_mean);
  totals_.set_dead_experts(load.dead);
  if (run_file_.model.router_bias_update_rate > 0) {
    model_->UpdateRouterBias(static_cast<float>(run_file_.model.router_bias_update_rate));
  }
}

absl::StatusOr<std::string> Trainer::FindNonFinite() {
  const float loss_scale = 1.0f / static_cast<float>(step_tokens_);
  for (std::int64_t i = 0; i < micro_batches_; ++i) {
    ASSIGN_OR_RETURN(const MicroBatch batch, LoadMicroBatch(i));
    std::string what;
    if (!std::isfinite(model_->Forward(batch))) {
      what = model_->FirstNonFinite(model_->weights());
      what = what.empty() ? "the loss" : absl::StrCat("the loss (and weight ", what, ")");
    } else {
      model_->Backward(loss_scale, /*accumulate=*/false, [](std::size_t) {});
      what = model_->FirstNonFinite(model_->gradients());
      if (!what.empty()) what = absl::StrCat("the gradient of ", what);
    }
    if (!what.empty()) {
      return absl::StrCat("rank ", start_.rank(), ", step ", step_ + 1, ", micro-batch ", i + 1,
                          " of ", micro_batches_, ": ", what, " is not finite");
    }
  }
  return std::string();
}

absl::Status Trainer::ReportNonFinite(Communicator& communicator) {
  // The weights have not moved, so the step can be computed again to find the culprit; every
  // rank then hears every other's finding and all say the same.
  ASSIGN_OR_RETURN(const std::string mine, FindNonFinite());
  const auto ranks = static_cast<std::size_t>(communicator.size());
  std::vector<char> own(kReportBytes, '\0');
  std::vector<char> all(kReportBytes * ranks, '\0');
  std::memcpy(own.data(), mine.data(), std::min(mine.size(), kReportBytes - 1));
  communicator.AllGather(communication_, "non-finite report", own.data(), all.data(), kReportBytes,
                         DataType::kUint8);
  RETURN_IF_ERROR(communication_.Synchronize());
  std::string report = absl::StrCat("step ", step_ + 1,
                                    ": the gradients of all ranks are finite, but not their sum");
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    const char* text = all.data() + rank * kReportBytes;
    if (*text == '\0') continue;
    report = text;
    break;
  }
  if (run_file_.train.on_nonfinite == "skip") {
    spdlog::warn("{}; the step's update is skipped ([train] on_nonfinite = \"skip\")", report);
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat(
      report, "; lower [train] learning_rate, or set on_nonfinite = \"skip\" to go on"));
}

absl::Status Trainer::EvaluateIfDue(Communicator& communicator) {
  const std::int64_t interval = run_file_.train.eval_interval_steps;
  const bool due = finished() || (interval > 0 && step_ % interval == 0);
  if (valid_ == nullptr || !due) return absl::OkStatus();
  ASSIGN_OR_RETURN(v1::EvalRecord record,
                   Evaluate(run_file_, *model_, *valid_, communicator, communication_));
  if (start_.rank() != 0) return absl::OkStatus();
  record.set_step(step_);
  v1::WorkerMessage message;
  *message.mutable_eval() = std::move(record);
  send_(std::move(message));
  return absl::OkStatus();
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
  v1::DataPosition position;
  position.set_step(step_);
  position.set_sample(step_ * run_file_.train.global_batch_size);
  position.set_seed(run_file_.run.seed);
  position.set_corpus_digest(train_->order().digest());
  const std::vector<SliceView> slices =
      SlicesOfRank(*model_, {exp_avg_, exp_avg_sq_}, start_.rank(), start_.layout().data());
  checkpointer_->Write(position, reason, slices);
}

void Trainer::PublishProgress() {
  const Checkpointer::Totals checkpoints = checkpointer_->totals();
  totals_.set_checkpoint_stall_seconds(checkpoints.stall_seconds);
  totals_.set_checkpoint_write_seconds(checkpoints.write_seconds);
  totals_.set_checkpoint_bytes(checkpoints.bytes);
  const std::lock_guard lock(progress_mutex_);
  progress_ = totals_;
}

v1::RankProgress Trainer::progress() const {
  const std::lock_guard lock(progress_mutex_);
  return progress_;
}

}  // namespace paceline
