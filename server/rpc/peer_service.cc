#include "server/rpc/peer_service.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "proto/convert/convert.h"
#include "server/rpc/call_scope.h"
#include "server/rpc/request_keys.h"

namespace oscarkv {
namespace {

void FillHeld(const PinnedPage& page, BlockRange layers, const PinnedCopy& copy,
              v1::HeldPage* held) {
  const uint32_t heads = page.layout().geometry().kv_heads;
  held->set_encoding(ToProto(page.meta().encoding));
  held->set_first_position(page.meta().first_position);
  held->set_offset(copy.slot().offset + page.layout().block_offset(layers.first, 0));
  held->set_bytes(page.layout().range_bytes(layers, {0, heads}));
  const auto crcs = page.block_crcs().subspan(layers.first * heads, layers.count * heads);
  held->mutable_block_crc32c()->Add(crcs.begin(), crcs.end());
}

absl::StatusOr<BlockRange> LayersOf(const v1::HoldPagesRequest& request, const Namespace& space) {
  const uint32_t all = space.spec().geometry.layers;
  const uint32_t first = request.first_layer();
  if (first < all && request.layers() <= all - first)
    return BlockRange{first, request.layers() == 0 ? all - first : request.layers()};
  return absl::OutOfRangeError(absl::StrCat("layers ", first, " + ", request.layers(),
                                            " pass the end: the namespace has ", all));
}

}  // namespace

absl::Status PeerService::CheckShared() const {
  if (context_.device_holds() == nullptr) return absl::UnimplementedError("there is no GPU tier");
  if (context_.paths().Allows(Direction::kFetch, DataPath::kIpc)) return absl::OkStatus();
  return absl::UnimplementedError("the server's configuration forbids ipc");
}

grpc::ServerUnaryReactor* PeerService::ShareDevice(grpc::CallbackServerContext* call,
                                                   const v1::ShareDeviceRequest* request,
                                                   v1::ShareDeviceReply* reply) {
  return RunUnary(context_, call, Method::kShareDevice, [&]() -> absl::Status {
    OSCARKV_RETURN_IF_ERROR(CheckShared());
    if (const absl::Status& status = options_.memory_handle.status(); !status.ok())
      return absl::UnimplementedError(status.message());
    if (request->host() != options_.host) {
      return absl::UnimplementedError(absl::StrCat("the GPU is of host '", options_.host,
                                                   "', the client is on '", request->host(), "'"));
    }
    reply->set_handle(*options_.memory_handle);
    reply->set_bytes(options_.memory_bytes);
    reply->set_server_epoch(context_.epoch());
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* PeerService::HoldPages(grpc::CallbackServerContext* call,
                                                 const v1::HoldPagesRequest* request,
                                                 v1::HoldPagesReply* reply) {
  return RunUnary(context_, call, Method::kHoldPages, [&] { return Hold(*request, reply); });
}

absl::Status PeerService::Hold(const v1::HoldPagesRequest& request, v1::HoldPagesReply* reply) {
  OSCARKV_RETURN_IF_ERROR(CheckShared());
  OSCARKV_ASSIGN_OR_RETURN(const Namespace* space, context_.Resolve(request.scope()));
  OSCARKV_ASSIGN_OR_RETURN(const BlockRange layers, LayersOf(request, *space));
  OSCARKV_ASSIGN_OR_RETURN(const std::vector<std::string_view> keys,
                           KeysOf(request, context_.options().max_items));
  OSCARKV_ASSIGN_OR_RETURN(const RequestTraits traits, context_.TraitsOf(request.hints()));
  PageStore& store = context_.store();
  std::vector<PinnedCopy> copies;
  uint64_t bytes = 0;
  for (const std::string_view key : keys) {
    const PinResult pinned = store.Pin(*space, key);
    if (pinned.status != ItemStatus::kOk && !pinned.archived) {
      if (!copies.empty() || reply->elsewhere() > 0) break;
      const bool fenced = request.lease_id() != 0 && !store.LeaseIsLive(request.lease_id());
      reply->mutable_stop()->set_status(ToProto(fenced ? ItemStatus::kFenced : pinned.status));
      break;
    }
    PinnedCopy copy;
    if (!pinned.archived) copy = store.PinCopy(pinned.page);
    // Pages of one kind: here, or elsewhere.
    if (copy ? reply->elsewhere() > 0 : !copies.empty()) break;
    if (copy) {
      FillHeld(pinned.page, layers, copy, reply->add_pages());
      bytes += reply->pages().rbegin()->bytes();
      copies.push_back(std::move(copy));
    } else {
      reply->set_elsewhere(reply->elsewhere() + 1);
    }
  }
  if (copies.empty()) return absl::OkStatus();
  store.Touch(*space, std::span(keys).first(copies.size()), traits);
  OSCARKV_ASSIGN_OR_RETURN(const HoldId hold, context_.device_holds()->Add(
                                                  request.session_id(), std::move(copies), bytes));
  reply->set_hold_id(hold);
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* PeerService::EndHold(grpc::CallbackServerContext* call,
                                               const v1::EndHoldRequest* request,
                                               v1::EndHoldReply* reply) {
  return RunUnary(context_, call, Method::kEndHold, [&]() -> absl::Status {
    OSCARKV_RETURN_IF_ERROR(CheckShared());
    const auto ended = context_.device_holds()->End(request->hold_id());
    reply->set_held(ended.has_value());
    if (ended.has_value())
      context_.transfers().Record(DataPath::kIpc, Direction::kFetch, ended->bytes, ended->age);
    return absl::OkStatus();
  });
}

}  // namespace oscarkv
