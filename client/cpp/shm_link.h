// Connections to a server's memory on this host, and what they share. What is said there is in
// shared_memory.proto, and why what is read may be trusted in server/transport/README.md. Included
// by the client's own sources only.
#ifndef OSCARKV_CLIENT_CPP_SHM_LINK_H_
#define OSCARKV_CLIENT_CPP_SHM_LINK_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "client/cpp/call_group.h"
#include "kernels/base/bytes.h"
#include "proto/local/packet_socket.h"
#include "proto/local/read_fence.h"
#include "proto/local/shared_region.h"
#include "proto/wire/data_path.h"

#include "oscarkv/v1/kv_cache.pb.h"
#include "oscarkv/v1/shared_memory.pb.h"

namespace oscarkv::client {

// One connection, of one thread at a time. What it maps may be read while it lives; its end gives
// back everything that the server keeps in place for it.
class ShmLink {
 public:
  ShmLink(PacketSocket socket, std::shared_ptr<const SharedRegion> arena, SharedRegion fence,
          SharedRegion staging)
      : socket_(std::move(socket)),
        arena_(std::move(arena)),
        fence_(std::move(fence)),
        staging_(std::move(staging)) {}

  // The answer, OK or not. An error says that the connection is over: kDeadlineExceeded, kCancelled
  // when the group was, kDataLoss for an answer that is none, kUnavailable when the server is gone.
  absl::StatusOr<v1::DoorReply> Ask(const v1::DoorRequest& request, CallGroup& group,
                                    absl::Time deadline);
  // The server may use again what this side read, read no more.
  void Release(const v1::DoorRelease& release);

  // Whether the server took back what this side reads: to be looked at after it was read.
  bool Revoked() const { return ReadFenceRaised(fence_.bytes()); }
  // Whether the connection is of use for another request.
  bool alive() const { return alive_ && !Revoked(); }

  ByteView arena() const { return arena_->bytes(); }
  MutableByteView staging() const { return staging_.writable(); }

 private:
  PacketSocket socket_;
  EagerWait answers_;
  bool alive_ = true;
  std::shared_ptr<const SharedRegion> arena_;
  SharedRegion fence_;
  SharedRegion staging_;  // empty: the connection is for fetches
};

// What the answer says of its request.
absl::Status StatusOf(const v1::DoorReply& reply);

// Sends the request and waits for the answer, as ShmLink::Ask. `eager`: as of
// PacketSocket::Receive.
absl::StatusOr<std::pair<v1::DoorReply, std::vector<Descriptor>>> AskDoor(
    PacketSocket& socket, const v1::DoorRequest& request, CallGroup& group, absl::Time deadline,
    EagerWait* eager = nullptr);

// The memory of one session's server. Thread-safe.
class ShmDoor {
 public:
  // `reply`: of a session in which SHM was chosen. `endpoint`: where the client finds the server.
  ShmDoor(const v1::SessionReply& reply, const std::string& endpoint);

  // A connection that is idle, or a new one; for pushes, with memory to stage pages in. kCancelled,
  // kDeadlineExceeded; others say why the memory is out of reach: nobody listens there, somebody
  // else does, or what it hands out is not what it should be.
  absl::StatusOr<std::unique_ptr<ShmLink>> Take(Direction direction, CallGroup& group,
                                                absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);
  // To be taken again, once what it read has been released.
  void Give(Direction direction, std::unique_ptr<ShmLink> link) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::StatusOr<std::unique_ptr<ShmLink>> Open(uint64_t staging_bytes, CallGroup& group,
                                                absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<PacketSocket> Connect() const;
  absl::StatusOr<std::shared_ptr<const SharedRegion>> Arena(Descriptor memory, uint64_t bytes)
      ABSL_LOCKS_EXCLUDED(mutex_);

  const v1::SharedMemoryDoor door_;
  const uint64_t session_;
  const uint64_t server_epoch_;
  std::string beside_;  // where the socket may be in a container that names folders otherwise
  absl::Mutex mutex_;
  std::shared_ptr<const SharedRegion> arena_ ABSL_GUARDED_BY(mutex_);  // mapped by the first link
  std::array<std::vector<std::unique_ptr<ShmLink>>, 2> idle_
      ABSL_GUARDED_BY(mutex_);  // [Direction]
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_SHM_LINK_H_
