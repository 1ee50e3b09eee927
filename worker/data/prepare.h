// `paceline data prepare`: text files into a corpus for training and one for validation.
// Each file is a document. The validation text is the last part of the text as a whole, cut at a
// line's end: held-out text that the model has not seen, not a sample from between.
// Invariant: equal inputs and options give equal bytes. The output appears whole or not at all.
// Threading: functions from any thread; two preparations of one output exclude each other by the
// output's existence alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"
#include "worker/data/corpus_manifest.h"

namespace paceline {

struct PrepareOptions {
  std::vector<std::string> inputs;  // text, plain or gzip-compressed
  std::string output;               // gets the folders train and, with a fraction, valid
  std::string tokenizer = "bytes";  // or "sentencepiece:MODEL"
  double valid_fraction = 0.05;     // of the text's bytes, in [0, 1); 0: no validation corpus
  std::int64_t shard_tokens = std::int64_t{1} << 28;
  bool force = false;  // replace train and valid of an output that has them
  std::string source;  // for the manifest; "": the inputs' file names
  std::string licence;
  std::string program_folder;  // of paceline-sentencepiece; "": beside this program
};

struct PreparedCorpus {
  std::string folder;  // empty: none was asked for
  CorpusManifest manifest;
  double unigram_entropy = 0;  // of its own token frequencies, nats a token
};

struct PrepareReport {
  std::int64_t text_bytes = 0;
  PreparedCorpus train;
  PreparedCorpus valid;
};

// kInvalidArgument, kNotFound: names the option or file. kAlreadyExists: `output` is not empty
// and `force` is off. kResourceExhausted: the disk is full.
absl::StatusOr<PrepareReport> PrepareCorpus(const PrepareOptions& options);

// Entropy of the frequencies `counts`, in nats; 0 where all are 0.
double EntropyOf(const std::vector<std::int64_t>& counts);

}  // namespace paceline
