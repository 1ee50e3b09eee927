// Carries out what the coordinator does to files (manifests, checkpoints, summaries) on one
// thread, in the order it was asked: the loop never waits for a slow disk.
// Invariant: jobs run one at a time, in order; the queue is bounded, and who fills it waits.
// Threading: any thread; jobs run on the worker's own thread and must not enqueue.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace paceline {

class FileWorker {
 public:
  explicit FileWorker(std::size_t jobs_max = 1024);
  // Runs what is queued, then joins.
  ~FileWorker();

  // Waits while the queue is full.
  void Enqueue(std::function<void()> job);
  // Waits until nothing is queued or running.
  void Drain();

 private:
  void Run();

  const std::size_t jobs_max_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;
  bool running_ = false;  // a job, now
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace paceline
