#include "common/http_server.h"

#include <httplib.h>
#include <sys/socket.h>

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/address.h"

namespace paceline {
namespace {

constexpr int kThreads = 2;
constexpr std::size_t kWaitingMax = 64;
constexpr std::size_t kRequestBodyMax = 4096;
constexpr std::chrono::seconds kSocketTimeout{5};

// httplib's own pool queues without bound. Here a full queue holds up the accepting thread, so
// that further connections wait in the kernel's backlog, which is bounded too.
class BoundedTaskQueue : public httplib::TaskQueue {
 public:
  BoundedTaskQueue() {
    for (int i = 0; i < kThreads; ++i) threads_.emplace_back([this] { Run(); });
  }

  void enqueue(std::function<void()> task) override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return tasks_.size() < kWaitingMax || ended_; });
    tasks_.push_back(std::move(task));
    changed_.notify_all();
  }

  void shutdown() override {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  void Run() {
    while (true) {
      std::function<void()> task;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return !tasks_.empty() || ended_; });
        if (tasks_.empty()) return;
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      changed_.notify_all();
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool ended_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

struct HttpServer::Impl {
  httplib::Server server;
  std::map<std::string, HttpHandler> handlers;
  std::string address;
  std::thread listener;

  // Answers everything here, so that paths are compared and not matched as expressions.
  void Answer(const httplib::Request& request, httplib::Response& response) const {
    if (request.method != "GET" && request.method != "HEAD") {
      response.status = 405;
      response.set_header("Allow", "GET, HEAD");
      response.set_content("only GET is served here\n", "text/plain");
      return;
    }
    const auto handler = handlers.find(request.path);
    if (handler == handlers.end()) {
      response.status = 404;
      response.set_content("not found\n", "text/plain");
      return;
    }
    HttpResponse answer;
    try {
      answer = handler->second();
    } catch (const std::exception& error) {
      answer = {.status = 500, .body = absl::StrCat(error.what(), "\n")};
    }
    response.status = answer.status;
    response.set_content(answer.body, answer.content_type.c_str());
  }
};

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(
    const std::string& address, const std::map<std::string, HttpHandler>& handlers) {
  ASSIGN_OR_RETURN(Address parsed, ParseAddress("address", address));
  auto impl = std::make_unique<Impl>();
  impl->handlers = handlers;
  httplib::Server& server = impl->server;
  server.new_task_queue = [] { return new BoundedTaskQueue(); };  // httplib takes ownership.
  server.set_keep_alive_max_count(1);  // An idle scraper must not hold one of the few threads.
  server.set_read_timeout(kSocketTimeout);
  server.set_write_timeout(kSocketTimeout);
  server.set_payload_max_length(kRequestBodyMax);
  // httplib's default, SO_REUSEPORT, would let two programs share a port without a word.
  server.set_socket_options([](socket_t socket) {
    const int yes = 1;
    ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  });
  server.set_pre_routing_handler(
      [raw = impl.get()](const httplib::Request& request, httplib::Response& response) {
        raw->Answer(request, response);
        return httplib::Server::HandlerResponse::Handled;
      });

  errno = 0;
  if (parsed.port == 0) {
    parsed.port = server.bind_to_any_port(parsed.host);
  } else if (!server.bind_to_port(parsed.host, parsed.port)) {
    parsed.port = -1;
  }
  if (parsed.port < 0) {
    return absl::AlreadyExistsError(
        absl::StrCat("cannot listen on ", address, ": ",
                     errno != 0 ? std::strerror(errno) : "the address cannot be bound",
                     "; choose another port, or 0 for any"));
  }
  impl->address = parsed.ToString();
  impl->listener = std::thread([raw = impl.get()] { raw->server.listen_after_bind(); });
  // stop() is only heard by a server that runs already.
  while (!server.is_running()) std::this_thread::yield();
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

HttpServer::~HttpServer() {
  impl_->server.stop();
  impl_->listener.join();
}

const std::string& HttpServer::address() const { return impl_->address; }

}  // namespace paceline
