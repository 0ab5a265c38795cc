#include "server/peer/peer_hub.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "kernels/base/status_macros.h"

namespace oscarkv {
namespace {

// Between two looks at what moves: nobody tells when something has.
constexpr absl::Duration kLook = absl::Microseconds(20);

}  // namespace

PeerHub::PeerHub(const PeerHubOptions& options, std::unique_ptr<comm::PeerFabric> fabric)
    : options_(options), fabric_(std::move(fabric)), thread_([this] { Run(); }) {}

void PeerHub::Stop() {
  {
    const absl::MutexLock lock(&mutex_);
    stopping_ = woken_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void PeerHub::BeginSession(SessionId session) {
  const absl::MutexLock lock(&mutex_);
  sessions_.insert(session);
}

void PeerHub::EndSession(SessionId session) {
  const absl::MutexLock lock(&mutex_);
  sessions_.erase(session);
  for (auto& [id, peer] : peers_)
    if (peer->session == session) End(*peer, absl::CancelledError("the session has ended"));
}

void PeerHub::End(Peer& peer, const absl::Status& why) {
  if (std::exchange(peer.ended, true)) return;
  ++broken_;
  peer.channel.Break(why);
  woken_ = true;
}

absl::StatusOr<PeerHub::Opened> PeerHub::Open(const Asked& asked) {
  if (asked.version != fabric_->version()) {
    return absl::FailedPreconditionError(
        absl::StrCat("both ends must have one version of NCCL: the server's is ",
                     fabric_->version(), ", the worker's ", asked.version));
  }
  OSCARKV_ASSIGN_OR_RETURN(const comm::SlotShape slots,
                           comm::AgreeOnSlots(asked.slots, options_.slots_bytes_max));
  const absl::MutexLock lock(&mutex_);
  if (stopping_ || !sessions_.contains(asked.session))
    return absl::UnavailableError(absl::StrCat("no session ", asked.session, " is open"));
  const auto replaced = peers_.find(asked.replaces);
  if (replaced != peers_.end() && replaced->second->session == asked.session)
    End(*replaced->second, absl::CancelledError("the worker opened another"));
  OSCARKV_RETURN_IF_ERROR(MakeRoom());
  Opened opened{.peer = absl::Uniform<uint64_t>(absl::IntervalClosed, random_, 1, ~uint64_t{0}),
                .epoch = ++epoch_,
                .pair = {},
                .slots = slots};
  OSCARKV_ASSIGN_OR_RETURN(opened.pair, fabric_->NewPair());
  OSCARKV_ASSIGN_OR_RETURN(auto comm, fabric_->Open(opened.pair, 0, opened.epoch));
  auto peer = std::make_unique<Peer>(asked.session, slots);
  peer->used = ++moves_;
  OSCARKV_RETURN_IF_ERROR(peer->channel.Open(std::move(comm), absl::Now() + options_.meet_max));
  peers_[opened.peer] = std::move(peer);
  woken_ = true;
  return opened;
}

absl::Status PeerHub::MakeRoom() {
  Peer* idle = nullptr;
  size_t live = 0;
  for (const auto& [id, peer] : peers_) {
    if (peer->ended) continue;
    ++live;
    const bool moves =
        peer->channel.state() != comm::PeerChannel::State::kOpen || peer->channel.transfers() > 0;
    if (!moves && (idle == nullptr || peer->used < idle->used)) idle = peer.get();
  }
  // Those that end take their memory a little longer: as many again of them are let be.
  const bool full = peers_.size() >= 2 * size_t{options_.peers_max};
  if (!full && live < options_.peers_max) return absl::OkStatus();
  if (full || idle == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("there are ", peers_.size(), " peers, ", live, " of which have not ended"));
  }
  End(*idle, absl::CancelledError("another worker needs its place"));
  return absl::OkStatus();
}

absl::StatusOr<PeerHub::Peer*> PeerHub::Find(PeerId id, uint64_t epoch) const {
  const auto found = peers_.find(id);
  if (found == peers_.end() || found->second->ended)
    return absl::NotFoundError("there is no such peer (any more)");
  if (found->second->channel.epoch() == epoch) return found->second.get();
  return absl::NotFoundError(
      absl::StrCat("the peer is in epoch ", found->second->channel.epoch(), ", not ", epoch));
}

absl::StatusOr<uint64_t> PeerHub::SlotBytes(PeerId id, uint64_t epoch) const {
  const absl::MutexLock lock(&mutex_);
  OSCARKV_ASSIGN_OR_RETURN(const Peer* peer, Find(id, epoch));
  return peer->slots.slot_bytes;
}

absl::StatusOr<comm::Ticket> PeerHub::Move(PeerId id, uint64_t epoch, Pages pages,
                                           absl::Duration within,
                                           absl::AnyInvocable<void(const absl::Status&) &&> done) {
  comm::Transfer transfer{.way = pages.way,
                          .keys = std::move(pages.keys),
                          .blocks = std::move(pages.blocks),
                          .deadline = absl::Now() + std::min(within, options_.transfer_max),
                          .memory = std::move(pages.memory),
                          .done = std::move(done)};
  uint64_t bytes = 0;
  for (const comm::Block& block : transfer.blocks) bytes += block.bytes;
  const absl::MutexLock lock(&mutex_);
  OSCARKV_ASSIGN_OR_RETURN(Peer * peer, Find(id, epoch));
  if (bytes > peer->slots.slot_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(bytes, " bytes, a slot takes ", peer->slots.slot_bytes));
  }
  woken_ = true;
  peer->used = ++moves_;
  return peer->channel.Issue(std::move(transfer));
}

bool PeerHub::StepAll(bool* waiting) {
  const absl::Time now = absl::Now();
  bool progress = false;
  for (auto entry = peers_.begin(); entry != peers_.end();) {
    Peer& peer = *entry->second;
    using State = comm::PeerChannel::State;
    progress |= peer.channel.Step(now);
    const State state = peer.channel.state();
    // Broken by itself: nothing opens it again.
    if (state == State::kClosing || state == State::kClosed) {
      if (!std::exchange(peer.ended, true)) ++broken_;
    }
    if (state == State::kClosed) {
      peers_.erase(entry++);
      continue;
    }
    *waiting |= state != State::kOpen || peer.channel.transfers() > 0;
    ++entry;
  }
  return progress;
}

void PeerHub::Run() {
  absl::MutexLock lock(&mutex_);
  while (!stopping_ || !peers_.empty()) {
    if (stopping_) {
      for (auto& [id, peer] : peers_) End(*peer, absl::CancelledError("the server stops"));
    }
    woken_ = false;
    bool waiting = false;
    const bool progress = StepAll(&waiting);
    // Calls get in between, whatever there is to do.
    const absl::Duration pause = progress  ? absl::ZeroDuration()
                                 : waiting ? kLook
                                           : absl::InfiniteDuration();
    if (peers_.empty() && stopping_) break;
    mutex_.AwaitWithTimeout(absl::Condition(&woken_), pause);
  }
}

PeerHubStats PeerHub::Stats() const {
  const absl::MutexLock lock(&mutex_);
  PeerHubStats stats{.peers = peers_.size(), .broken = broken_, .moving = 0};
  for (const auto& [id, peer] : peers_) stats.moving += peer->channel.transfers();
  return stats;
}

}  // namespace oscarkv
