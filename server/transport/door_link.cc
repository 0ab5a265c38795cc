#include "server/transport/door_link.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "kernels/base/fault_point.h"
#include "kernels/base/status_macros.h"
#include "proto/convert/convert.h"
#include "proto/wire/page_key.h"
#include "server/core/parent_loader.h"
#include "server/rpc/put_items.h"

namespace oscarkv {
namespace {

constexpr absl::Duration kHelloTimeout = absl::Seconds(5);
constexpr uint64_t kMemoryPageBytes = 4096;
// Answered at once, at most 43 bytes each, so that they fit in a packet. The client asks on.
constexpr size_t kPagesPerReply = 2048;
static_assert(kPagesPerReply * 48 < kPacketBytesMax);

}  // namespace

DoorLink::~DoorLink() {
  // The client may still be reading: it is told before anything can be used again.
  if (fence_.has_value()) fence_->Raise();
  FaultPoint("shm.server.fenced");
  Release();
  shared_.staging.Give(session_, staging_taken_);
}

void DoorLink::Run() {
  absl::Status status = Welcome();
  while (status.ok()) {
    const absl::Time ceiling =
        mapped_.empty() ? absl::InfiniteFuture() : mapped_at_ + shared_.context.options().lease_max;
    absl::StatusOr<Packet> packet =
        socket_.Receive(ceiling, mapped_.empty() ? &requests_ : &releases_);
    if (absl::IsDeadlineExceeded(packet.status())) {
      status = absl::DeadlineExceededError("a client has read for longer than a lease may last");
      shared_.revoked.fetch_add(1, std::memory_order_relaxed);
      shared_.context.logger().Log(
          LogLevel::kWarning, "pages taken back from a client that maps them",
          {{"pages", absl::StrCat(mapped_.size())}, {"pid", absl::StrCat(socket_.peer().pid)}});
      break;
    }
    v1::DoorRequest request;
    status = packet.status();
    if (status.ok() && !request.ParseFromString(packet->bytes))
      status = absl::InvalidArgumentError("a packet that is no DoorRequest");
    if (status.ok()) status = Answer(request);
  }
  shared_.context.logger().Log(LogLevel::kDebug, "connection to shared memory ended",
                               {{"why", std::string(status.message())}});
}

absl::Status DoorLink::Reply(const absl::Status& status, v1::DoorReply reply,
                             std::span<const int> descriptors) {
  reply.set_code(static_cast<uint32_t>(status.code()));
  if (!status.ok()) {
    reply.clear_kind();
    reply.set_message(std::string(status.message().substr(0, 2048)));
  }
  return socket_.Send(reply.SerializeAsString(), descriptors);
}

absl::Status DoorLink::Welcome() {
  OSCARKV_ASSIGN_OR_RETURN(const Packet packet, socket_.Receive(absl::Now() + kHelloTimeout));
  FaultPoint("shm.server.greeted");
  v1::DoorRequest request;
  if (!request.ParseFromString(packet.bytes) || !request.has_hello())
    return absl::InvalidArgumentError("a connection starts with a hello");
  v1::DoorReply reply;
  const auto welcome = [&]() -> absl::Status {
    const v1::DoorHello& hello = request.hello();
    if (hello.server_epoch() != shared_.context.epoch()) {
      return absl::AbortedError(absl::StrCat("the epoch of this server is ",
                                             shared_.context.epoch(), ", the hello is for ",
                                             hello.server_epoch()));
    }
    OSCARKV_RETURN_IF_ERROR(admit_(hello.session_id()));
    session_ = hello.session_id();
    return MakeRegions(hello.staging_bytes(), reply.mutable_welcome());
  };
  const absl::Status status = welcome();
  std::vector<int> descriptors;
  if (status.ok()) {
    descriptors = {shared_.arena_descriptor, fence_region_.descriptor()};
    if (staging_taken_ > 0) descriptors.push_back(staging_.descriptor());
  }
  OSCARKV_RETURN_IF_ERROR(Reply(status, std::move(reply), descriptors));
  FaultPoint("shm.server.welcomed");
  return status;
}

absl::Status DoorLink::MakeRegions(uint64_t staging_bytes, v1::DoorWelcome* welcome) {
  OSCARKV_ASSIGN_OR_RETURN(fence_region_, SharedRegion::Create("oscarkv fence", kReadFenceBytes,
                                                               SharedRegion::Others::kRead));
  fence_.emplace(fence_region_.writable());
  if (staging_bytes > 0) {
    const uint64_t bytes =
        std::min(staging_bytes, shared_.staging_bytes_max) / kMemoryPageBytes * kMemoryPageBytes;
    if (bytes == 0)
      return absl::InvalidArgumentError(absl::StrCat(
          "staging memory of ", staging_bytes, " bytes, ", kMemoryPageBytes, " is the least"));
    if (!shared_.staging.Take(session_, bytes))
      return absl::ResourceExhaustedError(absl::StrCat(
          "no staging memory of ", bytes, " bytes is left: ", shared_.staging.taken(), " in use"));
    staging_taken_ = bytes;
    OSCARKV_ASSIGN_OR_RETURN(
        staging_, SharedRegion::Create("oscarkv staging", bytes, SharedRegion::Others::kWrite));
  }
  welcome->set_server_epoch(shared_.context.epoch());
  welcome->set_arena_bytes(shared_.arena.size());
  welcome->set_staging_bytes(staging_taken_);
  return absl::OkStatus();
}

absl::Status DoorLink::Answer(const v1::DoorRequest& request) {
  v1::DoorReply reply;
  switch (request.kind_case()) {
    case v1::DoorRequest::kMap: {
      Release();
      absl::Status status =
          shared_.context.draining()
              ? absl::UnavailableError("the server is draining: it takes no new calls")
              : Map(request.map(), reply.mutable_mapped());
      FaultPoint("shm.server.pinned");
      OSCARKV_RETURN_IF_ERROR(Reply(status, std::move(reply)));
      FaultPoint("shm.server.mapped");
      TouchMapped();
      return absl::OkStatus();
    }
    case v1::DoorRequest::kRelease:
      CheckDamaged(request.release());
      Release();
      FaultPoint("shm.server.released");
      return absl::OkStatus();
    case v1::DoorRequest::kCommit: {
      absl::Status status =
          shared_.context.draining()
              ? absl::UnavailableError("the server is draining: it takes no new calls")
              : Commit(request.commit(), reply.mutable_committed());
      FaultPoint("shm.server.committed");
      return Reply(status, std::move(reply));
    }
    case v1::DoorRequest::kHello:
    case v1::DoorRequest::KIND_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("a request that is none, or a second hello");
}

absl::Status DoorLink::Map(const v1::DoorMap& request, v1::DoorMapped* reply) {
  OSCARKV_ASSIGN_OR_RETURN(space_, shared_.context.Resolve(request.scope()));
  OSCARKV_ASSIGN_OR_RETURN(traits_, shared_.context.TraitsOf(request.hints()));
  const auto most = static_cast<int>(shared_.context.options().max_items);
  if (request.keys_size() > most) {
    return absl::InvalidArgumentError(
        absl::StrCat("at most ", most, " keys in one call, found ", request.keys_size()));
  }
  std::vector<std::string_view> keys;
  for (const std::string& key : request.keys()) {
    OSCARKV_RETURN_IF_ERROR(Annotate(ValidateKey(key), absl::StrCat("key ", keys.size())));
    keys.push_back(key);
  }
  mapped_at_ = absl::Now();
  const size_t pages = std::min(keys.size(), kPagesPerReply);
  for (size_t i = 0; i < pages && mapped_.size() == i; ++i)
    MapOne(*space_, keys, i, request.lease_id(), reply);
  return absl::OkStatus();
}

void DoorLink::MapOne(const Namespace& space, std::span<const std::string_view> keys, size_t i,
                      uint64_t lease, v1::DoorMapped* reply) {
  PageStore& store = shared_.context.store();
  const auto fail = [&](ItemStatus status, std::string message) {
    v1::ItemResult* result = reply->add_pages()->mutable_result();
    result->set_status(ToProto(status));
    result->set_message(std::move(message));
  };
  PinResult pinned = store.Pin(space, keys[i]);
  if (pinned.archived) pinned = store.Load(space, keys.subspan(i));
  if (!pinned.message.empty()) return fail(pinned.status, std::move(pinned.message));
  if (pinned.status != ItemStatus::kOk) {
    if (lease == 0 || store.LeaseIsLive(lease)) return fail(pinned.status, "");
    return fail(ItemStatus::kFenced, "the lease has ended, and the page is gone");
  }
  const PageMeta& meta = pinned.page.meta();
  if (!shared_.mapped.Take(session_, meta.bytes)) {
    // The client may go on once it has read the others.
    if (i > 0) return;
    return fail(ItemStatus::kBusy, "too many bytes are being read: try again a little later");
  }
  mapped_bytes_ += meta.bytes;
  v1::MappedPage* page = reply->add_pages();
  page->mutable_result()->set_status(v1::OK);
  page->set_encoding(ToProto(meta.encoding));
  page->set_first_position(meta.first_position);
  page->set_offset(static_cast<uint64_t>(pinned.page.Unverified().data() - shared_.arena.data()));
  page->set_bytes(meta.bytes);
  mapped_.push_back({std::move(pinned.page), std::string(keys[i])});
}

void DoorLink::TouchMapped() {
  if (mapped_.empty()) return;
  std::vector<std::string_view> keys;
  for (const Mapped& mapped : mapped_) keys.push_back(mapped.key);
  shared_.context.store().Touch(*space_, keys, traits_);
}

void DoorLink::CheckDamaged(const v1::DoorRelease& release) {
  // Believed only when it is true: then the page is dropped.
  for (const uint32_t index : release.corrupt()) {
    if (index < mapped_.size()) mapped_[index].page.VerifiedPage().status().IgnoreError();
  }
}

void DoorLink::Release() {
  if (mapped_.empty()) return;
  shared_.context.transfers().Record(DataPath::kShm, Direction::kFetch, mapped_bytes_,
                                     absl::Now() - mapped_at_);
  mapped_.clear();
  shared_.mapped.Give(session_, std::exchange(mapped_bytes_, 0));
}

absl::Status DoorLink::Commit(const v1::DoorCommit& request, v1::PutReply* reply) {
  const absl::Time start = absl::Now();
  const v1::PutHeader& header = request.header();
  if (request.offsets_size() != header.items_size()) {
    return absl::InvalidArgumentError(absl::StrCat(header.items_size(), " items and ",
                                                   request.offsets_size(), " places of them"));
  }
  OSCARKV_ASSIGN_OR_RETURN(const CheckedPut put, CheckPut(shared_.context, header));
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < static_cast<uint32_t>(header.items_size()); ++i) {
    v1::ItemResult* result = reply->add_results();
    CommitItem(request, put, i, result);
    if (result->status() == v1::OK) bytes += header.items(static_cast<int>(i)).bytes();
  }
  shared_.context.transfers().Record(DataPath::kShm, Direction::kPush, bytes, absl::Now() - start);
  return absl::OkStatus();
}

void DoorLink::CommitItem(const v1::DoorCommit& request, const CheckedPut& put, uint32_t index,
                          v1::ItemResult* result) {
  const v1::PutItem& item = request.header().items(static_cast<int>(index));
  const uint64_t offset = request.offsets(static_cast<int>(index));
  const auto set = [&](const ItemResult& found) {
    result->set_status(ToProto(found.status));
    result->set_message(found.message);
  };
  const ByteView staging = staging_.bytes();
  if (item.bytes() > staging.size() || offset > staging.size() - item.bytes()) {
    return set({ItemStatus::kInvalid,
                absl::StrCat("the page is said to lie at ", offset, " with ", item.bytes(),
                             " bytes, of ", staging.size(), " that were staged")});
  }
  std::optional<ParentLoader> parent;
  if (ParentIsArchived(shared_.context, put, request.header(), index)) {
    parent.emplace(shared_.context.store(), *put.space, item.parent());
    while (parent->Step()) {
    }
    if (parent->busy()) return set({ItemStatus::kBusy, kParentBusy});
  }
  InflightBytes inflight;
  BeginPutResult begun = BeginPutItem(shared_.context, put, request.header(), index, &inflight);
  if (!begun.slot) return set(begun.result);
  // Copied before it is verified: the client can write to what it handed over even now.
  const MutableByteView slot = begun.slot.bytes();
  std::memcpy(slot.data(), staging.data() + offset, slot.size());
  FaultPoint("shm.server.copied");
  set(begun.slot.Commit());
}

}  // namespace oscarkv
