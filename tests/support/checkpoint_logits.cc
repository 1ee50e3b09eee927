// Prints the logits of a checkpoint's model for a row of tokens, as JSON: what a test compares
// with another program's. Usage: checkpoint_logits CHECKPOINT-FOLDER TOKEN...
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "common/run_file.h"
#include "common/status.h"
#include "nlohmann/json.hpp"
#include "worker/checkpoint/checkpoint.h"
#include "worker/kernels/stream.h"
#include "worker/model/model.h"
#include "worker/trainer/training_state.h"

namespace paceline {
namespace {

absl::StatusOr<nlohmann::json> LogitsOf(const std::string& folder,
                                        const std::vector<std::int32_t>& tokens) {
  ASSIGN_OR_RETURN(const auto reader, CheckpointReader::Open(folder));
  ASSIGN_OR_RETURN(const RunFile run_file,
                   ParseRunFile(reader->manifest().run_file, "run file", "/", {}));
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= run_file.model.vocab_size) {
      return absl::InvalidArgumentError("token " + std::to_string(token) +
                                        ": is not in the vocabulary");
    }
  }
  const auto sequence = static_cast<std::int64_t>(tokens.size());
  Stream stream(Stream::Mode::kInline, "logits");
  ASSIGN_OR_RETURN(
      const auto model,
      Model::Create(run_file.model, {.sequence_length = sequence, .training = false}, stream));
  RETURN_IF_ERROR(LoadWeights(*reader, *model));
  std::vector<float> logits(tokens.size() * static_cast<std::size_t>(run_file.model.vocab_size));
  model->Logits({.tokens = tokens, .targets = tokens, .rows = 1, .sequence = sequence}, logits);
  return nlohmann::json{{"vocab_size", run_file.model.vocab_size}, {"logits", logits}};
}

int Main(int argc, char** argv) {
  std::vector<std::int32_t> tokens;
  for (int i = 2; i < argc; ++i) {
    std::int32_t token = 0;
    if (!absl::SimpleAtoi(argv[i], &token)) {
      std::fprintf(stderr, "%s: is no token\n", argv[i]);
      return 2;
    }
    tokens.push_back(token);
  }
  if (tokens.empty()) {
    std::fprintf(stderr, "usage: checkpoint_logits CHECKPOINT-FOLDER TOKEN...\n");
    return 2;
  }
  const absl::StatusOr<nlohmann::json> logits = LogitsOf(argv[1], tokens);
  if (!logits.ok()) {
    std::fprintf(stderr, "%s\n", std::string(logits.status().message()).c_str());
    return 1;
  }
  std::printf("%s\n", logits->dump().c_str());
  return 0;
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) { return paceline::Main(argc, argv); }
