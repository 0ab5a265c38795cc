// The Admin service.
#ifndef OSCARKV_SERVER_RPC_ADMIN_SERVICE_H_
#define OSCARKV_SERVER_RPC_ADMIN_SERVICE_H_

#include <string>
#include <utility>

#include <grpcpp/grpcpp.h>

#include "server/rpc/rpc_context.h"

#include "oscarkv/v1/admin.grpc.pb.h"

namespace oscarkv {

// Thread-safe.
class AdminService final : public v1::Admin::CallbackService {
 public:
  // `context` is borrowed for the service's life.
  AdminService(RpcContext& context, std::string version)
      : context_(context), version_(std::move(version)) {}

  grpc::ServerUnaryReactor* Stats(grpc::CallbackServerContext* call,
                                  const v1::StatsRequest* request, v1::StatsReply* reply) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* call,
                                  const v1::DrainRequest* request, v1::DrainReply* reply) override;
  grpc::ServerWriteReactor<v1::VerifyReply>* Verify(grpc::CallbackServerContext* call,
                                                    const v1::VerifyRequest* request) override;
  grpc::ServerUnaryReactor* DeleteTransformSet(grpc::CallbackServerContext* call,
                                               const v1::DeleteTransformSetRequest* request,
                                               v1::DeleteTransformSetReply* reply) override;

 private:
  RpcContext& context_;
  const std::string version_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_RPC_ADMIN_SERVICE_H_
