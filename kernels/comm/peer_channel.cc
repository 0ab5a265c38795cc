#include "kernels/comm/peer_channel.h"

#include <utility>

#include "absl/strings/str_cat.h"

#include "kernels/base/bytes.h"
#include "kernels/base/checksum.h"
#include "kernels/base/status_macros.h"

namespace oscarkv::comm {

uint32_t PagesCrc32c(std::span<const std::string> keys, std::span<const Block> blocks) {
  std::string text;
  for (const std::string& key : keys) absl::StrAppend(&text, key.size(), ":", key);
  for (const Block& block : blocks) absl::StrAppend(&text, ",", block.bytes);
  return Crc32c(std::as_bytes(std::span(text)));
}

PeerChannel::~PeerChannel() {
  Break(absl::CancelledError("the channel was closed"));
  peer_.reset();  // before the memory that it may still touch
}

absl::Status PeerChannel::Open(std::unique_ptr<PeerComm> peer, absl::Time deadline) {
  if (state_ != State::kClosed)
    return absl::FailedPreconditionError(absl::StrCat("epoch ", epoch_, " has not ended"));
  if (peer->epoch() <= epoch_) {
    return absl::FailedPreconditionError(
        absl::StrCat("expected a later epoch than ", epoch_, ", found ", peer->epoch()));
  }
  epoch_ = peer->epoch();
  peer_ = std::move(peer);
  meet_deadline_ = deadline;
  issued_ = next_ = 0;
  state_ = State::kMeeting;
  return absl::OkStatus();
}

absl::Status PeerChannel::CheckTransfer(const Transfer& transfer) const {
  if (state_ != State::kOpen && state_ != State::kMeeting) {
    return absl::UnavailableError(
        absl::StrCat("the channel is not open", broken_.ok() ? "" : ": ", broken_.message()));
  }
  if (transfers() >= options_.transfers_max)
    return absl::ResourceExhaustedError(absl::StrCat(transfers(), " transfers are under way"));
  if (transfer.keys.empty() || transfer.keys.size() != transfer.blocks.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a transfer of ", transfer.keys.size(), " pages and ", transfer.blocks.size(), " blocks"));
  }
  for (size_t i = 0; i < transfer.blocks.size(); ++i) {
    if (transfer.blocks[i].data != nullptr && transfer.blocks[i].bytes > 0) continue;
    return absl::InvalidArgumentError(absl::StrCat("page ", i, " of a transfer is empty"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Ticket> PeerChannel::Issue(Transfer transfer) {
  OSCARKV_RETURN_IF_ERROR(CheckTransfer(transfer));
  const Ticket ticket{epoch_, issued_++, PagesCrc32c(transfer.keys, transfer.blocks)};
  waiting_.emplace(ticket.sequence, std::move(transfer));
  return ticket;
}

absl::Status PeerChannel::Accept(const Ticket& ticket, Transfer transfer) {
  if (ticket.epoch != epoch_) {
    return absl::AbortedError(
        absl::StrCat("a ticket of epoch ", ticket.epoch, ", the channel is in ", epoch_));
  }
  OSCARKV_RETURN_IF_ERROR(CheckTransfer(transfer));
  if (ticket.sequence < next_ || waiting_.contains(ticket.sequence))
    return absl::AlreadyExistsError(absl::StrCat("ticket ", ticket.sequence, " was taken before"));
  if (ticket.sequence - next_ >= options_.transfers_max) {
    return absl::OutOfRangeError(
        absl::StrCat("ticket ", ticket.sequence, " where ", next_, " is next"));
  }
  if (const uint32_t found = PagesCrc32c(transfer.keys, transfer.blocks);
      found != ticket.pages_crc32c) {
    absl::Status why = absl::DataLossError(
        absl::StrCat("ticket ", ticket.sequence, " is for other pages: expected ",
                     absl::Hex(ticket.pages_crc32c), ", found ", absl::Hex(found)));
    Break(why);
    return why;
  }
  waiting_.emplace(ticket.sequence, std::move(transfer));
  return absl::OkStatus();
}

void PeerChannel::Break(const absl::Status& why) {
  if (state_ == State::kClosed || state_ == State::kClosing) return;
  broken_ = why;
  state_ = State::kClosing;
  peer_->Abort(why);
  Dones failed;
  for (Started& started : started_) failed.push_back(std::move(started.transfer));
  for (auto& [sequence, transfer] : waiting_) failed.push_back(std::move(transfer));
  started_.clear();
  waiting_.clear();
  for (Transfer& transfer : failed) held_.push_back(std::move(transfer.memory));
  for (Transfer& transfer : failed) std::move(transfer.done)(why);
}

bool PeerChannel::Step(absl::Time now) {
  switch (state_) {
    case State::kClosed:
      return false;
    case State::kMeeting:
      return StepMeeting(now);
    case State::kOpen:
      return StepOpen(now);
    case State::kClosing:
      return StepClosing();
  }
  return false;
}

bool PeerChannel::StepClosing() {
  if (!peer_->Closed()) return false;
  peer_.reset();
  held_.clear();
  state_ = State::kClosed;
  return true;
}

bool PeerChannel::StepMeeting(absl::Time now) {
  const absl::StatusOr<bool> ready = peer_->Ready();
  if (ready.ok() && *ready) {
    state_ = State::kOpen;
    return true;
  }
  if (ready.ok() && now < meet_deadline_) {
    const absl::Status late = CheckDeadlines(now);
    if (!late.ok()) Break(late);
    return !late.ok();
  }
  Break(ready.ok() ? absl::DeadlineExceededError(
                         absl::StrCat("the peer of epoch ", epoch_, " did not come"))
                   : ready.status());
  return true;
}

absl::Status PeerChannel::StartWaiting(bool* progress) {
  while (!waiting_.empty() && waiting_.begin()->first == next_) {
    OSCARKV_ASSIGN_OR_RETURN(
        const uint64_t operation,
        peer_->Start(waiting_.begin()->second.way, waiting_.begin()->second.blocks));
    started_.push_back({next_, operation, std::move(waiting_.begin()->second)});
    waiting_.erase(waiting_.begin());
    ++next_;
    *progress = true;
  }
  return absl::OkStatus();
}

absl::Status PeerChannel::EndStarted(bool* progress, Dones* ended) {
  while (!started_.empty()) {
    OSCARKV_ASSIGN_OR_RETURN(const bool done, peer_->Done(started_.front().operation));
    if (!done) break;
    ended->push_back(std::move(started_.front().transfer));
    started_.pop_front();
    *progress = true;
  }
  return absl::OkStatus();
}

absl::Status PeerChannel::CheckDeadlines(absl::Time now) const {
  for (const Started& started : started_) {
    if (now < started.transfer.deadline) continue;
    return absl::DeadlineExceededError(
        absl::StrCat("transfer ", started.sequence, " of epoch ", epoch_, " was not done in time"));
  }
  for (const auto& [sequence, transfer] : waiting_) {
    if (now < transfer.deadline) continue;
    return absl::DeadlineExceededError(absl::StrCat("transfer ", sequence, " of epoch ", epoch_,
                                                    " waited in vain for ticket ", next_));
  }
  return absl::OkStatus();
}

bool PeerChannel::StepOpen(absl::Time now) {
  bool progress = false;
  Dones ended;
  absl::Status status = StartWaiting(&progress);
  if (status.ok()) status = EndStarted(&progress, &ended);
  if (status.ok()) status = CheckDeadlines(now);
  for (Transfer& transfer : ended) {
    transfer.memory.reset();
    std::move(transfer.done)(absl::OkStatus());
  }
  if (status.ok()) return progress;
  Break(status);
  return true;
}

}  // namespace oscarkv::comm
