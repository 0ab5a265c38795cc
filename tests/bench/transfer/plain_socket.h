// Blocking sockets, for peers that need no more.
#ifndef OSCARKV_TESTS_BENCH_TRANSFER_PLAIN_SOCKET_H_
#define OSCARKV_TESTS_BENCH_TRANSFER_PLAIN_SOCKET_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/base/bytes.h"

namespace oscarkv::bench {

// Owns a connected or listening socket.
class PlainSocket {
 public:
  // "127.0.0.1:7411" or "unix:/run/oscarkv.sock". A port of 0 picks one.
  static absl::StatusOr<PlainSocket> Connect(const std::string& endpoint);
  static absl::StatusOr<PlainSocket> Listen(const std::string& endpoint);

  PlainSocket(PlainSocket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  PlainSocket& operator=(PlainSocket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~PlainSocket();

  absl::StatusOr<PlainSocket> Accept() const;
  // Where it listens, with the port that was picked.
  std::string Address(const std::string& endpoint) const;
  absl::Status Send(ByteView bytes) const;
  absl::Status Send(std::string_view text) const { return Send(AsBytes(text)); }
  // All of `room`. kUnavailable: the other side has closed.
  absl::Status Receive(MutableByteView room) const;
  // What there is, one byte at least; how many.
  absl::StatusOr<size_t> ReceiveSome(MutableByteView room) const;

 private:
  explicit PlainSocket(int fd) : fd_(fd) {}
  int fd_ = -1;
};

}  // namespace oscarkv::bench

#endif  // OSCARKV_TESTS_BENCH_TRANSFER_PLAIN_SOCKET_H_
