// A worker's end of a channel to a server's GPU: receives groups of pages into slots of its own
// memory, and sends such groups. Knows no network: who opens it, and takes tickets to it, does.
#ifndef OSCARKV_CLIENT_CPP_PEER_LINK_H_
#define OSCARKV_CLIENT_CPP_PEER_LINK_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "kernels/comm/peer_channel.h"
#include "kernels/comm/peer_comm.h"
#include "kernels/comm/slots.h"

namespace oscarkv::client {

// Used by one thread at a time, which waits in its calls, never past their deadlines.
class PeerLink {
 public:
  // `memory` is the fabric's to read and write: shape.bytes() of it, the slots one after another.
  // It must stay until the link is gone, whose end waits until nothing touches it any more.
  PeerLink(std::unique_ptr<comm::PeerFabric> fabric, std::byte* memory,
           const comm::SlotShape& shape);

  uint32_t version() const { return fabric_->version(); }
  const comm::SlotShape& shape() const { return shape_; }
  // What the server calls the peer opened last, broken or not; 0: none.
  uint64_t peer_id() const { return peer_id_; }
  // In which the channel is; 0: in none, and Open has to come first.
  uint64_t epoch() const;

  // Meets the server's rank. Ends what was before. kDeadlineExceeded; or the fabric's.
  absl::Status Open(uint64_t peer_id, const comm::PairId& pair, uint64_t epoch,
                    absl::Time deadline);
  // Takes a ticket over, and waits for its pages: they lie one after another from offset `offset`
  // of the memory on. Any error has ended the epoch.
  absl::Status Receive(const comm::Ticket& ticket, std::span<const std::string> keys,
                       std::span<const uint64_t> sizes, uint64_t offset, absl::Time deadline);
  // Takes a ticket over, and waits until these pages of the memory have left.
  // Any error has ended the epoch.
  absl::Status Send(const comm::Ticket& ticket, std::span<const std::string> keys,
                    std::span<const comm::Block> pages, absl::Time deadline);
  // Ends the epoch: an answer with a ticket may have been lost.
  void Break(const absl::Status& why) { channel_->Break(why); }

 private:
  absl::Status Move(const comm::Ticket& ticket, comm::Transfer transfer);
  bool Drive(absl::FunctionRef<bool()> reached, absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);

  const std::unique_ptr<comm::PeerFabric> fabric_;
  std::byte* const memory_;
  const comm::SlotShape shape_;
  absl::Mutex mutex_;  // what Drive waits on; guards nothing
  uint64_t peer_id_ = 0;
  std::unique_ptr<comm::PeerChannel> channel_;  // one for each peer: servers count their own epochs
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_PEER_LINK_H_
