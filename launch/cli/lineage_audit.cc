#include "launch/cli/lineage_audit.h"

#include <xxhash.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/cli/format.h"

namespace paceline::cli {
namespace {

absl::Status Wrong(const std::string& why) {
  return absl::DataLossError(why + ". Restore the run's folder from a backup; nothing was changed");
}

std::string StepsText(std::int64_t first, std::int64_t end) {
  return absl::StrCat("steps [", first, ", ", end, ")");
}

template <typename Value>
absl::Status CheckSame(const std::string& what, const Value& is, const Value& must_be) {
  if (is == must_be) return absl::OkStatus();
  return Wrong(absl::StrCat(what, " is ", is, ", and must be ", must_be));
}

// As the coordinator chains it: docs/guarantees.md.
std::string NextLedgerDigest(const std::string& digest, const std::string& corpus_digest,
                             std::uint64_t seed, std::int64_t first_sample,
                             std::int64_t end_sample) {
  const std::string link =
      absl::StrCat(digest, "|", corpus_digest, "|", seed, "|", first_sample, "|", end_sample);
  const XXH128_hash_t hash = XXH3_128bits(link.data(), link.size());
  return absl::StrFormat("%016x%016x", hash.high64, hash.low64);
}

std::string RunOf(const v1::Fact& fact) {
  switch (fact.body_case()) {
    case v1::Fact::kRunSubmitted:
      return fact.run_submitted().request().run_id();
    case v1::Fact::kGenerationStarted:
      return fact.generation_started().key().run_id();
    case v1::Fact::kGenerationEnded:
      return fact.generation_ended().key().run_id();
    case v1::Fact::kWindowGranted:
      return fact.window_granted().key().run_id();
    case v1::Fact::kWindowsRolledBack:
      return fact.windows_rolled_back().key().run_id();
    case v1::Fact::kCheckpointCommitted:
      return fact.checkpoint_committed().key().run_id();
    case v1::Fact::kCheckpointDiscarded:
      return fact.checkpoint_discarded().run_id();
    case v1::Fact::kRunEnded:
      return fact.run_ended().run_id();
    default:
      return "";  // decides nothing about samples
  }
}

}  // namespace

std::int64_t LineageAudit::CommittedStep() const {
  return lineage_.ranges.empty() ? 0 : lineage_.ranges.back().end_step;
}

std::int64_t LineageAudit::GrantedUntil() const {
  return windows_.empty() ? CommittedStep() : windows_.back().end_step;
}

std::int64_t LineageAudit::TokensAt(std::int64_t step) const {
  const TrainSection& train = lineage_.file.train;
  return step * train.global_batch_size * train.sequence_length;
}

std::string LineageAudit::LedgerDigest() const {
  return lineage_.ranges.empty() ? "" : lineage_.ranges.back().ledger_digest;
}

std::string LineageAudit::LedgerDigestAt(std::int64_t step) const {
  const std::int64_t batch = lineage_.file.train.global_batch_size;
  std::string digest = LedgerDigest();
  for (const Window& window : windows_) {
    const std::int64_t end = std::min(window.end_step, step);
    if (end <= window.first_step) break;
    digest = NextLedgerDigest(digest, lineage_.request.corpus_digest(), lineage_.file.run.seed,
                              window.first_step * batch, end * batch);
  }
  return digest;
}

absl::Status LineageAudit::Take(const v1::Fact& fact) {
  const std::string place = absl::StrCat("fact ", fact.index(), " of ", FormatTime(fact.at_ms()));
  if (last_index_ != 0 && fact.index() != last_index_ + 1) {
    return Wrong(absl::StrCat(place, " follows fact ", last_index_));
  }
  if (fact.at_ms() < last_ms_) {
    return Wrong(
        absl::StrCat(place, " lies before the fact that it follows, of ", FormatTime(last_ms_)));
  }
  from_first_fact_ = from_first_fact_ || fact.index() == 1;
  last_index_ = fact.index();
  last_ms_ = fact.at_ms();
  if (RunOf(fact) != run_id_) return absl::OkStatus();
  if (!begun_) {
    const bool beginning =
        fact.has_run_submitted() && (from_first_fact_ || !fact.run_submitted().request().resume());
    // The facts before are gone; a snapshot will tell where to begin.
    if (!beginning && !from_first_fact_) {
      skipped_ = true;
      return absl::OkStatus();
    }
    if (!beginning) return Wrong(absl::StrCat(place, ": the run was not submitted yet"));
    begun_ = true;
  }
  return Annotate(TakeBody(fact), place);
}

absl::Status LineageAudit::TakeBody(const v1::Fact& fact) {
  switch (fact.body_case()) {
    case v1::Fact::kRunSubmitted:
      return Take(fact.run_submitted());
    case v1::Fact::kGenerationStarted:
      return Take(fact.generation_started());
    case v1::Fact::kGenerationEnded:
      return Take(fact.generation_ended());
    case v1::Fact::kWindowGranted:
      return Take(fact.window_granted());
    case v1::Fact::kWindowsRolledBack:
      return Take(fact.windows_rolled_back());
    case v1::Fact::kCheckpointCommitted:
      return Take(fact.checkpoint_committed());
    case v1::Fact::kCheckpointDiscarded:
      return Take(fact.checkpoint_discarded());
    default:
      return Take(fact.run_ended());
  }
}

absl::Status LineageAudit::TakeRunFile(const v1::SubmitRunRequest& request) {
  absl::StatusOr<RunFile> file = ParseRunFile(request.run_file(), run_id_ + "/run.toml", "/", {});
  if (!file.ok()) return Wrong(std::string(file.status().message()));
  lineage_.request = request;
  lineage_.file = *std::move(file);
  return absl::OkStatus();
}

absl::Status LineageAudit::Take(const v1::RunSubmitted& submitted) {
  if (open_) return Wrong("the run is submitted while a generation of it trains");
  const bool first = lineage_.request.run_id().empty();
  const RunFile was = lineage_.file;
  const std::string corpus_digest = lineage_.request.corpus_digest();
  RETURN_IF_ERROR(TakeRunFile(submitted.request()));
  if (first) return absl::OkStatus();
  const RunFile& is = lineage_.file;
  RETURN_IF_ERROR(CheckSame("[run] seed", is.run.seed, was.run.seed));
  RETURN_IF_ERROR(CheckSame("[train] global_batch_size", is.train.global_batch_size,
                            was.train.global_batch_size));
  RETURN_IF_ERROR(
      CheckSame("[train] sequence_length", is.train.sequence_length, was.train.sequence_length));
  return CheckSame("the corpus digest", lineage_.request.corpus_digest(), corpus_digest);
}

absl::Status LineageAudit::CheckOpen(const v1::GenerationKey& key) const {
  if (open_ && key.generation() == generation_) return absl::OkStatus();
  return Wrong(absl::StrCat(
      "it is of generation ", key.generation(), ", while ",
      open_ ? absl::StrCat("generation ", generation_, " trains") : "no generation trains"));
}

absl::Status LineageAudit::Take(const v1::GenerationStarted& started) {
  if (open_) return Wrong(absl::StrCat("generation ", generation_, " has not ended"));
  RETURN_IF_ERROR(CheckSame("the generation", started.key().generation(), generation_ + 1));
  if (!started.live() && !windows_.empty()) {
    return Wrong(absl::StrCat(StepsText(CommittedStep(), GrantedUntil()),
                              " of an earlier generation were not rolled back"));
  }
  // State in memory holds the steps up to its own, committed or not; no window lies beyond it.
  RETURN_IF_ERROR(CheckSame("its first step", started.start_step(), GrantedUntil()));
  RETURN_IF_ERROR(CheckSame("its tokens", started.start_tokens(), TokensAt(GrantedUntil())));
  const bool from_disk = !started.live() && !lineage_.ranges.empty();
  const std::string folder = from_disk ? lineage_.ranges.back().folder : "";
  RETURN_IF_ERROR(CheckSame("its checkpoint", started.checkpoint(), folder));
  open_ = true;
  generation_ = started.key().generation();
  lineage_.generations.push_back(generation_);
  return absl::OkStatus();
}

absl::Status LineageAudit::Take(const v1::GenerationEnded& ended) {
  RETURN_IF_ERROR(CheckOpen(ended.key()));
  if (ended.last_step() > GrantedUntil()) {
    return Wrong(absl::StrCat("it went on to step ", ended.last_step(),
                              ", and windows were granted up to step ", GrantedUntil()));
  }
  open_ = false;
  return absl::OkStatus();
}

absl::Status LineageAudit::Take(const v1::WindowGranted& granted) {
  RETURN_IF_ERROR(CheckOpen(granted.key()));
  const Window window{granted.window().first_step(), granted.window().end_step()};
  const std::string what = StepsText(window.first_step, window.end_step);
  if (window.end_step <= window.first_step) return Wrong(what + " are no window");
  if (window.first_step < GrantedUntil()) {
    return Wrong(absl::StrCat(what, " are granted, though steps up to ", GrantedUntil(),
                              " are granted or committed already: samples would count twice"));
  }
  if (window.first_step > GrantedUntil()) {
    return Wrong(absl::StrCat(what, " are granted after step ", GrantedUntil(),
                              ": the samples between would not count"));
  }
  windows_.push_back(window);
  return absl::OkStatus();
}

absl::Status LineageAudit::Take(const v1::WindowsRolledBack& back) {
  RETURN_IF_ERROR(CheckSame("the generation", back.key().generation(), generation_));
  const v1::Window& window = back.window();
  if (window.first_step() < CommittedStep() || window.first_step() >= window.end_step() ||
      window.end_step() != GrantedUntil()) {
    return Wrong(absl::StrCat(StepsText(window.first_step(), window.end_step()),
                              " are rolled back, and what stands uncommitted are ",
                              StepsText(CommittedStep(), GrantedUntil())));
  }
  if (back.lost_steps() < 0 || back.lost_steps() > window.end_step() - window.first_step()) {
    return Wrong(absl::StrCat(back.lost_steps(), " steps are lost of ",
                              StepsText(window.first_step(), window.end_step())));
  }
  RETURN_IF_ERROR(CheckSame("its lost tokens", back.lost_tokens(), TokensAt(back.lost_steps())));
  lineage_.rolled_back_steps += back.lost_steps();
  lineage_.rolled_back_tokens += back.lost_tokens();
  const std::int64_t left_until = window.first_step();
  std::erase_if(windows_, [left_until](const auto& w) { return w.first_step >= left_until; });
  if (!windows_.empty()) windows_.back().end_step = std::min(windows_.back().end_step, left_until);
  return absl::OkStatus();
}

absl::Status LineageAudit::Take(const v1::CheckpointCommittedFact& committed) {
  RETURN_IF_ERROR(CheckOpen(committed.key()));
  const v1::DataPosition& position = committed.position();
  const std::int64_t step = position.step();
  const std::string what = absl::StrCat("the checkpoint of step ", step);
  if (step <= CommittedStep()) {
    return Wrong(absl::StrCat(what, " is committed after that of step ", CommittedStep()));
  }
  if (step > GrantedUntil()) {
    return Wrong(
        absl::StrCat(what, " is committed, and windows were granted up to step ", GrantedUntil()));
  }
  RETURN_IF_ERROR(CheckSame(what + ": its sample", position.sample(),
                            step * lineage_.file.train.global_batch_size));
  RETURN_IF_ERROR(CheckSame(what + ": its seed", position.seed(), lineage_.file.run.seed));
  RETURN_IF_ERROR(CheckSame(what + ": its corpus digest", position.corpus_digest(),
                            lineage_.request.corpus_digest()));
  RETURN_IF_ERROR(CheckSame(what + ": its tokens", committed.tokens(), TokensAt(step)));
  RETURN_IF_ERROR(
      CheckSame(what + ": its ledger digest", committed.ledger_digest(), LedgerDigestAt(step)));
  lineage_.ranges.push_back({.first_step = CommittedStep(),
                             .end_step = step,
                             .generation = generation_,
                             .folder = committed.folder(),
                             .manifest_digest = committed.manifest_digest(),
                             .ledger_digest = committed.ledger_digest()});
  std::erase_if(windows_, [step](const Window& window) { return window.end_step <= step; });
  if (!windows_.empty()) windows_.front().first_step = step;
  return absl::OkStatus();
}

absl::Status LineageAudit::Take(const v1::CheckpointDiscarded& discarded) {
  std::vector<CommittedRange>& ranges = lineage_.ranges;
  const auto range = std::find_if(ranges.begin(), ranges.end(), [&](const CommittedRange& r) {
    return r.kept && r.folder == discarded.folder();
  });
  if (discarded.committed() != (range != ranges.end())) {
    return Wrong(absl::StrCat("checkpoint ", discarded.folder(), " is given up as ",
                              discarded.committed() ? "one that was" : "one that was not",
                              " committed, and the facts before say otherwise"));
  }
  if (range == ranges.end()) return absl::OkStatus();
  range->kept = false;
  if (range + 1 != ranges.end()) return absl::OkStatus();
  // The lineage ends at the newest checkpoint that is left; steps after it count no more.
  const std::int64_t end = range->end_step;
  while (!ranges.empty() && !ranges.back().kept) ranges.pop_back();
  windows_.insert(windows_.begin(), Window{CommittedStep(), end});
  return absl::OkStatus();
}

absl::Status LineageAudit::Take(const v1::RunEnded& ended) {
  if (open_) return Wrong("the run ends while a generation of it trains");
  if (!windows_.empty()) {
    return Wrong(absl::StrCat("the run ends, and ", StepsText(CommittedStep(), GrantedUntil()),
                              " are neither committed nor rolled back"));
  }
  return CheckSame("the run's tokens", ended.tokens(), TokensAt(CommittedStep()));
}

absl::Status LineageAudit::Take(const v1::StateSnapshot& snapshot) {
  const std::string place = absl::StrCat("the snapshot after fact ", snapshot.index());
  const auto run =
      std::find_if(snapshot.runs().begin(), snapshot.runs().end(),
                   [this](const v1::SnapshotRun& r) { return r.request().run_id() == run_id_; });
  if (run == snapshot.runs().end()) {
    // A coordinator of very many runs forgets the oldest that have ended.
    return absl::OkStatus();
  }
  if (begun_) return Annotate(Compare(*run), place);
  if (from_first_fact_) return Wrong(place + " knows the run, and no fact has submitted it");
  return Annotate(BeginFrom(*run, snapshot.index()), place);
}

absl::Status LineageAudit::BeginFrom(const v1::SnapshotRun& run, std::uint64_t index) {
  RETURN_IF_ERROR(TakeRunFile(run.request()));
  begun_ = true;
  open_ = run.generation_open();
  generation_ = run.generation();
  lineage_.snapshot_index = index;
  for (const v1::SnapshotCheckpoint& checkpoint : run.checkpoints()) {
    lineage_.ranges.push_back({.first_step = CommittedStep(),
                               .end_step = checkpoint.position().step(),
                               .generation = checkpoint.generation(),
                               .folder = checkpoint.folder(),
                               .manifest_digest = checkpoint.manifest_digest(),
                               .ledger_digest = checkpoint.ledger_digest(),
                               .vouched = true});
  }
  for (const v1::Window& window : run.windows()) {
    windows_.push_back({window.first_step(), window.end_step()});
  }
  lineage_.rolled_back_steps = run.lost_steps();
  lineage_.rolled_back_tokens = run.lost_tokens();
  return Compare(run);
}

absl::Status LineageAudit::Compare(const v1::SnapshotRun& run) const {
  RETURN_IF_ERROR(CheckSame("the generation", run.generation(), generation_));
  RETURN_IF_ERROR(CheckSame("whether it trains", run.generation_open(), open_));
  RETURN_IF_ERROR(CheckSame("the ledger digest", run.ledger_digest(), LedgerDigest()));
  RETURN_IF_ERROR(
      CheckSame("the count of lost steps", run.lost_steps(), lineage_.rolled_back_steps));
  std::vector<const CommittedRange*> kept;
  for (const CommittedRange& range : lineage_.ranges) {
    if (range.kept) kept.push_back(&range);
  }
  RETURN_IF_ERROR(
      CheckSame("the count of checkpoints", run.checkpoints_size(), static_cast<int>(kept.size())));
  for (int i = 0; i < run.checkpoints_size(); ++i) {
    const v1::SnapshotCheckpoint& checkpoint = run.checkpoints(i);
    const CommittedRange& range = *kept[static_cast<std::size_t>(i)];
    RETURN_IF_ERROR(
        CheckSame("the step of " + range.folder, checkpoint.position().step(), range.end_step));
    RETURN_IF_ERROR(CheckSame("the folder of a checkpoint", checkpoint.folder(), range.folder));
    RETURN_IF_ERROR(CheckSame("the ledger digest of " + range.folder, checkpoint.ledger_digest(),
                              range.ledger_digest));
  }
  std::int64_t until = CommittedStep();
  for (const v1::Window& window : run.windows()) {
    RETURN_IF_ERROR(CheckSame("the first step of a window", window.first_step(), until));
    until = window.end_step();
  }
  return CheckSame("the last step granted", until, GrantedUntil());
}

absl::StatusOr<Lineage> LineageAudit::Finish() const {
  if (!begun_ && !skipped_) {
    return absl::NotFoundError("the journal says nothing of run " + run_id_);
  }
  if (!begun_) {
    return Wrong("the journal holds neither the beginning of run " + run_id_ +
                 " nor a snapshot to begin from: nothing can be proven");
  }
  Lineage lineage = lineage_;
  std::int64_t until = 0;
  for (const CommittedRange& range : lineage.ranges) {
    if (range.first_step != until || range.end_step <= range.first_step) {
      return Wrong(absl::StrCat(StepsText(range.first_step, range.end_step), " follow step ", until,
                                " in the lineage"));
    }
    until = range.end_step;
    if (range.vouched) lineage.proven_from = until;
  }
  lineage.committed_step = until;
  lineage.granted_until = GrantedUntil();
  lineage.ledger_digest = LedgerDigest();
  return lineage;
}

absl::Status CheckManifest(const Lineage& lineage, const CommittedRange& range,
                           const Manifest& manifest) {
  const RunFile& file = lineage.file;
  RETURN_IF_ERROR(CheckSame("run_id", manifest.run_id, lineage.request.run_id()));
  RETURN_IF_ERROR(CheckSame("generation", manifest.generation, range.generation));
  RETURN_IF_ERROR(CheckSame("step", manifest.step, range.end_step));
  RETURN_IF_ERROR(
      CheckSame("sample", manifest.sample, range.end_step * file.train.global_batch_size));
  RETURN_IF_ERROR(
      CheckSame("tokens", manifest.tokens,
                range.end_step * file.train.global_batch_size * file.train.sequence_length));
  RETURN_IF_ERROR(CheckSame("seed", manifest.seed, file.run.seed));
  RETURN_IF_ERROR(
      CheckSame("corpus_digest", manifest.corpus_digest, lineage.request.corpus_digest()));
  RETURN_IF_ERROR(CheckSame("ledger_digest", manifest.ledger_digest, range.ledger_digest));
  return CheckSame("digest", DigestOf(manifest), range.manifest_digest);
}

}  // namespace paceline::cli
