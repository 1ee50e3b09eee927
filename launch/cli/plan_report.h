// What `paceline plan` tells: a run's size, its layout, memory, predicted time and cost.
// Invariant: time is there where the machine's rates are known, goodput where failures are.
// Threading: plain values, pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/model_shape.h"
#include "common/planning/goodput.h"
#include "common/planning/planner.h"
#include "common/run_file.h"
#include "nlohmann/json.hpp"

namespace paceline::cli {

struct PlanTime {
  planning::StepSimulation step;  // with its timeline
  double tokens_per_second = 0;
  double cost_per_million_tokens = 0;
};

struct PlanGoodput {
  planning::FailureModel failures;
  double young_s = 0;
  double daly_s = 0;
  planning::BestInterval best;  // simulated
};

struct Plan {
  RunFile run_file;  // with the layout that is planned
  planning::Machine machine;
  std::string machine_name;
  planning::Candidate candidate;
  std::string why;
  bool chosen = false;  // the planner's, not the run file's
  std::vector<planning::RankMemory> stages;
  std::optional<PlanTime> time;
  std::vector<planning::Choice> others;  // the best two others
  std::size_t tried = 0;                 // layouts looked at; 0: none but the given one
  std::size_t fitting = 0;
  double slot_hour = 0;
  std::string currency;
  std::optional<PlanGoodput> goodput;
  std::vector<std::string> assumptions;

  const planning::RankMemory& fullest() const;
  double tokens_per_step() const;
  double CostPerMillionTokens(double step_seconds) const;
};

nlohmann::json ToJson(const Plan& plan);
void PrintText(const Plan& plan);

}  // namespace paceline::cli
