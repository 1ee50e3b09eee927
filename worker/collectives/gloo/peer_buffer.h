// One end of the transfers with one peer: a Gloo buffer whose waits end in a value instead of an
// exception, and can be woken.
// Invariant: the transfers of one direction complete in the order they were posted in.
// Threading: one thread posts and waits; Wake may come from any thread.
#pragma once

#include <gloo/transport/context.h>
#include <gloo/transport/unbound_buffer.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <limits>
#include <memory>
#include <string>

#include "common/clock.h"

namespace paceline {

class PeerBuffer {
 public:
  enum class Outcome { kDone, kWoken, kFailed, kTimedOut };
  enum class Direction { kRecv, kSend };

  // The buffer spans the whole address space: an offset into it is an address, so it serves
  // every transfer, and an exchange creates nothing. May throw what Gloo throws.
  explicit PeerBuffer(gloo::transport::Context& context)
      : buffer_(context.createUnboundBuffer(nullptr, std::numeric_limits<std::size_t>::max())) {}

  // Starts a transfer. Throws what Gloo throws when the connection has ended.
  void Post(Direction direction, int peer, std::uint64_t slot, const void* data,
            std::size_t bytes) {
    const auto offset = reinterpret_cast<std::size_t>(data);
    direction == Direction::kRecv ? buffer_->recv(peer, slot, offset, bytes)
                                  : buffer_->send(peer, slot, offset, bytes);
  }

  // kFailed: the connection has ended; error() says how. kTimedOut: Gloo has now closed every
  // connection of this rank, so wait only with a deadline that ends the operation.
  Outcome Wait(Direction direction, SteadyTime deadline) {
    // Gloo adds the time left to the clock: keep far from where that overflows.
    constexpr std::chrono::milliseconds kLongest = std::chrono::hours(24 * 365 * 100);
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    const auto limit = std::clamp(left, std::chrono::milliseconds(0), kLongest);
    try {
      const bool done = direction == Direction::kRecv ? buffer_->waitRecv(nullptr, limit)
                                                      : buffer_->waitSend(nullptr, limit);
      return done ? Outcome::kDone : Outcome::kWoken;
    } catch (const std::exception& error) {
      error_ = error.what();
      return std::chrono::steady_clock::now() >= deadline ? Outcome::kTimedOut : Outcome::kFailed;
    }
  }

  // Ends the wait that goes on, or else the next one.
  void Wake() {
    buffer_->abortWaitRecv();
    buffer_->abortWaitSend();
  }

  // Of the last wait that failed.
  const std::string& error() const { return error_; }

 private:
  std::unique_ptr<gloo::transport::UnboundBuffer> buffer_;
  std::string error_;
};

}  // namespace paceline
