#include "server/rpc/device_pushes.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "kernels/base/fault_point.h"
#include "kernels/base/status_macros.h"
#include "proto/convert/convert.h"
#include "server/rpc/put_items.h"

namespace oscarkv {

using Places = std::vector<std::shared_ptr<const StagingArea::Place>>;

struct DevicePushes::Push {
  SessionId session = 0;
  DataPath path = DataPath::kIpc;
  absl::Time start;
  absl::Time deadline;
  v1::PutHeader header;
  CheckedPut put;
  Places places;  // of the items that are pushed; null: the store has the page
  uint64_t bytes = 0;
  // Whether the bytes are there, or will not come; what waits for that. Guarded by the pushes'
  // mutex.
  bool ended = true;
  absl::Status moved;
  absl::AnyInvocable<void()&&> when_ended = nullptr;
};

DevicePushes::DevicePushes(const DevicePushesOptions& options, RpcContext& context,
                           StagingArea& staging)
    : options_(options), context_(context), staging_(staging) {}

void DevicePushes::BeginSession(SessionId session) {
  const absl::MutexLock lock(&mutex_);
  sessions_.insert(session);
}

void DevicePushes::EndSession(SessionId session) {
  {
    const absl::MutexLock lock(&mutex_);
    sessions_.erase(session);
  }
  EndWhere([session](const Push& push) { return push.session == session; });
}

void DevicePushes::Expire() {
  const absl::Time now = absl::Now();
  EndWhere([now](const Push& push) { return push.deadline <= now; });
}

// What is on its way into a place keeps it until it has ended, too.
template <typename Ends>
void DevicePushes::EndWhere(const Ends& ends) {
  std::vector<std::shared_ptr<Push>> ended;  // let go outside of the lock
  const absl::MutexLock lock(&mutex_);
  for (auto push = pushes_.begin(); push != pushes_.end();) {
    const auto next = std::next(push);
    if (ends(*push->second)) {
      ended.push_back(std::move(push->second));
      pushes_.erase(push);
    }
    push = next;
  }
}

uint64_t DevicePushes::pushes() const {
  const absl::MutexLock lock(&mutex_);
  return pushes_.size();
}

absl::Status DevicePushes::Begin(const v1::BeginPushRequest& request, v1::BeginPushReply* reply) {
  const auto push = std::make_shared<Push>();
  push->session = request.session_id();
  push->path = request.peer_id() == 0 ? DataPath::kIpc : DataPath::kNccl;
  OSCARKV_RETURN_IF_ERROR(context_.paths().CheckAllowed(Direction::kPush, push->path));
  push->start = absl::Now();
  const absl::Duration within =
      std::min(absl::Milliseconds(request.deadline_ms()), options_.push_max);
  push->deadline = push->start + within;
  push->header = request.put();
  OSCARKV_ASSIGN_OR_RETURN(push->put, CheckPut(context_, push->header));
  uint64_t bytes_max = staging_.bytes();
  if (push->path == DataPath::kNccl) {
    if (context_.peer_hub() == nullptr)
      return absl::UnimplementedError("this server's GPU has no peers");
    OSCARKV_ASSIGN_OR_RETURN(
        bytes_max, context_.peer_hub()->SlotBytes(request.peer_id(), request.peer_epoch()));
  }
  OSCARKV_RETURN_IF_ERROR(Place(*push, bytes_max, reply));
  if (push->places.empty()) return absl::OkStatus();
  FaultPoint("device.server.push.placed");
  uint64_t id = 0;
  {
    const absl::MutexLock lock(&mutex_);
    if (!sessions_.contains(push->session))
      return absl::UnavailableError(absl::StrCat("no session ", push->session, " is open"));
    if (pushes_.size() >= options_.pushes_max)
      return absl::ResourceExhaustedError(absl::StrCat(pushes_.size(), " pushes are under way"));
    id = absl::Uniform<uint64_t>(absl::IntervalClosed, random_, 1, ~uint64_t{0});
    pushes_[id] = push;
    push->ended = push->path == DataPath::kIpc || push->bytes == 0;
  }
  reply->set_push_id(id);
  if (push->path == DataPath::kIpc || push->bytes == 0) return absl::OkStatus();
  const absl::Status begun = Receive(push, request, reply);
  if (begun.ok()) return begun;
  const absl::MutexLock lock(&mutex_);
  pushes_.erase(id);
  return begun;
}

absl::Status DevicePushes::Place(Push& push, uint64_t bytes_max, v1::BeginPushReply* reply) {
  for (const v1::PutItem& item : push.header.items()) {
    const absl::StatusOr<Encoding> encoding = FromProto(item.encoding());
    // An item that makes no sense needs no bytes to be refused.
    const bool wanted = encoding.ok() && item.bytes() == push.put.space->page_bytes(*encoding) &&
                        !context_.store().Holds(*push.put.space, item.key());
    std::shared_ptr<const StagingArea::Place> place;
    if (wanted) {
      if (item.bytes() > bytes_max) {
        return absl::UnimplementedError(
            absl::StrCat("a page of ", item.bytes(), " bytes, a push has room for ", bytes_max));
      }
      if (push.bytes + item.bytes() > bytes_max) break;
      auto reserved = staging_.Reserve(item.bytes());
      if (absl::IsResourceExhausted(reserved.status())) break;
      if (!reserved.ok()) return absl::UnimplementedError(reserved.status().message());
      place = *std::move(reserved);
      push.bytes += item.bytes();
    }
    v1::PushPlace* placed = reply->add_places();
    placed->set_wanted(wanted);
    if (wanted) placed->set_offset(place->offset());
    push.places.push_back(std::move(place));
  }
  return absl::OkStatus();
}

absl::Status DevicePushes::Receive(const std::shared_ptr<Push>& push,
                                   const v1::BeginPushRequest& request, v1::BeginPushReply* reply) {
  PeerHub::Pages pages{.way = comm::Way::kReceive,
                       .keys = {},
                       .blocks = {},
                       .memory = std::make_shared<Places>(push->places)};
  for (size_t i = 0; i < push->places.size(); ++i) {
    if (push->places[i] == nullptr) continue;
    pages.keys.push_back(push->header.items(static_cast<int>(i)).key());
    pages.blocks.push_back(push->places[i]->block());
  }
  OSCARKV_ASSIGN_OR_RETURN(
      const comm::Ticket ticket,
      context_.peer_hub()->Move(
          request.peer_id(), request.peer_epoch(), std::move(pages), push->deadline - absl::Now(),
          [this, push](const absl::Status& moved) { OnMoved(*push, moved); }));
  reply->set_sequence(ticket.sequence);
  reply->set_pages_crc32c(ticket.pages_crc32c);
  return absl::OkStatus();
}

void DevicePushes::OnMoved(Push& push, const absl::Status& moved) {
  const absl::MutexLock lock(&mutex_);
  push.ended = true;
  push.moved = moved;
  if (push.when_ended != nullptr) std::move(push.when_ended)();
}

void DevicePushes::End(uint64_t id, v1::EndPushReply* reply,
                       absl::AnyInvocable<void(const absl::Status&) &&> done) {
  FaultPoint("device.server.push.brought");
  {
    const absl::MutexLock lock(&mutex_);
    const auto found = pushes_.find(id);
    if (found != pushes_.end()) {
      std::shared_ptr<Push> push = std::move(found->second);
      pushes_.erase(found);
      // Copying and verifying take long.
      auto store = [this, push, reply, finish = std::move(done)]() mutable {
        context_.RunAsync([this, push, reply, finish = std::move(finish)]() mutable {
          const absl::Status stored = Store(*push, reply);
          push.reset();
          std::move(finish)(stored);
        });
      };
      if (push->ended) {
        store();
      } else {
        push->when_ended = std::move(store);
      }
      return;
    }
  }
  std::move(done)(absl::NotFoundError("there is no such push (any more)"));
}

absl::Status DevicePushes::Store(Push& push, v1::EndPushReply* reply) const {
  {
    const absl::MutexLock lock(&mutex_);
    if (!push.moved.ok())
      return absl::NotFoundError(absl::StrCat("the pages did not come: ", push.moved.message()));
  }
  const auto store_page = [&](uint32_t index) -> ItemResult {
    const std::shared_ptr<const StagingArea::Place> place = std::move(push.places[index]);
    InflightBytes inflight;
    BeginPutResult begun = BeginPutItem(context_, push.put, push.header, index, &inflight);
    if (!begun.slot) return std::move(begun.result);
    if (place == nullptr)
      return {ItemStatus::kBusy, "the page went while it was offered: offer it again"};
    auto copy = staging_.CopyOut(*place, begun.slot.bytes());
    const absl::Status copied = copy.ok() ? (*copy)->Wait() : copy.status();
    if (!copied.ok()) return {ItemStatus::kBusy, std::string(copied.message())};
    FaultPoint("device.server.push.copied");
    return begun.slot.Commit();
  };
  std::vector<std::string_view> stored;
  for (uint32_t i = 0; i < push.places.size(); ++i) {
    const ItemResult result = store_page(i);
    v1::ItemResult* out = reply->add_results();
    out->set_status(ToProto(result.status));
    out->set_message(result.message);
    if (result.status == ItemStatus::kOk)
      stored.push_back(push.header.items(static_cast<int>(i)).key());
  }
  FaultPoint("device.server.push.stored");
  // They came from a GPU, and are likely to be wanted by another.
  context_.store().WantCopies(*push.put.space, stored);
  context_.transfers().Record(push.path, Direction::kPush, push.bytes, absl::Now() - push.start);
  return absl::OkStatus();
}

}  // namespace oscarkv
