#include "worker/data/tokenizer.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/process.h"
#include "worker/data/sentencepiece_protocol.h"

extern char** environ;

namespace paceline {
namespace {

constexpr std::string_view kSentencePiecePrefix = "sentencepiece:";
constexpr std::int64_t kReplySecondsMax = 120;

class BytesTokenizer : public Tokenizer {
 public:
  std::int64_t vocab_size() const override { return 256; }
  std::optional<std::int32_t> end_of_document() const override { return std::nullopt; }
  absl::StatusOr<std::vector<std::int32_t>> Encode(std::string_view text) override {
    const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
    return std::vector<std::int32_t>(bytes, bytes + text.size());
  }
  absl::StatusOr<std::string> Decode(std::span<const std::int32_t> tokens) override {
    std::string text;
    for (const std::int32_t token : tokens) {
      if (token < 0 || token > 255) {
        return absl::InvalidArgumentError(
            absl::StrCat("token ", token, " is outside the vocabulary of 256 bytes"));
      }
      text.push_back(static_cast<char>(token));
    }
    return text;
  }
};

// Speaks to a paceline-sentencepiece of its own.
class SentencePieceTokenizer : public Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Start(const std::string& model,
                                                          const std::string& program) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
      return absl::UnavailableError(absl::StrCat("socketpair: ", std::strerror(errno)));
    }
    std::unique_ptr<SentencePieceTokenizer> tokenizer(new SentencePieceTokenizer(model, ends[0]));
    const timeval limit{.tv_sec = kReplySecondsMax, .tv_usec = 0};
    (void)::setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    (void)::setsockopt(ends[0], SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDIN_FILENO);
    std::string program_argument = program, model_argument = model;
    char* argv[] = {program_argument.data(), model_argument.data(), nullptr};
    const int error =
        ::posix_spawn(&tokenizer->child_, program.c_str(), &actions, nullptr, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    ::close(ends[1]);
    if (error != 0) {
      tokenizer->child_ = -1;
      return absl::NotFoundError(absl::StrCat(
          "cannot start ", program, ", which reads SentencePiece models: ", std::strerror(error)));
    }
    ASSIGN_OR_RETURN(const std::string hello, tokenizer->Receive());
    if (hello.size() != sizeof(tokenizer->hello_)) return tokenizer->Broken("a malformed hello");
    std::memcpy(&tokenizer->hello_, hello.data(), hello.size());
    return tokenizer;
  }

  // The child ends by itself at the end of its input; the signal is for one that is stuck.
  ~SentencePieceTokenizer() override {
    ::close(socket_);
    if (child_ <= 0) return;
    ::kill(child_, SIGKILL);
    while (::waitpid(child_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }

  std::int64_t vocab_size() const override { return hello_.vocab_size; }
  std::optional<std::int32_t> end_of_document() const override {
    return hello_.end < 0 ? std::nullopt : std::optional(hello_.end);
  }

  absl::StatusOr<std::vector<std::int32_t>> Encode(std::string_view text) override {
    ASSIGN_OR_RETURN(const std::string reply,
                     Ask(SentencePieceOp::kEncode, text.data(), text.size()));
    std::vector<std::int32_t> tokens(reply.size() / sizeof(std::int32_t));
    std::memcpy(tokens.data(), reply.data(), tokens.size() * sizeof(std::int32_t));
    return tokens;
  }

  absl::StatusOr<std::string> Decode(std::span<const std::int32_t> tokens) override {
    return Ask(SentencePieceOp::kDecode, tokens.data(), tokens.size_bytes());
  }

 private:
  SentencePieceTokenizer(std::string model, int socket)
      : model_(std::move(model)), socket_(socket) {}

  absl::Status Broken(const std::string& what) const {
    return absl::InternalError(absl::StrCat(model_, ": paceline-sentencepiece: ", what));
  }

  absl::StatusOr<std::string> Ask(SentencePieceOp op, const void* payload, std::size_t bytes) {
    if (bytes > kBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat(bytes, " bytes for the tokenizer at once; it takes ", kBytesMax));
    }
    const SentencePieceFrame frame{static_cast<std::uint32_t>(op),
                                   static_cast<std::uint32_t>(bytes)};
    RETURN_IF_ERROR(SendAll(&frame, sizeof(frame)));
    RETURN_IF_ERROR(SendAll(payload, bytes));
    return Receive();
  }

  absl::Status SendAll(const void* from, std::size_t count) {
    const auto* at = static_cast<const char*>(from);
    while (count > 0) {
      const ssize_t sent = ::send(socket_, at, count, MSG_NOSIGNAL);
      if (sent < 0 && errno == EINTR) continue;
      if (sent <= 0) return Broken(std::strerror(errno));
      at += sent;
      count -= static_cast<std::size_t>(sent);
    }
    return absl::OkStatus();
  }

  absl::Status ReceiveAll(void* to, std::size_t count) {
    auto* at = static_cast<char*>(to);
    while (count > 0) {
      const ssize_t got = ::recv(socket_, at, count, 0);
      if (got < 0 && errno == EINTR) continue;
      if (got == 0) return Broken("it ended unexpectedly");
      if (got < 0) return Broken(std::strerror(errno));
      at += got;
      count -= static_cast<std::size_t>(got);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> Receive() {
    SentencePieceFrame frame;
    RETURN_IF_ERROR(ReceiveAll(&frame, sizeof(frame)));
    if (frame.bytes > kSentencePiecePayloadMax) return Broken("a reply beyond its limit");
    std::string payload(frame.bytes, '\0');
    RETURN_IF_ERROR(ReceiveAll(payload.data(), payload.size()));
    if (frame.code == static_cast<std::uint32_t>(SentencePieceStatus::kOk)) return payload;
    return absl::InvalidArgumentError(absl::StrCat(model_, ": ", payload));
  }

  std::string model_;
  int socket_;
  pid_t child_ = -1;
  struct {
    std::int32_t vocab_size = 0;
    std::int32_t end = -1;
  } hello_;
};

}  // namespace

std::unique_ptr<Tokenizer> MakeBytesTokenizer() { return std::make_unique<BytesTokenizer>(); }

std::string SentencePieceFile(const std::string& name) {
  return name.starts_with(kSentencePiecePrefix) ? name.substr(kSentencePiecePrefix.size()) : "";
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& name,
                                                         const std::string& folder,
                                                         const std::string& program_folder) {
  namespace fs = std::filesystem;
  if (name == "bytes") return MakeBytesTokenizer();
  const std::string file = SentencePieceFile(name);
  if (file.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer \"", name, "\": it must be \"bytes\" or \"sentencepiece:MODEL\""));
  }
  const fs::path model = fs::path(folder) / file;
  if (std::error_code ignored; !fs::is_regular_file(model, ignored)) {
    return absl::NotFoundError(absl::StrCat(model.string(), ": there is no such tokenizer model"));
  }
  const fs::path programs = program_folder.empty() ? ProgramFolder() : program_folder;
  return SentencePieceTokenizer::Start(model.string(),
                                       (programs / "paceline-sentencepiece").string());
}

}  // namespace paceline
