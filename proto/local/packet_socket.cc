#include "proto/local/packet_socket.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "kernels/base/status_macros.h"

namespace oscarkv {
namespace {

constexpr int kBacklog = 128;
constexpr int kNoDescriptorsPauseMs = 100;  // until some may have been closed
constexpr size_t kControlBytes = CMSG_SPACE(sizeof(int) * kPacketDescriptorsMax);

absl::Status SystemError(absl::StatusCode code, std::string_view what) {
  return absl::Status(
      code, absl::StrCat(absl::string_view(what.data(), what.size()), ": ", std::strerror(errno)));
}

absl::StatusOr<sockaddr_un> AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path))
    return absl::InvalidArgumentError(absl::StrCat("the path of a socket has 1..",
                                                   sizeof(address.sun_path) - 1, " bytes, found ",
                                                   path.size()));
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

const sockaddr* Generic(const sockaddr_un& address) {
  return reinterpret_cast<const sockaddr*>(&address);
}

Descriptor NewSocket() {
  return Descriptor(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

// Whether `path` is a socket of `uid`, or of root.
absl::Status CheckOwner(const std::string& path, uid_t uid) {
  struct stat found {};
  if (lstat(path.c_str(), &found) != 0) return SystemError(absl::StatusCode::kUnavailable, path);
  if (!S_ISSOCK(found.st_mode))
    return absl::PermissionDeniedError(absl::StrCat(path, " is not a socket"));
  if (found.st_uid == uid || found.st_uid == 0) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat(path, " belongs to user ", found.st_uid, ", expected user ", uid, " or root"));
}

// How long poll may wait, in ms rounded up.
int PollMs(absl::Time deadline) {
  constexpr int64_t kMsMax = 1 << 30;
  const absl::Duration left = deadline - absl::Now();
  if (left <= absl::ZeroDuration()) return 0;
  return static_cast<int>(
      std::min(absl::ToInt64Milliseconds(std::min(left, absl::Hours(24 * 365))) + 1, kMsMax));
}

// What the control messages of `message` carry.
std::vector<Descriptor> TakeDescriptors(msghdr& message) {
  std::vector<Descriptor> taken;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
       part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int number = -1;
      std::memcpy(&number, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
      taken.emplace_back(number);
    }
  }
  return taken;
}

}  // namespace

// --- PacketSocket ---

absl::StatusOr<PacketSocket> PacketSocket::Connect(const std::string& path, uid_t uid) {
  OSCARKV_ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  OSCARKV_RETURN_IF_ERROR(CheckOwner(path, uid));
  PacketSocket socket(NewSocket());
  if (!socket) return SystemError(absl::StatusCode::kUnavailable, "socket");
  if (connect(socket.descriptor_.number(), Generic(address), sizeof(address)) != 0)
    return SystemError(absl::StatusCode::kUnavailable, path);
  const uid_t found = socket.peer().uid;
  if (found == uid || found == 0) return socket;
  return absl::PermissionDeniedError(
      absl::StrCat("user ", found, " listens behind ", path, ", expected user ", uid, " or root"));
}

absl::Status PacketSocket::Send(std::string_view bytes, std::span<const int> descriptors) {
  if (bytes.size() > kPacketBytesMax || descriptors.size() > kPacketDescriptorsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("a packet of ", bytes.size(), " bytes and ", descriptors.size(),
                     " descriptors, at most ", kPacketBytesMax, " and ", kPacketDescriptorsMax));
  }
  iovec part{const_cast<char*>(bytes.data()), bytes.size()};  // NOLINT: sendmsg does not write
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[kControlBytes] = {};
  if (!descriptors.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size_bytes());
  }
  while (sendmsg(descriptor_.number(), &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
    if (errno != EINTR)
      return SystemError(absl::StatusCode::kUnavailable, "sending to the other end");
  }
  return absl::OkStatus();
}

absl::StatusOr<Packet> PacketSocket::Receive(absl::Time deadline, EagerWait* eager) {
  Packet packet;
  received_.resize(kPacketBytesMax);
  EagerWait::Look look(eager);
  for (;;) {
    iovec part{received_.data(), received_.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    alignas(cmsghdr) char control[kControlBytes];
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t bytes = recvmsg(descriptor_.number(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (bytes < 0 && (errno == EAGAIN || errno == EINTR)) {
      if (look.Again() && deadline > absl::Now()) continue;
      pollfd wait{descriptor_.number(), POLLIN, 0};
      const int ready = poll(&wait, 1, PollMs(deadline));
      if (ready < 0 && errno != EINTR) return SystemError(absl::StatusCode::kUnavailable, "poll");
      if (ready == 0) return absl::DeadlineExceededError("no packet came in time");
      continue;
    }
    if (bytes < 0) return SystemError(absl::StatusCode::kUnavailable, "recvmsg");
    look.Came();
    packet.descriptors = TakeDescriptors(message);
    // Every packet has bytes: none is the end of the connection.
    if (bytes == 0) return absl::UnavailableError("the other end has closed the connection");
    if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0)
      return absl::DataLossError("a packet with too many bytes or descriptors came");
    packet.bytes.assign(received_, 0, static_cast<size_t>(bytes));
    return packet;
  }
}

void PacketSocket::Shutdown() { shutdown(descriptor_.number(), SHUT_RDWR); }

ProcessId PacketSocket::peer() const {
  ucred found{};
  socklen_t bytes = sizeof(found);
  if (getsockopt(descriptor_.number(), SOL_SOCKET, SO_PEERCRED, &found, &bytes) != 0)
    return {.pid = 0, .uid = static_cast<uid_t>(-1)};
  return {.pid = found.pid, .uid = found.uid};
}

// --- PacketListener ---

absl::StatusOr<PacketListener> PacketListener::Listen(const std::string& path, mode_t mode) {
  OSCARKV_ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  struct stat found {};
  if (lstat(path.c_str(), &found) == 0) {
    if (!S_ISSOCK(found.st_mode))
      return absl::PermissionDeniedError(absl::StrCat(path, " is there, and is not a socket"));
    if (found.st_uid != geteuid())
      return absl::PermissionDeniedError(
          absl::StrCat(path, " belongs to user ", found.st_uid, ", this is user ", geteuid()));
    const Descriptor probe = NewSocket();
    // Refused is what nobody's socket is; one of another kind, or with no room, is somebody's.
    if (connect(probe.number(), Generic(address), sizeof(address)) == 0 || errno != ECONNREFUSED)
      return absl::UnavailableError(absl::StrCat(path, ": another process listens there"));
    if (unlink(path.c_str()) != 0) return SystemError(absl::StatusCode::kPermissionDenied, path);
  }
  Descriptor socket = NewSocket();
  if (!socket) return SystemError(absl::StatusCode::kUnavailable, "socket");
  // Before there is a file: nobody can connect while its mode is another.
  if (fchmod(socket.number(), mode & 0600) != 0)
    return SystemError(absl::StatusCode::kPermissionDenied, "fchmod");
  if (bind(socket.number(), Generic(address), sizeof(address)) != 0)
    return SystemError(absl::StatusCode::kUnavailable, path);
  // What the umask took from it.
  if (chmod(path.c_str(), mode) != 0 || listen(socket.number(), kBacklog) != 0) {
    const absl::Status error = SystemError(absl::StatusCode::kUnavailable, path);
    unlink(path.c_str());
    return error;
  }
  Descriptor stop(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  return PacketListener(path, std::move(socket), std::move(stop));
}

PacketListener::~PacketListener() {
  if (socket_) unlink(path_.c_str());
}

absl::StatusOr<PacketSocket> PacketListener::Accept() {
  for (;;) {
    pollfd waits[2] = {{socket_.number(), POLLIN, 0}, {stop_.number(), POLLIN, 0}};
    if (poll(waits, 2, /*timeout=*/-1) < 0 && errno != EINTR)
      return SystemError(absl::StatusCode::kUnavailable, "poll");
    if (waits[1].revents != 0) return absl::CancelledError("the listener has stopped");
    Descriptor accepted(accept4(socket_.number(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (accepted) return PacketSocket(std::move(accepted));
    if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) continue;
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      poll(&waits[1], 1, kNoDescriptorsPauseMs);
      continue;
    }
    return SystemError(absl::StatusCode::kUnavailable, "accept");
  }
}

void PacketListener::Stop() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(stop_.number(), &one, sizeof(one));
}

}  // namespace oscarkv
