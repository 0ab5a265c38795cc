// The services over a store with faults, reached in process: tests see both the wire and the store.
#ifndef OSCARKV_TESTS_RPC_RPC_TEST_H_
#define OSCARKV_TESTS_RPC_RPC_TEST_H_

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include <grpcpp/grpcpp.h>

#include "server/rpc/admin_service.h"
#include "server/rpc/cache_service.h"
#include "server/rpc/lookup_threads.h"
#include "server/rpc/rpc_context.h"
#include "tests/core/store_test.h"

#include "oscarkv/v1/admin.grpc.pb.h"
#include "oscarkv/v1/kv_cache.grpc.pb.h"

namespace oscarkv::testing {

class RpcTest : public StoreTest {
 protected:
  // Both after Open.
  void Serve(const RpcOptions& options = {}) {
    context_ = std::make_unique<RpcContext>(options, store(), logger_);
    cache_service_ = std::make_unique<CacheService>(*context_);
    admin_service_ = std::make_unique<AdminService>(*context_, "test");
    grpc::ServerBuilder builder;
    builder.RegisterService(cache_service_.get());
    builder.RegisterService(admin_service_.get());
    lookup_threads_ = std::make_unique<LookupThreads>(*cache_service_, builder);
    server_ = builder.BuildAndStart();
    lookup_threads_->Start();
    const auto channel = server_->InProcessChannel({});
    cache_ = v1::KvCache::NewStub(channel);
    admin_ = v1::Admin::NewStub(channel);
  }
  ~RpcTest() override { Stop(); }

  // Waits until every call has ended, cancelling those that have not. Whatever a call may have left
  // behind is there to see afterwards.
  void Stop() {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    lookup_threads_->Stop();
    server_.reset();
  }

  // After Stop: no call holds anything.
  void ExpectNothingHeld() {
    EXPECT_EQ(context_->inflight_bytes(), 0u);
    EXPECT_EQ(context_->calls_in_flight(), 0u);
    const StoreStats stats = store().Stats();
    EXPECT_EQ(stats.pins, 0u);
    EXPECT_EQ(stats.open_puts, 0u);
    EXPECT_EQ(stats.detached_pages, 0u);
    EXPECT_EQ(stats.sessions, 0u);
    EXPECT_EQ(stats.leases, 0u);
  }

  void FillScope(v1::Scope* scope) const { scope->set_fingerprint(space().fingerprint()); }

  v1::GetRequest GetRequestFor(const std::vector<TestItem>& items) const {
    v1::GetRequest request;
    FillScope(request.mutable_scope());
    for (const TestItem& item : items) request.add_keys(item.key);
    return request;
  }

  // Every message of a Get and its status.
  std::vector<v1::GetReply> GetAll(const v1::GetRequest& request, grpc::Status* status = nullptr) {
    grpc::ClientContext call;
    const auto stream = cache_->Get(&call, request);
    std::vector<v1::GetReply> replies(1);
    while (stream->Read(&replies.back())) replies.emplace_back();
    replies.pop_back();
    const grpc::Status end = stream->Finish();
    if (status != nullptr) *status = end;
    return replies;
  }

  // The header of a put, and its bytes by item.
  v1::PutRequest PutHeaderFor(const std::vector<TestItem>& items) const {
    v1::PutRequest request;
    FillScope(request.mutable_header()->mutable_scope());
    for (const TestItem& item : items) {
      const TestPage page = MakePage(space(), item.encoding, item.seed);
      v1::PutItem* out = request.mutable_header()->add_items();
      out->set_key(item.key);
      out->set_parent(item.parent);
      out->set_first_position(item.first_position);
      out->set_encoding(static_cast<v1::Encoding>(item.encoding));
      out->set_bytes(page.bytes.size());
      out->mutable_block_crc32c()->Add(page.crcs.begin(), page.crcs.end());
    }
    return request;
  }
  v1::PutRequest ChunkOf(uint32_t item, const TestItem& page, uint64_t offset,
                         uint64_t bytes) const {
    const TestPage content = MakePage(space(), page.encoding, page.seed);
    v1::PutRequest request;
    request.mutable_chunk()->set_item(item);
    request.mutable_chunk()->set_offset(offset);
    request.mutable_chunk()->set_data(content.bytes.data() + offset,
                                      std::min<uint64_t>(bytes, content.bytes.size() - offset));
    return request;
  }

  const Logger logger_{LogLevel::kError, LogFormat::kText};
  std::unique_ptr<RpcContext> context_;
  std::unique_ptr<CacheService> cache_service_;
  std::unique_ptr<AdminService> admin_service_;
  std::unique_ptr<LookupThreads> lookup_threads_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::KvCache::Stub> cache_;
  std::unique_ptr<v1::Admin::Stub> admin_;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_RPC_RPC_TEST_H_
