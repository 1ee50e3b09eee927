#include "coordinator/core/shards.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace paceline::core {
namespace {

std::string Xxh3Hex(const std::string& bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return absl::StrFormat("%016x%016x", hash.high64, hash.low64);
}

}  // namespace

std::int64_t StepsToGrantAhead(double step_seconds) {
  if (!(step_seconds > 0)) step_seconds = kAssumedStepSeconds;
  const double steps = std::ceil(kGrantAheadSeconds / step_seconds);
  if (!(steps < static_cast<double>(kMaxGrantAheadSteps))) return kMaxGrantAheadSteps;
  return std::max(static_cast<std::int64_t>(steps), 2 * kMinWindowSteps);
}

std::vector<v1::Window> WindowsToGrant(const Run& run, std::int64_t step, double step_seconds,
                                       std::int64_t until_step) {
  const std::int64_t total = run.file.train.steps;
  const std::int64_t ahead = StepsToGrantAhead(step_seconds);
  const std::int64_t until = std::min(total, std::max(step + ahead, until_step));
  // At least two windows lie ahead, and even a request far ahead is met by a few windows.
  const std::int64_t window = std::max((ahead + 1) / 2, (until - run.GrantedUntil()) / 4);
  std::vector<v1::Window> grants;
  for (std::int64_t first = run.GrantedUntil(); first < until;) {
    const std::int64_t end = std::min(first + window, total);
    v1::Window& grant = grants.emplace_back();
    grant.set_first_step(first);
    grant.set_end_step(end);
    first = end;
  }
  return grants;
}

bool RollBack(const Run& run, std::int64_t step, std::int64_t last_step,
              v1::WindowsRolledBack* out) {
  if (step >= run.GrantedUntil()) return false;
  *out->mutable_key() = run.key();
  out->mutable_window()->set_first_step(step);
  out->mutable_window()->set_end_step(run.GrantedUntil());
  const std::int64_t lost =
      std::clamp<std::int64_t>(last_step - step, 0, run.GrantedUntil() - step);
  out->set_lost_steps(lost);
  out->set_lost_tokens(lost * run.TokensPerStep());
  return true;
}

std::string LedgerDigestAt(const Run& run, std::int64_t step) {
  const std::int64_t batch = run.file.train.global_batch_size;
  std::string digest = run.ledger_digest;
  for (const v1::Window& window : run.windows) {
    const std::int64_t end = std::min(window.end_step(), step);
    if (end <= window.first_step()) break;
    digest = Xxh3Hex(absl::StrCat(digest, "|", run.request.corpus_digest(), "|", run.file.run.seed,
                                  "|", window.first_step() * batch, "|", end * batch));
  }
  return digest;
}

}  // namespace paceline::core
