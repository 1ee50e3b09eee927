#include "worker/huggingface/export.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/run_file.h"
#include "worker/huggingface/staged_folder.h"
#include "worker/huggingface/tensor_file.h"
#include "worker/huggingface/tensors.h"
#include "worker/huggingface/weight_files.h"

namespace paceline::huggingface {
namespace {

constexpr char kConfigFile[] = "config.json";
constexpr std::int64_t kPieceElements = 1 << 20;

struct Shard {
  std::string file;
  std::vector<Tensor> tensors;
};

std::string DtypeOf(const Tensor& tensor, const std::string& dtype) {
  return tensor.keep_float32 || dtype == "float32" ? "F32" : "BF16";
}

std::int64_t BytesOf(const Tensor& tensor, const std::string& dtype) {
  return tensor.elements() * DtypeBytes(DtypeOf(tensor, dtype));
}

std::vector<Shard> MakeShards(std::vector<Tensor> tensors, const ExportOptions& options) {
  std::vector<Shard> shards(1);
  std::int64_t bytes = 0;
  for (Tensor& tensor : tensors) {
    const std::int64_t more = BytesOf(tensor, options.dtype);
    if (bytes > 0 && more > options.shard_bytes_max - bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += more;
    shards.back().tensors.push_back(std::move(tensor));
  }
  for (std::size_t i = 0; i < shards.size(); ++i) {
    char name[64];
    std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
    shards[i].file = shards.size() == 1 ? "model.safetensors" : name;
  }
  return shards;
}

absl::Status AppendBFloat16(std::span<const float> values, TensorFile& file) {
  std::vector<std::uint16_t> piece;
  for (std::size_t begin = 0; begin < values.size(); begin += kPieceElements) {
    const std::size_t count = std::min<std::size_t>(kPieceElements, values.size() - begin);
    piece.resize(count);
    std::transform(values.begin() + begin, values.begin() + begin + count, piece.begin(),
                   BFloat16Of);
    RETURN_IF_ERROR(
        file.Append(piece.data(), static_cast<std::int64_t>(count * sizeof(std::uint16_t))));
  }
  return absl::OkStatus();
}

absl::Status CopyTensor(const CheckpointReader& checkpoint, const Tensor& tensor,
                        const std::string& dtype, TensorFile& file) {
  std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
  if (!tensor.own_name.empty()) {
    const std::vector<std::int64_t> start(tensor.shape.size(), 0);
    RETURN_IF_ERROR(checkpoint.Read(tensor.own_name, start, tensor.shape, values));
  }
  if (DtypeOf(tensor, dtype) == "BF16") return AppendBFloat16(values, file);
  return file.Append(values.data(), static_cast<std::int64_t>(values.size() * sizeof(float)));
}

absl::StatusOr<std::int64_t> WriteShard(const CheckpointReader& checkpoint, const Shard& shard,
                                        const std::string& folder, const std::string& dtype) {
  std::vector<TensorSliceInfo> slices;
  for (const Tensor& tensor : shard.tensors) {
    slices.push_back({.name = tensor.name,
                      .dtype = DtypeOf(tensor, dtype),
                      .global_shape = tensor.shape,
                      .start = std::vector<std::int64_t>(tensor.shape.size(), 0),
                      .shape = tensor.shape});
  }
  ASSIGN_OR_RETURN(const auto file,
                   TensorFile::New(folder + "/" + shard.file, std::move(slices), "pt"));
  for (const Tensor& tensor : shard.tensors) {
    RETURN_IF_ERROR(CopyTensor(checkpoint, tensor, dtype, *file));
  }
  ASSIGN_OR_RETURN(const ManifestPart part, file->Finish());
  return part.bytes;
}

std::string IndexJson(const std::vector<Shard>& shards, const std::string& dtype) {
  nlohmann::ordered_json weight_map = nlohmann::ordered_json::object();
  std::int64_t total = 0;
  for (const Shard& shard : shards) {
    for (const Tensor& tensor : shard.tensors) {
      weight_map[tensor.name] = shard.file;
      total += BytesOf(tensor, dtype);
    }
  }
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", total}}},
                                        {"weight_map", std::move(weight_map)}};
  return index.dump(2) + "\n";
}

absl::Status CheckOptions(const ExportOptions& options, const std::vector<Shard>& shards) {
  if (options.dtype != "float32" && options.dtype != "bfloat16") {
    return absl::InvalidArgumentError("--dtype " + options.dtype + ": must be float32 or bfloat16");
  }
  std::set<std::string> names = {kConfigFile, "model.safetensors.index.json"};
  for (const Shard& shard : shards) names.insert(shard.file);
  for (const NamedFile& file : options.tokenizer) {
    if (!IsPartFileName(file.name) || !names.insert(file.name).second) {
      return absl::InvalidArgumentError("--tokenizer " + file.name +
                                        ": cannot be a file of this name");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Exported> Export(const CheckpointReader& checkpoint, const ExportOptions& options) {
  ASSIGN_OR_RETURN(const RunFile run_file, ParseRunFile(checkpoint.manifest().run_file,
                                                        "the checkpoint's run file", "/", {}));
  Config config{.model = run_file.model,
                .max_position_embeddings = run_file.train.sequence_length,
                .eos_token_id = options.eos_token_id};
  ASSIGN_OR_RETURN(config.architecture, ArchitectureOf(config.model));
  Exported exported{.architecture = config.architecture};
  std::vector<Tensor> tensors = TensorsOf(config.architecture, config.model);
  for (const Tensor& tensor : tensors) {
    ++exported.tensors;
    exported.parameters += tensor.elements();
  }
  const std::vector<Shard> shards = MakeShards(std::move(tensors), options);
  RETURN_IF_ERROR(CheckOptions(options, shards));

  ASSIGN_OR_RETURN(const auto folder,
                   StagedFolder::Begin(options.output, kConfigFile, options.replace));
  for (const Shard& shard : shards) {
    ASSIGN_OR_RETURN(const std::int64_t bytes,
                     WriteShard(checkpoint, shard, folder->path(), options.dtype));
    exported.bytes += bytes;
    exported.files.push_back(shard.file);
  }
  std::vector<NamedFile> texts = options.tokenizer;
  if (shards.size() > 1) {
    texts.push_back({"model.safetensors.index.json", IndexJson(shards, options.dtype)});
  }
  texts.push_back({kConfigFile, ConfigJson(config, options.dtype)});
  for (const NamedFile& file : texts) {
    RETURN_IF_ERROR(WriteFileAtomically(folder->path() + "/" + file.name, file.content, 0644));
    exported.files.push_back(file.name);
  }
  RETURN_IF_ERROR(folder->Commit());
  return exported;
}

}  // namespace paceline::huggingface
