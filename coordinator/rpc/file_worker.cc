#include "coordinator/rpc/file_worker.h"

#include <utility>

namespace paceline {

FileWorker::FileWorker(std::size_t jobs_max) : jobs_max_(jobs_max), thread_([this] { Run(); }) {}

FileWorker::~FileWorker() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void FileWorker::Enqueue(std::function<void()> job) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return jobs_.size() < jobs_max_; });
  jobs_.push_back(std::move(job));
  changed_.notify_all();
}

void FileWorker::Drain() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return jobs_.empty() && !running_; });
}

void FileWorker::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return !jobs_.empty() || ending_; });
    if (jobs_.empty()) return;
    const std::function<void()> job = std::move(jobs_.front());
    jobs_.pop_front();
    running_ = true;
    lock.unlock();
    job();
    lock.lock();
    running_ = false;
    changed_.notify_all();
  }
}

}  // namespace paceline
