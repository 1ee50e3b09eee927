#include "worker/agent/record_writer.h"

#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "worker/agent/records.h"

namespace paceline {
namespace {

absl::Status Write(std::map<std::string, LineFile>& files, const std::string& path,
                   const std::string& line, std::int64_t unless_step) {
  auto found = files.find(path);
  if (found == files.end()) {
    ASSIGN_OR_RETURN(LineFile file, LineFile::Open(path));
    found = files.emplace(path, std::move(file)).first;
  }
  if (unless_step > 0) {
    ASSIGN_OR_RETURN(const std::int64_t last, found->second.LastStep());
    if (last >= unless_step) return absl::OkStatus();
  }
  return found->second.Append(line);
}

}  // namespace

struct RecordWriter::State {
  struct Line {
    std::string path;
    std::string text;
    std::uint64_t number;
    std::int64_t unless_step;
  };

  State(std::size_t most, OnWritten told) : lines_max(most), on_written(std::move(told)) {}

  const std::size_t lines_max;
  const OnWritten on_written;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Line> lines;
  bool finishing = false;
  bool abandoned = false;
  bool done = false;  // nothing is written or told any more
  std::thread thread;
};

RecordWriter::RecordWriter(std::size_t lines_max, OnWritten on_written)
    : state_(std::make_shared<State>(lines_max, std::move(on_written))) {
  state_->thread = std::thread([state = state_] { Run(*state); });
}

RecordWriter::~RecordWriter() { (void)Finish(std::chrono::seconds(1)); }

void RecordWriter::Run(State& state) {
  std::map<std::string, LineFile> open;
  std::unique_lock lock(state.mutex);
  while (true) {
    if (state.lines.empty()) {
      lock.unlock();
      open.clear();
      lock.lock();
    }
    state.changed.wait(lock, [&] { return state.finishing || !state.lines.empty(); });
    if (state.lines.empty()) break;
    const State::Line line = std::move(state.lines.front());
    state.lines.pop_front();
    lock.unlock();
    absl::Status status = Write(open, line.path, line.text, line.unless_step);
    lock.lock();
    if (state.abandoned) return;
    lock.unlock();
    state.on_written(line.number, std::move(status));
    lock.lock();
  }
  state.done = true;
  state.changed.notify_all();
}

absl::Status RecordWriter::Append(std::string path, std::string line, std::uint64_t number,
                                  std::int64_t unless_step) {
  const std::lock_guard lock(state_->mutex);
  if (state_->lines.size() >= state_->lines_max) {
    return absl::ResourceExhaustedError(path + ": the disk has not taken the " +
                                        std::to_string(state_->lines_max) + " lines before it");
  }
  state_->lines.push_back({std::move(path), std::move(line), number, unless_step});
  state_->changed.notify_all();
  return absl::OkStatus();
}

absl::Status RecordWriter::Finish(std::chrono::milliseconds patience) {
  if (!state_->thread.joinable()) return absl::OkStatus();
  std::unique_lock lock(state_->mutex);
  state_->finishing = true;
  state_->changed.notify_all();
  if (state_->changed.wait_for(lock, patience, [&] { return state_->done; })) {
    lock.unlock();
    state_->thread.join();
    return absl::OkStatus();
  }
  const std::size_t lost = state_->lines.size();
  state_->lines.clear();
  state_->abandoned = true;
  state_->thread.detach();
  return absl::DeadlineExceededError("the disk has not taken the last " + std::to_string(lost + 1) +
                                     " lines of the run's records");
}

}  // namespace paceline
