// The server's ends of channels to workers' GPUs: pages go straight from this server's GPU memory,
// and come straight into it. One thread drives all of them, since a device's communicators are to
// be used by one. A peer belongs to a session and ends with it; one that breaks is replaced by
// another, of a later epoch, and gives back what it held when nothing moves any more.
#ifndef OSCARKV_SERVER_PEER_PEER_HUB_H_
#define OSCARKV_SERVER_PEER_PEER_HUB_H_

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/any_invocable.h"
#include "absl/random/random.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "kernels/comm/peer_channel.h"
#include "kernels/comm/peer_comm.h"
#include "kernels/comm/slots.h"
#include "server/core/page_handles.h"

namespace oscarkv {

using PeerId = uint64_t;  // 0 is none

struct PeerHubOptions {
  uint32_t peers_max = 64;                          // a communicator takes 50 to 100 MB of a GPU
  uint64_t slots_bytes_max = uint64_t{4} << 30;     // of one peer
  absl::Duration meet_max = absl::Seconds(10);      // until a worker has come
  absl::Duration transfer_max = absl::Seconds(10);  // of a transfer, whatever the worker asks for
};

struct PeerHubStats {
  uint64_t peers = 0;
  uint64_t broken = 0;  // since the start, those that ended with their session among them
  uint64_t moving = 0;  // transfers under way
};

// Thread-safe.
class PeerHub {
 public:
  PeerHub(const PeerHubOptions& options, std::unique_ptr<comm::PeerFabric> fabric);
  ~PeerHub() { Stop(); }
  // Ends all peers, and waits until nothing moves. Nothing can be opened or sent from then on.
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);

  void BeginSession(SessionId session) ABSL_LOCKS_EXCLUDED(mutex_);
  void EndSession(SessionId session) ABSL_LOCKS_EXCLUDED(mutex_);

  struct Asked {
    SessionId session = 0;
    PeerId replaces = 0;  // this one is broken, as the worker sees it
    uint32_t version = 0;
    comm::SlotShape slots;  // at once under way, and the most that each takes
  };
  struct Opened {
    PeerId peer = 0;
    uint64_t epoch = 0;
    comm::PairId pair;
    comm::SlotShape slots;
  };
  // Of too many peers, the one that has been idle for longest goes. kFailedPrecondition: another
  // version; kUnavailable: no such session; kInvalidArgument: slots that nobody can mean;
  // kResourceExhausted: none of too many peers is idle, or too large slots; else the fabric's.
  absl::StatusOr<Opened> Open(const Asked& asked) ABSL_LOCKS_EXCLUDED(mutex_);

  // The most that one Move takes. Errors as Move's.
  absl::StatusOr<uint64_t> SlotBytes(PeerId peer, uint64_t epoch) const ABSL_LOCKS_EXCLUDED(mutex_);

  struct Pages {
    comm::Way way = comm::Way::kSend;
    std::vector<std::string> keys;
    std::vector<comm::Block> blocks;     // [keys], of the device's memory
    std::shared_ptr<const void> memory;  // kept for as long as bytes may move
  };
  // Starts sending pages to a worker that takes the ticket over, or receiving them from it. `done`
  // is called once they have moved, or not; under the hub's lock, so it only takes note. kNotFound:
  // no such peer, or it is of another epoch; kResourceExhausted: all slots are under way;
  // kInvalidArgument: more than a slot takes.
  absl::StatusOr<comm::Ticket> Move(PeerId peer, uint64_t epoch, Pages pages, absl::Duration within,
                                    absl::AnyInvocable<void(const absl::Status&) &&> done)
      ABSL_LOCKS_EXCLUDED(mutex_);

  PeerHubStats Stats() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Peer {
    Peer(SessionId of, const comm::SlotShape& shape)
        : session(of), slots(shape), channel({.transfers_max = shape.slots}) {}
    const SessionId session;
    const comm::SlotShape slots;
    comm::PeerChannel channel;
    uint64_t used = 0;   // when it moved last, in moves of all peers
    bool ended = false;  // goes when its channel has closed
  };

  absl::StatusOr<Peer*> Find(PeerId peer, uint64_t epoch) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Run() ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether anything came of it, and whether there is anything to wait for.
  bool StepAll(bool* waiting) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void End(Peer& peer, const absl::Status& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // For one more peer.
  absl::Status MakeRoom() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const PeerHubOptions options_;
  const std::unique_ptr<comm::PeerFabric> fabric_;
  mutable absl::Mutex mutex_;
  absl::BitGen random_ ABSL_GUARDED_BY(mutex_);  // ids that nobody guesses
  absl::flat_hash_set<SessionId> sessions_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<PeerId, std::unique_ptr<Peer>> peers_ ABSL_GUARDED_BY(mutex_);
  uint64_t epoch_ ABSL_GUARDED_BY(mutex_) = 0;  // the last
  uint64_t moves_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t broken_ ABSL_GUARDED_BY(mutex_) = 0;
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_PEER_PEER_HUB_H_
