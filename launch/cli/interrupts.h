// Ctrl-C and SIGTERM as something that a loop waits for.
// Threading: made once, on the main thread, before others start; count() from any thread.
#pragma once

namespace paceline::cli {

// While one lives, SIGINT, SIGTERM and SIGHUP (the terminal went away) are counted instead of
// ending the process, and SIGPIPE and SIGXFSZ are ignored: a run whose output nobody reads, or
// whose log has reached a size limit, goes on.
class Interrupts {
 public:
  Interrupts();
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  int count() const;
  // Readable once a signal has come since the last Drain.
  int event_fd() const;
  void Drain();
};

}  // namespace paceline::cli
