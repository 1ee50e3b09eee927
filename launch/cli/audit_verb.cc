#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/files.h"
#include "common/manifest.h"
#include "common/status.h"
#include "coordinator/storage/history.h"
#include "launch/cli/format.h"
#include "launch/cli/lineage_audit.h"
#include "launch/cli/sample_audit.h"
#include "launch/cli/status_json.h"
#include "launch/cli/verb.h"
#include "nlohmann/json.hpp"
#include "worker/data/corpus.h"

namespace paceline::cli {
namespace {

using nlohmann::json;

constexpr std::int64_t kManifestBytesMax = std::int64_t{1} << 30;
constexpr std::size_t kGenerationsListed = 16;

struct Options : CommonOptions {
  std::string run;
  bool whole = false;
};

struct Audit {
  Lineage lineage;
  std::int64_t manifests = 0;  // there, and they agree
  std::vector<SourceDraws> sources;
  std::string digest;
};

absl::StatusOr<Lineage> ReadLineage(const RunFolder& folder) {
  std::error_code error;
  if (!std::filesystem::is_directory(folder.CoordinatorState(), error)) {
    return absl::NotFoundError("run " + folder.run_id +
                               " has no journal: it was never submitted to a coordinator");
  }
  LineageAudit audit(folder.run_id);
  RETURN_IF_ERROR(storage::ReadHistory(
                      folder.CoordinatorState(),
                      [&audit](const v1::StateSnapshot& snapshot) { return audit.Take(snapshot); },
                      [&audit](const v1::Fact& fact) { return audit.Take(fact); })
                      .status());
  return audit.Finish();
}

// The checkpoint's manifest, wherever the run's folder lies now.
std::string ManifestPath(const RunFolder& folder, const Lineage& lineage,
                         const CommittedRange& range) {
  const std::string then = lineage.request.run_dir() + "/";
  const std::string path = range.folder + "/manifest.json";
  return path.starts_with(then) ? absl::StrCat(folder.path, "/", path.substr(then.size())) : path;
}

// How many manifests are there.
absl::StatusOr<std::int64_t> CheckManifests(const RunFolder& folder, const Lineage& lineage) {
  std::int64_t there = 0;
  for (const CommittedRange& range : lineage.ranges) {
    const std::string path = ManifestPath(folder, lineage, range);
    const absl::StatusOr<std::string> text = ReadFile(path, kManifestBytesMax);
    if (absl::IsNotFound(text.status())) continue;  // retired, or not yet in its place
    RETURN_IF_ERROR(text.status());
    const absl::StatusOr<Manifest> manifest = ParseManifest(*text);
    RETURN_IF_ERROR(Annotate(manifest.status(), path));
    RETURN_IF_ERROR(Annotate(CheckManifest(lineage, range, *manifest), path));
    ++there;
  }
  return there;
}

absl::StatusOr<std::vector<SourceDraws>> CheckSamples(const Lineage& lineage) {
  const RunFile& file = lineage.file;
  ASSIGN_OR_RETURN(const std::unique_ptr<SampleOrder> order,
                   SampleOrder::Open(file.data.train, file.train.sequence_length,
                                     file.model.vocab_size, file.run.seed, /*shuffle=*/true));
  if (order->digest() != lineage.request.corpus_digest()) {
    return absl::DataLossError(absl::StrCat(
        "[data] train has the digest ", order->digest(), ", and the run was trained on ",
        lineage.request.corpus_digest(), ": the corpus has changed. Restore it"));
  }
  std::vector<std::int64_t> samples;
  for (const DataSource& source : file.data.train) {
    ASSIGN_OR_RETURN(const std::unique_ptr<Corpus> corpus, Corpus::Open(source.path));
    samples.push_back(corpus->Samples(file.train.sequence_length));
  }
  const std::int64_t batch = file.train.global_batch_size;
  return ProveDraws([&order](std::int64_t draw) { return order->Locate(draw); }, samples,
                    lineage.proven_from * batch, lineage.committed_step * batch);
}

absl::StatusOr<Audit> MakeAudit(const RunFolder& folder) {
  Audit audit;
  ASSIGN_OR_RETURN(audit.lineage, ReadLineage(folder));
  ASSIGN_OR_RETURN(audit.manifests, CheckManifests(folder, audit.lineage));
  ASSIGN_OR_RETURN(audit.sources, CheckSamples(audit.lineage));
  audit.digest = ProofDigest(audit.lineage, audit.sources);
  return audit;
}

json ToJson(const RunFolder& folder, const Audit& audit) {
  const Lineage& lineage = audit.lineage;
  json sources = json::array();
  for (std::size_t i = 0; i < audit.sources.size(); ++i) {
    const SourceDraws& source = audit.sources[i];
    sources.push_back({{"path", lineage.file.data.train[i].path},
                       {"samples", source.samples},
                       {"whole_epochs", source.whole_epochs},
                       {"samples_of_last_epoch", source.in_last}});
  }
  const std::int64_t batch = lineage.file.train.global_batch_size;
  return {
      {"run_id", folder.run_id},
      {"first_step", lineage.proven_from},
      {"committed_step", lineage.committed_step},
      {"complete", lineage.proven_from == 0},
      {"snapshot_fact", lineage.snapshot_index == 0 ? json(nullptr) : json(lineage.snapshot_index)},
      {"samples", (lineage.committed_step - lineage.proven_from) * batch},
      {"sources", std::move(sources)},
      {"generations", lineage.generations},
      {"checkpoints", lineage.ranges.size()},
      {"manifests", audit.manifests},
      {"rolled_back_steps", lineage.rolled_back_steps},
      {"rolled_back_tokens", lineage.rolled_back_tokens},
      {"granted_until", lineage.granted_until},
      {"corpus_digest", lineage.request.corpus_digest()},
      {"ledger_digest", lineage.ledger_digest},
      {"digest", audit.digest}};
}

void Print(const char* name, const std::string& value) {
  std::printf("%-12s%s\n", name, value.c_str());
}

std::string GenerationsText(const std::vector<std::uint64_t>& generations) {
  if (generations.empty()) return "none";
  if (generations.size() <= kGenerationsListed) return absl::StrJoin(generations, ", ");
  return absl::StrCat(generations.front(), " to ", generations.back());
}

void PrintAudit(const RunFolder& folder, const Audit& audit) {
  const Lineage& lineage = audit.lineage;
  const std::int64_t batch = lineage.file.train.global_batch_size;
  const std::int64_t samples = (lineage.committed_step - lineage.proven_from) * batch;
  Print("run", folder.run_id);
  Print("proven", absl::StrCat("steps ", lineage.proven_from, " to ", lineage.committed_step, ", ",
                               FormatNumberOf(samples, "sample"), ": each counts once"));
  if (lineage.proven_from > 0) {
    Print("not proven",
          absl::StrCat("steps 0 to ", lineage.proven_from, ": their facts are gone; the snapshot ",
                       "after fact ", lineage.snapshot_index, " vouches for them"));
  }
  for (std::size_t i = 0; i < audit.sources.size(); ++i) {
    const SourceDraws& source = audit.sources[i];
    Print("source", absl::StrCat(lineage.file.data.train[i].path, ": ",
                                 FormatNumberOf(source.whole_epochs, "whole epoch"), " of ",
                                 FormatNumberOf(source.samples, "sample"), ", ", source.in_last,
                                 " of the one begun"));
  }
  Print("generations", GenerationsText(lineage.generations));
  Print("checkpoints", absl::StrCat(lineage.ranges.size(), " committed, ", audit.manifests,
                                    " still there, whose manifests agree"));
  Print("rolled back", absl::StrCat(FormatNumberOf(lineage.rolled_back_steps, "step"), ", ",
                                    FormatCount(static_cast<double>(lineage.rolled_back_tokens)),
                                    " tokens: done, and not counted"));
  if (lineage.granted_until > lineage.committed_step) {
    Print("uncommitted", absl::StrCat("steps ", lineage.committed_step, " to ",
                                      lineage.granted_until, " are granted and do not count yet"));
  }
  Print("ledger", lineage.ledger_digest.empty() ? "empty" : lineage.ledger_digest);
  Print("digest", audit.digest);
}

absl::StatusOr<ExitCode> RunAudit(const Options& options) {
  ASSIGN_OR_RETURN(const RunFolder folder, FindRunFolder(options.run_dir, options.run));
  const absl::StatusOr<Audit> audit = MakeAudit(folder);
  RETURN_IF_ERROR(Annotate(audit.status(), "the audit of run " + folder.run_id));
  const Lineage& lineage = audit->lineage;
  if (options.whole && lineage.proven_from > 0) {
    return absl::DataLossError(absl::StrCat(
        "the audit of run ", folder.run_id, ": steps 0 to ", lineage.proven_from,
        " cannot be proven, their facts are gone; without --whole the snapshot after fact ",
        lineage.snapshot_index, " vouches for them"));
  }
  if (options.json) {
    PrintJson(ToJson(folder, *audit));
  } else {
    PrintAudit(folder, *audit);
  }
  return ExitCode::kDone;
}

}  // namespace

void AddAuditVerb(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<Options>();
  Verb verb(app, invocation,
            {.name = "audit",
             .help = "Prove from a run's journal, corpus and checkpoints that every sample of the "
                     "committed steps counts exactly once; exit code 70 and the reason where one "
                     "does not",
             .examples = {"paceline audit latest", "paceline audit quickstart-2024 --whole",
                          "paceline audit latest -o json"}},
            *options);
  verb.RunArgument(options->run);
  verb.Flag("--whole", options->whole,
            "Fail where the journal's history does not reach back to the run's first step");
  verb.OutputForm();
  verb.Does([options] { return RunAudit(*options); });
}

}  // namespace paceline::cli
