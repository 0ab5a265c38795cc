#include "client/cpp/peer_calls.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

#include "client/cpp/connection.h"
#include "client/cpp/peer_link.h"
#include "kernels/base/host_id.h"
#include "kernels/base/status_macros.h"

namespace oscarkv::client {
namespace {

absl::Status OpenPeer(Namespace::Impl& space, PeerLink& link, absl::Time deadline) {
  v1::OpenPeerRequest request;
  request.set_session_id(space.connection()->Session(deadline));
  request.set_replaces(link.peer_id());
  request.set_nccl_version(link.version());
  request.set_slots(link.shape().slots);
  request.set_slot_bytes(link.shape().slot_bytes);
  v1::OpenPeerReply reply;
  OSCARKV_RETURN_IF_ERROR(space.Call(deadline, method::kOpenPeer, request, &reply));
  comm::PairId pair;
  if (reply.pair().size() != pair.size() || reply.slots() == 0 ||
      reply.slot_bytes() > link.shape().slot_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("a peer with an id of ", reply.pair().size(),
                                                   " bytes and ", reply.slots(), " slots of ",
                                                   reply.slot_bytes()));
  }
  std::copy(reply.pair().begin(), reply.pair().end(), pair.begin());
  return link.Open(reply.peer_id(), pair, reply.peer_epoch(), deadline);
}

}  // namespace

absl::StatusOr<v1::ShareDeviceReply> SharedDevice::Get(Namespace::Impl& space, absl::Time deadline,
                                                       absl::Status* broken) {
  const uint64_t session = space.connection()->Session(deadline);
  if (session == 0) return absl::UnavailableError("no session could be opened");
  {
    const absl::MutexLock lock(&mutex_);
    if (session_ == session) return shared_;
  }
  v1::ShareDeviceRequest request;
  request.set_host(HostId());
  v1::ShareDeviceReply reply;
  const absl::Status status = space.Call(deadline, method::kShareDevice, request, &reply);
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

absl::Status OpenPeerLink(Namespace::Impl& space, PeerLink& link, absl::Time deadline,
                          absl::Status* broken) {
  if (link.epoch() != 0) return absl::OkStatus();
  const absl::Status opened = OpenPeer(space, link, deadline);
  if (!absl::IsUnimplemented(opened) && !absl::IsInvalidArgument(opened) &&
      !absl::IsFailedPrecondition(opened))
    return opened;
  *broken = opened;
  return absl::OkStatus();
}

}  // namespace oscarkv::client
