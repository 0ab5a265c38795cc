#include "tests/bench/transfer/plain_socket.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"

namespace oscarkv::bench {
namespace {

absl::Status Failed(const char* what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

struct SocketAddress {
  sockaddr_storage storage = {};
  socklen_t bytes = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

absl::StatusOr<SocketAddress> Parse(const std::string& endpoint) {
  SocketAddress address;
  if (absl::StartsWith(endpoint, "unix:")) {
    const std::string path = endpoint.substr(5);
    auto* local = reinterpret_cast<sockaddr_un*>(&address.storage);
    if (path.size() >= sizeof(local->sun_path))
      return absl::InvalidArgumentError(absl::StrCat("too long: ", endpoint));
    local->sun_family = AF_UNIX;
    std::memcpy(local->sun_path, path.data(), path.size());
    address.bytes = sizeof(sockaddr_un);
    return address;
  }
  auto* inet = reinterpret_cast<sockaddr_in*>(&address.storage);
  const size_t colon = endpoint.rfind(':');
  uint32_t port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(endpoint.substr(colon + 1), &port) ||
      inet_pton(AF_INET, endpoint.substr(0, colon).c_str(), &inet->sin_addr) != 1) {
    return absl::InvalidArgumentError(absl::StrCat("not an address: ", endpoint));
  }
  inet->sin_family = AF_INET;
  inet->sin_port = htons(static_cast<uint16_t>(port));
  address.bytes = sizeof(sockaddr_in);
  return address;
}

void SetNoDelay(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));  // fails on a Unix socket: no matter
}

}  // namespace

PlainSocket::~PlainSocket() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<PlainSocket> PlainSocket::Connect(const std::string& endpoint) {
  OSCARKV_ASSIGN_OR_RETURN(const SocketAddress address, Parse(endpoint));
  PlainSocket made(socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (made.fd_ < 0 || connect(made.fd_, address.get(), address.bytes) != 0)
    return Failed("connect");
  SetNoDelay(made.fd_);
  return made;
}

absl::StatusOr<PlainSocket> PlainSocket::Listen(const std::string& endpoint) {
  OSCARKV_ASSIGN_OR_RETURN(const SocketAddress address, Parse(endpoint));
  PlainSocket made(socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (made.fd_ < 0 || bind(made.fd_, address.get(), address.bytes) != 0 ||
      listen(made.fd_, SOMAXCONN) != 0) {
    return Failed("listen");
  }
  return made;
}

absl::StatusOr<PlainSocket> PlainSocket::Accept() const {
  PlainSocket made(accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC));
  if (made.fd_ < 0) return Failed("accept");
  SetNoDelay(made.fd_);
  return made;
}

std::string PlainSocket::Address(const std::string& endpoint) const {
  if (absl::StartsWith(endpoint, "unix:")) return endpoint;
  sockaddr_in bound = {};
  socklen_t bytes = sizeof(bound);
  getsockname(fd_, reinterpret_cast<sockaddr*>(&bound), &bytes);
  return absl::StrCat(endpoint.substr(0, endpoint.rfind(':')), ":", ntohs(bound.sin_port));
}

absl::Status PlainSocket::Send(ByteView bytes) const {
  while (!bytes.empty()) {
    const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0) return Failed("send");
    bytes = bytes.subspan(static_cast<size_t>(sent));
  }
  return absl::OkStatus();
}

absl::StatusOr<size_t> PlainSocket::ReceiveSome(MutableByteView room) const {
  const ssize_t got = recv(fd_, room.data(), room.size(), 0);
  if (got < 0) return Failed("recv");
  if (got == 0) return absl::UnavailableError("the other side has closed");
  return static_cast<size_t>(got);
}

absl::Status PlainSocket::Receive(MutableByteView room) const {
  while (!room.empty()) {
    OSCARKV_ASSIGN_OR_RETURN(const size_t got, ReceiveSome(room));
    room = room.subspan(got);
  }
  return absl::OkStatus();
}

}  // namespace oscarkv::bench
