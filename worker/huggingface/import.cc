#include "worker/huggingface/import.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/files.h"
#include "common/manifest.h"
#include "common/run_file.h"
#include "worker/huggingface/staged_folder.h"
#include "worker/huggingface/tensor_file.h"
#include "worker/huggingface/tensors.h"
#include "worker/huggingface/weight_files.h"

namespace paceline::huggingface {
namespace {

constexpr std::int64_t kConfigBytesMax = 1 << 20;
constexpr char kModelFile[] = "model.toml";
// `generate` holds the logits of so many tokens.
constexpr std::int64_t kContextMax = 2048;

// A run that would train the model. What it trains on is not known; nothing reads it here.
RunFile RunFileOf(const Config& config) {
  RunFile run_file;
  run_file.run.name = "imported";
  run_file.model = config.model;
  run_file.data.train = {{.path = "unknown"}};
  run_file.train.sequence_length = std::min(config.max_position_embeddings, kContextMax);
  run_file.train.global_batch_size = 1;
  run_file.train.micro_batch_size = 1;
  run_file.train.steps = 1;
  run_file.train.learning_rate = 1e-4;
  return run_file;
}

// The [model] section alone.
std::string ModelToml(const std::string& run_toml) {
  const std::size_t begin = run_toml.find("[model]\n");
  return run_toml.substr(begin, run_toml.find("\n[", begin) - begin);
}

// Tensors that other programs write and that a model is whole without: tables of rotary angles,
// an output matrix that is the embedding, layers behind the last (they predict further tokens).
bool MayBeLeftOut(const std::string& name, const ModelSection& model) {
  if (absl::EndsWith(name, ".rotary_emb.inv_freq")) return true;
  if (name == "lm_head.weight") return model.tie_word_embeddings;
  constexpr char kLayers[] = "model.layers.";
  if (!absl::StartsWith(name, kLayers)) return false;
  const std::string rest = name.substr(std::string(kLayers).size());
  std::int64_t layer = 0;
  return absl::SimpleAtoi(rest.substr(0, rest.find('.')), &layer) &&
         layer >= model.num_hidden_layers;
}

// The folder has these tensors, in these shapes, and no others.
absl::Status CheckTensors(const std::vector<Tensor>& tensors, const WeightFiles& weights,
                          const std::string& folder, const ModelSection& model) {
  std::set<std::string> known;
  for (const Tensor& tensor : tensors) {
    known.insert(tensor.name);
    if (tensor.own_name.empty()) continue;
    const auto found = weights.tensors().find(tensor.name);
    if (found == weights.tensors().end()) {
      return absl::InvalidArgumentError(absl::StrCat(folder, ": has no tensor \"", tensor.name,
                                                     "\", which config.json asks for"));
    }
    if (found->second.shape != tensor.shape) {
      return absl::InvalidArgumentError(
          absl::StrCat(folder, ": tensor \"", tensor.name, "\" has shape [",
                       absl::StrJoin(found->second.shape, ", "), "]; config.json asks for [",
                       absl::StrJoin(tensor.shape, ", "), "]"));
    }
  }
  for (const auto& [name, tensor] : weights.tensors()) {
    if (known.contains(name) || MayBeLeftOut(name, model)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(folder, ": tensor \"", name, "\" has no place in the model of config.json"));
  }
  return absl::OkStatus();
}

absl::StatusOr<ManifestPart> WritePart(const WeightFiles& weights,
                                       const std::vector<Tensor>& tensors,
                                       const std::string& folder) {
  std::vector<TensorSliceInfo> slices;
  for (const Tensor& tensor : tensors) {
    slices.push_back({.name = tensor.own_name,
                      .dtype = "F32",
                      .global_shape = tensor.shape,
                      .start = std::vector<std::int64_t>(tensor.shape.size(), 0),
                      .shape = tensor.shape});
  }
  ASSIGN_OR_RETURN(const auto file, TensorFile::New(folder + "/rank-00000.safetensors",
                                                    std::move(slices), "paceline"));
  for (const Tensor& tensor : tensors) {
    RETURN_IF_ERROR(weights.Read(tensor.name, [&file](std::span<const float> values) {
      return file->Append(values.data(), static_cast<std::int64_t>(values.size_bytes()));
    }));
  }
  return file->Finish();
}

}  // namespace

absl::StatusOr<Imported> Import(const ImportOptions& options) {
  Imported imported;
  const std::string config_path = options.input + "/config.json";
  const absl::StatusOr<std::string> json = ReadFile(config_path, kConfigBytesMax);
  if (absl::IsResourceExhausted(json.status())) {
    return absl::InvalidArgumentError(config_path + ": is larger than 1 MiB, so no config.json");
  }
  RETURN_IF_ERROR(json.status());
  absl::StatusOr<Config> config = ParseConfig(*json);
  if (!config.ok()) return Annotate(config.status(), options.input);
  imported.config = *std::move(config);
  const ModelSection& model = imported.config.model;
  const std::string run_toml = ToToml(RunFileOf(imported.config));
  // What a run file may not say, no run can start from.
  RETURN_IF_ERROR(ParseRunFile(run_toml, options.input + ", as a run file", "/", {}).status());
  imported.model_toml = ModelToml(run_toml);

  ASSIGN_OR_RETURN(const WeightFiles weights, WeightFiles::Open(options.input));
  if (FewestTensors(model) > std::ssize(weights.tensors())) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.input, ": config.json describes at least ", FewestTensors(model),
                     " tensors, the weights' files hold ", weights.tensors().size()));
  }
  std::vector<Tensor> tensors = TensorsOf(imported.config.architecture, model);
  RETURN_IF_ERROR(CheckTensors(tensors, weights, options.input, model));
  std::erase_if(tensors, [](const Tensor& tensor) { return tensor.own_name.empty(); });

  ASSIGN_OR_RETURN(const auto folder,
                   StagedFolder::Begin(options.output, kModelFile, options.replace));
  Manifest manifest;
  manifest.run_id = "imported";
  manifest.run_file = run_toml;
  ASSIGN_OR_RETURN(ManifestPart part, WritePart(weights, tensors, folder->path()));
  imported.bytes = part.bytes;
  manifest.parts.push_back(std::move(part));
  RETURN_IF_ERROR(
      WriteFileAtomically(folder->path() + "/" + kModelFile, imported.model_toml, 0644));
  RETURN_IF_ERROR(WriteFileAtomically(folder->path() + "/manifest.json", ToJson(manifest), 0644));
  RETURN_IF_ERROR(folder->Commit());
  for (const Tensor& tensor : tensors) {
    ++imported.tensors;
    imported.parameters += tensor.elements();
  }
  return imported;
}

}  // namespace paceline::huggingface
