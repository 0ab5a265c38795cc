#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "client/cpp/client.h"
#include "client/cpp/namespace_impl.h"
#include "client/cpp/paths.h"
#include "client/cpp/pending_fetch_state.h"
#include "kernels/base/fault_point.h"
#include "kernels/base/status_macros.h"
#include "proto/convert/convert.h"
#include "proto/convert/repeated_field.h"
#include "proto/wire/page_key.h"

namespace oscarkv::client {

absl::Status Namespace::Impl::CheckKeys(std::span<const std::string> keys) const {
  for (size_t i = 0; i < keys.size(); ++i) {
    const absl::Status status = ValidateKey(keys[i]);
    if (!status.ok()) return Annotate(status, absl::StrCat("key ", i));
  }
  return absl::OkStatus();
}

absl::Status Namespace::Impl::CheckSlots(const EngineView& cache, std::span<const std::string> keys,
                                         std::span<const int64_t> slots, int64_t least) const {
  const size_t expected = keys.size() * page_tokens();
  if (slots.size() != expected) {
    return absl::InvalidArgumentError(absl::StrCat(keys.size(), " pages of ", page_tokens(),
                                                   " tokens need ", expected, " slots, found ",
                                                   slots.size()));
  }
  for (size_t token = 0; token < slots.size(); ++token) {
    if (slots[token] >= least && slots[token] < cache.slots) continue;
    return absl::InvalidArgumentError(absl::StrCat("slot of token ", token, " must be ", least,
                                                   "..", cache.slots - 1, ", found ",
                                                   slots[token]));
  }
  return codec_->Encode(cache, {}, nullptr);  // of no page: checks the view
}

absl::Status Namespace::Impl::CheckPages(std::span<const std::string> keys, uint64_t pages) {
  if (pages == keys.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(keys.size(), " keys need slots of as many pages, found ", pages));
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

// A server may say anything.
double SaneMs(double ms) { return std::isfinite(ms) ? std::max(ms, 0.0) : 0.0; }

// The leading pages that the reply says are there, as far as it makes sense.
void FillPages(size_t asked, const v1::LookupReply& reply, const RepeatedField& pages,
               const Namespace::Impl& space, Hit* hit) {
  const size_t most = std::min({asked, pages.values().size(), size_t{reply.prefix_pages()}});
  v1::PageInfo page;
  for (; hit->pages < most; ++hit->pages) {
    const std::string_view text = pages.values()[hit->pages];
    if (!page.ParseFromArray(text.data(), static_cast<int>(text.size()))) return;
    const absl::StatusOr<Encoding> encoding = FromProto(page.encoding());
    if (page.status() != v1::OK || !encoding.ok()) return;
    if (!space.MayHold(*encoding)) return;
    hit->encodings.push_back(*encoding);
    hit->bytes += space.codec().layout(*encoding).page_bytes();
  }
}

}  // namespace

absl::StatusOr<Hit> Namespace::Impl::Lookup(std::span<const std::string> keys,
                                            const LookupOptions& options) {
  OSCARKV_RETURN_IF_ERROR(CheckKeys(keys));
  Hit hit;
  if (keys.empty()) return hit;
  const absl::Time deadline = absl::Now() + connection_->options().lookup_timeout;
  size_t asked = 0;
  v1::LookupReply reply;
  RepeatedField pages;
  hit.store = WithOpen(Needs::kNamespace, deadline, [&] {
    v1::LookupRequest scope;
    *scope.mutable_scope() = MakeScope();
    // A prefix longer than the server's limit is looked up as far as the limit goes: an honest
    // shorter hit.
    asked = std::min<size_t>(keys.size(), max_items());
    return Call(deadline, [&](UnaryCall& call) {
      // Half of the time at most: a hit without a lease is better than none.
      const absl::Time now = absl::Now();
      const uint64_t session = options.lease ? connection_->Session(now + (deadline - now) / 2) : 0;
      // Put together by hand: the keys go without a copy of each.
      std::string text = scope.SerializeAsString();
      for (const std::string& key : keys.first(asked))
        AppendValue(v1::LookupRequest::kKeysFieldNumber, key, &text);
      v1::LookupRequest rest;
      rest.set_lease(session != 0);
      rest.set_session_id(session);
      rest.AppendToString(&text);
      const absl::Time start = absl::Now();
      grpc::ByteBuffer answer;
      const grpc::Status status = call.Run(method::kLookup, FrameText(text), &answer);
      FaultPoint("grpc.client.lookup.answered");
      if (!status.ok()) return status;
      if (!pages.Parse(answer, v1::LookupReply::kPagesFieldNumber, &reply))
        return UnaryCall::NotAnAnswer();
      connection_->fetch_times().RecordRoundTrip(absl::Now() - start);
      return grpc::Status::OK;
    });
  });
  if (!hit.store.ok()) return hit;
  FillPages(asked, reply, pages, *this, &hit);
  hit.usable_tokens = UsableTokens(hit, spec_, options.tail);
  hit.forecast = {.server_ms = SaneMs(reply.expected_fetch_ms()),
                  .loading_ms = SaneMs(reply.loading_ms()),
                  .bytes_ahead = reply.bytes_ahead()};
  const DataPath path = connection_->paths().Use(Direction::kFetch).path.value_or(DataPath::kGrpc);
  if (hit.pages > 0)
    hit.expected_ms = connection_->fetch_times().ExpectedMs(path, hit.bytes, hit.forecast);
  if (options.recompute) hit.advice = Advise(hit, options.recompute(hit.usable_tokens));
  if (reply.lease_id() != 0) hit.lease = Lease(connection_, fingerprint_, reply.lease_id());
  return hit;
}

RecomputeCost TokensPerSecond(double tokens_per_s) {
  return
      [tokens_per_s](uint64_t tokens) { return 1e3 * static_cast<double>(tokens) / tokens_per_s; };
}

Advice Advise(const Hit& hit, double recompute_ms) {
  if (hit.usable_tokens == 0) return Advice::kNone;
  return hit.expected_ms <= recompute_ms ? Advice::kLoad : Advice::kRecompute;
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
  FaultPoint("grpc.client.lease.releasing");
  // A release that is lost is harmless: the lease ends with the session, or at the server's
  // ceiling.
  connection_->Call(connection_->options().lookup_timeout, method::kReleaseLease, request, &reply)
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

absl::StatusOr<PushReport> Namespace::PushFrom(PageSource& source,
                                               const PushRequest& request) const {
  return impl_->PushFrom(source, request);
}

absl::StatusOr<FetchReport> Namespace::FetchTo(PageSink& sink, const FetchRequest& request) const {
  return impl_->FetchTo(sink, request);
}

absl::Status Namespace::CheckPush(const EngineView& cache, const PushRequest& request) const {
  return impl_->CheckPush(cache, request);
}

bool Namespace::PushAsync(const EngineView& cache, const PushRequest& request,
                          absl::AnyInvocable<void(absl::StatusOr<PushReport>) &&> done) const {
  // Shared, as a task that is dropped does not give back what was moved into it.
  const auto shared = std::make_shared<decltype(done)>(std::move(done));
  const auto tell = [shared](absl::StatusOr<PushReport> report) {
    if (*shared) std::exchange(*shared, nullptr)(std::move(report));
  };
  const uint64_t pages = request.keys.size();
  const uint64_t bytes = pages * impl_->codec().layout(Encoding::kWide).page_bytes();
  const bool queued = impl_->RunPush(pages, bytes, [impl = impl_.get(), cache, request, tell] {
    tell(impl->Push(cache, request));
  });
  if (queued) return true;
  impl_->RunAsync([pages, tell] {
    PushReport report;
    report.store = absl::ResourceExhaustedError("the queue of pushes is full");
    report.statuses.assign(pages, ItemStatus::kSkipped);
    report.messages.resize(pages);
    tell(std::move(report));
  });
  return false;
}

std::unique_ptr<PendingFetch> Namespace::StartFetch(const EngineView& cache,
                                                    const FetchRequest& request,
                                                    StartFetchOptions options) const {
  const auto state = std::make_shared<PendingFetch::State>(
      request, impl_->codec().geometry().layers, std::move(options));
  impl_->RunAsync([impl = impl_.get(), cache, state] {
    state->End(impl->FetchLayers(cache, state->request(), *state));
  });
  return std::make_unique<PendingFetch>(state);
}

std::unique_ptr<PendingFetch> Namespace::StartFetchTo(PageSink& sink, const FetchRequest& request,
                                                      StartFetchOptions options) const {
  const auto state = std::make_shared<PendingFetch::State>(
      request, impl_->codec().geometry().layers, std::move(options));
  impl_->RunAsync([impl = impl_.get(), &sink, state] {
    state->End(impl->FetchLayersTo(sink, state->request(), *state));
  });
  return std::make_unique<PendingFetch>(state);
}

void Namespace::FetchAsync(const EngineView& cache, const FetchRequest& request,
                           absl::AnyInvocable<void(absl::StatusOr<FetchReport>) &&> done) const {
  impl_->RunAsync([impl = impl_.get(), cache, request, done = std::move(done)]() mutable {
    std::move(done)(impl->Fetch(cache, request));
  });
}

void Namespace::LookupAsync(std::vector<std::string> keys, const LookupOptions& options,
                            absl::AnyInvocable<void(absl::StatusOr<Hit>) &&> done) const {
  impl_->RunAsync(
      [impl = impl_.get(), keys = std::move(keys), options, done = std::move(done)]() mutable {
        std::move(done)(impl->Lookup(keys, options));
      });
}

}  // namespace oscarkv::client
