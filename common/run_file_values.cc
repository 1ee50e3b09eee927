#include "common/run_file_values.h"

#include <cstdint>
#include <filesystem>
#include <sstream>
#include <utility>
#include <variant>
#include <vector>

namespace paceline::run_file {
namespace {

constexpr std::size_t kMaxShownBytes = 80;
constexpr std::size_t kMaxPathBytes = 4096;
constexpr std::size_t kMaxSources = 4096;

std::string TypeName(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::table:
      return "a table";
    case toml::node_type::array:
      return "a list";
    case toml::node_type::string:
      return "a string";
    case toml::node_type::integer:
      return "an integer";
    case toml::node_type::floating_point:
      return "a number with a fraction";
    case toml::node_type::boolean:
      return "a boolean";
    default:
      return "a date or time";
  }
}

bool IsName(const std::string& text) {
  const auto is_alphanumeric = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
  };
  if (text.empty() || text.size() > 64 || !is_alphanumeric(text[0])) return false;
  for (const char c : text) {
    if (!is_alphanumeric(c) && c != '-' && c != '_' && c != '.') return false;
  }
  return true;
}

bool IsCurrency(const std::string& text) {
  if (text.size() != 3) return false;
  for (const char c : text) {
    if (c < 'A' || c > 'Z') return false;
  }
  return true;
}

std::string Resolved(const std::string& path, const std::string& folder) {
  std::string joined = (std::filesystem::path(folder) / path).lexically_normal().string();
  while (joined.size() > 1 && joined.back() == '/') joined.pop_back();
  return joined;
}

// What is wrong with a path that is not empty; empty when nothing is.
std::string PathProblem(const std::string& path) {
  if (path.size() > kMaxPathBytes) return "is longer than 4096 bytes";
  for (const char c : path) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return "holds a control character";
  }
  return "";
}

class ValueReader {
 public:
  explicit ValueReader(Findings& findings) : findings_(findings) {}

  void Read(const Field& field, const Given& given) {
    const bool right_type = std::visit(
        [&](const auto& rule, auto* target) { return ReadAs(field, given, rule, target); },
        field.rule, field.target);
    if (!right_type) {
      findings_.Report(field.section, field.key,
                       "is " + TypeName(*given.node) + "; it must be " + AllowedText(field.rule));
    }
  }

 private:
  void RefuseValue(const Field& field) {
    findings_.Report(field.section, field.key, "it must be " + AllowedText(field.rule));
  }

  // Each returns false when the value has another type than the key. The schema pairs rules
  // with targets; the template below catches the pairs that it never makes.
  template <typename SomeRule, typename SomeTarget>
  bool ReadAs(const Field&, const Given&, const SomeRule&, SomeTarget*) {
    return false;
  }

  bool ReadAs(const Field& field, const Given& given, const IntegerRule& rule,
              std::int64_t* target) {
    if (!given.node->is_integer()) return false;
    const std::int64_t value = **given.node->as_integer();
    if (value < rule.minimum || value > rule.maximum) {
      RefuseValue(field);
    } else {
      *target = value;
    }
    return true;
  }

  bool ReadAs(const Field& field, const Given& given, const IntegerRule& rule,
              std::uint64_t* target) {
    std::int64_t value = 0;
    if (!ReadAs(field, given, rule, &value)) return false;
    *target = static_cast<std::uint64_t>(value);
    return true;
  }

  bool ReadAs(const Field& field, const Given& given, const RealRule& rule, double* target) {
    if (!given.node->is_number()) return false;
    const double value = *given.node->value<double>();
    // Written so that NaN is refused.
    const bool above = rule.minimum_excluded ? value > rule.minimum : value >= rule.minimum;
    const bool below = rule.maximum_excluded ? value < rule.maximum : value <= rule.maximum;
    if (!above || !below) {
      RefuseValue(field);
    } else {
      *target = value;
    }
    return true;
  }

  bool ReadAs(const Field&, const Given& given, const FlagRule&, bool* target) {
    if (!given.node->is_boolean()) return false;
    *target = **given.node->as_boolean();
    return true;
  }

  bool ReadAs(const Field& field, const Given& given, const NameRule&, std::string* target) {
    return ReadText(field, given, target, IsName);
  }

  bool ReadAs(const Field& field, const Given& given, const CurrencyRule&, std::string* target) {
    return ReadText(field, given, target, IsCurrency);
  }

  bool ReadText(const Field& field, const Given& given, std::string* target,
                bool (*is_allowed)(const std::string&)) {
    if (!given.node->is_string()) return false;
    const std::string& value = **given.node->as_string();
    if (!is_allowed(value)) {
      RefuseValue(field);
    } else {
      *target = value;
    }
    return true;
  }

  bool ReadAs(const Field& field, const Given& given, const ChoiceRule& rule, std::string* target) {
    if (!given.node->is_string()) return false;
    const std::string& value = **given.node->as_string();
    for (std::size_t i = 0; i < rule.choices.size(); ++i) {
      if (rule.choices[i] != value) continue;
      if (i >= rule.built) {
        ChoiceRule built = rule;
        built.choices.resize(rule.built);
        findings_.Report(field.section, field.key,
                         "is not available in this build; it must be " + AllowedText(built));
      } else {
        *target = value;
      }
      return true;
    }
    RefuseValue(field);
    return true;
  }

  bool ReadAs(const Field& field, const Given& given, const PathRule& rule, std::string* target) {
    if (!given.node->is_string()) return false;
    const std::string& value = **given.node->as_string();
    if (const std::string problem = PathProblem(value); !problem.empty()) {
      findings_.Report(field.section, field.key, problem);
    } else if (value.empty() && !rule.may_be_empty) {
      findings_.Report(field.section, field.key, "is empty; it must be a path");
    } else if (!value.empty() && (rule.resolve || given.by_override)) {
      *target = Resolved(value, given.folder);
    } else {
      *target = value;
    }
    return true;
  }

  bool ReadAs(const Field& field, const Given& given, const SourcesRule& rule,
              std::vector<DataSource>* target) {
    target->clear();
    if (given.node->is_string()) {
      const bool none = rule.may_be_empty && (**given.node->as_string()).empty();
      if (!none) ReadSource(field, given, *given.node, "", target);
      return true;
    }
    const toml::array* list = given.node->as_array();
    if (list == nullptr) return false;
    if (list->empty() && !rule.may_be_empty) {
      findings_.Report(field.section, field.key, "is empty; it must name at least one corpus");
    }
    if (list->size() > kMaxSources) {
      findings_.Report(field.section, field.key, "has more than 4096 entries");
      return true;
    }
    for (std::size_t i = 0; i < list->size(); ++i) {
      ReadSource(field, given, (*list)[i], "entry " + std::to_string(i + 1) + ": ", target);
    }
    return true;
  }

  void ReadSource(const Field& field, const Given& given, const toml::node& node,
                  const std::string& entry, std::vector<DataSource>* target) {
    const toml::node* path = &node;
    DataSource source;
    if (const toml::table* table = node.as_table()) {
      path = table->get("path");
      for (auto&& [key, value] : *table) {
        if (key.str() == "weight") {
          source.weight = value.value<double>().value_or(0.0);
          if (!value.is_number() || !(source.weight > 0 && source.weight <= 1e9)) {
            findings_.Report(field.section, field.key,
                             entry + "weight = " + ShownValue(value) +
                                 ": must be a number above 0 and at most 1e9");
          }
        } else if (key.str() != "path") {
          const std::string name(key.str());
          const std::string nearest = Nearest(name, {"path", "weight"});
          findings_.Report(field.section, field.key,
                           entry + name + ": there is no such key; " +
                               (nearest.empty() ? "there are path and weight"
                                                : "did you mean " + nearest + "?"));
        }
      }
    }
    if (path == nullptr || !path->is_string() || (**path->as_string()).empty()) {
      findings_.Report(field.section, field.key, entry + "it must be " + AllowedText(field.rule));
      return;
    }
    const std::string& text = **path->as_string();
    if (const std::string problem = PathProblem(text); !problem.empty()) {
      findings_.Report(field.section, field.key, entry + problem);
      return;
    }
    source.path = Resolved(text, given.folder);
    target->push_back(std::move(source));
  }

  Findings& findings_;
};

}  // namespace

void ReadValue(const Field& field, const Given& given, Findings& findings) {
  ValueReader(findings).Read(field, given);
}

std::string ShownValue(const toml::node& node) {
  std::ostringstream out;
  node.visit([&out](const auto& value) {
    if constexpr (toml::is_table<decltype(value)> || toml::is_array<decltype(value)>) {
      out << toml::toml_formatter{value};
    } else if constexpr (toml::is_floating_point<decltype(value)>) {
      out << RealText(value.get());
    } else if constexpr (toml::is_string<decltype(value)>) {
      out << QuotedText(value.get());
    } else {
      out << value.get();
    }
  });
  std::string text;
  for (const char c : out.str()) text += c == '\n' ? ' ' : c;
  if (node.is_boolean()) text = *node.value<bool>() ? "true" : "false";
  if (text.size() > kMaxShownBytes) text = text.substr(0, kMaxShownBytes) + "...";
  return text;
}

}  // namespace paceline::run_file
