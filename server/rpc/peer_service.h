// The Peer service: page bytes in the memory of GPUs.
#ifndef OSCARKV_SERVER_RPC_PEER_SERVICE_H_
#define OSCARKV_SERVER_RPC_PEER_SERVICE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include <grpcpp/grpcpp.h>

#include "server/rpc/rpc_context.h"

#include "oscarkv/v1/peer.grpc.pb.h"

namespace oscarkv {

struct PeerOptions {
  // What the memory of page copies is opened by; an error: why there is none to be shared.
  absl::StatusOr<std::string> memory_handle = absl::UnavailableError("there is no GPU tier");
  uint64_t memory_bytes = 0;
  std::string host = {};      // this one
  std::string no_peers = {};  // why there is no hub
};

// Thread-safe. Without context.device_holds() nothing is shared, without context.peer_hub() nothing
// sent.
class PeerService final : public v1::Peer::CallbackService {
 public:
  // `context` is borrowed for the service's life.
  PeerService(RpcContext& context, PeerOptions options)
      : context_(context), options_(std::move(options)) {}

  grpc::ServerUnaryReactor* ShareDevice(grpc::CallbackServerContext* call,
                                        const v1::ShareDeviceRequest* request,
                                        v1::ShareDeviceReply* reply) override;
  grpc::ServerUnaryReactor* HoldPages(grpc::CallbackServerContext* call,
                                      const v1::HoldPagesRequest* request,
                                      v1::HoldPagesReply* reply) override;
  grpc::ServerUnaryReactor* EndHold(grpc::CallbackServerContext* call,
                                    const v1::EndHoldRequest* request,
                                    v1::EndHoldReply* reply) override;
  grpc::ServerUnaryReactor* OpenPeer(grpc::CallbackServerContext* call,
                                     const v1::OpenPeerRequest* request,
                                     v1::OpenPeerReply* reply) override;
  grpc::ServerUnaryReactor* SendPages(grpc::CallbackServerContext* call,
                                      const v1::SendPagesRequest* request,
                                      v1::SendPagesReply* reply) override;

 private:
  absl::Status CheckShared() const;
  absl::Status Hold(const v1::HoldPagesRequest& request, v1::HoldPagesReply* reply);
  absl::StatusOr<PeerHub*> Hub() const;
  absl::Status Send(PeerHub& hub, const v1::SendPagesRequest& request, v1::SendPagesReply* reply);

  RpcContext& context_;
  const PeerOptions options_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_RPC_PEER_SERVICE_H_
