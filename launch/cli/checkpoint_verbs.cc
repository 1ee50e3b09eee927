#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/run_file.h"
#include "common/status.h"
#include "launch/cli/format.h"
#include "launch/cli/status_json.h"
#include "launch/cli/verb.h"
#include "nlohmann/json.hpp"
#include "worker/checkpoint/checkpoint.h"
#include "worker/data/corpus_manifest.h"
#include "worker/data/tokenizer.h"
#include "worker/huggingface/export.h"
#include "worker/huggingface/import.h"

namespace paceline::cli {
namespace {

using nlohmann::json;

constexpr std::int64_t kBytesVocabulary = 256;

struct ReadOptions : CommonOptions {
  std::string folder;
};

struct ExportVerb : CommonOptions {
  std::string folder;
  std::string format = "huggingface";
  std::string tokenizer;
  huggingface::ExportOptions exported;
};

struct ImportVerb : CommonOptions {
  huggingface::ImportOptions imported;
};

void Print(const char* name, const std::string& value) {
  std::printf("%-12s%s\n", name, value.c_str());
}

// A checkpoint and where it lies.
struct Opened {
  std::string folder;
  std::unique_ptr<CheckpointReader> reader;
};

// `path` is a checkpoint, or a folder of checkpoints, of which the newest is meant.
absl::StatusOr<Opened> OpenCheckpoint(const std::string& path) {
  const std::vector<std::string> checkpoints = ListCheckpoints(path);
  Opened opened{.folder = checkpoints.empty() ? path : checkpoints.front()};
  absl::StatusOr<std::unique_ptr<CheckpointReader>> reader = CheckpointReader::Open(opened.folder);
  if (absl::IsNotFound(reader.status())) {
    return absl::NotFoundError(path +
                               ": is neither a committed checkpoint (a folder with a "
                               "manifest.json) nor a folder of them; paceline show RUN names a "
                               "run's checkpoints");
  }
  RETURN_IF_ERROR(reader.status());
  opened.reader = *std::move(reader);
  return opened;
}

// A slice and the part that holds it.
struct HeldSlice {
  const TensorSliceInfo* info;
  const std::string* file;
};

// A tensor of the checkpoint, however many slices it was written in.
struct HeldTensor {
  std::string name;
  std::vector<HeldSlice> slices;
};

// In the order in which the manifest first names them.
std::vector<HeldTensor> TensorsOf(const Manifest& manifest) {
  std::vector<HeldTensor> tensors;
  std::map<std::string, std::size_t> place;
  for (const ManifestPart& part : manifest.parts) {
    for (const TensorSliceInfo& slice : part.slices) {
      const auto [found, is_new] = place.emplace(slice.name, tensors.size());
      if (is_new) tensors.push_back({slice.name, {}});
      tensors[found->second].slices.push_back({&slice, &part.file});
    }
  }
  return tensors;
}

std::string ShapeText(const std::vector<std::int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

json ToJson(const Opened& opened, const std::vector<HeldTensor>& tensors) {
  const Manifest& manifest = opened.reader->manifest();
  json object = {{"folder", opened.folder},
                 {"run_id", manifest.run_id},
                 {"generation", manifest.generation},
                 {"step", manifest.step},
                 {"sample", manifest.sample},
                 {"tokens", manifest.tokens},
                 {"seed", manifest.seed},
                 {"corpus_digest", manifest.corpus_digest},
                 {"ledger_digest", manifest.ledger_digest},
                 {"parts", json::array()},
                 {"tensors", json::array()}};
  for (const ManifestPart& part : manifest.parts) {
    object["parts"].push_back(
        {{"file", part.file}, {"bytes", part.bytes}, {"slices", part.slices.size()}});
  }
  for (const HeldTensor& tensor : tensors) {
    const TensorSliceInfo& any = *tensor.slices.front().info;
    json slices = json::array();
    for (const HeldSlice& slice : tensor.slices) {
      slices.push_back({{"file", *slice.file},
                        {"start", slice.info->start},
                        {"shape", slice.info->shape},
                        {"digest", slice.info->digest}});
    }
    object["tensors"].push_back({{"name", tensor.name},
                                 {"dtype", any.dtype},
                                 {"shape", any.global_shape},
                                 {"slices", std::move(slices)}});
  }
  return object;
}

void PrintInspected(const Opened& opened, const std::vector<HeldTensor>& tensors) {
  const Manifest& manifest = opened.reader->manifest();
  std::int64_t bytes = 0;
  for (const ManifestPart& part : manifest.parts) bytes += part.bytes;
  Print("checkpoint", opened.folder);
  Print("run", absl::StrCat(manifest.run_id, ", generation ", manifest.generation));
  Print("step", absl::StrCat(manifest.step));
  Print("sample", absl::StrCat(manifest.sample));
  Print("tokens", absl::StrCat(manifest.tokens));
  Print("seed", absl::StrCat(manifest.seed));
  Print("parts",
        absl::StrCat(manifest.parts.size(), ", ", FormatBytes(static_cast<double>(bytes))));
  for (const ManifestPart& part : manifest.parts) {
    Print("", absl::StrCat(part.file, ", ", FormatBytes(static_cast<double>(part.bytes)), ", ",
                           part.slices.size(), " slices"));
  }
  Print("tensors", absl::StrCat(tensors.size()));
  for (const HeldTensor& tensor : tensors) {
    const TensorSliceInfo& any = *tensor.slices.front().info;
    std::string where;
    for (const HeldSlice& slice : tensor.slices) {
      absl::StrAppend(&where, where.empty() ? "" : "; ", *slice.file);
      if (slice.info->shape == slice.info->global_shape) continue;
      absl::StrAppend(&where, " ", ShapeText(slice.info->shape), " from ",
                      ShapeText(slice.info->start));
    }
    std::printf("  %s  %s %s  %s\n", tensor.name.c_str(), any.dtype.c_str(),
                ShapeText(any.global_shape).c_str(), where.c_str());
  }
}

absl::StatusOr<ExitCode> RunInspect(const ReadOptions& options) {
  ASSIGN_OR_RETURN(const Opened opened, OpenCheckpoint(options.folder));
  const std::vector<HeldTensor> tensors = TensorsOf(opened.reader->manifest());
  if (options.json) {
    PrintJson(ToJson(opened, tensors));
  } else {
    PrintInspected(opened, tensors);
  }
  return ExitCode::kDone;
}

absl::StatusOr<ExitCode> RunVerify(const ReadOptions& options) {
  ASSIGN_OR_RETURN(const Opened opened, OpenCheckpoint(options.folder));
  RETURN_IF_ERROR(opened.reader->Verify());
  const Manifest& manifest = opened.reader->manifest();
  std::size_t slices = 0;
  std::int64_t bytes = 0;
  for (const ManifestPart& part : manifest.parts) {
    slices += part.slices.size();
    bytes += part.bytes;
  }
  if (options.json) {
    PrintJson({{"folder", opened.folder},
               {"step", manifest.step},
               {"parts", manifest.parts.size()},
               {"slices", slices},
               {"bytes", bytes}});
  } else {
    std::printf("%s: step %lld is whole: %zu parts, %zu slices, %s, every digest is right\n",
                opened.folder.c_str(), static_cast<long long>(manifest.step), manifest.parts.size(),
                slices, FormatBytes(static_cast<double>(bytes)).c_str());
  }
  return ExitCode::kDone;
}

// A tokenizer's name, and the folder against which it resolves.
struct TokenizerName {
  std::string name;
  std::string folder;
};

// The tokenizer asked for, else the training corpus's, else bytes for a vocabulary of bytes;
// nothing where nobody knows.
std::optional<TokenizerName> TokenizerOf(const RunFile& run_file, const std::string& asked) {
  if (!asked.empty()) return TokenizerName{asked, "."};
  for (const DataSource& source : run_file.data.train) {
    const absl::StatusOr<CorpusManifest> manifest = LoadCorpusManifest(source.path);
    if (manifest.ok() && !manifest->tokenizer.empty()) {
      return TokenizerName{manifest->tokenizer, source.path};
    }
  }
  if (run_file.model.vocab_size == kBytesVocabulary) return TokenizerName{"bytes", "."};
  return std::nullopt;
}

absl::StatusOr<ExitCode> RunExport(const ExportVerb& options) {
  ASSIGN_OR_RETURN(const Opened opened, OpenCheckpoint(options.folder));
  ASSIGN_OR_RETURN(const RunFile run_file, ParseRunFile(opened.reader->manifest().run_file,
                                                        "the checkpoint's run file", "/", {}));
  huggingface::ExportOptions to = options.exported;
  const std::optional<TokenizerName> tokenizer = TokenizerOf(run_file, options.tokenizer);
  if (tokenizer) {
    ASSIGN_OR_RETURN(to.tokenizer, huggingface::TokenizerFiles(tokenizer->name, tokenizer->folder));
    if (!SentencePieceFile(tokenizer->name).empty()) {
      ASSIGN_OR_RETURN(const auto loaded, LoadTokenizer(tokenizer->name, tokenizer->folder));
      to.eos_token_id = loaded->end_of_document();
    }
  }
  ASSIGN_OR_RETURN(const huggingface::Exported exported, huggingface::Export(*opened.reader, to));
  const std::string class_name = huggingface::ClassName(exported.architecture);
  if (options.json) {
    PrintJson({{"checkpoint", opened.folder},
               {"step", opened.reader->manifest().step},
               {"output", to.output},
               {"architecture", class_name},
               {"dtype", to.dtype},
               {"tensors", exported.tensors},
               {"parameters", exported.parameters},
               {"bytes", exported.bytes},
               {"files", exported.files}});
    return ExitCode::kDone;
  }
  std::printf("%s: step %lld of %s as %s, %lld tensors, %s parameters, %s in %s\n",
              to.output.c_str(), static_cast<long long>(opened.reader->manifest().step),
              opened.reader->manifest().run_id.c_str(), class_name.c_str(),
              static_cast<long long>(exported.tensors),
              FormatCount(static_cast<double>(exported.parameters)).c_str(),
              FormatBytes(static_cast<double>(exported.bytes)).c_str(), to.dtype.c_str());
  for (const std::string& file : exported.files) std::printf("  %s\n", file.c_str());
  if (!tokenizer) std::printf("without a tokenizer: nobody named one; --tokenizer does\n");
  return ExitCode::kDone;
}

absl::StatusOr<ExitCode> RunImport(const ImportVerb& options) {
  ASSIGN_OR_RETURN(const huggingface::Imported imported, huggingface::Import(options.imported));
  const std::string class_name = huggingface::ClassName(imported.config.architecture);
  const std::string& output = options.imported.output;
  if (options.json) {
    PrintJson({{"output", output},
               {"architecture", class_name},
               {"tensors", imported.tensors},
               {"parameters", imported.parameters},
               {"bytes", imported.bytes},
               {"model_toml", imported.model_toml}});
    return ExitCode::kDone;
  }
  std::printf("# %s: %s, %lld tensors, %s parameters, %s\n", output.c_str(), class_name.c_str(),
              static_cast<long long>(imported.tensors),
              FormatCount(static_cast<double>(imported.parameters)).c_str(),
              FormatBytes(static_cast<double>(imported.bytes)).c_str());
  std::error_code error;
  std::string init = std::filesystem::absolute(output, error).string();
  if (error) init = output;
  std::printf("# For a run file that starts from it, beside [checkpoint] init = \"%s\":\n%s",
              init.c_str(), imported.model_toml.c_str());
  return ExitCode::kDone;
}

void AddFolderArgument(Verb& verb, std::string& folder) {
  verb.Argument("DIR", folder,
                "A checkpoint's folder, or a folder of checkpoints: the newest of them",
                Verb::kRequired);
}

void AddInspect(CLI::App& group, Invocation& invocation) {
  auto options = std::make_shared<ReadOptions>();
  Verb verb(group, invocation,
            {.name = "inspect",
             .help = "Say what a checkpoint holds: run, step, parts, tensors and their slices",
             .examples = {"paceline checkpoint inspect runs/RUN/checkpoints",
                          "paceline checkpoint inspect runs/RUN/checkpoints/step-00000300-g1 -o "
                          "json"}},
            *options);
  AddFolderArgument(verb, options->folder);
  verb.OutputForm();
  verb.Does([options] { return RunInspect(*options); });
}

void AddVerify(CLI::App& group, Invocation& invocation) {
  auto options = std::make_shared<ReadOptions>();
  Verb verb(group, invocation,
            {.name = "verify",
             .help = "Read all of a checkpoint and compare every digest",
             .examples = {"paceline checkpoint verify runs/RUN/checkpoints/step-00000300-g1"}},
            *options);
  AddFolderArgument(verb, options->folder);
  verb.OutputForm();
  verb.Does([options] { return RunVerify(*options); });
}

void AddExport(CLI::App& group, Invocation& invocation) {
  auto options = std::make_shared<ExportVerb>();
  Verb verb(
      group, invocation,
      {.name = "export",
       .help = "Write a checkpoint's weights as a folder that other programs load",
       .examples = {"paceline checkpoint export runs/RUN/checkpoints --format huggingface "
                    "--output my-model",
                    "paceline checkpoint export runs/RUN/checkpoints/step-00000300-g1 --output "
                    "my-model --dtype bfloat16 --tokenizer tokenizer.json"}},
      *options);
  AddFolderArgument(verb, options->folder);
  verb.Text("--format", options->format, "FORMAT", "huggingface: config.json and safetensors");
  verb.Text("--output", options->exported.output, "OUT", "Folder to make", Verb::kRequired);
  verb.Text("--dtype", options->exported.dtype, "DTYPE", "float32 or bfloat16");
  verb.Text("--tokenizer", options->tokenizer, "NAME",
            "bytes, sentencepiece:MODEL or a file to copy (default: the training corpus's)");
  verb.Flag("--force", options->exported.replace, "Replace an export that OUT has already");
  verb.OutputForm("-o");
  verb.Does([options]() -> absl::StatusOr<ExitCode> {
    if (options->format == "huggingface") return RunExport(*options);
    return absl::InvalidArgumentError("--format " + options->format + ": must be huggingface");
  });
}

void AddImport(CLI::App& group, Invocation& invocation) {
  auto options = std::make_shared<ImportVerb>();
  Verb verb(group, invocation,
            {.name = "import",
             .help = "Make a checkpoint of a Hugging Face model folder, for [checkpoint] init",
             .examples = {"paceline checkpoint import TinyLlama-1.1B --output imported"}},
            *options);
  verb.Argument("HF_DIR", options->imported.input,
                "Folder with config.json and safetensors: Llama, Mixtral or GLM-4 MoE",
                Verb::kRequired);
  verb.Text("--output", options->imported.output, "DIR", "Folder to make", Verb::kRequired);
  verb.Flag("--force", options->imported.replace, "Replace an import that DIR has already");
  verb.OutputForm("-o");
  verb.Does([options] { return RunImport(*options); });
}

}  // namespace

void AddCheckpointVerbs(CLI::App& app, Invocation& invocation) {
  CLI::App& group =
      AddVerbGroup(app, "checkpoint", "Inspect, verify, export and import checkpoints");
  AddInspect(group, invocation);
  AddVerify(group, invocation);
  AddExport(group, invocation);
  AddImport(group, invocation);
}

}  // namespace paceline::cli
