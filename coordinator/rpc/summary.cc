#include "coordinator/rpc/summary.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/run_state.h"

namespace paceline {
namespace {

using Json = nlohmann::ordered_json;

// Calls `on_line` with each whole line; the last one may still be being written.
template <typename OnLine>
void ForEachLine(const std::string& path, const OnLine& on_line) {
  std::ifstream in(path, std::ios::binary);
  std::string line;
  while (std::getline(in, line) && !in.eof()) on_line(line);
}

std::optional<double> NumberIn(const Json& record, const char* key) {
  if (!record.is_object()) return std::nullopt;
  const auto value = record.find(key);
  if (value == record.end() || !value->is_number()) return std::nullopt;
  return value->get<double>();
}

Json Parsed(const std::string& line) {
  return Json::parse(line, nullptr, /*allow_exceptions=*/false);
}

// Tokens a second of the ranks' processes; 0: they have not stepped.
double TokensPerSecond(const v1::RunStatus& status) {
  double tokens = 0;
  double seconds = 0;
  for (const v1::RankProgress& rank : status.ranks()) {
    tokens += static_cast<double>(rank.tokens());
    seconds = std::max(seconds, rank.step_seconds());
  }
  if (seconds > 0 && tokens > 0) return tokens / seconds;
  const v1::StepRecord& step = status.step();  // Ranks that have gone leave the last step's.
  return step.step_seconds() > 0 ? static_cast<double>(step.tokens()) / step.step_seconds() : 0;
}

Json OrNull(std::optional<double> value) { return value ? Json(*value) : Json(nullptr); }

}  // namespace

LineageRecords ReadLineageRecords(const std::string& run_dir, std::int64_t step) {
  LineageRecords records;
  // Most lines are only counted: parsing all of a long run's would take long.
  const std::string begin = absl::StrCat("{\"step\":", step, ",");
  std::string last;
  ForEachLine(absl::StrCat(run_dir, "/steps.jsonl"), [&](const std::string& line) {
    ++records.steps_trained;
    // A step that was trained again stands there again, and its last line counts.
    if (absl::StartsWith(line, begin)) records.loss = NumberIn(Parsed(line), "loss");
    last = line;
  });
  // Every step of a run has as many tokens, and `tokens` counts those of the lineage.
  const Json record = Parsed(last);
  const double last_step = NumberIn(record, "step").value_or(0);
  if (last_step > 0) {
    records.tokens_per_step =
        static_cast<std::int64_t>(NumberIn(record, "tokens").value_or(0) / last_step);
  }
  ForEachLine(absl::StrCat(run_dir, "/evals.jsonl"), [&](const std::string& line) {
    const Json eval = Parsed(line);
    const std::optional<double> at = NumberIn(eval, "step");
    if (at && *at <= static_cast<double>(step)) records.valid_loss = NumberIn(eval, "valid_loss");
  });
  return records;
}

std::string SummaryJson(const v1::RunStatus& status, const LineageRecords& records) {
  const std::int64_t steps = status.checkpoint_step();
  std::optional<double> loss = records.loss;
  if (steps > 0 && status.step().step() == steps) loss = status.step().loss();
  std::optional<double> valid_loss = records.valid_loss;
  if (status.eval().step() > 0 && status.eval().step() <= steps) {
    valid_loss = status.eval().valid_loss();
  }
  std::int64_t lost_steps = status.lost_steps();
  std::int64_t lost_tokens = status.lost_tokens();
  if (records.steps_trained - steps > lost_steps && records.tokens_per_step > 0) {
    lost_steps = records.steps_trained - steps;
    lost_tokens = lost_steps * records.tokens_per_step;
  }
  const double rate = TokensPerSecond(status);
  Json summary;
  summary["run_id"] = status.run_id();
  summary["state"] = RunStateName(status.state());
  summary["reason"] = status.reason();
  summary["steps"] = steps;
  summary["tokens"] = status.tokens();
  summary["loss"] = OrNull(loss);
  summary["valid_loss"] = OrNull(valid_loss);
  summary["tokens_per_second"] = OrNull(rate > 0 ? std::optional(rate) : std::nullopt);
  summary["generations"] = status.generation();
  summary["recoveries"] = status.recoveries();
  summary["lost_steps"] = lost_steps;
  summary["lost_tokens"] = lost_tokens;
  summary["cost"] = status.cost();
  summary["currency"] = status.currency();
  summary["cost_per_million_tokens"] =
      status.tokens() > 0 ? Json(status.cost() / (static_cast<double>(status.tokens()) / 1e6))
                          : Json(nullptr);
  summary["checkpoint"] = status.checkpoint().empty() ? Json(nullptr) : Json(status.checkpoint());
  // Texts come from outside: bytes that are no UTF-8 are replaced, not thrown over.
  return summary.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace paceline
