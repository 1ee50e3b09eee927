#include "launch/cli/verb.h"

#include <utility>

#include "CLI/CLI.hpp"

namespace paceline::cli {
namespace {

void Describe(CLI::Option& option, const std::string& type, Verb::Need need) {
  option.type_name(type);
  if (need == Verb::kRequired) option.required();
}

}  // namespace

Verb::Verb(CLI::App& parent, Invocation& invocation, const VerbText& text, CommonOptions& options)
    : app_(*parent.add_subcommand(text.name, text.help)),
      invocation_(invocation),
      options_(options) {
  std::string footer = "examples:";
  for (const std::string& example : text.examples) footer += "\n  " + example;
  app_.footer(footer);
  app_.add_option("--run-dir", options.run_dir, "Folder that holds the runs' folders")
      ->capture_default_str()
      ->type_name("DIR");
}

void Verb::Argument(const std::string& name, std::string& value, const std::string& help, Need need,
                    const std::vector<std::string>& choices) {
  CLI::Option* option = app_.add_option(name, value, help);
  Describe(*option, "", need);
  if (!choices.empty()) option->check(CLI::IsMember(choices));
}

void Verb::RunArgument(std::string& value) {
  Argument("RUN", value,
           "Run id, the beginning of one, \"latest\", or a path to a run's folder; may be left out "
           "when there is one run alone",
           kOptional);
}

void Verb::Text(const std::string& names, std::string& value, const std::string& type,
                const std::string& help, Need need) {
  CLI::Option* option = app_.add_option(names, value, help);
  if (!value.empty()) option->capture_default_str();
  Describe(*option, type, need);
}

void Verb::Texts(const std::string& names, std::vector<std::string>& values,
                 const std::string& type, const std::string& help, Need need) {
  Describe(*app_.add_option(names, values, help), type, need);
}

void Verb::Integer(const std::string& names, std::int64_t& value, Bounds<std::int64_t> bounds,
                   const std::string& type, const std::string& help) {
  app_.add_option(names, value, help)
      ->capture_default_str()
      ->check(CLI::Range(bounds.minimum, bounds.maximum))
      ->type_name(type);
}

void Verb::Integer(const std::string& names, std::optional<std::int64_t>& value,
                   Bounds<std::int64_t> bounds, const std::string& type, const std::string& help) {
  app_.add_option(names, value, help)
      ->check(CLI::Range(bounds.minimum, bounds.maximum))
      ->type_name(type);
}

void Verb::Real(const std::string& names, double& value, Bounds<double> bounds,
                const std::string& type, const std::string& help) {
  app_.add_option(names, value, help)
      ->capture_default_str()
      ->check(CLI::Range(bounds.minimum, bounds.maximum))
      ->type_name(type);
}

void Verb::Flag(const std::string& names, bool& value, const std::string& help) {
  app_.add_flag(names, value, help);
}

void Verb::Sets(std::vector<std::string>& values, const std::string& help) {
  app_.add_option("--set", values, help)->type_name("KEY=VALUE")->allow_extra_args(false);
}

void Verb::OutputForm(const std::string& names) {
  app_.add_option_function<std::string>(
          names,
          [this_json = &options_.json](const std::string& form) { *this_json = form == "json"; },
          "text, or json: one JSON object alone on stdout")
      ->check(CLI::IsMember({"text", "json"}))
      ->type_name("FORM");
}

void Verb::Does(std::function<absl::StatusOr<ExitCode>()> action) {
  app_.callback([&invocation = invocation_, &options = options_, action = std::move(action)] {
    invocation.json = options.json;
    invocation.action = action;
  });
}

CLI::App& AddVerbGroup(CLI::App& app, const std::string& name, const std::string& help) {
  CLI::App& group = *app.add_subcommand(name, help);
  group.require_subcommand(1);
  return group;
}

}  // namespace paceline::cli
