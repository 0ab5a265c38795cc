#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

#include "client/cpp/client.h"
#include "client/cpp/namespace_impl.h"
#include "kernels/base/sha256.h"
#include "kernels/base/status_macros.h"
#include "proto/convert/convert.h"
#include "proto/wire/page_key.h"

namespace oscarkv::client {

absl::Status UploadTransformSet(Connection& connection, const std::string& file,
                                uint32_t chunk_bytes) {
  const std::string hash = Sha256Of(AsBytes(file));
  return connection.Call(connection.options().transform_timeout, [&](grpc::ClientContext* context) {
    v1::PutTransformSetReply reply;
    const auto writer = connection.stubs().cache->PutTransformSet(context, &reply);
    v1::PutTransformSetRequest request;
    request.mutable_header()->set_hash(hash);
    request.mutable_header()->set_bytes(file.size());
    bool going = writer->Write(request);
    for (size_t offset = 0; going && offset < file.size(); offset += chunk_bytes) {
      request.set_data(file.substr(offset, chunk_bytes));
      going = writer->Write(request);
    }
    writer->WritesDone();
    return writer->Finish();
  });
}

absl::Status Namespace::Impl::Open(bool create) {
  v1::OpenNamespaceRequest request;
  ToProto(spec_, request.mutable_spec());
  request.set_create(create);
  request.set_expected_fingerprint(fingerprint_);
  v1::OpenNamespaceReply reply;
  OSCARKV_RETURN_IF_ERROR(
      connection_->Call(connection_->options().control_timeout, [&](grpc::ClientContext* context) {
        return connection_->stubs().cache->OpenNamespace(context, request, &reply);
      }));
  const auto disagree = [](const char* what, uint64_t mine, uint64_t theirs) {
    return absl::FailedPreconditionError(absl::StrCat("client and server disagree about the ", what,
                                                      " page: ", mine, " and ", theirs, " bytes"));
  };
  if (reply.wide_page_bytes() != codec_->layout(Encoding::kWide).page_bytes()) {
    return disagree("WIDE", codec_->layout(Encoding::kWide).page_bytes(), reply.wide_page_bytes());
  }
  if (codec_->can_pack() &&
      reply.packed_page_bytes() != codec_->layout(Encoding::kPacked).page_bytes()) {
    return disagree("PACKED", codec_->layout(Encoding::kPacked).page_bytes(),
                    reply.packed_page_bytes());
  }
  const uint32_t chunk_bytes =
      std::clamp<uint32_t>(reply.limits().max_chunk_bytes(), 4096, 16u << 20);
  if (!transform_file_.empty() && !reply.has_transform_set()) {
    OSCARKV_RETURN_IF_ERROR(UploadTransformSet(*connection_, transform_file_, chunk_bytes));
  }
  const absl::MutexLock lock(&mutex_);
  open_ = true;
  server_epoch_ = reply.server_epoch();
  max_items_ = std::max<uint32_t>(reply.limits().max_items(), 1);
  max_chunk_bytes_ = chunk_bytes;
  return absl::OkStatus();
}

absl::Status Namespace::Impl::WithOpen(absl::FunctionRef<absl::Status()> call) {
  bool open = false;
  {
    const absl::MutexLock lock(&mutex_);
    open = open_;
  }
  if (!open) OSCARKV_RETURN_IF_ERROR(Open(/*create=*/true));
  const absl::Status status = call();
  // ABORTED: another epoch. FAILED_PRECONDITION: the fingerprint is not known (any more).
  if (!absl::IsAborted(status) && !absl::IsFailedPrecondition(status)) return status;
  connection_->CountReopen();
  OSCARKV_RETURN_IF_ERROR(Open(/*create=*/true));
  return call();
}

absl::Status Namespace::Impl::CheckKeys(std::span<const std::string> keys) const {
  for (size_t i = 0; i < keys.size(); ++i) {
    OSCARKV_RETURN_IF_ERROR(Annotate(ValidateKey(keys[i]), absl::StrCat("key ", i)));
  }
  return absl::OkStatus();
}

absl::Status Namespace::Impl::CheckSlots(std::span<const std::string> keys,
                                         std::span<const int64_t> slots) const {
  const size_t expected = keys.size() * page_tokens();
  if (slots.size() == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(keys.size(), " pages of ", page_tokens(),
                                                 " tokens need ", expected, " slots, found ",
                                                 slots.size()));
}

uint32_t Namespace::Impl::max_items() const {
  const absl::MutexLock lock(&mutex_);
  return max_items_;
}

uint32_t Namespace::Impl::max_chunk_bytes() const {
  const absl::MutexLock lock(&mutex_);
  return max_chunk_bytes_;
}

v1::Scope Namespace::Impl::MakeScope() const {
  v1::Scope scope;
  scope.set_fingerprint(fingerprint_);
  const absl::MutexLock lock(&mutex_);
  scope.set_server_epoch(server_epoch_);
  return scope;
}

namespace {

// The tokens of a hit that the reader should use.
uint64_t UsableTokens(const Hit& hit, const NamespaceSpec& spec, TailPolicy tail) {
  const uint64_t tokens = uint64_t{hit.pages} * spec.geometry.page_tokens;
  if (tail == TailPolicy::kTake || hit.pages == 0 || hit.encodings.back() == Encoding::kWide)
    return tokens;
  return tokens - std::min<uint64_t>(tokens, spec.codec.recent_tokens);
}

}  // namespace

absl::StatusOr<Hit> Namespace::Impl::Lookup(std::span<const std::string> keys,
                                            const LookupOptions& options) {
  OSCARKV_RETURN_IF_ERROR(CheckKeys(keys));
  Hit hit;
  if (keys.empty()) return hit;
  const absl::Duration timeout = connection_->options().lookup_timeout;
  const uint64_t session = options.lease ? connection_->Session(timeout) : 0;
  v1::LookupReply reply;
  hit.store = WithOpen([&] {
    v1::LookupRequest request;
    *request.mutable_scope() = MakeScope();
    // A prefix longer than the server's limit is looked up as far as the limit goes: an honest
    // shorter hit.
    for (const std::string& key : keys.first(std::min<size_t>(keys.size(), max_items())))
      request.add_keys(key);
    request.set_mode(v1::LookupRequest::PREFIX);
    request.set_lease(options.lease && session != 0);
    request.set_session_id(session);
    return connection_->Call(timeout, [&](grpc::ClientContext* context) {
      return connection_->stubs().cache->Lookup(context, request, &reply);
    });
  });
  if (!hit.store.ok()) return hit;
  hit.pages = std::min({reply.prefix_pages(), static_cast<uint32_t>(reply.pages_size()),
                        static_cast<uint32_t>(keys.size())});
  for (uint32_t i = 0; i < hit.pages; ++i) {
    hit.encodings.push_back(reply.pages(static_cast<int>(i)).encoding() == v1::WIDE
                                ? Encoding::kWide
                                : Encoding::kPacked);
  }
  hit.usable_tokens = UsableTokens(hit, spec_, options.tail);
  hit.bytes = reply.fetch_bytes();
  hit.expected_ms = reply.expected_fetch_ms();
  if (reply.lease_id() != 0) hit.lease = Lease(connection_, fingerprint_, reply.lease_id());
  return hit;
}

Lease::Lease(std::shared_ptr<Connection> connection, std::string fingerprint, uint64_t id)
    : connection_(std::move(connection)), fingerprint_(std::move(fingerprint)), id_(id) {}

Lease& Lease::operator=(Lease&& other) noexcept {
  if (this == &other) return *this;
  Release();
  connection_ = std::move(other.connection_);
  fingerprint_ = std::move(other.fingerprint_);
  id_ = std::exchange(other.id_, 0);
  return *this;
}

void Lease::Release() {
  if (id_ == 0) return;
  v1::ReleaseLeaseRequest request;
  request.mutable_scope()->set_fingerprint(fingerprint_);
  request.set_lease_id(std::exchange(id_, 0));
  v1::ReleaseLeaseReply reply;
  // A release that is lost is harmless: the lease ends with the session, or at the server's
  // ceiling.
  connection_
      ->Call(connection_->options().lookup_timeout,
             [&](grpc::ClientContext* context) {
               return connection_->stubs().cache->ReleaseLease(context, request, &reply);
             })
      .IgnoreError();
  connection_.reset();
}

Namespace::Namespace(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Namespace::~Namespace() = default;
const NamespaceSpec& Namespace::spec() const { return impl_->spec(); }
const PageCodec& Namespace::codec() const { return impl_->codec(); }

absl::StatusOr<Hit> Namespace::Lookup(std::span<const std::string> keys,
                                      const LookupOptions& options) const {
  return impl_->Lookup(keys, options);
}

absl::StatusOr<PushReport> Namespace::Push(const EngineView& cache,
                                           const PushRequest& request) const {
  return impl_->Push(cache, request);
}

absl::StatusOr<FetchReport> Namespace::Fetch(const EngineView& cache,
                                             const FetchRequest& request) const {
  return impl_->Fetch(cache, request);
}

void Namespace::PushAsync(const EngineView& cache, const PushRequest& request,
                          absl::AnyInvocable<void(absl::StatusOr<PushReport>) &&> done) const {
  impl_->connection()->RunAsync([this, cache, request, done = std::move(done)]() mutable {
    std::move(done)(Push(cache, request));
  });
}

void Namespace::FetchAsync(const EngineView& cache, const FetchRequest& request,
                           absl::AnyInvocable<void(absl::StatusOr<FetchReport>) &&> done) const {
  impl_->connection()->RunAsync([this, cache, request, done = std::move(done)]() mutable {
    std::move(done)(Fetch(cache, request));
  });
}

void Namespace::LookupAsync(std::vector<std::string> keys, const LookupOptions& options,
                            absl::AnyInvocable<void(absl::StatusOr<Hit>) &&> done) const {
  impl_->connection()->RunAsync(
      [this, keys = std::move(keys), options, done = std::move(done)]() mutable {
        std::move(done)(Lookup(keys, options));
      });
}

}  // namespace oscarkv::client
