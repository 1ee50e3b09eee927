#include "launch/cli/generations.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "launch/cli/format.h"

namespace paceline::cli {
namespace {

using nlohmann::json;

// Of a reason in the table: a worker's error may be long. The event and the JSON have all of it.
constexpr std::size_t kReasonBytesMax = 80;

json Untold(std::uint64_t generation) {
  json record = {{"generation", generation}};
  for (const char* key :
       {"started_at", "started_at_ms", "start_step", "from", "checkpoint", "layout", "ranks",
        "nodes", "start_reason", "committed_step", "last_step", "ended_at", "ended_at_ms",
        "seconds", "end_reason", "cause", "scope", "culprit"}) {
    record[key] = nullptr;
  }
  return record;
}

const char* FromName(const json& started) {
  if (started.at("live").get<bool>()) return started.at("snapshots").empty() ? "live" : "snapshot";
  return started.at("checkpoint").is_null() ? "beginning" : "checkpoint";
}

void TakeStart(const RunEvent& started, json& record) {
  record["started_at"] = FormatUtcTime(started.at_ms);
  record["started_at_ms"] = started.at_ms;
  record["from"] = FromName(started.fields);
  for (const char* key : {"start_step", "checkpoint", "layout"}) {
    record[key] = started.fields.at(key);
  }
  record["ranks"] = started.fields.at("ranks").size();
  json nodes = json::array();
  for (const json& rank : started.fields.at("ranks")) {
    const json& node = rank.at("node");
    if (std::find(nodes.begin(), nodes.end(), node) == nodes.end()) nodes.push_back(node);
  }
  record["nodes"] = std::move(nodes);
  record["start_reason"] = started.fields.at("reason");
}

void TakeEnd(const RunEvent& ended, json& record) {
  record["ended_at"] = FormatUtcTime(ended.at_ms);
  record["ended_at_ms"] = ended.at_ms;
  for (const char* key : {"last_step", "seconds", "cause", "scope", "culprit"}) {
    record[key] = ended.fields.at(key);
  }
  record["end_reason"] = ended.fields.at("reason");
}

std::string NumberText(const json& number) { return number.is_null() ? "" : number.dump(); }

std::string TimeText(const json& wall_ms) {
  return wall_ms.is_null() ? "" : FormatLocalTime(wall_ms.get<std::int64_t>());
}

std::string FromText(const json& record) {
  if (record.at("from").is_null()) return "";
  const auto from = record.at("from").get<std::string>();
  return from == "beginning"
             ? from
             : absl::StrCat("step ", NumberText(record.at("start_step")), ", ", from);
}

// "pp 1 x dp 4", and what is not so everywhere.
std::string LayoutText(const json& layout) {
  if (layout.is_null()) return "";
  const auto ways = [&layout](const char* key) { return layout.at(key).get<std::int64_t>(); };
  return absl::StrCat("pp ", ways("pipeline"), " x dp ", ways("data"),
                      ways("expert") > 1 ? absl::StrCat(", ep ", ways("expert")) : "",
                      ways("zero") > 0 ? ", zero 1" : "");
}

std::string WhyText(const json& record) {
  if (record.at("ended_at_ms").is_null()) return "";
  auto reason = record.at("end_reason").get<std::string>();
  if (!record.at("cause").is_null()) {
    auto cause = record.at("cause").get<std::string>();
    std::replace(cause.begin(), cause.end(), '_', ' ');
    reason = reason.empty() ? cause : absl::StrCat(cause, ": ", reason);
  }
  return FormatOneLine(std::move(reason), kReasonBytesMax);
}

}  // namespace

json GenerationsOf(const std::vector<RunEvent>& events) {
  std::map<std::uint64_t, json> records;
  const auto record_of = [&records](const RunEvent& event) -> json& {
    const auto generation = event.fields.at("generation").get<std::uint64_t>();
    return records.try_emplace(generation, Untold(generation)).first->second;
  };
  for (const RunEvent& event : events) {
    if (event.kind == "generation_started") TakeStart(event, record_of(event));
    if (event.kind == "generation_ended") TakeEnd(event, record_of(event));
    if (event.kind == "checkpoint_committed") {
      record_of(event)["committed_step"] = event.fields.at("step");
    }
  }
  json generations = json::array();
  for (auto& [generation, record] : records) generations.push_back(std::move(record));
  return generations;
}

std::string GenerationTable(const json& generations, std::size_t rows_max) {
  std::vector<TableRow> rows = {
      {"GENERATION", "STARTED", "FROM", "LAYOUT", "LAST STEP", "COMMITTED", "ENDED", "WHY"}};
  const std::size_t size = generations.size();
  for (std::size_t i = size - std::min(size, rows_max); i < size; ++i) {
    const json& record = generations[i];
    rows.push_back({NumberText(record.at("generation")), TimeText(record.at("started_at_ms")),
                    FromText(record), LayoutText(record.at("layout")),
                    NumberText(record.at("last_step")), NumberText(record.at("committed_step")),
                    TimeText(record.at("ended_at_ms")), WhyText(record)});
  }
  return FormatTable(rows);
}

}  // namespace paceline::cli
