#include "tests/transport/door_testing.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "absl/base/const_init.h"
#include "absl/synchronization/mutex.h"

#include "kernels/base/fault_point.h"
#include "tests/transport/door_testing.h"

namespace oscarkv::testing {
namespace {

struct Happening {
  std::string point;
  std::function<void()> happens;
};
ABSL_CONST_INIT absl::Mutex happening_mutex(absl::kConstInit);
std::shared_ptr<const Happening> happening ABSL_GUARDED_BY(happening_mutex);

void OnFaultPoint(std::string_view point) {
  std::shared_ptr<const Happening> now;
  {
    const absl::MutexLock lock(&happening_mutex);
    now = happening;
  }
  if (now != nullptr && now->point == point) now->happens();
}

}  // namespace

AtFaultPoint::AtFaultPoint(std::string_view point, std::function<void()> happens) {
  const absl::MutexLock lock(&happening_mutex);
  happening = std::make_shared<const Happening>(Happening{std::string(point), std::move(happens)});
  SetFaultHandler(&OnFaultPoint);
}
AtFaultPoint::~AtFaultPoint() {
  SetFaultHandler(nullptr);
  const absl::MutexLock lock(&happening_mutex);
  happening.reset();
}

// --- DoorClient ---

absl::StatusOr<v1::DoorReply> DoorClient::Ask(const v1::DoorRequest& request) {
  if (const absl::Status sent = Send(request); !sent.ok()) return sent;
  const absl::StatusOr<Packet> packet = socket_.Receive(absl::InfiniteFuture());
  if (!packet.ok()) return packet.status();
  EXPECT_EQ(packet->descriptors.size(), 0u);
  v1::DoorReply reply;
  EXPECT_TRUE(reply.ParseFromString(packet->bytes));
  return reply;
}

absl::StatusOr<v1::DoorReply> DoorClient::Hello(const v1::DoorHello& hello) {
  v1::DoorRequest request;
  *request.mutable_hello() = hello;
  if (const absl::Status sent = Send(request); !sent.ok()) return sent;
  absl::StatusOr<Packet> packet = socket_.Receive(absl::InfiniteFuture());
  if (!packet.ok()) return packet.status();
  v1::DoorReply reply;
  EXPECT_TRUE(reply.ParseFromString(packet->bytes));
  const v1::DoorWelcome& welcome = reply.welcome();
  const bool staged = welcome.staging_bytes() > 0;
  const size_t expected = reply.has_welcome() ? (staged ? 3 : 2) : 0;
  EXPECT_EQ(packet->descriptors.size(), expected);
  const auto map = [&](size_t i, uint64_t bytes, SharedRegion::Access access, SharedRegion* to) {
    if (i >= packet->descriptors.size()) return;
    absl::StatusOr<SharedRegion> mapped =
        SharedRegion::Map(std::move(packet->descriptors[i]), bytes, access);
    EXPECT_OK(mapped);
    if (mapped.ok()) *to = *std::move(mapped);
  };
  map(0, welcome.arena_bytes(), SharedRegion::Access::kRead, &arena_);
  map(1, kReadFenceBytes, SharedRegion::Access::kRead, &fence_);
  map(2, welcome.staging_bytes(), SharedRegion::Access::kWrite, &staging_);
  return reply;
}

void DoorClient::Release(const std::vector<uint32_t>& corrupt) {
  v1::DoorRequest request;
  request.mutable_release()->mutable_corrupt()->Add(corrupt.begin(), corrupt.end());
  EXPECT_OK(Send(request));
}

void DoorClient::AwaitEnd() {
  absl::StatusOr<Packet> packet = socket_.Receive(absl::InfiniteFuture());
  while (packet.ok()) packet = socket_.Receive(absl::InfiniteFuture());
  EXPECT_THAT(packet, StatusIs(absl::StatusCode::kUnavailable));
}

// --- DoorTest ---

void DoorTest::OpenDoor(DoorOptions options, RpcOptions rpc, uint64_t wide_pages) {
  // A slot is a multiple of its alignment, and a unit of memory has as many as fit.
  const uint64_t slot =
      (kWideSlotBytes + kTierSlotAlignment - 1) / kTierSlotAlignment * kTierSlotAlignment;
  auto tier = HostTier::Create({.capacity_bytes = wide_pages * slot,
                                .unit_bytes = slot,
                                .sharing = HostArena::Sharing::kReaders});
  ASSERT_OK(tier);
  host_ = tier->get();
  OpenOver(*std::move(tier));
  rpc.paths.fill({DataPath::kShm, DataPath::kGrpc});
  context_ = std::make_unique<RpcContext>(rpc, store(), logger_);
  options.socket = folder_.file("door");
  auto door = Door::Open(options, *context_, host_->arena(), host_->descriptor());
  ASSERT_OK(door);
  door_ = *std::move(door);
  context_->set_on_session_end([this](SessionId session) {
    if (door_ != nullptr) door_->EndSession(session);
  });
}

void DoorTest::TearDown() {
  if (door_ != nullptr) AwaitNoLinks();
  ExpectNothingMapped();
  door_.reset();
  ExpectNothingHeld();
}

PacketSocket DoorTest::Connect() {
  absl::StatusOr<PacketSocket> socket = PacketSocket::Connect(folder_.file("door"), geteuid());
  EXPECT_OK(socket);
  return socket.ok() ? *std::move(socket) : PacketSocket();
}

v1::DoorHello DoorTest::HelloOf(SessionId session, uint64_t staging_bytes) const {
  v1::DoorHello hello;
  hello.set_session_id(session);
  hello.set_server_epoch(context_->epoch());
  hello.set_staging_bytes(staging_bytes);
  return hello;
}

DoorClient DoorTest::Enter(SessionId session, uint64_t staging_bytes) {
  DoorClient client(Connect());
  const absl::StatusOr<v1::DoorReply> reply = client.Hello(HelloOf(session, staging_bytes));
  EXPECT_OK(reply);
  if (!reply.ok()) return client;
  EXPECT_EQ(reply->code(), 0u) << reply->message();
  EXPECT_EQ(reply->welcome().server_epoch(), context_->epoch());
  return client;
}

v1::DoorRequest DoorTest::MapRequest(const std::vector<TestItem>& items) const {
  v1::DoorRequest request;
  FillScope(request.mutable_map()->mutable_scope());
  for (const TestItem& item : items) request.mutable_map()->add_keys(item.key);
  return request;
}

v1::DoorMapped DoorTest::Map(DoorClient& client, const std::vector<TestItem>& items) {
  const absl::StatusOr<v1::DoorReply> reply = client.Ask(MapRequest(items));
  EXPECT_OK(reply);
  if (!reply.ok()) return {};
  EXPECT_EQ(reply->code(), 0u) << reply->message();
  EXPECT_TRUE(reply->has_mapped());
  return reply->mapped();
}

v1::DoorRequest DoorTest::CommitRequest(const DoorClient& client,
                                        const std::vector<TestItem>& items) const {
  v1::DoorRequest request;
  v1::DoorCommit* commit = request.mutable_commit();
  *commit->mutable_header() = PutHeaderFor(items).header();
  uint64_t offset = 0;
  for (const TestItem& item : items) {
    const std::vector<std::byte> bytes = BytesOf(item);
    commit->add_offsets(offset);
    std::memcpy(client.staging().subspan(offset, bytes.size()).data(), bytes.data(), bytes.size());
    offset += bytes.size();
  }
  return request;
}

std::vector<v1::ItemStatus> DoorTest::Commit(DoorClient& client, const v1::DoorRequest& request) {
  const absl::StatusOr<v1::DoorReply> reply = client.Ask(request);
  EXPECT_OK(reply);
  if (!reply.ok()) return {};
  EXPECT_EQ(reply->code(), 0u) << reply->message();
  std::vector<v1::ItemStatus> statuses;
  for (const v1::ItemResult& result : reply->committed().results())
    statuses.push_back(result.status());
  return statuses;
}

std::vector<TestItem> DoorTest::Stored(uint64_t first_key, uint32_t pages) {
  auto chain = Chain(space(), first_key, pages);
  EXPECT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
  return chain;
}

void DoorTest::Overwrite() {
  constexpr uint64_t kFirstKey = 1'000'000;
  const uint64_t pages = host_->capacity_bytes() / kWideSlotBytes;
  // Pages of one each, so that each can go; what is held refuses the last ones.
  for (uint64_t i = 0; i < pages; ++i) Put(Chain(space(), kFirstKey + i, 1)[0]);
}

void DoorTest::ExpectMapped(const DoorClient& client, const v1::MappedPage& mapped,
                            const TestItem& item) {
  const TestPage page = MakePage(space(), item.encoding, item.seed);
  EXPECT_EQ(mapped.result().status(), v1::OK) << mapped.result().message();
  EXPECT_EQ(mapped.encoding(), static_cast<v1::Encoding>(item.encoding));
  EXPECT_EQ(mapped.first_position(), item.first_position);
  ASSERT_EQ(mapped.bytes(), page.bytes.size());
  EXPECT_TRUE(std::ranges::equal(client.BytesOf(mapped), page.bytes));
  EXPECT_EQ(std::memcmp(client.arena().subspan(mapped.offset() + mapped.bytes(), kCrcBytes).data(),
                        page.crcs.data(), kCrcBytes),
            0);
}

void DoorTest::AwaitNoLinks() const {
  while (door_->Stats().links != 0) std::this_thread::yield();
}

void DoorTest::ExpectNothingMapped() {
  if (door_ != nullptr) {
    EXPECT_EQ(door_->Stats().mapped_bytes, 0u);
  }
  EXPECT_EQ(context_->inflight_bytes(), 0u);
  const StoreStats stats = store().Stats();
  EXPECT_EQ(stats.pins, 0u);
  EXPECT_EQ(stats.open_puts, 0u);
  EXPECT_EQ(stats.detached_pages, 0u);
}

}  // namespace oscarkv::testing
