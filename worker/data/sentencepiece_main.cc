// paceline-sentencepiece MODEL: encodes and decodes for its parent; sentencepiece_protocol.h has
// the words. Standard input is the socket, in both directions.

#include <sentencepiece_processor.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "worker/data/sentencepiece_protocol.h"

namespace paceline {
namespace {

constexpr int kSocket = 0;

// False at the end of the stream or an error: either way the parent is gone.
bool Receive(void* to, std::size_t count) {
  auto* at = static_cast<char*>(to);
  while (count > 0) {
    const ssize_t got = ::recv(kSocket, at, count, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += got;
    count -= static_cast<std::size_t>(got);
  }
  return true;
}

bool Send(const void* from, std::size_t count) {
  const auto* at = static_cast<const char*>(from);
  while (count > 0) {
    const ssize_t sent = ::send(kSocket, at, count, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    at += sent;
    count -= static_cast<std::size_t>(sent);
  }
  return true;
}

bool Reply(SentencePieceStatus status, const void* payload, std::size_t bytes) {
  const SentencePieceFrame frame{static_cast<std::uint32_t>(status),
                                 static_cast<std::uint32_t>(bytes)};
  return Send(&frame, sizeof(frame)) && Send(payload, bytes);
}

bool ReplyError(const std::string& text) {
  return Reply(SentencePieceStatus::kError, text.data(), text.size());
}

bool Encode(const sentencepiece::SentencePieceProcessor& processor, const std::string& text) {
  std::vector<int> ids;
  const auto status = processor.Encode(text, &ids);
  if (!status.ok()) return ReplyError(status.ToString());
  static_assert(sizeof(int) == sizeof(std::int32_t));
  return Reply(SentencePieceStatus::kOk, ids.data(), ids.size() * sizeof(int));
}

bool Decode(const sentencepiece::SentencePieceProcessor& processor, const std::string& payload) {
  std::vector<int> ids(payload.size() / sizeof(int));
  std::memcpy(ids.data(), payload.data(), ids.size() * sizeof(int));
  for (const int id : ids) {
    if (id < 0 || id >= processor.GetPieceSize()) {
      return ReplyError("token " + std::to_string(id) + " is outside the vocabulary of " +
                        std::to_string(processor.GetPieceSize()));
    }
  }
  std::string text;
  const auto status = processor.Decode(ids, &text);
  if (!status.ok()) return ReplyError(status.ToString());
  return Reply(SentencePieceStatus::kOk, text.data(), text.size());
}

int Main(const char* model) {
  sentencepiece::SentencePieceProcessor processor;
  if (!processor.Load(model).ok()) {  // its text names a line of the library
    ReplyError("it is no SentencePiece model, or a damaged one");
    return 2;
  }
  const std::int32_t hello[2] = {processor.GetPieceSize(), processor.eos_id()};
  if (!Reply(SentencePieceStatus::kOk, hello, sizeof(hello))) return 70;
  SentencePieceFrame frame;
  while (Receive(&frame, sizeof(frame))) {
    if (frame.bytes > kSentencePiecePayloadMax) return 70;
    std::string payload(frame.bytes, '\0');
    if (!Receive(payload.data(), payload.size())) return 70;
    const bool replied = frame.code == static_cast<std::uint32_t>(SentencePieceOp::kEncode)
                             ? Encode(processor, payload)
                             : Decode(processor, payload);
    if (!replied) return 70;
  }
  return 0;
}

}  // namespace
}  // namespace paceline

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr,
                 "usage: paceline-sentencepiece MODEL\n"
                 "`paceline` starts this program itself, with a socket as its input.\n");
    return 2;
  }
  return paceline::Main(argv[1]);
}
