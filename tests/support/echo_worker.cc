// A worker that trains nothing: it speaks the worker's protocol, and does what the text in
// RankStart.run_file says. It takes paceline-worker's flags.
//   finish  three steps (rank 0), one checkpoint part, RankFinished
//   steps   a step every few milliseconds until told to end
//   fail    RankFailed, a line on stderr, exit code 70
//   deaf    neither Abort nor Exit moves it
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>

#include "worker/agent/session_client.h"

namespace paceline {
namespace {

using std::chrono::milliseconds;

class EchoWorker {
 public:
  explicit EchoWorker(AgentSession& session) : session_(session) {}

  int Run() {
    while (true) {
      const auto command = session_.Next(milliseconds(training_ ? 5 : 1000));
      if (command.ok()) {
        if (const int code = Obey(*command); code >= 0) return code;
      } else if (!absl::IsDeadlineExceeded(command.status())) {
        return 75;
      }
      if (training_ && !finished_) Step();
    }
  }

 private:
  int Obey(const v1::WorkerCommand& command) {
    if (command.has_start()) {
      start_ = command.start();
      std::printf("pid %d\n", ::getpid());
      std::fflush(stdout);
      v1::WorkerMessage message;
      *message.mutable_ready()->mutable_key() = start_.key();
      message.mutable_ready()->set_rank(start_.rank());
      message.mutable_ready()->set_address("address of " + std::to_string(start_.rank()));
      session_.Send(std::move(message));
    } else if (command.has_peers()) {
      step_ = start_.start_step();
      training_ = true;
    } else if (command.has_exit() && start_.run_file() != "deaf") {
      return 0;
    }
    return training_ && start_.run_file() == "fail" ? Fail() : -1;
  }

  void Step() {
    ++step_;
    v1::WorkerMessage progress;
    progress.mutable_progress()->set_rank(start_.rank());
    progress.mutable_progress()->set_step(step_);
    progress.mutable_progress()->set_step_seconds(0.5 * static_cast<double>(step_));
    session_.Send(std::move(progress));
    if (start_.rank() == 0) {
      v1::WorkerMessage record;
      record.mutable_step()->set_step(step_);
      record.mutable_step()->set_loss(1.0 / static_cast<double>(step_ * 3));
      record.mutable_step()->set_tokens(64);
      session_.Send(std::move(record));
    }
    if (start_.run_file() == "finish" && step_ == start_.start_step() + 3) Finish();
  }

  void Finish() {
    finished_ = true;
    v1::WorkerMessage part;
    *part.mutable_checkpoint_part()->mutable_key() = start_.key();
    part.mutable_checkpoint_part()->set_rank(start_.rank());
    part.mutable_checkpoint_part()->mutable_position()->set_step(step_);
    session_.Send(std::move(part));
    v1::WorkerMessage message;
    *message.mutable_finished()->mutable_key() = start_.key();
    message.mutable_finished()->set_rank(start_.rank());
    message.mutable_finished()->set_step(step_);
    session_.Send(std::move(message));
  }

  int Fail() {
    std::fprintf(stderr, "about to fail\n");
    v1::WorkerMessage message;
    *message.mutable_failed()->mutable_key() = start_.key();
    message.mutable_failed()->set_rank(start_.rank());
    message.mutable_failed()->set_status_code(static_cast<int>(absl::StatusCode::kDataLoss));
    message.mutable_failed()->set_error("a shard is torn");
    session_.Send(std::move(message));
    return 70;
  }

  AgentSession& session_;
  v1::RankStart start_;
  std::int64_t step_ = 0;
  bool training_ = false;
  bool finished_ = false;
};

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) {
  if (argc != 7 || std::strcmp(argv[1], "--agent-socket") != 0 ||
      std::strcmp(argv[3], "--seat") != 0 || std::strcmp(argv[5], "--address") != 0) {
    std::fprintf(stderr, "usage: echo_worker --agent-socket PATH --seat N --address IP\n");
    return 2;
  }
  const auto session =
      paceline::AgentSession::Connect(argv[2], std::stoi(argv[4]), std::chrono::seconds(5));
  if (!session.ok()) {
    std::fprintf(stderr, "%s\n", session.status().ToString().c_str());
    return 75;
  }
  return paceline::EchoWorker(**session).Run();
}
