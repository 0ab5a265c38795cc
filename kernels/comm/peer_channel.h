// Transfers between two processes' device memory, in an order that both agree on. One side gives a
// ticket for each transfer, the other takes it over from wherever it travelled; both start the
// transfers in the order of the tickets' sequence, and nothing else matches them. That is safe
// because anything out of the ordinary (a deadline that passes, a ticket that does not fit, an
// error of the communicator, a peer that is gone) breaks the channel: its communicator is aborted,
// every transfer fails, and the next epoch starts from nothing, with a new communicator. So a late
// message has no transfer that it could land in.
//
//   closed --Open--> meeting --> open --Break--> closing --> closed
//                       +-----------Break-----------^
//
// Knows no clock, no thread and no service: whoever drives it calls Step with the time.
#ifndef OSCARKV_KERNELS_COMM_PEER_CHANNEL_H_
#define OSCARKV_KERNELS_COMM_PEER_CHANNEL_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "kernels/comm/peer_comm.h"

namespace oscarkv::comm {

// Names one transfer of one epoch, and what it moves.
struct Ticket {
  uint64_t epoch = 0;
  uint64_t sequence = 0;
  uint32_t pages_crc32c = 0;  // of the pages' keys and sizes, in order: PagesCrc32c
};

struct Transfer {
  Way way = Way::kSend;
  std::vector<std::string> keys = {};  // of the pages, in order
  std::vector<Block> blocks = {};      // [keys]; one for each page
  absl::Time deadline = absl::InfiniteFuture();
  // Kept for as long as bytes may move: past `done`, where the transfer failed.
  std::shared_ptr<const void> memory = nullptr;
  // Called once, from Step, Break, Accept or the destructor. OK: the bytes have moved.
  absl::AnyInvocable<void(const absl::Status&)&&> done = nullptr;
};

uint32_t PagesCrc32c(std::span<const std::string> keys, std::span<const Block> blocks);

struct PeerChannelOptions {
  uint32_t transfers_max = 64;  // under way at once; further tickets are refused
};

// Not thread-safe. A `done` must not destroy the channel that calls it; it may start transfers.
class PeerChannel {
 public:
  enum class State : uint8_t { kClosed, kMeeting, kOpen, kClosing };

  explicit PeerChannel(const PeerChannelOptions& options = {}) : options_(options) {}
  // Breaks, and waits until nothing moves any more.
  ~PeerChannel();

  State state() const { return state_; }
  uint64_t epoch() const { return epoch_; }  // of the communicator given last
  // Why it was broken last; OK before.
  const absl::Status& broken() const { return broken_; }
  size_t transfers() const { return waiting_.size() + started_.size(); }

  // Begins the communicator's epoch. kFailedPrecondition: it is not closed, or the epoch is not a
  // later one than the last.
  absl::Status Open(std::unique_ptr<PeerComm> peer, absl::Time deadline);

  // Transfers may be given while the ranks meet: they start when they have. Where an error is
  // returned, `done` is not called.
  //
  // Gives a ticket. kUnavailable: closed; kResourceExhausted: as many as may be are under way;
  // kInvalidArgument: not one block a key, or none.
  absl::StatusOr<Ticket> Issue(Transfer transfer);
  // Takes one over; they may come in any order. kAborted: of another epoch; kAlreadyExists: a
  // ticket that was taken over before; kOutOfRange: too far ahead; kDataLoss: it is for other pages
  // or other sizes, which breaks the channel; otherwise as Issue.
  absl::Status Accept(const Ticket& ticket, Transfer transfer);

  // Fails every transfer with `why`.
  void Break(const absl::Status& why);

  // Starts, ends and times out what there is to. Whether anything came of it.
  bool Step(absl::Time now);

 private:
  struct Started {
    uint64_t sequence = 0;
    uint64_t operation = 0;
    Transfer transfer;
  };
  using Dones = std::vector<Transfer>;

  absl::Status CheckTransfer(const Transfer& transfer) const;
  absl::Status StartWaiting(bool* progress);
  absl::Status EndStarted(bool* progress, Dones* ended);
  absl::Status CheckDeadlines(absl::Time now) const;
  bool StepClosing();
  bool StepMeeting(absl::Time now);
  bool StepOpen(absl::Time now);

  const PeerChannelOptions options_;
  State state_ = State::kClosed;
  uint64_t epoch_ = 0;
  absl::Status broken_;
  std::unique_ptr<PeerComm> peer_;
  absl::Time meet_deadline_;
  uint64_t issued_ = 0;                   // the next ticket's sequence
  uint64_t next_ = 0;                     // the next sequence to start
  std::map<uint64_t, Transfer> waiting_;  // for their turn, by sequence
  std::deque<Started> started_;
  std::vector<std::shared_ptr<const void>> held_;  // of transfers that failed, until it is closed
};

}  // namespace oscarkv::comm

#endif  // OSCARKV_KERNELS_COMM_PEER_CHANNEL_H_
