// A store for tests of the client: honest unless a test changes what it says.
#ifndef OSCARKV_TESTS_CLIENT_FAKE_STORE_H_
#define OSCARKV_TESTS_CLIENT_FAKE_STORE_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include <grpcpp/grpcpp.h>

#include "client/cpp/client.h"

#include "oscarkv/v1/kv_cache.grpc.pb.h"

namespace oscarkv::testing {

// What a test may change while calls are under way.
template <typename Signature>
class Hook;
template <typename Result, typename... Args>
class Hook<Result(Args...)> {
 public:
  template <typename Function>
  Hook(Function function)
      : function_(std::move(function)) {}  // NOLINT(google-explicit-constructor)
  template <typename Function>
  Hook& operator=(Function function) ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::MutexLock lock(&mutex_);
    function_ = std::move(function);
    return *this;
  }
  Result operator()(Args... args) const ABSL_LOCKS_EXCLUDED(mutex_) {
    mutex_.Lock();
    const std::function<Result(Args...)> function = function_;  // may block: not under the lock
    mutex_.Unlock();
    return function(args...);
  }

 private:
  mutable absl::Mutex mutex_;
  std::function<Result(Args...)> function_ ABSL_GUARDED_BY(mutex_);
};

// Listens on a port of its own. The hooks may run on any thread.
class FakeStore final : public v1::KvCache::Service {
 public:
  FakeStore();
  ~FakeStore() override;

  std::string endpoint() const;

  // What a method returns instead of doing its work; OK lets it go on. Gets the method's name.
  Hook<grpc::Status(const std::string& method)> fail = [](const std::string&) {
    return grpc::Status::OK;
  };
  // Called at the start of each method, before `fail`: may block.
  Hook<void(const std::string& method)> enter = [](const std::string&) {};
  // Changes of honest replies. A Get is a list of messages, [item, chunk, chunk, ..., end].
  Hook<void(const v1::OpenNamespaceRequest&)> on_open = [](const auto&) {};
  Hook<void(v1::OpenNamespaceReply*)> edit_open = [](auto*) {};
  Hook<void(v1::SessionReply*)> edit_session = [](auto*) {};
  Hook<void(v1::LookupReply*)> edit_lookup = [](auto*) {};
  Hook<void(v1::PutReply*)> edit_put = [](auto*) {};
  Hook<void(std::vector<v1::GetReply>*)> edit_get = [](auto*) {};
  Hook<grpc::Status()> end_get = [] { return grpc::Status::OK; };
  Hook<void(v1::KeysReply*)> edit_keys = [](auto*) {};
  Hook<void(v1::ListReply*)> edit_list = [](auto*) {};

  void SetEpoch(uint64_t epoch) ABSL_LOCKS_EXCLUDED(mutex_);  // forgets everything: a restart
  int calls(const std::string& method) const ABSL_LOCKS_EXCLUDED(mutex_);
  v1::LookupRequest last_lookup() const ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<uint64_t> released_leases() const ABSL_LOCKS_EXCLUDED(mutex_);
  std::string transform_file() const ABSL_LOCKS_EXCLUDED(mutex_);
  void AwaitTransforms() const
      ABSL_LOCKS_EXCLUDED(mutex_);  // waits until there is a transform file
  // Waits until `method` has been called `count` times.
  void AwaitCalls(const std::string& method, int count) const ABSL_LOCKS_EXCLUDED(mutex_);

  grpc::Status OpenNamespace(grpc::ServerContext*, const v1::OpenNamespaceRequest*,
                             v1::OpenNamespaceReply*) override;
  grpc::Status PutTransformSet(grpc::ServerContext*,
                               grpc::ServerReader<v1::PutTransformSetRequest>*,
                               v1::PutTransformSetReply*) override;
  grpc::Status Session(grpc::ServerContext*,
                       grpc::ServerReaderWriter<v1::SessionReply, v1::SessionRequest>*) override;
  grpc::Status Lookup(grpc::ServerContext*, const v1::LookupRequest*, v1::LookupReply*) override;
  grpc::Status ReleaseLease(grpc::ServerContext*, const v1::ReleaseLeaseRequest*,
                            v1::ReleaseLeaseReply*) override;
  grpc::Status Put(grpc::ServerContext*, grpc::ServerReader<v1::PutRequest>*,
                   v1::PutReply*) override;
  grpc::Status Get(grpc::ServerContext*, const v1::GetRequest*,
                   grpc::ServerWriter<v1::GetReply>*) override;
  grpc::Status Delete(grpc::ServerContext*, const v1::KeysRequest*, v1::KeysReply*) override;
  grpc::Status Persist(grpc::ServerContext*, const v1::KeysRequest*, v1::KeysReply*) override;
  grpc::Status List(grpc::ServerContext*, const v1::ListRequest*, v1::ListReply*) override;

 private:
  struct Page {
    v1::PutItem item;
    std::string bytes;
  };
  grpc::Status Begin(const std::string& method) ABSL_LOCKS_EXCLUDED(mutex_);
  grpc::Status CheckScope(const v1::Scope& scope) const ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<v1::GetReply> HonestGet(const v1::GetRequest& request) const
      ABSL_LOCKS_EXCLUDED(mutex_);

  mutable absl::Mutex mutex_;
  uint64_t epoch_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<std::string, int> calls_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Page> pages_ ABSL_GUARDED_BY(mutex_);
  std::string transform_file_ ABSL_GUARDED_BY(mutex_);
  v1::LookupRequest last_lookup_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint64_t> released_leases_ ABSL_GUARDED_BY(mutex_);
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

// The bytes of a transform file for the fixture's geometry.
std::string SmallTransformFile();

// A worker's cache of 64 token slots, bf16, all elements 7.
class WorkerCache {
 public:
  explicit WorkerCache(const Geometry& geometry);
  EngineView view();
  // Whether the rows of tokens [first, end) are those of `other`; slots are tokens.
  bool SameRows(const WorkerCache& other, int64_t first, int64_t end) const;
  void FillRandom(uint64_t seed);

 private:
  Geometry geometry_;
  std::vector<uint16_t> values_;  // [k and v][layers][slots][heads][dim]
  std::vector<std::byte*> layers_;
};

// A fake store, a client of it, and three pages that the fake holds. 2 layers, 2 heads, 4 tokens a
// page, dim 16.
struct Fixture {
  explicit Fixture(const client::ClientOptions& options = {},
                   const std::string& transform_file = {});
  ~Fixture();

  // Pushes the three pages from `source`.
  absl::StatusOr<client::PushReport> Push();
  absl::StatusOr<client::FetchReport> Fetch();  // into `destination`

  FakeStore store;
  NamespaceSpec spec;
  WorkerCache source;
  WorkerCache destination;
  WorkerCache untouched;
  std::vector<std::string> keys;
  std::vector<int64_t> slots;
  std::unique_ptr<client::Client> client;
  std::unique_ptr<client::Namespace> space;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_CLIENT_FAKE_STORE_H_
