// nodes, drain, undrain: who serves a run, and who shall not.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <utility>
#include <vector>

#include "common/status.h"
#include "launch/cli/coordinator_client.h"
#include "launch/cli/format.h"
#include "launch/cli/run_view.h"
#include "launch/cli/status_json.h"
#include "launch/cli/summary.h"
#include "launch/cli/verb.h"
#include "nlohmann/json.hpp"

namespace paceline::cli {
namespace {

struct Options : CommonOptions {
  std::string run;
  std::string node;
  std::string reason;
};

std::string NodeStateName(v1::NodeState state) {
  switch (state) {
    case v1::NODE_STATE_TRAINING:
      return "training";
    case v1::NODE_STATE_SPARE:
      return "spare";
    case v1::NODE_STATE_IDLE:
      return "idle";
    case v1::NODE_STATE_ENDING:
      return "ending";
    case v1::NODE_STATE_DRAINING:
      return "draining";
    case v1::NODE_STATE_DRAINED:
      return "drained";
    case v1::NODE_STATE_QUARANTINED:
      return "quarantined";
    case v1::NODE_STATE_LOST:
      return "lost";
    default:
      return "unknown";  // of a newer coordinator
  }
}

// The coordinator of the run that is meant, which must be alive: nodes are its members.
absl::StatusOr<std::unique_ptr<CoordinatorClient>> ClientOf(const RunFolder& folder) {
  absl::StatusOr<std::unique_ptr<CoordinatorClient>> client = CoordinatorClient::ForFolder(folder);
  if (!absl::IsUnavailable(client.status())) return client;
  ASSIGN_OR_RETURN(const RunView view, ViewRunFolder(folder));
  return absl::InvalidArgumentError("run " + folder.run_id + " is not running (it is " +
                                    view.State() + "), so it has no nodes; `paceline ps` lists " +
                                    "the runs");
}

absl::StatusOr<ExitCode> RunNodes(const Options& options) {
  ASSIGN_OR_RETURN(const RunFolder folder, FindRunFolder(options.run_dir, options.run));
  ASSIGN_OR_RETURN(const auto client, ClientOf(folder));
  ASSIGN_OR_RETURN(const v1::ListNodesResponse response, client->ListNodes());
  std::vector<TableRow> rows = {{"NODE", "STATE", "SLOTS", "RANKS", "FAILURES", "HOST", "REASON"}};
  nlohmann::json nodes = nlohmann::json::array();
  for (const v1::NodeStatus& node : response.nodes()) {
    rows.push_back({node.name(), NodeStateName(node.state()), std::to_string(node.slots()),
                    std::to_string(node.ranks()), std::to_string(node.failures()), node.host(),
                    node.reason()});
    nodes.push_back({{"name", node.name()},
                     {"state", NodeStateName(node.state())},
                     {"host", node.host()},
                     {"slots", node.slots()},
                     {"ranks", node.ranks()},
                     {"run_id", node.run_id()},
                     {"failures", node.failures()},
                     {"reason", node.reason()},
                     {"incarnation", node.incarnation()},
                     {"metrics_address", node.metrics_address()}});
  }
  if (options.json) {
    PrintJson({{"run_id", folder.run_id}, {"nodes", std::move(nodes)}});
  } else {
    std::fputs(FormatTable(rows).c_str(), stdout);
  }
  return ExitCode::kDone;
}

absl::StatusOr<ExitCode> RunDrain(const Options& options) {
  ASSIGN_OR_RETURN(const RunFolder folder, FindRunFolder(options.run_dir, options.run));
  ASSIGN_OR_RETURN(const auto client, ClientOf(folder));
  v1::DrainNodeRequest request;
  request.set_request_id(MakeRequestId());
  request.set_node(options.node);
  request.set_reason(options.reason);
  RETURN_IF_ERROR(client->DrainNode(request));
  if (options.json) {
    PrintJson({{"run_id", folder.run_id}, {"node", options.node}, {"drained", true}});
  } else {
    std::printf(
        "%s gets no new work; ranks on it move at a checkpoint, which is asked for\n"
        "next: %s\n",
        options.node.c_str(), VerbCommand("nodes", folder, options.run_dir).c_str());
  }
  return ExitCode::kDone;
}

absl::StatusOr<ExitCode> RunUndrain(const Options& options) {
  ASSIGN_OR_RETURN(const RunFolder folder, FindRunFolder(options.run_dir, options.run));
  ASSIGN_OR_RETURN(const auto client, ClientOf(folder));
  v1::UndrainNodeRequest request;
  request.set_request_id(MakeRequestId());
  request.set_node(options.node);
  RETURN_IF_ERROR(client->UndrainNode(request));
  if (options.json) {
    PrintJson({{"run_id", folder.run_id}, {"node", options.node}, {"drained", false}});
  } else {
    std::printf("%s may get work again\n", options.node.c_str());
  }
  return ExitCode::kDone;
}

void RunOption(Verb& verb, Options& options) {
  verb.Text("--run", options.run, "RUN",
            "The run that the node serves: its id, a prefix of it, or latest; not needed where "
            "there is one run alone");
}

}  // namespace

void AddNodeVerbs(CLI::App& app, Invocation& invocation) {
  auto nodes = std::make_shared<Options>();
  Verb list(app, invocation,
            {.name = "nodes",
             .help = "List the nodes of a run: what each does, its failures in the last hour, and "
                     "why it gets no work",
             .examples = {"paceline nodes", "paceline nodes latest -o json"}},
            *nodes);
  list.RunArgument(nodes->run);
  list.OutputForm();
  list.Does([nodes] { return RunNodes(*nodes); });

  auto drain = std::make_shared<Options>();
  Verb away(app, invocation,
            {.name = "drain",
             .help = "Give a node no more work. A run on it moves at a checkpoint, onto a spare or "
                     "to fewer nodes; no step is lost",
             .examples = {"paceline drain node-2",
                          "paceline drain node-2 --run latest --reason \"new fan\""}},
            *drain);
  away.Argument("NODE", drain->node, "The node's name, as `paceline nodes` lists it",
                Verb::kRequired);
  RunOption(away, *drain);
  away.Text("--reason", drain->reason, "TEXT", "Why, for whoever looks at it later");
  away.OutputForm();
  away.Does([drain] { return RunDrain(*drain); });

  auto undrain = std::make_shared<Options>();
  Verb back(app, invocation,
            {.name = "undrain",
             .help = "Give a drained or quarantined node work again. A run that had to go on with "
                     "fewer nodes takes it in at its next checkpoint",
             .examples = {"paceline undrain node-2", "paceline undrain node-2 --run latest"}},
            *undrain);
  back.Argument("NODE", undrain->node, "The node's name, as `paceline nodes` lists it",
                Verb::kRequired);
  RunOption(back, *undrain);
  back.OutputForm();
  back.Does([undrain] { return RunUndrain(*undrain); });
}

}  // namespace paceline::cli
