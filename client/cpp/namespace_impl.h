// The inside of a Namespace: what push, fetch and look-up share.
#ifndef OSCARKV_CLIENT_CPP_NAMESPACE_IMPL_H_
#define OSCARKV_CLIENT_CPP_NAMESPACE_IMPL_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

#include "client/cpp/client.h"
#include "client/cpp/connection.h"
#include "kernels/codec/page_codec.h"

namespace oscarkv::client {

class Namespace::Impl {
 public:
  Impl(std::shared_ptr<Connection> connection, NamespaceSpec spec, std::string transform_file,
       std::unique_ptr<PageCodec> codec)
      : connection_(std::move(connection)),
        spec_(std::move(spec)),
        fingerprint_(Fingerprint(spec_)),
        transform_file_(std::move(transform_file)),
        codec_(std::move(codec)) {}

  // Opens the namespace on the server, and uploads the transform set when it lacks it.
  absl::Status Open(bool create) ABSL_LOCKS_EXCLUDED(mutex_);

  // Runs `call` on an open namespace. When the server has restarted meanwhile, opens it again and
  // repeats the call once.
  absl::Status WithOpen(absl::FunctionRef<absl::Status()> call);

  absl::Status CheckKeys(std::span<const std::string> keys) const;
  absl::Status CheckSlots(std::span<const std::string> keys, std::span<const int64_t> slots) const;
  uint32_t max_items() const ABSL_LOCKS_EXCLUDED(mutex_);
  uint32_t max_chunk_bytes() const ABSL_LOCKS_EXCLUDED(mutex_);
  v1::Scope MakeScope() const ABSL_LOCKS_EXCLUDED(mutex_);
  uint32_t page_tokens() const { return spec_.geometry.page_tokens; }

  absl::StatusOr<Hit> Lookup(std::span<const std::string> keys, const LookupOptions& options);
  absl::StatusOr<PushReport> Push(const EngineView& cache, const PushRequest& request);
  absl::StatusOr<FetchReport> Fetch(const EngineView& cache, const FetchRequest& request);

  const std::shared_ptr<Connection>& connection() const { return connection_; }
  const NamespaceSpec& spec() const { return spec_; }
  const PageCodec& codec() const { return *codec_; }
  const std::string& fingerprint() const { return fingerprint_; }

 private:
  const std::shared_ptr<Connection> connection_;
  const NamespaceSpec spec_;
  const std::string fingerprint_;
  const std::string transform_file_;
  const std::unique_ptr<PageCodec> codec_;
  mutable absl::Mutex mutex_;
  bool open_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t server_epoch_ ABSL_GUARDED_BY(mutex_) = 0;
  uint32_t max_items_ ABSL_GUARDED_BY(mutex_) = 1024;
  uint32_t max_chunk_bytes_ ABSL_GUARDED_BY(mutex_) = 1u << 20;
};

// Uploads a transform file in chunks. Used when a namespace opens and by Client::PutTransformSet.
absl::Status UploadTransformSet(Connection& connection, const std::string& file,
                                uint32_t chunk_bytes);

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_NAMESPACE_IMPL_H_
