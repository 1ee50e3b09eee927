// One verb of the command line, without the parser's header: that is large, and every verb
// includes this.
//
//   auto options = std::make_shared<Options>();
//   Verb verb(app, invocation, {.name = "plan", .help = "...", .examples = {"paceline plan F"}},
//             *options);
//   verb.Argument("FILE", options->file, "Run file (TOML)", Verb::kRequired);
//   verb.Does([options] { return RunPlan(*options); });
//
// Invariant: every verb takes --run-dir; what a value is given to outlives the parsing (the
// action holds it).
// Threading: the main thread.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/exit_code.h"
#include "launch/cli/run_folder.h"
#include "launch/cli/verbs.h"

namespace paceline::cli {

// What every verb takes.
struct CommonOptions {
  std::string run_dir = kDefaultRunDir;
  bool json = false;
};

struct VerbText {
  std::string name;
  std::string help;
  std::vector<std::string> examples;
};

template <typename Value>
struct Bounds {
  Value minimum;
  Value maximum;
};

class Verb {
 public:
  enum Need { kOptional, kRequired };

  // `options` outlives the parsing, as do all values given to the methods below.
  Verb(CLI::App& parent, Invocation& invocation, const VerbText& text, CommonOptions& options);

  // Positional. `choices`: all that it may be; empty: anything.
  void Argument(const std::string& name, std::string& value, const std::string& help, Need need,
                const std::vector<std::string>& choices = {});
  // "RUN", which every verb about one run takes alike.
  void RunArgument(std::string& value);

  // `names`: "-n,--lines"; `type` stands for the value in the help. A default that is not empty
  // is shown.
  void Text(const std::string& names, std::string& value, const std::string& type,
            const std::string& help, Need need = kOptional);
  // Several values at once and several times.
  void Texts(const std::string& names, std::vector<std::string>& values, const std::string& type,
             const std::string& help, Need need = kOptional);
  void Integer(const std::string& names, std::int64_t& value, Bounds<std::int64_t> bounds,
               const std::string& type, const std::string& help);
  void Integer(const std::string& names, std::optional<std::int64_t>& value,
               Bounds<std::int64_t> bounds, const std::string& type, const std::string& help);
  void Real(const std::string& names, double& value, Bounds<double> bounds, const std::string& type,
            const std::string& help);
  void Flag(const std::string& names, bool& value, const std::string& help);
  // One value each time, any number of times: --set.
  void Sets(std::vector<std::string>& values, const std::string& help);
  // -o text|json. Not "--output" where that is another option's name.
  void OutputForm(const std::string& names = "-o,--output");

  void Does(std::function<absl::StatusOr<ExitCode>()> action);

 private:
  CLI::App& app_;
  Invocation& invocation_;
  CommonOptions& options_;
};

// A verb that is followed by one of its own: "data prepare".
CLI::App& AddVerbGroup(CLI::App& app, const std::string& name, const std::string& help);

}  // namespace paceline::cli
