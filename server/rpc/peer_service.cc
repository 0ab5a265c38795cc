#include "server/rpc/peer_service.h"

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "proto/convert/convert.h"
#include "server/rpc/call_scope.h"
#include "server/rpc/request_keys.h"

namespace oscarkv {
namespace {

std::span<const uint32_t> CrcsOf(const PinnedPage& page, BlockRange layers) {
  const uint32_t heads = page.layout().geometry().kv_heads;
  return page.block_crcs().subspan(layers.first * heads, layers.count * heads);
}

template <typename Request>
absl::StatusOr<BlockRange> LayersOf(const Request& request, const Namespace& space) {
  const uint32_t all = space.spec().geometry.layers;
  const uint32_t first = request.first_layer();
  if (first < all && request.layers() <= all - first)
    return BlockRange{first, request.layers() == 0 ? all - first : request.layers()};
  return absl::OutOfRangeError(absl::StrCat("layers ", first, " + ", request.layers(),
                                            " pass the end: the namespace has ", all));
}

// What HoldPagesRequest and SendPagesRequest have in common, checked.
struct PagesAsked {
  const Namespace* space = nullptr;
  BlockRange layers;
  std::vector<std::string_view> keys;
  RequestTraits traits;
  LeaseId lease = 0;
};

template <typename Request>
absl::StatusOr<PagesAsked> PagesOf(const Request& request, RpcContext& context) {
  PagesAsked asked;
  asked.lease = request.lease_id();
  OSCARKV_ASSIGN_OR_RETURN(asked.space, context.Resolve(request.scope()));
  OSCARKV_ASSIGN_OR_RETURN(asked.layers, LayersOf(request, *asked.space));
  OSCARKV_ASSIGN_OR_RETURN(asked.keys, KeysOf(request, context.options().max_items));
  OSCARKV_ASSIGN_OR_RETURN(asked.traits, context.TraitsOf(request.hints()));
  return asked;
}

// A page that has a copy, and where the layers that are wanted of it lie.
struct CopiedPage {
  PinnedPage page;
  PinnedCopy copy;
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

// Of the keys the leading pages of one kind: copied, or stored elsewhere. Of copied ones no more
// than `bytes_max` bytes, one at least.
template <typename Reply>
std::vector<CopiedPage> LeadingPages(PageStore& store, const PagesAsked& asked, uint64_t bytes_max,
                                     Reply* reply) {
  std::vector<CopiedPage> copied;
  uint64_t bytes = 0;
  for (const std::string_view key : asked.keys) {
    PinResult pinned = store.Pin(*asked.space, key);
    if (pinned.status != ItemStatus::kOk && !pinned.archived) {
      if (!copied.empty() || reply->elsewhere() > 0) break;
      const bool fenced = asked.lease != 0 && !store.LeaseIsLive(asked.lease);
      reply->mutable_stop()->set_status(ToProto(fenced ? ItemStatus::kFenced : pinned.status));
      break;
    }
    CopiedPage page;
    if (!pinned.archived) page.copy = store.PinCopy(pinned.page);
    if (page.copy ? reply->elsewhere() > 0 : !copied.empty()) break;
    if (!page.copy) {
      reply->set_elsewhere(reply->elsewhere() + 1);
      continue;
    }
    const PageLayout& layout = pinned.page.layout();
    page.offset = page.copy.slot().offset + layout.block_offset(asked.layers.first, 0);
    page.bytes = layout.range_bytes(asked.layers, {0, layout.geometry().kv_heads});
    bytes += page.bytes;
    if (bytes > bytes_max && !copied.empty()) break;
    page.page = std::move(pinned.page);
    copied.push_back(std::move(page));
  }
  return copied;
}

constexpr uint64_t kAnyBytes = ~uint64_t{0} / 2;

}  // namespace

absl::Status PeerService::CheckShared() const {
  if (context_.device_holds() == nullptr) return absl::UnimplementedError("there is no GPU tier");
  return context_.paths().CheckAllowed(Direction::kFetch, DataPath::kIpc);
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
    context_.logger().Log(LogLevel::kInfo, "a client reads the GPU tier's memory in place",
                          {{"peer", call->peer()}});
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
  OSCARKV_ASSIGN_OR_RETURN(const PagesAsked asked, PagesOf(request, context_));
  PageStore& store = context_.store();
  std::vector<PinnedCopy> copies;
  uint64_t bytes = 0;
  for (CopiedPage& copied : LeadingPages(store, asked, kAnyBytes, reply)) {
    v1::HeldPage* held = reply->add_pages();
    held->set_encoding(ToProto(copied.page.meta().encoding));
    held->set_first_position(copied.page.meta().first_position);
    held->set_offset(copied.offset);
    held->set_bytes(copied.bytes);
    const auto crcs = CrcsOf(copied.page, asked.layers);
    held->mutable_block_crc32c()->Add(crcs.begin(), crcs.end());
    bytes += copied.bytes;
    copies.push_back(std::move(copied.copy));
  }
  if (copies.empty()) return absl::OkStatus();
  store.Touch(*asked.space, std::span(asked.keys).first(copies.size()), asked.traits);
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

absl::StatusOr<PeerHub*> PeerService::Hub() const {
  if (context_.peer_hub() == nullptr)
    return absl::UnimplementedError(
        absl::StrCat("nothing is sent from this server's GPU: ", options_.no_peers));
  OSCARKV_RETURN_IF_ERROR(context_.paths().CheckAllowed(Direction::kFetch, DataPath::kNccl));
  return context_.peer_hub();
}

grpc::ServerUnaryReactor* PeerService::OpenPeer(grpc::CallbackServerContext* call,
                                                const v1::OpenPeerRequest* request,
                                                v1::OpenPeerReply* reply) {
  return RunUnary(context_, call, Method::kOpenPeer, [&]() -> absl::Status {
    OSCARKV_ASSIGN_OR_RETURN(PeerHub * hub, Hub());
    OSCARKV_ASSIGN_OR_RETURN(
        const PeerHub::Opened opened,
        hub->Open({.session = request->session_id(),
                   .replaces = request->replaces(),
                   .version = request->nccl_version(),
                   .slots = {.slots = request->slots(), .slot_bytes = request->slot_bytes()}}));
    context_.logger().Log(LogLevel::kInfo, "a client's GPU has copies sent to it",
                          {{"peer", call->peer()},
                           {"slots", absl::StrCat(opened.slots.slots)},
                           {"slot_bytes", absl::StrCat(opened.slots.slot_bytes)}});
    reply->set_peer_id(opened.peer);
    reply->set_peer_epoch(opened.epoch);
    reply->set_pair(opened.pair.data(), opened.pair.size());
    reply->set_slots(opened.slots.slots);
    reply->set_slot_bytes(opened.slots.slot_bytes);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* PeerService::SendPages(grpc::CallbackServerContext* call,
                                                 const v1::SendPagesRequest* request,
                                                 v1::SendPagesReply* reply) {
  return RunUnary(context_, call, Method::kSendPages, [&]() -> absl::Status {
    OSCARKV_ASSIGN_OR_RETURN(PeerHub * hub, Hub());
    return Send(*hub, *request, reply);
  });
}

absl::Status PeerService::Send(PeerHub& hub, const v1::SendPagesRequest& request,
                               v1::SendPagesReply* reply) {
  OSCARKV_ASSIGN_OR_RETURN(const PagesAsked asked, PagesOf(request, context_));
  OSCARKV_ASSIGN_OR_RETURN(const uint64_t slot_bytes,
                           hub.SlotBytes(request.peer_id(), request.peer_epoch()));
  PageStore& store = context_.store();
  std::vector<PeerHub::Page> pages;
  uint64_t bytes = 0;
  for (CopiedPage& copied : LeadingPages(store, asked, slot_bytes, reply)) {
    v1::SentPage* sent = reply->add_pages();
    sent->set_encoding(ToProto(copied.page.meta().encoding));
    sent->set_bytes(copied.bytes);
    const auto crcs = CrcsOf(copied.page, asked.layers);
    sent->mutable_block_crc32c()->Add(crcs.begin(), crcs.end());
    bytes += copied.bytes;
    pages.push_back({.key = std::string(asked.keys[pages.size()]),
                     .copy = std::move(copied.copy),
                     .offset = copied.offset,
                     .bytes = copied.bytes});
  }
  if (pages.empty()) return absl::OkStatus();
  store.Touch(*asked.space, std::span(asked.keys).first(pages.size()), asked.traits);
  OSCARKV_ASSIGN_OR_RETURN(const comm::Ticket ticket,
                           hub.Send(request.peer_id(), request.peer_epoch(), std::move(pages),
                                    absl::Milliseconds(request.deadline_ms()),
                                    [this, bytes, start = absl::Now()](const absl::Status& ended) {
                                      if (!ended.ok()) return;
                                      context_.transfers().Record(DataPath::kNccl,
                                                                  Direction::kFetch, bytes,
                                                                  absl::Now() - start);
                                    }));
  reply->set_sequence(ticket.sequence);
  reply->set_pages_crc32c(ticket.pages_crc32c);
  return absl::OkStatus();
}

}  // namespace oscarkv
