#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "common/run_file.h"
#include "common/status.h"
#include "launch/cli/sampling.h"
#include "launch/cli/status_json.h"
#include "launch/cli/verb.h"
#include "nlohmann/json.hpp"
#include "worker/checkpoint/checkpoint.h"
#include "worker/data/corpus_manifest.h"
#include "worker/data/tokenizer.h"
#include "worker/kernels/stream.h"
#include "worker/model/model.h"

namespace paceline::cli {
namespace {

constexpr std::int64_t kBytesVocabulary = 256;

struct Options : CommonOptions {
  std::string checkpoint;
  std::string prompt;
  std::string tokenizer;
  std::int64_t tokens = 200;
  double temperature = 0.8;
  std::int64_t seed = 1;
};

// `path` is a checkpoint, or a folder of checkpoints, of which the newest is meant.
absl::StatusOr<std::unique_ptr<CheckpointReader>> OpenCheckpoint(const std::string& path) {
  const std::vector<std::string> checkpoints = ListCheckpoints(path);
  absl::StatusOr<std::unique_ptr<CheckpointReader>> reader =
      CheckpointReader::Open(checkpoints.empty() ? path : checkpoints.front());
  if (absl::IsNotFound(reader.status())) {
    std::error_code ignored;
    if (const std::string run_toml = path + "/run.toml";
        std::filesystem::exists(run_toml, ignored)) {
      ASSIGN_OR_RETURN(const RunFile run_file, LoadRunFile(run_toml, {}));
      const std::filesystem::path dir = std::filesystem::path(path) / run_file.checkpoint.dir;
      return absl::NotFoundError(
          "--checkpoint " + path + " is a run's folder; its checkpoints are " + "in " +
          dir.lexically_normal().string() +
          (ListCheckpoints(dir.string()).empty() ? ", of which none is committed yet"
                                                 : ": give that, or one of them"));
    }
    return absl::NotFoundError("--checkpoint " + path +
                               " is neither a committed checkpoint nor a folder of them; "
                               "paceline show RUN names a run's checkpoints");
  }
  return reader;
}

absl::Status LoadWeights(const CheckpointReader& reader, Model& model) {
  for (const Parameter& parameter : model.parameters()) {
    const std::vector<std::int64_t> start(parameter.shape.size(), 0);
    RETURN_IF_ERROR(
        reader.Read(parameter.name, start, parameter.shape,
                    model.weights().subspan(static_cast<std::size_t>(parameter.offset),
                                            static_cast<std::size_t>(parameter.elements))));
  }
  for (const StateBuffer& buffer : model.state_buffers()) {
    const std::vector<std::int64_t> start(buffer.shape.size(), 0);
    const std::int64_t elements = std::accumulate(buffer.shape.begin(), buffer.shape.end(),
                                                  std::int64_t{1}, std::multiplies<>());
    RETURN_IF_ERROR(reader.Read(buffer.name, start, buffer.shape,
                                {buffer.data, static_cast<std::size_t>(elements)}));
  }
  return absl::OkStatus();
}

// The tokenizer that the training corpus was prepared with; the corpus may be gone since.
absl::StatusOr<std::unique_ptr<Tokenizer>> TokenizerOf(const RunFile& run_file,
                                                       const Options& options) {
  if (!options.tokenizer.empty()) return LoadTokenizer(options.tokenizer, ".");
  for (const DataSource& source : run_file.data.train) {
    const absl::StatusOr<CorpusManifest> manifest = LoadCorpusManifest(source.path);
    if (manifest.ok() && !manifest->tokenizer.empty()) {
      return LoadTokenizer(manifest->tokenizer, source.path);
    }
  }
  if (run_file.model.vocab_size == kBytesVocabulary) return MakeBytesTokenizer();
  return absl::InvalidArgumentError(
      "the training corpus that would name the tokenizer is gone or does not name it; give "
      "--tokenizer bytes or --tokenizer sentencepiece:MODEL");
}

class Generator {
 public:
  Generator(Model& model, Tokenizer& tokenizer, const RunFile& run_file, const Options& options)
      : model_(model),
        tokenizer_(tokenizer),
        options_(options),
        context_(run_file.train.sequence_length),
        vocabulary_(run_file.model.vocab_size),
        sampler_(options.temperature, static_cast<std::uint64_t>(options.seed)),
        logits_(static_cast<std::size_t>(context_ * vocabulary_)) {}

  // The prompt and what follows; printed as it comes unless the answer is JSON.
  absl::StatusOr<std::string> Run() {
    ASSIGN_OR_RETURN(tokens_, tokenizer_.Encode(options_.prompt));
    prompt_tokens_ = tokens_.size();
    if (tokens_.empty()) {
      return absl::InvalidArgumentError("--prompt is empty; give at least one character");
    }
    RETURN_IF_ERROR(CheckVocabulary());
    RETURN_IF_ERROR(Emit());
    for (std::int64_t i = 0; i < options_.tokens; ++i) {
      const std::int32_t next = sampler_.Draw(NextLogits());
      if (next < 0) {
        return absl::DataLossError("the model's logits are not numbers: its weights are broken");
      }
      if (tokenizer_.end_of_document() == next) break;
      tokens_.push_back(next);
      RETURN_IF_ERROR(Emit());
    }
    return text_;
  }

  std::size_t new_tokens() const { return tokens_.size() - prompt_tokens_; }

 private:
  absl::Status CheckVocabulary() const {
    for (const std::int32_t token : tokens_) {
      if (token < 0 || token >= vocabulary_) {
        return absl::InvalidArgumentError("the prompt's token " + std::to_string(token) +
                                          " is not in the model's vocabulary of " +
                                          std::to_string(vocabulary_) +
                                          "; is this the model's own tokenizer?");
      }
    }
    return absl::OkStatus();
  }

  std::span<const float> NextLogits() {
    const std::size_t length = std::min(tokens_.size(), static_cast<std::size_t>(context_));
    const std::span<const std::int32_t> window =
        std::span(tokens_).subspan(tokens_.size() - length);
    const std::span<float> logits =
        std::span(logits_).first(length * static_cast<std::size_t>(vocabulary_));
    model_.Logits({.tokens = window,
                   .targets = window,
                   .rows = 1,
                   .sequence = static_cast<std::int64_t>(length)},
                  logits);
    return logits.last(static_cast<std::size_t>(vocabulary_));
  }

  // A piece of text may span tokens, so the whole is decoded and what is new printed.
  absl::Status Emit() {
    ASSIGN_OR_RETURN(std::string text, tokenizer_.Decode(tokens_));
    if (!options_.json && text.size() > text_.size()) {
      std::fwrite(text.data() + text_.size(), 1, text.size() - text_.size(), stdout);
      std::fflush(stdout);
    }
    text_ = std::move(text);
    return absl::OkStatus();
  }

  Model& model_;
  Tokenizer& tokenizer_;
  const Options& options_;
  const std::int64_t context_;
  const std::int64_t vocabulary_;
  Sampler sampler_;
  std::vector<std::int32_t> tokens_;
  std::size_t prompt_tokens_ = 0;  // of these
  std::string text_;
  std::vector<float> logits_;
};

absl::StatusOr<ExitCode> RunGenerate(const Options& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<CheckpointReader> reader,
                   OpenCheckpoint(options.checkpoint));
  const Manifest& manifest = reader->manifest();
  ASSIGN_OR_RETURN(const RunFile run_file,
                   ParseRunFile(manifest.run_file, options.checkpoint + "/manifest.json", "/", {}));
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, TokenizerOf(run_file, options));
  Stream compute(Stream::Mode::kInline, "compute");
  ASSIGN_OR_RETURN(const std::unique_ptr<Model> model,
                   Model::Create(run_file.model,
                                 {.micro_batch_size = 1,
                                  .sequence_length = run_file.train.sequence_length,
                                  .training = false},
                                 compute));
  RETURN_IF_ERROR(LoadWeights(*reader, *model));
  Generator generator(*model, *tokenizer, run_file, options);
  ASSIGN_OR_RETURN(const std::string text, generator.Run());
  if (options.json) {
    PrintJson({{"run_id", manifest.run_id},
               {"step", manifest.step},
               {"prompt", options.prompt},
               {"text", text},
               {"tokens", generator.new_tokens()}});
  } else {
    std::printf("\n");
  }
  return ExitCode::kDone;
}

}  // namespace

void AddGenerateVerb(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<Options>();
  Verb verb(app, invocation,
            {.name = "generate",
             .help = "Let a trained model go on with a text",
             .examples = {"paceline generate --checkpoint runs/RUN/checkpoints --prompt \"Once "
                          "upon a time\"",
                          "paceline generate --checkpoint runs/RUN/checkpoints/step-00000300-g1 "
                          "--prompt \"The\" --tokens 50 --temperature 0"}},
            *options);
  verb.Text("--checkpoint", options->checkpoint, "DIR",
            "A checkpoint's folder, or a folder of checkpoints: the newest of them",
            Verb::kRequired);
  verb.Text("--prompt", options->prompt, "TEXT", "The text to go on with", Verb::kRequired);
  verb.Integer("--tokens", options->tokens, {0, 1'000'000}, "N", "How many tokens to add at most");
  verb.Real("--temperature", options->temperature, {0, 100}, "T",
            "0: always the likeliest token; 1: as the model has learned");
  verb.Integer("--seed", options->seed, {0, std::numeric_limits<std::int64_t>::max()}, "S",
               "Equal seeds give equal texts");
  verb.Text("--tokenizer", options->tokenizer, "NAME",
            "bytes or sentencepiece:MODEL (default: the training corpus's)");
  verb.OutputForm();
  verb.Does([options] { return RunGenerate(*options); });
}

}  // namespace paceline::cli
