// A worker's end of a channel to a server's GPU: receives groups of pages into slots of its own
// memory, and sends such groups. Knows no network: who opens it, and takes tickets to it, does.
#ifndef OSCARKV_CLIENT_CPP_PEER_LINK_H_
#define OSCARKV_CLIENT_CPP_PEER_LINK_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
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
  // Whether whoever waits is to wait no longer.
  using Cancelled = absl::FunctionRef<bool()>;

  // `memory` is the fabric's to read and write: shape.bytes() of it, the slots one after another.
  // It must stay until the link is gone, whose end waits until nothing touches it any more.
  PeerLink(std::unique_ptr<comm::PeerFabric> fabric, std::byte* memory,
           const comm::SlotShape& shape);
  ~PeerLink() { EndMeeting(); }

  uint32_t version() const { return fabric_->version(); }
  const comm::SlotShape& shape() const { return shape_; }
  // What the server calls the peer opened last, broken or not, and in which session; 0: none.
  uint64_t peer_id() const { return peer_id_; }
  uint64_t session() const { return session_; }
  // In which the ranks have met; 0: in none, and Open has to come first.
  uint64_t epoch() const;
  // An epoch was begun, and AwaitOpen has not said yet what became of it.
  bool meeting() const { return meets_; }

  // Waits until nothing is left of the epoch before, or `until`: whether that came.
  bool AwaitClosed(absl::Time until, Cancelled cancelled);
  // Begins an epoch, of which nothing must be left: this rank meets the server's on a thread of its
  // own, by `meet_by`. Errors are the fabric's.
  absl::Status Open(uint64_t session, uint64_t peer_id, const comm::PairId& pair, uint64_t epoch,
                    absl::Time meet_by);
  // Waits until the ranks have met, or `until`; false: not yet. An error, once: they did not, and
  // why.
  absl::StatusOr<bool> AwaitOpen(absl::Time until, Cancelled cancelled) ABSL_LOCKS_EXCLUDED(mutex_);

  // Takes a ticket over, and waits for its pages: they lie one after another from offset `offset`
  // of the memory on. Any error has ended the epoch: of one that is cancelled, too, if the pages
  // are not there soon afterwards.
  absl::Status Receive(const comm::Ticket& ticket, std::span<const std::string> keys,
                       std::span<const uint64_t> sizes, uint64_t offset, absl::Time deadline,
                       Cancelled cancelled);
  // Takes a ticket over, and waits until these pages of the memory have left. Errors as Receive's.
  absl::Status Send(const comm::Ticket& ticket, std::span<const std::string> keys,
                    std::span<const comm::Block> pages, absl::Time deadline, Cancelled cancelled);
  // Ends the epoch: an answer with a ticket may have been lost.
  void Break(const absl::Status& why);

 private:
  absl::Status Move(const comm::Ticket& ticket, comm::Transfer transfer, Cancelled cancelled);
  bool Drive(absl::FunctionRef<bool()> reached, absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);
  void Meet() ABSL_LOCKS_EXCLUDED(mutex_);
  void EndMeeting() ABSL_LOCKS_EXCLUDED(mutex_);

  const std::unique_ptr<comm::PeerFabric> fabric_;
  std::byte* const memory_;
  const comm::SlotShape shape_;
  uint64_t session_ = 0;
  uint64_t peer_id_ = 0;
  bool meets_ = false;
  // One for each peer: servers count their own epochs. The meeting thread's alone until it has met.
  std::unique_ptr<comm::PeerChannel> channel_;
  mutable absl::Mutex mutex_;
  bool stop_meeting_ ABSL_GUARDED_BY(mutex_) = false;
  bool met_ ABSL_GUARDED_BY(mutex_) = true;  // or failed to: nobody is meeting
  std::thread meeting_;
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_PEER_LINK_H_
