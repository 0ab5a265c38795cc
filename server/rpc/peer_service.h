// The Peer service: page bytes in the memory of GPUs.
#ifndef OSCARKV_SERVER_RPC_PEER_SERVICE_H_
#define OSCARKV_SERVER_RPC_PEER_SERVICE_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include <grpcpp/grpcpp.h>

#include "server/peer/staging_area.h"
#include "server/rpc/device_pushes.h"
#include "server/rpc/rpc_context.h"

#include "oscarkv/v1/peer.grpc.pb.h"

namespace oscarkv {

struct PeerOptions {
  // What the memory of page copies is opened by; an error: why there is none to be shared.
  absl::StatusOr<std::string> memory_handle = absl::UnavailableError("there is no GPU tier");
  std::byte* memory = nullptr;  // for the device
  uint64_t memory_bytes = 0;
  StagingArea* staging = nullptr;  // borrowed; null: nothing is pushed from clients' GPUs
  std::string host = {};           // this one
  std::string no_peers = {};       // why there is no hub
};

// Thread-safe. Without context.device_holds() nothing is shared, without context.peer_hub() nothing
// sent.
class PeerService final : public v1::Peer::CallbackService {
 public:
  // `context` is borrowed for the service's life.
  PeerService(RpcContext& context, PeerOptions options);
  ~PeerService() override;

  // Null: nothing is pushed from clients' GPUs.
  DevicePushes* pushes() const { return pushes_.get(); }

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
  grpc::ServerUnaryReactor* BeginPush(grpc::CallbackServerContext* call,
                                      const v1::BeginPushRequest* request,
                                      v1::BeginPushReply* reply) override;
  grpc::ServerUnaryReactor* EndPush(grpc::CallbackServerContext* call,
                                    const v1::EndPushRequest* request,
                                    v1::EndPushReply* reply) override;

 private:
  absl::Status MayUseIpc(Direction direction, const v1::PathOffer& offer) const;
  absl::Status CheckHost(const std::string& host) const;
  absl::Status CheckShared() const;
  absl::Status Hold(const v1::HoldPagesRequest& request, v1::HoldPagesReply* reply);
  absl::StatusOr<PeerHub*> Hub() const;
  absl::Status CheckEitherWay(DataPath path) const;
  absl::Status CheckPushed() const;
  absl::Status Send(PeerHub& hub, const v1::SendPagesRequest& request, v1::SendPagesReply* reply);

  RpcContext& context_;
  const PeerOptions options_;
  const std::unique_ptr<DevicePushes> pushes_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_RPC_PEER_SERVICE_H_
