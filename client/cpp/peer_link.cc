#include "client/cpp/peer_link.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "kernels/base/status_macros.h"

namespace oscarkv::client {
namespace {

// Between two looks at what moves: nobody tells when something has.
constexpr absl::Duration kLook = absl::Microseconds(10);

}  // namespace

using State = comm::PeerChannel::State;

PeerLink::PeerLink(std::unique_ptr<comm::PeerFabric> fabric, std::byte* memory,
                   const comm::SlotShape& shape)
    : fabric_(std::move(fabric)),
      memory_(memory),
      shape_(shape),
      channel_(std::make_unique<comm::PeerChannel>()) {}

uint64_t PeerLink::epoch() const {
  return channel_->state() == State::kOpen ? channel_->epoch() : 0;
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

absl::Status PeerLink::Open(uint64_t peer_id, const comm::PairId& pair, uint64_t epoch,
                            absl::Time deadline) {
  peer_id_ = peer_id;
  channel_->Break(absl::CancelledError("a new epoch begins"));
  if (!Drive([&] { return channel_->state() == State::kClosed; }, deadline))
    return absl::DeadlineExceededError("the epoch before has not ended yet");
  channel_ = std::make_unique<comm::PeerChannel>();
  OSCARKV_ASSIGN_OR_RETURN(auto comm, fabric_->Open(pair, 1, epoch));
  OSCARKV_RETURN_IF_ERROR(channel_->Open(std::move(comm), deadline));
  Drive([&] { return channel_->state() != State::kMeeting; }, absl::InfiniteFuture());
  return channel_->state() == State::kOpen ? absl::OkStatus() : channel_->broken();
}

absl::Status PeerLink::Receive(const comm::Ticket& ticket, std::span<const std::string> keys,
                               std::span<const uint64_t> sizes, uint64_t offset,
                               absl::Time deadline) {
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
  return Move(ticket, std::move(transfer));
}

absl::Status PeerLink::Send(const comm::Ticket& ticket, std::span<const std::string> keys,
                            std::span<const comm::Block> pages, absl::Time deadline) {
  return Move(ticket, {.way = comm::Way::kSend,
                       .keys = {keys.begin(), keys.end()},
                       .blocks = {pages.begin(), pages.end()},
                       .deadline = deadline});
}

absl::Status PeerLink::Move(const comm::Ticket& ticket, comm::Transfer transfer) {
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
  Drive([&] { return ended; }, absl::InfiniteFuture());
  return result;
}

}  // namespace oscarkv::client
