// The unary methods.
#include "server/rpc/cache_service.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

#include "kernels/base/fault_point.h"
#include "kernels/base/status_macros.h"
#include "proto/convert/convert.h"
#include "proto/convert/data_frames.h"
#include "proto/convert/repeated_field.h"
#include "server/rpc/call_scope.h"
#include "server/rpc/request_keys.h"

namespace oscarkv {
namespace {

void FillPage(ItemStatus status, const PageMeta& meta, v1::PageInfo* info) {
  info->set_status(ToProto(status));
  if (status != ItemStatus::kOk) return;
  info->set_tier(static_cast<v1::Tier>(meta.tier));
  info->set_encoding(ToProto(meta.encoding));
  info->set_bytes(meta.bytes);
  info->set_first_position(meta.first_position);
}

void FillResults(const std::vector<ItemStatus>& statuses, v1::KeysReply* reply) {
  for (const ItemStatus status : statuses) reply->add_results()->set_status(ToProto(status));
}

}  // namespace

// On a worker: the namespace is saved before the answer.
grpc::ServerUnaryReactor* CacheService::OpenNamespace(grpc::CallbackServerContext* call,
                                                      const v1::OpenNamespaceRequest* request,
                                                      v1::OpenNamespaceReply* reply) {
  return RunUnaryAsync(context_, call, Method::kOpenNamespace, [=, this]() -> absl::Status {
    OSCARKV_ASSIGN_OR_RETURN(const Namespace* space, context_.Open(*request));
    context_.saved().SaveNamespace(space->fingerprint(), *request);
    reply->set_fingerprint(space->fingerprint());
    reply->set_server_epoch(context_.epoch());
    context_.FillLimits(reply->mutable_limits());
    reply->set_wide_page_bytes(space->page_bytes(Encoding::kWide));
    reply->set_packed_page_bytes(space->page_bytes(Encoding::kPacked));
    const std::string& transforms = space->spec().codec.transform_hash;
    reply->set_has_transform_set(context_.transforms().Find(transforms) != nullptr);
    return absl::OkStatus();
  });
}

// The keys stay where they arrived, and what is said of each page is written as it is found: a
// look-up has more than a hundred of each.
grpc::Status CacheService::AnswerLookup(grpc::ServerContext* call, const grpc::ByteBuffer& message,
                                        grpc::ByteBuffer* answer) {
  return RunCall(context_, call, Method::kLookup, [&]() -> absl::Status {
    v1::LookupRequest request;
    RepeatedField keys;
    if (!keys.Parse(message, v1::LookupRequest::kKeysFieldNumber, &request))
      return absl::InvalidArgumentError("the request is not a LookupRequest");
    OSCARKV_ASSIGN_OR_RETURN(const Namespace* space, context_.Resolve(request.scope()));
    OSCARKV_RETURN_IF_ERROR(CheckKeys(keys.values(), context_.options().max_items));
    LookupRequest lookup{.keys = keys.values()};
    lookup.mode =
        request.mode() == v1::LookupRequest::EACH ? LookupMode::kEach : LookupMode::kPrefix;
    if (request.lease()) {
      lookup.lease_session = request.session_id();
      lookup.lease_duration = absl::Milliseconds(request.lease_ms());
    }
    const LookupResult found = context_.store().Lookup(*space, lookup);
    FaultPoint("grpc.server.lookup.found");
    v1::LookupReply reply;
    reply.set_prefix_pages(found.prefix_pages);
    std::string text = reply.SerializeAsString();
    uint64_t bytes_on_disk = 0;
    v1::PageInfo info;
    for (const FoundPage& page : found.pages) {
      info.Clear();
      FillPage(page.status, page.meta, &info);
      AppendValue(v1::LookupReply::kPagesFieldNumber, info, &text);
      if (page.meta.tier == TierKind::kDisk) bytes_on_disk += page.meta.bytes;
    }
    reply.Clear();
    reply.set_lease_id(found.lease);
    reply.set_fetch_bytes(found.fetch_bytes);
    const auto expected = context_.fetches().Expect(found.fetch_bytes, bytes_on_disk);
    reply.set_expected_fetch_ms(expected.ms);
    reply.set_loading_ms(expected.loading_ms);
    reply.set_bytes_ahead(expected.bytes_ahead);
    reply.AppendToString(&text);
    *answer = FrameText(text);
    return absl::OkStatus();
  });
}

grpc::Status CacheService::AnswerReleaseLease(grpc::ServerContext* call,
                                              const grpc::ByteBuffer& message,
                                              grpc::ByteBuffer* answer) {
  return RunCall(context_, call, Method::kReleaseLease, [&]() -> absl::Status {
    v1::ReleaseLeaseRequest request;
    if (!ParseMessage(message, &request))
      return absl::InvalidArgumentError("the request is not a ReleaseLeaseRequest");
    v1::ReleaseLeaseReply reply;
    reply.set_status(ToProto(context_.store().ReleaseLease(request.lease_id())));
    FaultPoint("grpc.server.lease.released");
    *answer = FrameMessage(reply);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* CacheService::Touch(grpc::CallbackServerContext* call,
                                              const v1::KeysRequest* request,
                                              v1::KeysReply* reply) {
  return RunUnary(context_, call, Method::kTouch, [&]() -> absl::Status {
    OSCARKV_ASSIGN_OR_RETURN(const Namespace* space, context_.Resolve(request->scope()));
    OSCARKV_ASSIGN_OR_RETURN(const std::vector<std::string_view> keys,
                             KeysOf(*request, context_.options().max_items));
    OSCARKV_ASSIGN_OR_RETURN(const RequestTraits traits, context_.TraitsOf(request->hints()));
    FillResults(context_.store().Touch(*space, keys, traits), reply);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* CacheService::Delete(grpc::CallbackServerContext* call,
                                               const v1::KeysRequest* request,
                                               v1::KeysReply* reply) {
  return RunUnary(context_, call, Method::kDelete, [&]() -> absl::Status {
    OSCARKV_ASSIGN_OR_RETURN(const Namespace* space, context_.Resolve(request->scope()));
    OSCARKV_ASSIGN_OR_RETURN(const std::vector<std::string_view> keys,
                             KeysOf(*request, context_.options().max_items));
    FillResults(context_.store().Delete(*space, keys), reply);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* CacheService::List(grpc::CallbackServerContext* call,
                                             const v1::ListRequest* request, v1::ListReply* reply) {
  return RunUnary(context_, call, Method::kList, [&]() -> absl::Status {
    OSCARKV_ASSIGN_OR_RETURN(const Namespace* space, context_.Resolve(request->scope()));
    uint64_t cursor = 0;
    if (!request->cursor().empty() && !absl::SimpleAtoi(request->cursor(), &cursor)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the cursor '", absl::CEscape(request->cursor()), "' is not one that List gave"));
    }
    const uint32_t wanted =
        request->max_keys() == 0 ? context_.options().max_items : request->max_keys();
    const ListResult listed =
        context_.store().List(*space, std::min(wanted, context_.options().max_items), cursor);
    for (const ListedPage& page : listed.pages) {
      v1::ListedPage* out = reply->add_pages();
      out->set_key(page.key);
      out->set_parent(page.parent);
      FillPage(ItemStatus::kOk, page.meta, out->mutable_info());
    }
    if (listed.cursor != 0) reply->set_cursor(absl::StrCat(listed.cursor));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* CacheService::Clear(grpc::CallbackServerContext* call,
                                              const v1::ClearRequest* request,
                                              v1::ClearReply* reply) {
  return RunUnary(context_, call, Method::kClear, [&]() -> absl::Status {
    OSCARKV_ASSIGN_OR_RETURN(const Namespace* space, context_.Resolve(request->scope()));
    const ClearResult cleared = context_.store().Clear(*space);
    reply->set_removed(cleared.removed);
    reply->set_kept(cleared.kept);
    return absl::OkStatus();
  });
}

}  // namespace oscarkv
