#include "client/cpp/peer_calls.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

#include "client/cpp/connection.h"
#include "client/cpp/paths.h"
#include "client/cpp/peer_link.h"
#include "kernels/base/fault_point.h"
#include "kernels/base/host_id.h"
#include "kernels/base/status_macros.h"

namespace oscarkv::client {
namespace {

// What `broken` means, as against errors that say nothing about the path.
bool SaysNever(const absl::Status& status) {
  return absl::IsUnimplemented(status) || absl::IsInvalidArgument(status) ||
         absl::IsFailedPrecondition(status);
}

absl::Status OpenPeer(Namespace::Impl& space, PeerLink& link, uint64_t session, CallGroup& group,
                      absl::Time deadline, absl::Status* broken) {
  v1::OpenPeerRequest request;
  request.set_session_id(session);
  request.set_replaces(link.peer_id());
  request.set_nccl_version(link.version());
  request.set_slots(link.shape().slots);
  request.set_slot_bytes(link.shape().slot_bytes);
  v1::OpenPeerReply reply;
  const absl::Status answered =
      space.connection()->Call(group, deadline, method::kOpenPeer, request, &reply);
  if (SaysNever(answered)) {
    *broken = answered;
    return absl::OkStatus();
  }
  OSCARKV_RETURN_IF_ERROR(answered);
  FaultPoint("nccl.client.opened");
  comm::PairId pair;
  if (reply.pair().size() != pair.size() || reply.slots() == 0 ||
      reply.slot_bytes() > link.shape().slot_bytes) {
    *broken = absl::InvalidArgumentError(absl::StrCat("a peer with an id of ", reply.pair().size(),
                                                      " bytes and ", reply.slots(), " slots of ",
                                                      reply.slot_bytes()));
    return absl::OkStatus();
  }
  std::copy(reply.pair().begin(), reply.pair().end(), pair.begin());
  *broken = link.Open(session, reply.peer_id(), pair, reply.peer_epoch(),
                      absl::Now() + space.connection()->options().peer_meet_timeout);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::ShareDeviceReply> SharedDevice::Get(Namespace::Impl& space, CallGroup& group,
                                                       absl::Time deadline, absl::Status* broken) {
  const uint64_t session = space.connection()->Session(deadline);
  if (session == 0) return absl::UnavailableError("no session could be opened");
  {
    const absl::MutexLock lock(&mutex_);
    if (session_ == session) return shared_;
  }
  v1::ShareDeviceRequest request;
  request.set_host(HostId());
  v1::ShareDeviceReply reply;
  const absl::Status status =
      space.connection()->Call(group, deadline, method::kShareDevice, request, &reply);
  if (absl::IsUnimplemented(status)) {
    *broken = status;
    return reply;
  }
  // A server that does not answer is out of reach by every path.
  OSCARKV_RETURN_IF_ERROR(status);
  const absl::MutexLock lock(&mutex_);
  session_ = session;
  shared_ = reply;
  return reply;
}

absl::StatusOr<bool> OpenPeerLink(Namespace::Impl& space, PeerLink& link, Direction direction,
                                  CallGroup& group, absl::Time deadline, absl::Status* broken) {
  const uint64_t session = space.connection()->Session(deadline);
  if (session == 0) return absl::UnavailableError("no session could be opened");
  // Its peer ended with the session that it was opened in.
  if (link.session() != session) link.Break(absl::CancelledError("the session has ended"));
  if (link.epoch() != 0) return true;
  const auto cancelled = [&group] { return group.cancelled(); };
  const bool alone = !space.connection()->paths().HasHostPath(direction);
  // One call has waited for a meeting that goes on.
  absl::Time until = alone ? deadline : absl::InfinitePast();
  if (!link.meeting()) {
    const absl::Time now = absl::Now();
    if (!alone) until = now + (deadline - now) / 2;
    if (!link.AwaitClosed(until, cancelled)) return false;
    OSCARKV_RETURN_IF_ERROR(OpenPeer(space, link, session, group, deadline, broken));
    if (!broken->ok()) return false;
  }
  const absl::StatusOr<bool> met = link.AwaitOpen(until, cancelled);
  if (met.ok()) {
    if (*met) FaultPoint("nccl.client.met");
    return *met;
  }
  *broken = met.status();
  return false;
}

}  // namespace oscarkv::client
