// The KvCache service over gRPC's callback API: each method decodes its message, calls the store
// and encodes the answer. Streams have a reactor each, in a file of their own.
#ifndef OSCARKV_SERVER_RPC_CACHE_SERVICE_H_
#define OSCARKV_SERVER_RPC_CACHE_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include "server/rpc/rpc_context.h"

#include "oscarkv/v1/kv_cache.grpc.pb.h"

namespace oscarkv {

// Thread-safe. Get and Put work on raw bytes, so that pages leave without a copy and arrive with
// one; their messages are the proto's all the same.
class CacheService final
    : public v1::KvCache::WithRawCallbackMethod_Get<
          v1::KvCache::WithRawCallbackMethod_Put<v1::KvCache::CallbackService>> {
 public:
  // `context` is borrowed for the service's life.
  explicit CacheService(RpcContext& context) : context_(context) {}

  grpc::ServerUnaryReactor* OpenNamespace(grpc::CallbackServerContext* call,
                                          const v1::OpenNamespaceRequest* request,
                                          v1::OpenNamespaceReply* reply) override;
  grpc::ServerUnaryReactor* Lookup(grpc::CallbackServerContext* call,
                                   const v1::LookupRequest* request,
                                   v1::LookupReply* reply) override;
  grpc::ServerUnaryReactor* ReleaseLease(grpc::CallbackServerContext* call,
                                         const v1::ReleaseLeaseRequest* request,
                                         v1::ReleaseLeaseReply* reply) override;
  grpc::ServerUnaryReactor* Touch(grpc::CallbackServerContext* call, const v1::KeysRequest* request,
                                  v1::KeysReply* reply) override;
  grpc::ServerUnaryReactor* Delete(grpc::CallbackServerContext* call,
                                   const v1::KeysRequest* request, v1::KeysReply* reply) override;
  grpc::ServerUnaryReactor* List(grpc::CallbackServerContext* call, const v1::ListRequest* request,
                                 v1::ListReply* reply) override;
  grpc::ServerUnaryReactor* Clear(grpc::CallbackServerContext* call,
                                  const v1::ClearRequest* request, v1::ClearReply* reply) override;

  grpc::ServerReadReactor<v1::PutTransformSetRequest>* PutTransformSet(
      grpc::CallbackServerContext* call, v1::PutTransformSetReply* reply) override;
  grpc::ServerWriteReactor<v1::GetTransformSetReply>* GetTransformSet(
      grpc::CallbackServerContext* call, const v1::GetTransformSetRequest* request) override;
  grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionReply>* Session(
      grpc::CallbackServerContext* call) override;
  grpc::ServerReadReactor<grpc::ByteBuffer>* Put(grpc::CallbackServerContext* call,
                                                 grpc::ByteBuffer* reply) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Get(grpc::CallbackServerContext* call,
                                                  const grpc::ByteBuffer* request) override;

 private:
  RpcContext& context_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_RPC_CACHE_SERVICE_H_
