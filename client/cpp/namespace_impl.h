// The inside of a Namespace: what push, fetch and look-up share.
#ifndef OSCARKV_CLIENT_CPP_NAMESPACE_IMPL_H_
#define OSCARKV_CLIENT_CPP_NAMESPACE_IMPL_H_

#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "client/cpp/call_group.h"
#include "client/cpp/client.h"
#include "client/cpp/connection.h"
#include "client/cpp/pending_fetch.h"
#include "client/cpp/stored_pages.h"
#include "kernels/codec/page_codec.h"

namespace oscarkv::client {

class Namespace::Impl {
 public:
  Impl(std::shared_ptr<Connection> connection, NamespaceSpec spec, std::string transform_file,
       std::unique_ptr<PageCodec> codec, const NamespaceSettings& settings)
      : connection_(std::move(connection)),
        spec_(std::move(spec)),
        fingerprint_(Fingerprint(spec_)),
        transform_file_(std::move(transform_file)),
        codec_(std::move(codec)),
        settings_(settings) {}

  // Cancels calls under way and waits for the asynchronous ones.
  ~Impl() ABSL_LOCKS_EXCLUDED(mutex_);

  // What a call needs of the server.
  enum class Needs { kNamespace, kTransforms };

  // Opens the namespace on the server.
  absl::Status Open(bool create, absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);
  // Uploads the transform set if the server lacks it. That may take longer than a call has, so it
  // goes on in a thread of its own; the caller waits for it until the deadline.
  absl::Status UploadIfMissing(absl::Time deadline) ABSL_LOCKS_EXCLUDED(mutex_);

  // Runs `call` on an open namespace. When the server has restarted meanwhile, opens it again and
  // repeats the call once.
  absl::Status WithOpen(Needs needs, absl::Time deadline, absl::FunctionRef<absl::Status()> call);

  // One call to the server, cancelled when the namespace is destroyed.
  absl::Status Call(absl::Time deadline, absl::FunctionRef<grpc::Status(UnaryCall&)> attempt) {
    return connection_->Call(group_, deadline, attempt);
  }
  absl::Status Call(absl::Time deadline, const char* method,
                    const google::protobuf::MessageLite& request,
                    google::protobuf::MessageLite* reply) {
    return connection_->Call(group_, deadline, method, request, reply);
  }
  CallGroup& group() { return group_; }
  // Whether a call would go: asked before work that only a call is done for.
  absl::Status CheckCallable() const;

  // Runs `task` on the client's threads; this object waits for it when destroyed.
  void RunAsync(absl::AnyInvocable<void() &&> task) ABSL_LOCKS_EXCLUDED(mutex_);
  // The same behind the pushes that wait already, unless there is no room for `bytes` more: then
  // false, and the push of `pages` pages counts as dropped.
  bool RunPush(uint64_t pages, uint64_t bytes, absl::AnyInvocable<void() &&> task)
      ABSL_LOCKS_EXCLUDED(mutex_);

  absl::Status CheckKeys(std::span<const std::string> keys) const;
  // `least`: 0, or -1 where tokens may be left out.
  absl::Status CheckSlots(const EngineView& cache, std::span<const std::string> keys,
                          std::span<const int64_t> slots, int64_t least) const;
  // Whether a sink or source was made for as many pages as there are keys.
  static absl::Status CheckPages(std::span<const std::string> keys, uint64_t pages);
  absl::Status CheckPushable() const;
  absl::Status CheckPush(const EngineView& cache, const PushRequest& request) const;
  // Whether the namespace has pages of this form at all.
  bool MayHold(Encoding encoding) const {
    return encoding == Encoding::kWide || !spec_.codec.transform_hash.empty();
  }
  uint32_t max_items() const ABSL_LOCKS_EXCLUDED(mutex_);
  uint32_t max_chunk_bytes() const ABSL_LOCKS_EXCLUDED(mutex_);
  v1::Scope MakeScope() const ABSL_LOCKS_EXCLUDED(mutex_);
  uint32_t page_tokens() const { return spec_.geometry.page_tokens; }

  absl::StatusOr<Hit> Lookup(std::span<const std::string> keys, const LookupOptions& options);
  absl::StatusOr<PushReport> Push(const EngineView& cache, const PushRequest& request);
  absl::StatusOr<FetchReport> Fetch(const EngineView& cache, const FetchRequest& request);
  // A fetch that tells `state` of its layers, and ends when the state's group is cancelled.
  absl::StatusOr<FetchReport> FetchLayers(const EngineView& cache, const FetchRequest& request,
                                          PendingFetch::State& state);
  absl::StatusOr<FetchReport> FetchLayersTo(PageSink& sink, const FetchRequest& request,
                                            PendingFetch::State& state);
  absl::StatusOr<PersistReport> Persist(std::span<const std::string> keys, absl::Time deadline);
  absl::StatusOr<PushReport> PushFrom(PageSource& source, const PushRequest& request);
  absl::StatusOr<FetchReport> FetchTo(PageSink& sink, const FetchRequest& request);

  const std::shared_ptr<Connection>& connection() const { return connection_; }
  const NamespaceSpec& spec() const { return spec_; }
  const PageCodec& codec() const { return *codec_; }
  const std::string& fingerprint() const { return fingerprint_; }

 private:
  absl::StatusOr<FetchReport> Follow(PageSink& sink, const FetchRequest& request,
                                     PendingFetch::State& state);
  enum class Transforms { kUnknown, kMissing, kUploading, kThere };
  absl::Status Prepare(Needs needs, absl::Time deadline);
  // The task, counted until it has run: this object waits for it when destroyed.
  absl::AnyInvocable<void() &&> Counted(absl::AnyInvocable<void() &&> task)
      ABSL_LOCKS_EXCLUDED(mutex_);
  bool Idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return tasks_ == 0; }
  bool UploadEnded() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return transforms_ != Transforms::kUploading;
  }

  const std::shared_ptr<Connection> connection_;
  const NamespaceSpec spec_;
  const std::string fingerprint_;
  const std::string transform_file_;
  const std::unique_ptr<PageCodec> codec_;
  const NamespaceSettings settings_;
  mutable absl::Mutex mutex_;
  CallGroup group_;
  bool open_ ABSL_GUARDED_BY(mutex_) = false;
  int tasks_ ABSL_GUARDED_BY(mutex_) = 0;
  Transforms transforms_ ABSL_GUARDED_BY(mutex_) = Transforms::kUnknown;
  absl::Status upload_status_ ABSL_GUARDED_BY(mutex_);
  std::thread upload_ ABSL_GUARDED_BY(mutex_);
  uint64_t server_epoch_ ABSL_GUARDED_BY(mutex_) = 0;
  uint32_t max_items_ ABSL_GUARDED_BY(mutex_) = 1024;
  uint32_t max_chunk_bytes_ ABSL_GUARDED_BY(mutex_) = 1u << 20;
};

// Uploads a transform file in chunks. Used by namespaces and by Client::PutTransformSet.
absl::Status UploadTransformSet(Connection& connection, CallGroup& group, const std::string& file,
                                uint32_t chunk_bytes);

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_NAMESPACE_IMPL_H_
