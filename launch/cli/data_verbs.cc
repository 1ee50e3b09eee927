#include <cstdint>
#include <limits>
#include <memory>
#include <string>

#include "common/status.h"
#include "launch/cli/data.h"
#include "launch/cli/verb.h"

namespace paceline::cli {
namespace {

struct PrepareVerb : CommonOptions {
  DataPrepareOptions data;
};

struct InspectVerb : CommonOptions {
  DataInspectOptions data;
};

absl::StatusOr<ExitCode> RunPrepare(const PrepareVerb& options) {
  DataPrepareOptions data = options.data;
  data.json = options.json;
  RETURN_IF_ERROR(RunDataPrepare(data));
  return ExitCode::kDone;
}

absl::StatusOr<ExitCode> RunInspect(const InspectVerb& options) {
  DataInspectOptions data = options.data;
  data.json = options.json;
  RETURN_IF_ERROR(RunDataInspect(data));
  return ExitCode::kDone;
}

void AddPrepare(CLI::App& data, Invocation& invocation) {
  auto options = std::make_shared<PrepareVerb>();
  Verb verb(data, invocation,
            {.name = "prepare",
             .help = "Make a corpus for training and one for validation from text",
             .examples = {"paceline data prepare --input book.txt --output corpus",
                          "paceline data prepare --input a.txt b.txt.gz --output corpus "
                          "--valid-fraction 0.02",
                          "paceline data prepare --input book.txt --output corpus --tokenizer "
                          "sentencepiece:model.spm"}},
            *options);
  PrepareOptions& prepare = options->data.prepare;
  verb.Texts("--input", prepare.inputs, "FILE", "Text files, plain or gzip-compressed",
             Verb::kRequired);
  verb.Text("--output", prepare.output, "DIR", "Folder that gets train/ and valid/",
            Verb::kRequired);
  verb.Text("--tokenizer", prepare.tokenizer, "NAME", "bytes or sentencepiece:MODEL");
  verb.Real("--valid-fraction", prepare.valid_fraction, {0, 1}, "F",
            "Part of the text held out for validation, its end; 0: none");
  verb.Integer("--shard-tokens", prepare.shard_tokens,
               {1, std::numeric_limits<std::int64_t>::max()}, "N", "Tokens of a shard at most");
  verb.Text("--source", prepare.source, "TEXT", "Where the text is from, for the manifest");
  verb.Text("--licence", prepare.licence, "TEXT", "The text's licence, for the manifest");
  verb.Flag("--force", prepare.force, "Replace a corpus that --output has already");
  verb.OutputForm("-o");
  verb.Does([options] { return RunPrepare(*options); });
}

void AddInspect(CLI::App& data, Invocation& invocation) {
  auto options = std::make_shared<InspectVerb>();
  Verb verb(data, invocation,
            {.name = "inspect",
             .help = "Say what a corpus is, and check it",
             .examples = {"paceline data inspect corpus/train",
                          "paceline data inspect shard.bin --verify --sequence-length 256 -o "
                          "json"}},
            *options);
  verb.Argument("PATH", options->data.path,
                "A corpus folder, or a token file (.bin, .idx, Megatron or llm.c)",
                Verb::kRequired);
  verb.Integer("--sequence-length", options->data.sequence_length, {0, 1 << 20}, "N",
               "Count the samples of this length; 0: do not");
  verb.Flag("--verify", options->data.verify, "Read all of it: digests and every token");
  verb.OutputForm();
  verb.Does([options] { return RunInspect(*options); });
}

}  // namespace

void AddDataVerbs(CLI::App& app, Invocation& invocation) {
  CLI::App& data = AddVerbGroup(app, "data", "Prepare and inspect training data");
  AddPrepare(data, invocation);
  AddInspect(data, invocation);
}

}  // namespace paceline::cli
