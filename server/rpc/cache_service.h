// The KvCache service: each method decodes its message, calls the store and encodes the answer.
// Over gRPC's callback API, streams with a reactor each in a file of their own; look-ups and
// releases on threads of their own (lookup_threads.h).
#ifndef OSCARKV_SERVER_RPC_CACHE_SERVICE_H_
#define OSCARKV_SERVER_RPC_CACHE_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include "server/rpc/rpc_context.h"

#include "oscarkv/v1/kv_cache.grpc.pb.h"

namespace oscarkv {

// How the methods are served. Get and Put work on raw bytes, so that pages leave without a copy and
// arrive with one; their messages are the proto's all the same. All that runs on gRPC's own few
// threads may wait while they move pages. Look-ups do not wait behind pages.
template <typename Base>
using WithOwnThreads =
    v1::KvCache::WithRawMethod_Lookup<v1::KvCache::WithRawMethod_ReleaseLease<Base>>;
template <typename Base>
using WithCallbacks = v1::KvCache::WithRawCallbackMethod_Get<v1::KvCache::WithRawCallbackMethod_Put<
    v1::KvCache::WithCallbackMethod_OpenNamespace<v1::KvCache::WithCallbackMethod_PutTransformSet<
        v1::KvCache::WithCallbackMethod_GetTransformSet<v1::KvCache::WithCallbackMethod_Session<
            v1::KvCache::WithCallbackMethod_Touch<v1::KvCache::WithCallbackMethod_Persist<
                v1::KvCache::WithCallbackMethod_Delete<v1::KvCache::WithCallbackMethod_List<
                    v1::KvCache::WithCallbackMethod_Clear<Base>>>>>>>>>>>;

// Thread-safe.
class CacheService final : public WithCallbacks<WithOwnThreads<v1::KvCache::Service>> {
 public:
  // `context` is borrowed for the service's life.
  explicit CacheService(RpcContext& context) : context_(context) {}

  grpc::ServerUnaryReactor* OpenNamespace(grpc::CallbackServerContext* call,
                                          const v1::OpenNamespaceRequest* request,
                                          v1::OpenNamespaceReply* reply) override;
  // What LookupThreads calls: messages as they come and go.
  grpc::Status AnswerLookup(grpc::ServerContext* call, const grpc::ByteBuffer& request,
                            grpc::ByteBuffer* reply);
  grpc::Status AnswerReleaseLease(grpc::ServerContext* call, const grpc::ByteBuffer& request,
                                  grpc::ByteBuffer* reply);
  grpc::ServerUnaryReactor* Touch(grpc::CallbackServerContext* call, const v1::KeysRequest* request,
                                  v1::KeysReply* reply) override;
  grpc::ServerUnaryReactor* Persist(grpc::CallbackServerContext* call,
                                    const v1::KeysRequest* request, v1::KeysReply* reply) override;
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
