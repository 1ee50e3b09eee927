// Writes the lines of steps.jsonl and evals.jsonl on a thread of its own: a slow disk holds up
// neither the agent's loop nor training.
//
//   loop --Append--> queue --> writer: LineFile --> on_written --> the loop's mailbox
//
// A file is open only while lines for it wait, so that other machines of a shared file system see
// them, and nothing needs to be told when a run ends.
// Invariant: lines are written in the order they were appended, and on_written tells of each in
// that order; at most `lines_max` wait.
// Threading: Append and Finish from one thread; on_written is called on the writer's own.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "common/status.h"

namespace paceline {

class RecordWriter {
 public:
  // `on_written` gets the number of a line and whether the system has taken it. It must own what
  // it touches: see Finish.
  using OnWritten = std::function<void(std::uint64_t number, absl::Status status)>;

  RecordWriter(std::size_t lines_max, OnWritten on_written);
  // Finish with a second's patience.
  ~RecordWriter();
  RecordWriter(const RecordWriter&) = delete;
  RecordWriter& operator=(const RecordWriter&) = delete;

  // Never waits. kResourceExhausted: `lines_max` lines wait, and this one is dropped.
  // `unless_step` above 0: not written where the file's last line is of that step or a later one.
  absl::Status Append(std::string path, std::string line, std::uint64_t number,
                      std::int64_t unless_step = 0);

  // Takes no more lines and waits until all are written, at most `patience`. kDeadlineExceeded:
  // the disk has not taken them. What waits is dropped then, and the thread, which nothing can
  // call out of the disk, is left to end by itself.
  absl::Status Finish(std::chrono::milliseconds patience);

 private:
  struct State;
  static void Run(State& state);

  std::shared_ptr<State> state_;  // shared with the thread, which a stuck disk may keep
};

}  // namespace paceline
