#include "server/rpc/device_pushes.h"

#include <algorithm>
#include <deque>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"

#include "kernels/base/fault_point.h"
#include "kernels/base/status_macros.h"
#include "proto/convert/convert.h"
#include "server/rpc/put_items.h"

namespace oscarkv {

using Places = std::vector<std::shared_ptr<const StagingArea::Place>>;

namespace {

// One thread verifies more slowly than the bus brings pages.
int ArrivalThreads() {
  return static_cast<int>(std::clamp(std::thread::hardware_concurrency() / 2, 1u, 8u));
}

// A page on its way from its place into the store's memory.
struct Arrival {
  uint32_t index = 0;  // of the push's items
  std::shared_ptr<const StagingArea::Place> place;
  InflightBytes inflight;
  PutSlot slot;
  std::unique_ptr<PendingTransfer> copy;
  absl::Status copied;
  absl::Notification there;

  // By one of the threads for that.
  void Await() {
    copied = copy->Wait();
    FaultPoint("device.server.push.copied");
    if (copied.ok()) slot.Filled(slot.bytes().size());
    there.Notify();
  }
  ItemResult Store() {
    there.WaitForNotification();
    place.reset();
    if (!copied.ok()) return {ItemStatus::kBusy, std::string(copied.message())};
    return slot.Commit();
  }
};

// Whether what a page could not be begun for may be pages that are begun and not stored.
bool MayWait(ItemStatus status) {
  return status == ItemStatus::kBusy || status == ItemStatus::kSkipped ||
         status == ItemStatus::kQuota || status == ItemStatus::kNoSpace;
}

}  // namespace

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
    : options_(options), context_(context), staging_(staging), arrivals_(ArrivalThreads()) {}

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
  // What waited holds the push, so it must not stay in it.
  if (auto when_ended = std::exchange(push.when_ended, nullptr)) std::move(when_ended)();
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

// All pages are on their way at once; they become pages of the store in order, each after the one
// that it extends.
std::vector<ItemResult> DevicePushes::StorePages(Push& push) {
  std::vector<ItemResult> results(push.places.size());
  std::deque<Arrival> arriving;
  const auto store_all = [&] {
    for (Arrival& page : arriving) results[page.index] = page.Store();
    arriving.clear();
  };
  for (uint32_t i = 0; i < results.size(); ++i) {
    InflightBytes inflight;
    const auto begin = [&] {
      const PutSlot* before = arriving.empty() ? nullptr : &arriving.back().slot;
      return BeginPutItem(context_, push.put, push.header, i, &inflight, before);
    };
    BeginPutResult begun = begin();
    if (!begun.slot && MayWait(begun.result.status) && !arriving.empty()) {
      store_all();
      begun = begin();
    }
    std::shared_ptr<const StagingArea::Place> place = std::move(push.places[i]);
    results[i] = std::move(begun.result);
    if (!begun.slot) continue;
    if (place == nullptr) {
      results[i] = {ItemStatus::kBusy, "the page went while it was offered: offer it again"};
      continue;
    }
    auto copy = staging_.CopyOut(*place, begun.slot.bytes());
    if (!copy.ok()) {
      results[i] = {ItemStatus::kBusy, std::string(copy.status().message())};
      continue;
    }
    Arrival& page = arriving.emplace_back();
    page.index = i;
    page.place = std::move(place);
    page.inflight = std::move(inflight);
    page.slot = std::move(begun.slot);
    page.copy = *std::move(copy);
    arrivals_.Add([&page] { page.Await(); });
  }
  store_all();
  return results;
}

absl::Status DevicePushes::Store(Push& push, v1::EndPushReply* reply) {
  {
    const absl::MutexLock lock(&mutex_);
    if (!push.moved.ok())
      return absl::NotFoundError(absl::StrCat("the pages did not come: ", push.moved.message()));
  }
  std::vector<std::string_view> stored;
  for (const ItemResult& result : StorePages(push)) {
    if (result.status == ItemStatus::kOk)
      stored.push_back(push.header.items(reply->results_size()).key());
    v1::ItemResult* out = reply->add_results();
    out->set_status(ToProto(result.status));
    out->set_message(result.message);
  }
  FaultPoint("device.server.push.stored");
  // They came from a GPU, and are likely to be wanted by another.
  context_.store().WantCopies(*push.put.space, stored);
  context_.transfers().Record(push.path, Direction::kPush, push.bytes, absl::Now() - push.start);
  return absl::OkStatus();
}

}  // namespace oscarkv
