#include "launch/cli/completion.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"

namespace paceline::cli {
namespace {

struct Flag {
  std::vector<std::string> names;  // "-o", "--output"
  std::string help;
  bool takes_value = false;
};

// One verb, or a verb and its own verb ("data prepare").
struct Node {
  std::vector<std::string> path;
  std::string help;
  std::vector<Flag> flags;
  bool takes_run = false;  // its positional is a run
  bool takes_shell = false;
};

std::string FirstSentence(const std::string& help) {
  const std::size_t end = help.find_first_of(".;:\n");
  std::string text = help.substr(0, end);
  // The scripts put it between single quotes and brackets.
  std::string safe;
  for (const char c : text) {
    if (std::string("'\"[]\\`$").find(c) == std::string::npos) safe += c;
  }
  return safe;
}

std::vector<Node> NodesOf(const CLI::App& app, const std::vector<std::string>& path) {
  std::vector<Node> nodes;
  for (const CLI::App* verb : app.get_subcommands([](const CLI::App*) { return true; })) {
    Node node{.path = path, .help = FirstSentence(verb->get_description())};
    node.path.push_back(verb->get_name());
    for (const CLI::Option* option : verb->get_options()) {
      if (option->get_positional()) {
        node.takes_run |= option->get_name() == "RUN";
        node.takes_shell |= option->get_name() == "SHELL";
        continue;
      }
      Flag flag{.help = FirstSentence(option->get_description()),
                .takes_value = option->get_items_expected_max() > 0};
      for (const std::string& name : option->get_snames()) flag.names.push_back("-" + name);
      for (const std::string& name : option->get_lnames()) flag.names.push_back("--" + name);
      node.flags.push_back(std::move(flag));
    }
    std::vector<Node> below = NodesOf(*verb, node.path);
    nodes.push_back(std::move(node));
    nodes.insert(nodes.end(), below.begin(), below.end());
  }
  return nodes;
}

std::string Joined(const std::vector<std::string>& words, const std::string& separator) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : separator) + word;
  return text;
}

// Words that may stand after `path`: the verbs below it.
std::vector<std::string> VerbsBelow(const std::vector<Node>& nodes,
                                    const std::vector<std::string>& path) {
  std::vector<std::string> names;
  for (const Node& node : nodes) {
    if (node.path.size() == path.size() + 1 &&
        std::equal(path.begin(), path.end(), node.path.begin())) {
      names.push_back(node.path.back());
    }
  }
  return names;
}

// The verbs that are followed by one of their own, as a pattern of bash and zsh: "data|checkpoint".
std::string GroupPattern(const std::vector<Node>& nodes) {
  std::vector<std::string> groups;
  for (const Node& node : nodes) {
    if (!VerbsBelow(nodes, node.path).empty()) groups.push_back(node.path.back());
  }
  return Joined(groups, "|");
}

std::string BashScript(const std::vector<Node>& nodes) {
  std::string script =
      "# bash completion for paceline:  source <(paceline completion bash)\n"
      "_paceline() {\n"
      "  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}\n"
      "  local path= word i\n"
      "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
      "    word=${COMP_WORDS[i]}\n"
      "    [[ $word == -* ]] && break\n"
      "    path=\"${path:+$path }$word\"\n"
      "    [[ $path == @(" +
      GroupPattern(nodes) +
      ") ]] || break\n"
      "  done\n"
      "  case $previous in\n"
      "    -o) COMPREPLY=($(compgen -W 'text json' -- \"$current\")); return ;;\n"
      "    --run-dir|--checkpoint|--input)\n"
      "      COMPREPLY=($(compgen -f -- \"$current\")); return ;;\n"
      "  esac\n"
      "  local words=\n"
      "  case $path in\n"
      "    '') words='" +
      Joined(VerbsBelow(nodes, {}), " ") + " --help --version' ;;\n";
  for (const Node& node : nodes) {
    std::vector<std::string> words = VerbsBelow(nodes, node.path);
    for (const Flag& flag : node.flags) {
      words.insert(words.end(), flag.names.begin(), flag.names.end());
    }
    if (node.takes_shell) words.insert(words.end(), {"bash", "zsh", "fish"});
    script += "    '" + Joined(node.path, " ") + "') words='" + Joined(words, " ") + "'";
    if (node.takes_run)
      script += "; [[ $current == -* ]] || words=\"latest $(ls runs 2>/dev/null)\"";
    script += " ;;\n";
  }
  script +=
      "  esac\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
      "}\n"
      "complete -o default -F _paceline paceline\n";
  return script;
}

std::string ZshScript(const std::vector<Node>& nodes) {
  std::string script =
      "#compdef paceline\n"
      "# zsh completion for paceline:  source <(paceline completion zsh)\n"
      "_paceline() {\n"
      "  local verb=${words[2]}\n"
      "  [[ $verb == (" +
      GroupPattern(nodes) +
      ") && CURRENT -gt 3 ]] && verb=\"$verb ${words[3]}\"\n"
      "  if (( CURRENT == 2 )); then\n"
      "    local -a verbs=(\n";
  for (const Node& node : nodes) {
    if (node.path.size() == 1) script += "      '" + node.path[0] + ":" + node.help + "'\n";
  }
  script +=
      "    )\n"
      "    _describe verb verbs\n"
      "    return\n"
      "  fi\n"
      "  case $verb in\n";
  for (const Node& node : nodes) {
    script += "    '" + Joined(node.path, " ") + "')\n";
    const std::vector<std::string> below = VerbsBelow(nodes, node.path);
    if (!below.empty()) {
      script += "      compadd -- " + Joined(below, " ") + " ;;\n";
      continue;
    }
    script += "      _arguments";
    for (const Flag& flag : node.flags) {
      for (const std::string& name : flag.names) {
        script += " \\\n        '*" + name + "[" + flag.help + "]" +
                  (flag.takes_value ? ":value:_files" : "") + "'";
      }
    }
    if (node.takes_run) {
      script += " \\\n        '*:run:(latest $(ls runs 2>/dev/null))'";
    } else if (node.takes_shell) {
      script += " \\\n        '*:shell:(bash zsh fish)'";
    } else {
      script += " \\\n        '*:file:_files'";
    }
    script += " ;;\n";
  }
  script +=
      "  esac\n"
      "}\n"
      "compdef _paceline paceline\n";
  return script;
}

std::string FishScript(const std::vector<Node>& nodes) {
  std::string script =
      "# fish completion for paceline:  paceline completion fish | source\n"
      "complete -c paceline -f\n";
  for (const Node& node : nodes) {
    std::string condition = "__fish_use_subcommand";
    if (node.path.size() > 1) condition = "__fish_seen_subcommand_from " + node.path[0];
    script += "complete -c paceline -n '" + condition + "' -a " + node.path.back() + " -d '" +
              node.help + "'\n";
    const std::string seen =
        "complete -c paceline -n '__fish_seen_subcommand_from " + node.path.back() + "'";
    for (const Flag& flag : node.flags) {
      script += seen;
      for (const std::string& name : flag.names) {
        script += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
      }
      script += (flag.takes_value ? " -r -F" : "") + std::string(" -d '") + flag.help + "'\n";
    }
    if (node.takes_run) {
      script += seen + " -a 'latest (ls runs 2>/dev/null)'\n";
    } else if (node.takes_shell) {
      script += seen + " -a 'bash zsh fish'\n";
    } else if (node.path.back() == "run" || node.path.back() == "plan" ||
               node.path.back() == "inspect") {
      script += seen + " -F\n";
    }
  }
  return script;
}

}  // namespace

absl::StatusOr<std::string> CompletionScript(const CLI::App& app, const std::string& shell) {
  const std::vector<Node> nodes = NodesOf(app, {});
  if (shell == "bash") return BashScript(nodes);
  if (shell == "zsh") return ZshScript(nodes);
  if (shell == "fish") return FishScript(nodes);
  return absl::InvalidArgumentError("completion " + shell + ": must be bash, zsh or fish");
}

}  // namespace paceline::cli
