// One connection at the door of shared memory: a client of the same host that reads pages where
// they lie, or hands pages over in memory that both map. What is said is in shared_memory.proto.
#ifndef OSCARKV_SERVER_TRANSPORT_DOOR_LINK_H_
#define OSCARKV_SERVER_TRANSPORT_DOOR_LINK_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "proto/local/packet_socket.h"
#include "proto/local/read_fence.h"
#include "proto/local/shared_region.h"
#include "server/core/page_handles.h"
#include "server/rpc/rpc_context.h"
#include "server/transport/mapped_budget.h"

#include "oscarkv/v1/shared_memory.pb.h"

namespace oscarkv {

// What all connections share.
struct DoorShared {
  RpcContext& context;
  ByteView arena;
  int arena_descriptor = -1;
  uint64_t staging_bytes_max = 0;  // of one connection
  MappedBudget mapped;             // bytes of pages that clients read
  MappedBudget staging;
  std::atomic<uint64_t> revoked = 0;  // relaxed: a counter, read on its own
};

// Run by a thread of its own, which may wait: for the client, for a disk. Pages that the client
// reads are pinned by this object: they neither move nor change while it lives and the fence is
// down.
class DoorLink {
 public:
  // `admit` is called once, with the session that the client names, and says whether it may come
  // in.
  using Admit = std::function<absl::Status(SessionId)>;
  DoorLink(DoorShared& shared, PacketSocket socket, Admit admit)
      : shared_(shared), socket_(std::move(socket)), admit_(std::move(admit)) {}
  ~DoorLink();

  // Serves until the connection ends, in whatever way, or a lease's ceiling has come while the
  // client reads. Everything the client held has been given back when it returns.
  void Run();
  // From any thread: Run returns soon.
  void Shutdown() { socket_.Shutdown(); }

 private:
  struct Mapped {
    PinnedPage page;
    std::string key;
  };

  absl::Status Welcome();
  absl::Status MakeRegions(uint64_t staging_bytes, v1::DoorWelcome* welcome);
  // Answers one request; an error ends the connection.
  absl::Status Answer(const v1::DoorRequest& request);
  absl::Status Reply(const absl::Status& status, v1::DoorReply reply,
                     std::span<const int> descriptors = {});

  absl::Status Map(const v1::DoorMap& request, v1::DoorMapped* reply);
  // The page of keys[i], or why it is not there.
  void MapOne(const Namespace& space, std::span<const std::string_view> keys, size_t i,
              uint64_t lease, v1::DoorMapped* reply);
  void TouchMapped();
  void CheckDamaged(const v1::DoorRelease& release);
  absl::Status Commit(const v1::DoorCommit& request, v1::PutReply* reply);
  void CommitItem(const v1::DoorCommit& request, const struct CheckedPut& put, uint32_t index,
                  v1::ItemResult* result);
  // Lets go of what the client reads; it has said that it reads it no more, or the fence is up.
  void Release();

  DoorShared& shared_;
  PacketSocket socket_;
  EagerWait requests_;  // of a client that reads nothing
  EagerWait releases_;  // of one that does
  const Admit admit_;
  SessionId session_ = 0;
  SharedRegion fence_region_;
  std::optional<ReadFence> fence_;
  SharedRegion staging_;
  uint64_t staging_taken_ = 0;  // of the budget

  // What the client reads.
  const Namespace* space_ = nullptr;
  RequestTraits traits_;
  std::vector<Mapped> mapped_;
  uint64_t mapped_bytes_ = 0;
  absl::Time mapped_at_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TRANSPORT_DOOR_LINK_H_
