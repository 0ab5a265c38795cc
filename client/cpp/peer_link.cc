#include "client/cpp/peer_link.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "kernels/base/status_macros.h"

namespace oscarkv::client {
namespace {

// Between two looks at what moves: nobody tells when something has.
constexpr absl::Duration kLook = absl::Microseconds(10);
// At ranks that meet, which takes half a second and more.
constexpr absl::Duration kMeetingLook = absl::Milliseconds(1);
// That a transfer may go on after it was cancelled: to end it costs the epoch, and with it the next
// meeting.
constexpr absl::Duration kLinger = absl::Milliseconds(50);

}  // namespace

using State = comm::PeerChannel::State;

PeerLink::PeerLink(std::unique_ptr<comm::PeerFabric> fabric, std::byte* memory,
                   const comm::SlotShape& shape)
    : fabric_(std::move(fabric)),
      memory_(memory),
      shape_(shape),
      channel_(std::make_unique<comm::PeerChannel>()) {}

uint64_t PeerLink::epoch() const {
  return !meets_ && channel_->state() == State::kOpen ? channel_->epoch() : 0;
}

bool PeerLink::Drive(absl::FunctionRef<bool()> reached, absl::Time deadline) {
  const bool never = false;
  while (!reached()) {
    const absl::Time now = absl::Now();
    if (channel_->Step(now)) continue;
    if (now >= deadline) return false;
    const absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(&never), kLook);
  }
  return true;
}

bool PeerLink::AwaitClosed(absl::Time until, Cancelled cancelled) {
  Break(absl::CancelledError("a new epoch begins"));
  const auto closed = [&] { return channel_->state() == State::kClosed; };
  Drive([&] { return closed() || cancelled(); }, until);
  return closed();
}

absl::Status PeerLink::Open(uint64_t session, uint64_t peer_id, const comm::PairId& pair,
                            uint64_t epoch, absl::Time meet_by) {
  EndMeeting();  // the thread of the one before
  session_ = session;
  peer_id_ = peer_id;
  channel_ = std::make_unique<comm::PeerChannel>();
  OSCARKV_ASSIGN_OR_RETURN(auto comm, fabric_->Open(pair, 1, epoch));
  OSCARKV_RETURN_IF_ERROR(channel_->Open(std::move(comm), meet_by));
  {
    const absl::MutexLock lock(&mutex_);
    met_ = stop_meeting_ = false;
  }
  meets_ = true;
  meeting_ = std::thread([this] { Meet(); });
  return absl::OkStatus();
}

void PeerLink::Meet() {
  for (;;) {
    const bool progress = channel_->Step(absl::Now());
    const absl::MutexLock lock(&mutex_);
    met_ = channel_->state() != State::kMeeting;
    if (met_) return;
    if (!progress) mutex_.AwaitWithTimeout(absl::Condition(&stop_meeting_), kMeetingLook);
    if (!stop_meeting_) continue;
    met_ = true;
    return;
  }
}

void PeerLink::EndMeeting() {
  {
    const absl::MutexLock lock(&mutex_);
    stop_meeting_ = true;
  }
  if (meeting_.joinable()) meeting_.join();
}

absl::StatusOr<bool> PeerLink::AwaitOpen(absl::Time until, Cancelled cancelled) {
  const auto ended = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return met_; };
  {
    const absl::MutexLock lock(&mutex_);
    while (!met_ && absl::Now() < until && !cancelled())
      mutex_.AwaitWithTimeout(absl::Condition(&ended), kMeetingLook);
    if (!met_) return false;
  }
  meets_ = false;
  if (channel_->state() == State::kOpen) return true;
  return channel_->broken();
}

void PeerLink::Break(const absl::Status& why) {
  EndMeeting();
  meets_ = false;
  channel_->Break(why);
}

absl::Status PeerLink::Receive(const comm::Ticket& ticket, std::span<const std::string> keys,
                               std::span<const uint64_t> sizes, uint64_t offset,
                               absl::Time deadline, Cancelled cancelled) {
  comm::Transfer transfer{
      .way = comm::Way::kReceive, .keys = {keys.begin(), keys.end()}, .deadline = deadline};
  uint64_t end = offset;
  for (const uint64_t bytes : sizes) {
    if (end > shape_.bytes() || bytes > shape_.bytes() - end) {
      absl::Status why = absl::InvalidArgumentError(
          absl::StrCat(bytes, " bytes at ", end, " of slots of ", shape_.bytes()));
      channel_->Break(why);
      return why;
    }
    transfer.blocks.push_back({memory_ + end, bytes});
    end += bytes;
  }
  return Move(ticket, std::move(transfer), cancelled);
}

absl::Status PeerLink::Send(const comm::Ticket& ticket, std::span<const std::string> keys,
                            std::span<const comm::Block> pages, absl::Time deadline,
                            Cancelled cancelled) {
  return Move(ticket,
              {.way = comm::Way::kSend,
               .keys = {keys.begin(), keys.end()},
               .blocks = {pages.begin(), pages.end()},
               .deadline = deadline},
              cancelled);
}

absl::Status PeerLink::Move(const comm::Ticket& ticket, comm::Transfer transfer,
                            Cancelled cancelled) {
  bool ended = false;
  absl::Status result;
  transfer.done = [&](const absl::Status& status) {
    ended = true;
    result = status;
  };
  if (absl::Status accepted = channel_->Accept(ticket, std::move(transfer)); !accepted.ok()) {
    channel_->Break(accepted);
    return accepted;
  }
  // The channel's own look at the deadline ends it.
  Drive([&] { return ended || cancelled(); }, absl::InfiniteFuture());
  if (!ended && !Drive([&] { return ended; }, absl::Now() + kLinger))
    channel_->Break(absl::CancelledError("the call was cancelled"));
  return result;
}

}  // namespace oscarkv::client
