#include "server/rpc/rpc_context.h"

#include <algorithm>
#include <utility>

#include "absl/hash/hash.h"
#include "absl/random/random.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "kernels/base/status_macros.h"
#include "proto/convert/convert.h"

namespace oscarkv {
namespace {

// Unlike any other start of a server, and never 0, which means "any".
uint64_t NewEpoch() {
  absl::BitGen random;
  return absl::Uniform<uint64_t>(absl::IntervalClosed, random, 1, ~uint64_t{0});
}

// The open namespace of the same tenant that looks most like `spec`, for an error that names both
// sides. Of other tenants' nothing is said.
std::string NearestNamespace(const PageStore& store, const NamespaceSpec& spec) {
  std::string nearest;
  for (const Namespace* other : store.Namespaces()) {
    if (other->spec().tenant != spec.tenant || other->spec().model != spec.model) continue;
    const std::string difference = DescribeDifference(spec, other->spec());
    const std::string text =
        absl::StrCat("; open is ", absl::BytesToHexString(other->fingerprint()),
                     " of the same model, ", "which differs (asked / open): ", difference);
    if (nearest.empty() || text.size() < nearest.size()) nearest = text;
  }
  return nearest;
}

absl::Status CheckExpectedFingerprint(const std::string& expected, const std::string& found) {
  if (expected.empty() || expected == found) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the client expects the fingerprint ", absl::BytesToHexString(expected),
                   ", the server computes ", absl::BytesToHexString(found),
                   " for this spec: the two are of different versions"));
}

}  // namespace

std::string_view MethodName(Method method) {
  constexpr std::string_view kNames[kMethods] = {"OpenNamespace",
                                                 "PutTransformSet",
                                                 "GetTransformSet",
                                                 "Session",
                                                 "Lookup",
                                                 "ReleaseLease",
                                                 "Put",
                                                 "Get",
                                                 "Touch",
                                                 "Delete",
                                                 "List",
                                                 "Clear",
                                                 "Stats",
                                                 "Drain",
                                                 "Verify",
                                                 "ShareDevice",
                                                 "HoldPages",
                                                 "EndHold",
                                                 "OpenPeer",
                                                 "SendPages",
                                                 "BeginPush",
                                                 "EndPush",
                                                 "DeleteTransformSet",
                                                 "Persist"};
  return kNames[static_cast<size_t>(method)];
}

RpcContext::RpcContext(const RpcOptions& options, PageStore& store, const Logger& logger,
                       Catalog* catalog)
    : options_(options),
      store_(store),
      logger_(logger),
      epoch_(NewEpoch()),
      start_(absl::Now()),
      paths_(options.paths),
      transforms_(options.max_transform_set_bytes),
      saved_(catalog, logger),
      inflight_(options.max_inflight_bytes),
      workers_(options.codec_threads) {}

void RpcContext::Restore() {
  saved_.Restore(transforms_, [this](const v1::OpenNamespaceRequest& request) {
    return Open(request).status();
  });
}

void RpcContext::FillLimits(v1::Limits* limits) const {
  limits->set_max_items(options_.max_items);
  limits->set_max_chunk_bytes(options_.max_chunk_bytes);
  limits->set_max_inflight_bytes(options_.max_inflight_bytes);
  limits->set_lease_ms_max(static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.lease_max)));
  limits->set_max_transform_set_bytes(options_.max_transform_set_bytes);
}

absl::StatusOr<bool> RpcContext::DeleteTransformSet(const std::string& hash) {
  const absl::MutexLock lock(&needs_mutex_);
  std::string needed_by;
  for (const Namespace* space : store_.Namespaces()) {
    if (space->spec().codec.transform_hash != hash) continue;
    absl::StrAppend(&needed_by, needed_by.empty() ? "" : ", ",
                    absl::BytesToHexString(space->fingerprint()), " of model ",
                    space->spec().model);
  }
  if (!needed_by.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("transform set ", absl::BytesToHexString(hash),
                     " is needed to read the pages of the namespaces ", needed_by));
  }
  OSCARKV_RETURN_IF_ERROR(saved_.RemoveTransformSet(hash));
  return transforms_.Remove(hash);
}

absl::StatusOr<const Namespace*> RpcContext::Open(const v1::OpenNamespaceRequest& request) {
  const absl::MutexLock lock(&needs_mutex_);
  OSCARKV_ASSIGN_OR_RETURN(const NamespaceSpec spec, FromProto(request.spec()));
  OSCARKV_RETURN_IF_ERROR(
      CheckExpectedFingerprint(request.expected_fingerprint(), Fingerprint(spec)));
  if (!v1::StoreWide_IsValid(request.store_wide())) {
    return absl::InvalidArgumentError(
        absl::StrCat("store_wide must be one that this server knows, found ",
                     static_cast<int>(request.store_wide())));
  }
  const auto registered = transforms_.Find(spec.codec.transform_hash);
  // Before the namespace is made: one whose set is of another geometry could never be read.
  if (registered != nullptr) OSCARKV_RETURN_IF_ERROR(registered->set.CheckFits(spec.geometry));
  const absl::StatusOr<const Namespace*> space = store_.OpenNamespace(spec, request.create());
  if (absl::IsNotFound(space.status())) {
    return absl::FailedPreconditionError(absl::StrCat("no namespace has the fingerprint ",
                                                      absl::BytesToHexString(Fingerprint(spec)),
                                                      NearestNamespace(store_, spec)));
  }
  OSCARKV_RETURN_IF_ERROR(space.status());
  if (request.page_ttl_ms() != 0)
    store_.SetPageTtl(**space, absl::Milliseconds(request.page_ttl_ms()));
  if (request.store_wide() != v1::STORE_WIDE_UNSPECIFIED)
    store_.SetStoreWide(**space, static_cast<StoreWide>(request.store_wide()));
  OfferCodec(**space);
  return space;
}

absl::StatusOr<const Namespace*> RpcContext::Resolve(const v1::Scope& scope) const {
  if (scope.server_epoch() != 0 && scope.server_epoch() != epoch_) {
    return absl::AbortedError(absl::StrCat("the server has restarted: its epoch is ", epoch_,
                                           ", the call is for ", scope.server_epoch(),
                                           "; open the namespace again"));
  }
  const Namespace* space = store_.FindNamespace(scope.fingerprint());
  if (space != nullptr) return space;
  return absl::FailedPreconditionError(absl::StrCat(
      "no namespace has the fingerprint '", absl::BytesToHexString(scope.fingerprint()), "' (",
      scope.fingerprint().size(), " bytes; 32 expected); open it first"));
}

absl::StatusOr<const PageCodec*> RpcContext::CodecFor(const Namespace& space) {
  {
    const absl::MutexLock lock(&mutex_);
    const auto found = codecs_.find(&space);
    if (found != codecs_.end()) return found->second.get();
  }
  const CodecSpec& spec = space.spec().codec;
  std::shared_ptr<const TransformSet> set;
  if (!spec.transform_hash.empty()) {
    const auto registered = transforms_.Find(spec.transform_hash);
    if (registered == nullptr) {
      return absl::FailedPreconditionError(absl::StrCat("the namespace's transform set ",
                                                        absl::BytesToHexString(spec.transform_hash),
                                                        " has not been uploaded"));
    }
    set = std::shared_ptr<const TransformSet>(registered, &registered->set);
  }
  OSCARKV_ASSIGN_OR_RETURN(
      std::unique_ptr<PageCodec> codec,
      MakePageCodec(CodecBackend::kCpu, space.spec().geometry, spec, std::move(set)));
  const absl::MutexLock lock(&mutex_);
  return codecs_.try_emplace(&space, std::move(codec)).first->second.get();
}

void RpcContext::OfferCodec(const Namespace& space) {
  if (!space.holds(Encoding::kPacked)) return;
  const absl::StatusOr<const PageCodec*> codec = CodecFor(space);
  if (codec.ok()) store_.SetCodec(space, *codec);
}

absl::StatusOr<RequestTraits> RpcContext::TraitsOf(const v1::RequestHints& hints) {
  v1::RequestHints all = hints;
  if (hints.session_id() != 0) {
    const absl::MutexLock lock(&mutex_);
    const auto found = session_hints_.find(hints.session_id());
    if (found != session_hints_.end()) {
      all = found->second;
      all.MergeFrom(hints);  // what is set here counts
    }
  }
  if (!v1::Reuse_IsValid(all.reuse()) || !v1::Residency_IsValid(all.residency())) {
    return absl::InvalidArgumentError(
        absl::StrCat("hints: reuse and residency must be ones that this server knows, found ",
                     static_cast<int>(all.reuse()), " and ", static_cast<int>(all.residency())));
  }
  if (all.priority() < -kPriorityMax || all.priority() > kPriorityMax) {
    return absl::InvalidArgumentError(absl::StrCat("hints: priority must be -", kPriorityMax, "..",
                                                   kPriorityMax, ", found ", all.priority()));
  }
  RequestTraits traits;
  // Numbers of our own are even, those of clients odd, so that they do not meet.
  traits.number = all.request_id() != 0
                      ? absl::HashOf(all.request_id()) | 1U
                      : 2 * (1 + requests_.fetch_add(1, std::memory_order_relaxed));
  traits.output_tokens = all.output_tokens();
  traits.reuse = static_cast<ReuseHint>(all.reuse());
  traits.residency = static_cast<Residency>(all.residency());
  traits.priority = static_cast<int8_t>(all.priority());
  return traits;
}

void RpcContext::SetSessionHints(SessionId session, const v1::RequestHints& hints) {
  const absl::MutexLock lock(&mutex_);
  session_hints_[session] = hints;
}

void RpcContext::ForgetSession(SessionId session) {
  if (on_session_end_) on_session_end_(session);
  const absl::MutexLock lock(&mutex_);
  session_hints_.erase(session);
}

InflightBytes RpcContext::TakeInflight(const Namespace& space, uint64_t bytes,
                                       ItemResult* why_not) {
  Tenant& tenant = space.tenant();
  if (!tenant.inflight().TakeOrAlone(bytes)) {
    tenant.CountRefused();
    *why_not = {ItemStatus::kQuota, tenant.InflightQuotaMet(bytes)};
    return {};
  }
  if (inflight_.TakeOrAlone(bytes)) return InflightBytes(&inflight_, &tenant.inflight(), bytes);
  tenant.inflight().GiveBack(bytes);
  *why_not = {ItemStatus::kBusy, "too many bytes are in flight: try again a little later"};
  return {};
}

void RpcContext::StartDrain() {
  draining_.store(true);
  const absl::MutexLock lock(&streams_mutex_);
  for (Drainable* stream : streams_) stream->OnDrain();
}

void RpcContext::CallEnds() {
  // In one order with what StartDrain stores and WaitForCalls then reads, or each could miss the
  // other.
  if (calls_in_flight_.fetch_sub(1) != 1 || !draining_.load()) return;
  const absl::MutexLock lock(&calls_mutex_);  // its release makes WaitForCalls look again
}

void RpcContext::WaitForCalls(absl::Time deadline) {
  const auto none = [this] { return calls_in_flight_.load() == 0; };
  const absl::MutexLock lock(&calls_mutex_);
  calls_mutex_.AwaitWithDeadline(absl::Condition(&none), deadline);
}

void RpcContext::Register(Drainable* stream) {
  const absl::MutexLock lock(&streams_mutex_);
  streams_.insert(stream);
}

void RpcContext::Unregister(Drainable* stream) {
  const absl::MutexLock lock(&streams_mutex_);
  streams_.erase(stream);
}

void RpcContext::set_drain_request(absl::AnyInvocable<void(absl::Duration)> request) {
  const absl::MutexLock lock(&streams_mutex_);
  drain_request_ = std::move(request);
}

void RpcContext::RequestDrain(absl::Duration grace) {
  const absl::MutexLock lock(&streams_mutex_);
  if (drain_request_) drain_request_(grace);
}

}  // namespace oscarkv
