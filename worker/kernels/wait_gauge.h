// Whether a thread waits in a stream: for an event, or for the stream's end. A thread attaches a
// gauge to itself, and streams keep it while they let that thread wait.
// Threading: attached to one thread at a time; waiting() from any thread.
#pragma once

#include <atomic>

namespace paceline {

class WaitGauge {
 public:
  bool waiting() const { return waiting_.load(std::memory_order_relaxed); }

  // The calling thread's waits show in `gauge` for as long as this exists.
  class Attached {
   public:
    explicit Attached(WaitGauge& gauge) : former_(current_) { current_ = &gauge; }
    ~Attached() { current_ = former_; }
    Attached(const Attached&) = delete;
    Attached& operator=(const Attached&) = delete;

   private:
    WaitGauge* const former_;
  };

  // The calling thread waits for as long as this exists.
  class Waiting {
   public:
    Waiting() : gauge_(current_) { Set(true); }
    ~Waiting() { Set(false); }
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;

   private:
    void Set(bool waiting) {
      if (gauge_ != nullptr) gauge_->waiting_.store(waiting, std::memory_order_relaxed);
    }
    WaitGauge* const gauge_;
  };

 private:
  inline static thread_local WaitGauge* current_ = nullptr;
  std::atomic<bool> waiting_{false};
};

}  // namespace paceline
