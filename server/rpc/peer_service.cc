#include "server/rpc/peer_service.h"

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "kernels/base/fault_point.h"
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

// A page in the device's memory: its copy, and where the layers that are wanted lie in that; or
// those layers alone, on their way into the staging area.
struct CopiedPage {
  PinnedPage page;
  PinnedCopy copy;
  uint64_t offset = 0;  // of the page; of a copy, in the memory of copies
  uint64_t bytes = 0;
  std::shared_ptr<const StagingArea::Place> place;
  std::unique_ptr<PendingTransfer> pending;
};

// Starts staging the wanted layers of a page in host memory. kDataLoss: the page is corrupt;
// others: it is not to be had here now.
absl::Status StartStaging(StagingArea& staging, BlockRange layers, CopiedPage* page) {
  OSCARKV_ASSIGN_OR_RETURN(page->place, staging.Reserve(page->bytes));
  OSCARKV_ASSIGN_OR_RETURN(
      const ByteView whole,
      page->page.Verified(layers, {0, page->page.layout().geometry().kv_heads}));
  OSCARKV_ASSIGN_OR_RETURN(page->pending,
                           staging.CopyIn(*page->place, whole.subspan(page->offset, page->bytes)));
  return absl::OkStatus();
}

// Of the keys the leading pages of one kind: in the device's memory, or stored elsewhere. Of the
// former no more than `bytes_max` bytes, one at least. `staging`, where not null: pages without a
// copy that are in host memory are brought there, as long as there is room.
template <typename Reply>
std::vector<CopiedPage> LeadingPages(PageStore& store, const PagesAsked& asked, uint64_t bytes_max,
                                     StagingArea* staging, Reply* reply) {
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
    bool here = false;
    if (!pinned.archived) {
      page.page = std::move(pinned.page);
      const PageLayout& layout = page.page.layout();
      page.offset = layout.block_offset(asked.layers.first, 0);
      page.bytes = layout.range_bytes(asked.layers, {0, layout.geometry().kv_heads});
      if (bytes + page.bytes > bytes_max && !copied.empty()) break;
      page.copy = store.PinCopy(page.page);
      here = static_cast<bool>(page.copy);
      if (here) page.offset += page.copy.slot().offset;
      if (!here && staging != nullptr && reply->elsewhere() == 0) {
        const absl::Status staged = StartStaging(*staging, asked.layers, &page);
        here = staged.ok();
        if (absl::IsDataLoss(staged)) {
          if (copied.empty()) reply->mutable_stop()->set_status(v1::CORRUPT);
          break;
        }
      }
    }
    if (here ? reply->elsewhere() > 0 : !copied.empty()) break;
    if (!here) {
      reply->set_elsewhere(reply->elsewhere() + 1);
      continue;
    }
    bytes += page.bytes;
    copied.push_back(std::move(page));
  }
  // What did not arrive is left out, with what follows it.
  for (size_t i = 0; i < copied.size(); ++i) {
    if (copied[i].pending == nullptr || copied[i].pending->Wait().ok()) continue;
    if (i == 0) reply->set_elsewhere(1);
    copied.resize(i);
  }
  return copied;
}

// Ends a call that is answered later than it came in. It has ended when its client is told.
void EndLate(std::unique_ptr<CallScope> scope, grpc::ServerUnaryReactor* reactor,
             const absl::Status& status) {
  const grpc::Status end = scope->End(status);
  scope.reset();
  reactor->Finish(end);
}

constexpr uint64_t kAnyBytes = ~uint64_t{0} / 2;

}  // namespace

PeerService::PeerService(RpcContext& context, PeerOptions options)
    : context_(context),
      options_(std::move(options)),
      pushes_(
          options_.staging == nullptr
              ? nullptr
              : std::make_unique<DevicePushes>(DevicePushesOptions{}, context, *options_.staging)) {
  context_.set_device_pushes(pushes_.get());
  context_.paths().Add(DataPath::kIpc,
                       [this](Direction direction, const v1::PathOffer& offer, v1::SessionReply*) {
                         return MayUseIpc(direction, offer);
                       });
  context_.paths().Add(DataPath::kNccl,
                       [this](Direction direction, const v1::PathOffer&, v1::SessionReply*) {
                         if (context_.peer_hub() == nullptr)
                           return absl::UnavailableError(options_.no_peers);
                         return direction == Direction::kPush ? CheckPushed() : absl::OkStatus();
                       });
}
PeerService::~PeerService() { context_.set_device_pushes(nullptr); }

absl::Status PeerService::MayUseIpc(Direction direction, const v1::PathOffer& offer) const {
  if (context_.device_holds() == nullptr) return absl::UnavailableError("there is no GPU tier");
  OSCARKV_RETURN_IF_ERROR(options_.memory_handle.status());
  OSCARKV_RETURN_IF_ERROR(CheckHost(offer.host()));
  if (direction == Direction::kFetch) return absl::OkStatus();
  OSCARKV_RETURN_IF_ERROR(CheckPushed());
  return options_.staging->handle().status();
}

absl::Status PeerService::CheckHost(const std::string& host) const {
  if (host == options_.host) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("the GPU is of host '", options_.host, "', the client is on '", host, "'"));
}

absl::Status PeerService::CheckShared() const {
  if (context_.device_holds() == nullptr) return absl::UnimplementedError("there is no GPU tier");
  return CheckEitherWay(DataPath::kIpc);
}

absl::Status PeerService::CheckEitherWay(DataPath path) const {
  if (context_.paths().CheckAllowed(Direction::kPush, path).ok()) return absl::OkStatus();
  return context_.paths().CheckAllowed(Direction::kFetch, path);
}

grpc::ServerUnaryReactor* PeerService::ShareDevice(grpc::CallbackServerContext* call,
                                                   const v1::ShareDeviceRequest* request,
                                                   v1::ShareDeviceReply* reply) {
  return RunUnary(context_, call, Method::kShareDevice, [&]() -> absl::Status {
    OSCARKV_RETURN_IF_ERROR(CheckShared());
    if (const absl::Status& status = options_.memory_handle.status(); !status.ok())
      return absl::UnimplementedError(status.message());
    OSCARKV_RETURN_IF_ERROR(CheckHost(request->host()));
    context_.logger().Log(LogLevel::kInfo, "a client reads the GPU tier's memory in place",
                          {{"peer", call->peer()}});
    reply->set_handle(*options_.memory_handle);
    reply->set_bytes(options_.memory_bytes);
    reply->set_server_epoch(context_.epoch());
    if (options_.staging != nullptr && options_.staging->handle().ok()) {
      reply->set_staging_handle(*options_.staging->handle());
      reply->set_staging_bytes(options_.staging->bytes());
    }
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
  OSCARKV_RETURN_IF_ERROR(context_.paths().CheckAllowed(Direction::kFetch, DataPath::kIpc));
  OSCARKV_ASSIGN_OR_RETURN(const PagesAsked asked, PagesOf(request, context_));
  PageStore& store = context_.store();
  std::vector<PinnedCopy> copies;
  uint64_t bytes = 0;
  for (CopiedPage& copied : LeadingPages(store, asked, kAnyBytes, nullptr, reply)) {
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
  FaultPoint("ipc.server.fetch.held");
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* PeerService::EndHold(grpc::CallbackServerContext* call,
                                               const v1::EndHoldRequest* request,
                                               v1::EndHoldReply* reply) {
  return RunUnary(context_, call, Method::kEndHold, [&]() -> absl::Status {
    OSCARKV_RETURN_IF_ERROR(CheckShared());
    FaultPoint("ipc.server.fetch.taken");
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
  OSCARKV_RETURN_IF_ERROR(CheckEitherWay(DataPath::kNccl));
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
    FaultPoint("nccl.server.opened");
    context_.logger().Log(LogLevel::kInfo, "a client's GPU is connected to this server's",
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
  const auto send = [this, request, reply]() -> absl::Status {
    OSCARKV_ASSIGN_OR_RETURN(PeerHub * hub, Hub());
    return Send(*hub, *request, reply);
  };
  // Staging waits for the device.
  if (options_.staging == nullptr) return RunUnary(context_, call, Method::kSendPages, send);
  auto scope = std::make_unique<CallScope>(context_, call, Method::kSendPages);
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  if (const absl::Status status = scope->Admit(); !status.ok()) {
    EndLate(std::move(scope), reactor, status);
    return reactor;
  }
  context_.RunAsync([send, reactor, scope = std::move(scope)]() mutable {
    const absl::Status sent = send();
    EndLate(std::move(scope), reactor, sent);
  });
  return reactor;
}

absl::Status PeerService::Send(PeerHub& hub, const v1::SendPagesRequest& request,
                               v1::SendPagesReply* reply) {
  OSCARKV_RETURN_IF_ERROR(context_.paths().CheckAllowed(Direction::kFetch, DataPath::kNccl));
  OSCARKV_ASSIGN_OR_RETURN(const PagesAsked asked, PagesOf(request, context_));
  OSCARKV_ASSIGN_OR_RETURN(const uint64_t slot_bytes,
                           hub.SlotBytes(request.peer_id(), request.peer_epoch()));
  PageStore& store = context_.store();
  PeerHub::Pages pages;
  const auto memory = std::make_shared<std::vector<CopiedPage>>();
  uint64_t bytes = 0;
  for (CopiedPage& copied : LeadingPages(store, asked, slot_bytes, options_.staging, reply)) {
    v1::SentPage* sent = reply->add_pages();
    sent->set_encoding(ToProto(copied.page.meta().encoding));
    sent->set_bytes(copied.bytes);
    const auto crcs = CrcsOf(copied.page, asked.layers);
    sent->mutable_block_crc32c()->Add(crcs.begin(), crcs.end());
    bytes += copied.bytes;
    pages.keys.emplace_back(asked.keys[pages.keys.size()]);
    pages.blocks.push_back(copied.place != nullptr
                               ? copied.place->block()
                               : comm::Block{options_.memory + copied.offset, copied.bytes});
    // The page itself may go: its bytes are here.
    copied.page.Reset();
    memory->push_back(std::move(copied));
  }
  if (memory->empty()) return absl::OkStatus();
  pages.memory = memory;
  store.Touch(*asked.space, std::span(asked.keys).first(memory->size()), asked.traits);
  OSCARKV_ASSIGN_OR_RETURN(const comm::Ticket ticket,
                           hub.Move(request.peer_id(), request.peer_epoch(), std::move(pages),
                                    absl::Milliseconds(request.deadline_ms()),
                                    [this, bytes, start = absl::Now()](const absl::Status& ended) {
                                      if (!ended.ok()) return;
                                      context_.transfers().Record(DataPath::kNccl,
                                                                  Direction::kFetch, bytes,
                                                                  absl::Now() - start);
                                    }));
  FaultPoint("nccl.server.fetch.issued");
  reply->set_sequence(ticket.sequence);
  reply->set_pages_crc32c(ticket.pages_crc32c);
  return absl::OkStatus();
}

absl::Status PeerService::CheckPushed() const {
  if (pushes_ != nullptr) return absl::OkStatus();
  return absl::UnimplementedError("this server takes no pages from clients' GPUs");
}

grpc::ServerUnaryReactor* PeerService::BeginPush(grpc::CallbackServerContext* call,
                                                 const v1::BeginPushRequest* request,
                                                 v1::BeginPushReply* reply) {
  return RunUnary(context_, call, Method::kBeginPush, [&]() -> absl::Status {
    OSCARKV_RETURN_IF_ERROR(CheckPushed());
    return pushes_->Begin(*request, reply);
  });
}

grpc::ServerUnaryReactor* PeerService::EndPush(grpc::CallbackServerContext* call,
                                               const v1::EndPushRequest* request,
                                               v1::EndPushReply* reply) {
  auto scope = std::make_unique<CallScope>(context_, call, Method::kEndPush);
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  absl::Status status = scope->Admit();
  if (status.ok()) status = CheckPushed();
  if (!status.ok()) {
    EndLate(std::move(scope), reactor, status);
    return reactor;
  }
  pushes_->End(request->push_id(), reply,
               [reactor, scope = std::move(scope)](const absl::Status& ended) mutable {
                 EndLate(std::move(scope), reactor, ended);
               });
  return reactor;
}

}  // namespace oscarkv
