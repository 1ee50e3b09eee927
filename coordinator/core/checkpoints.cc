#include "coordinator/core/checkpoints.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core/limits.h"
#include "coordinator/core/shards.h"

namespace paceline::core {
namespace {

bool SamePosition(const v1::DataPosition& a, const v1::DataPosition& b) {
  return a.step() == b.step() && a.sample() == b.sample() && a.seed() == b.seed() &&
         a.corpus_digest() == b.corpus_digest();
}

absl::Status CheckFile(const std::string& file) {
  const bool plain = !file.empty() && file.size() <= kMaxNameBytes && file != "." && file != ".." &&
                     file.find('/') == std::string::npos && file.find('\0') == std::string::npos;
  if (plain) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("file = \"", Cut(file, kMaxNameBytes), "\": give a file name without a folder"));
}

}  // namespace

absl::Status CheckPart(const Run& run, const v1::CheckpointPart& part) {
  RETURN_IF_ERROR(CheckFile(part.file()));
  const v1::DataPosition& position = part.position();
  if (position.seed() != run.file.run.seed) {
    return absl::InvalidArgumentError(
        absl::StrCat("its seed is ", position.seed(), ", the run's is ", run.file.run.seed));
  }
  if (position.corpus_digest() != run.request.corpus_digest()) {
    return absl::InvalidArgumentError(
        absl::StrCat("its corpus has digest ", Cut(position.corpus_digest(), kMaxNameBytes),
                     ", the run's has ", run.request.corpus_digest()));
  }
  const std::int64_t sample = position.step() * run.file.train.global_batch_size;
  if (position.sample() != sample) {
    return absl::InvalidArgumentError(absl::StrCat("it has consumed ", position.sample(),
                                                   " samples at step ", position.step(),
                                                   ", which takes ", sample));
  }
  if (position.step() > run.GrantedUntil()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "step ", position.step(), " was never granted; windows end at ", run.GrantedUntil()));
  }
  if (part.bytes() < 0) {
    return absl::InvalidArgumentError(absl::StrCat("its part has ", part.bytes(), " bytes"));
  }
  if (part.ByteSizeLong() > kMaxPartMessageBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("its list of ", part.slices_size(), " slices has ", part.ByteSizeLong(),
                     " bytes; at most ", kMaxPartMessageBytes, " are taken"));
  }
  return absl::OkStatus();
}

absl::Status AddPart(const v1::CheckpointPart& part, CheckpointInFlight* checkpoint) {
  if (checkpoint->parts.empty()) checkpoint->position = part.position();
  if (!SamePosition(checkpoint->position, part.position())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "rank ", part.rank(), " has consumed ", part.position().sample(), " samples, rank ",
        checkpoint->parts.begin()->first, " ", checkpoint->position.sample()));
  }
  if (checkpoint->parts.contains(part.rank())) return absl::OkStatus();
  if (!checkpoint->files.insert(part.file()).second) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", part.rank(), " wrote ", part.file(), ", as another rank did"));
  }
  checkpoint->parts.emplace(part.rank(), part);
  return absl::OkStatus();
}

std::int32_t FirstMissingRank(const CheckpointInFlight& checkpoint, std::int32_t world_size) {
  std::int32_t rank = 0;
  for (const auto& [present, part] : checkpoint.parts) {
    if (present != rank) break;
    ++rank;
  }
  return rank < world_size ? rank : -1;
}

std::optional<Disagreement> FindDisagreement(const CheckpointInFlight& checkpoint,
                                             const v1::Layout& layout) {
  const auto shares = static_cast<std::size_t>(layout.pipeline() * layout.expert());
  std::vector<std::map<std::string, std::vector<std::int32_t>>> ranks_by_digest(shares);
  for (const auto& [rank, part] : checkpoint.parts) {
    if (part.replica_digest().empty()) continue;
    const auto share = static_cast<std::size_t>(rank) % shares;
    ranks_by_digest[share][part.replica_digest()].push_back(rank);
  }
  const std::int64_t step = checkpoint.position.step();
  for (const auto& digests : ranks_by_digest) {
    if (digests.size() < 2) continue;
    std::size_t all = 0;
    auto most = digests.begin();
    for (auto it = digests.begin(); it != digests.end(); ++it) {
      all += it->second.size();
      if (it->second.size() > most->second.size()) most = it;
    }
    if (2 * most->second.size() <= all) {
      return Disagreement{most->second.front(), v1::FAILURE_CAUSE_REPLICAS_DIFFER,
                          absl::StrCat("of the ", all,
                                       " ranks that should hold the weights and optimizer state of "
                                       "rank ",
                                       most->second.front(), " at step ", step,
                                       " not all do, and no majority tells who is wrong")};
    }
    std::int32_t wrong = std::numeric_limits<std::int32_t>::max();
    for (auto it = digests.begin(); it != digests.end(); ++it) {
      if (it != most) wrong = std::min(wrong, it->second.front());
    }
    return Disagreement{wrong, v1::FAILURE_CAUSE_CORRUPT_STATE,
                        absl::StrCat("its weights or optimizer state of step ", step,
                                     " are not those of the other ", all - 1,
                                     " ranks that should hold the same: its memory or its "
                                     "arithmetic is at fault")};
  }
  return std::nullopt;
}

Manifest ManifestOf(const Run& run, const CheckpointInFlight& checkpoint) {
  Manifest manifest;
  manifest.run_id = run.id();
  manifest.generation = run.generation.value();
  manifest.step = checkpoint.position.step();
  manifest.sample = checkpoint.position.sample();
  manifest.tokens = TokensAt(run, manifest.step);
  manifest.seed = checkpoint.position.seed();
  manifest.corpus_digest = checkpoint.position.corpus_digest();
  manifest.ledger_digest = LedgerDigestAt(run, manifest.step);
  manifest.run_file = run.request.run_file();
  manifest.parts.reserve(checkpoint.parts.size());
  for (const auto& [rank, part] : checkpoint.parts) {
    ManifestPart& to = manifest.parts.emplace_back();
    to.file = part.file();
    to.bytes = part.bytes();
    to.slices.reserve(static_cast<std::size_t>(part.slices_size()));
    for (const v1::TensorSlice& slice : part.slices()) {
      to.slices.push_back(
          {.name = slice.name(),
           .dtype = slice.dtype(),
           .global_shape = {slice.global_shape().begin(), slice.global_shape().end()},
           .start = {slice.start().begin(), slice.start().end()},
           .shape = {slice.shape().begin(), slice.shape().end()},
           .digest = slice.digest()});
    }
  }
  return manifest;
}

bool IsSettled(const Run& run, std::int64_t step) {
  return run.CommittedStep() == step || run.WasDiscarded(step);
}

std::int64_t TokensAt(const Run& run, std::int64_t step) {
  return run.CommittedTokens() + (step - run.CommittedStep()) * run.TokensPerStep();
}

}  // namespace paceline::core
