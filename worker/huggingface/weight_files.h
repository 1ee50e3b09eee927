// The weights of a model folder of Hugging Face: model.safetensors, or the files that
// model.safetensors.index.json names. Sizes and names in them come from outside and are checked.
// Invariant: every tensor listed lies within its file.
// Threading: one thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"
#include "worker/checkpoint/open_file.h"
#include "worker/checkpoint/safetensors.h"

namespace paceline::huggingface {

class WeightFiles {
 public:
  // kNotFound: no weights. kInvalidArgument: names the file and what is wrong in it.
  static absl::StatusOr<WeightFiles> Open(const std::string& folder);

  // By name, whatever file they lie in.
  const std::map<std::string, SafetensorsTensor>& tensors() const { return tensors_; }

  // Calls take(values) for pieces of tensor `name`, from its first value to its last, as float32.
  // kInvalidArgument: it is neither F32, F16 nor BF16.
  absl::Status Read(const std::string& name,
                    const std::function<absl::Status(std::span<const float>)>& take) const;

 private:
  absl::Status AddFile(const std::string& path);

  std::vector<OpenFile> files_;
  std::map<std::string, SafetensorsTensor> tensors_;
  std::map<std::string, std::size_t> file_of_;
};

// The nearest bfloat16, ties to even; a NaN stays one.
std::uint16_t BFloat16Of(float value);

}  // namespace paceline::huggingface
