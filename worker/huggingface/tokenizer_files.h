// The tokenizer's files in an exported model's folder.
// Threading: any thread.
#pragma once

#include <string>
#include <vector>

#include "common/status.h"

namespace paceline::huggingface {

struct NamedFile {
  std::string name;
  std::string content;
};

// `name`: "bytes": a tokenizer.json that AutoTokenizer reads, of which token b is byte b;
// "sentencepiece:FILE": the model as tokenizer.model, FILE relative to `folder`; else a file, which
// keeps its name. kNotFound: no such file.
absl::StatusOr<std::vector<NamedFile>> TokenizerFiles(const std::string& name,
                                                      const std::string& folder);

}  // namespace paceline::huggingface
