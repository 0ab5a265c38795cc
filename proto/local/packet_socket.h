// Packets between two processes of one host, with file descriptors: Unix sockets (SOCK_SEQPACKET)
// in the file system. No wait without a deadline.
#ifndef OSCARKV_PROTO_LOCAL_PACKET_SOCKET_H_
#define OSCARKV_PROTO_LOCAL_PACKET_SOCKET_H_

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "proto/local/descriptor.h"
#include "proto/local/eager_wait.h"

namespace oscarkv {

inline constexpr size_t kPacketBytesMax = 128 << 10;
inline constexpr size_t kPacketDescriptorsMax = 4;

struct Packet {
  std::string bytes;
  std::vector<Descriptor> descriptors;
};

struct ProcessId {
  pid_t pid = 0;
  uid_t uid = 0;
};

// One end of a connection. Send and Receive by one thread at a time each; Shutdown by any.
class PacketSocket {
 public:
  // kUnavailable: nobody listens there, or the path cannot be reached. kPermissionDenied: the path
  // is not a socket, or not of `uid` or root, or somebody else listens behind it.
  static absl::StatusOr<PacketSocket> Connect(const std::string& path, uid_t uid);

  PacketSocket() = default;
  explicit PacketSocket(Descriptor connected) : descriptor_(std::move(connected)) {}

  // Never waits: kUnavailable when the other end is gone, or does not take what it is sent.
  absl::Status Send(std::string_view bytes, std::span<const int> descriptors = {});
  // Waits until the deadline, for a packet or the other end's end (kUnavailable). kDataLoss: a
  // packet that is too large. `eager`: of waits like this one; it may look before it sleeps.
  absl::StatusOr<Packet> Receive(absl::Time deadline, EagerWait* eager = nullptr);
  // Ends the connection for both ends: who waits is woken.
  void Shutdown();
  ProcessId peer() const;
  explicit operator bool() const { return static_cast<bool>(descriptor_); }

 private:
  Descriptor descriptor_;
  std::string received_;  // room for any packet, once one is waited for
};

// Listens at a path; removes it at the end.
class PacketListener {
 public:
  // A socket that a process of this user left behind is replaced. kUnavailable: somebody listens
  // there. kPermissionDenied: what is there is not a socket, or another user's. `mode`: of the
  // socket's file, which says who may connect.
  static absl::StatusOr<PacketListener> Listen(const std::string& path, mode_t mode);
  PacketListener(PacketListener&& other) noexcept = default;
  PacketListener& operator=(PacketListener&& other) noexcept = delete;
  ~PacketListener();

  // The next connection; waits for it until Stop: kCancelled.
  absl::StatusOr<PacketSocket> Accept();
  void Stop();

 private:
  PacketListener(std::string path, Descriptor socket, Descriptor stop)
      : path_(std::move(path)), socket_(std::move(socket)), stop_(std::move(stop)) {}

  std::string path_;
  Descriptor socket_;
  Descriptor stop_;  // an eventfd
};

}  // namespace oscarkv

#endif  // OSCARKV_PROTO_LOCAL_PACKET_SOCKET_H_
