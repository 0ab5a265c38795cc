// Pages that go from a worker's GPU to a server's, written there (CUDA IPC) or sent (NCCL), over
// fakes of both: what is stored, and what becomes of a push when something is lost on the way.
#include "client/cpp/device_push.h"

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"

#include "client/cpp/device_source.h"
#include "tests/client/device_fetch_test.h"

namespace oscarkv::client {
namespace {

using ::oscarkv::testing::Chain;
using ::oscarkv::testing::DeviceFetchTest;
using ::oscarkv::testing::FakeFabric;
using ::oscarkv::testing::FakeFabricOptions;
using ::oscarkv::testing::kUnit;
using ::oscarkv::testing::MakePage;
using ::oscarkv::testing::SharedFabric;
using ::oscarkv::testing::TestItem;
using ::oscarkv::testing::TestPage;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kPageBytes = 1024;

// Gives the WIDE pages of a chain. Its device's memory is apart from the host's.
class ChainSource final : public PageSource, private DeviceSource {
 public:
  explicit ChainSource(std::vector<TestPage> pages)
      : pages_(std::move(pages)), memory_(pages_.size() * kPageBytes), host_(memory_.size()) {}

  uint64_t pages() const override { return pages_.size(); }
  absl::StatusOr<std::span<const EncodedPage>> Encode(uint32_t first,
                                                      std::span<const Encoding> encodings,
                                                      EncodeReport*) override {
    return Into(host_, first, std::min(encodings.size(), at_once));
  }
  DeviceSource* device_source() override { return has_device ? this : nullptr; }

  void SendOver(std::unique_ptr<comm::PeerFabric> fabric) {
    link_ = std::make_unique<PeerLink>(std::move(fabric), memory_.data(),
                                       comm::SlotShape{.slots = 1, .slot_bytes = memory_.size()});
  }

  bool has_device = true;
  size_t at_once = 16;           // pages
  std::byte* staging = nullptr;  // the server's
  absl::Status open_error;       // of it
  std::function<void()> before_write = [] {};
  std::function<void()> after_write = [] {};
  int written = 0;
  uint64_t last_offset = 0;
  int brought = 0;

 private:
  absl::StatusOr<std::span<const EncodedPage>> EncodeOnDevice(uint32_t first,
                                                              std::span<const Encoding> encodings,
                                                              EncodeReport*) override {
    return Into(memory_, first, std::min(encodings.size(), at_once));
  }
  absl::StatusOr<std::span<const EncodedPage>> BringToHost() override {
    ++brought;
    for (EncodedPage& page : encoded_) {
      const auto offset = static_cast<size_t>(page.bytes.data() - memory_.data());
      std::copy(page.bytes.begin(), page.bytes.end(),
                host_.begin() + static_cast<ptrdiff_t>(offset));
      page.bytes = ByteView(host_).subspan(offset, page.bytes.size());
    }
    return std::span<const EncodedPage>(encoded_);
  }
  absl::Status OpenStaging(const std::string& handle) override {
    staging = testing::FakeDeviceMemory::Open(handle);
    EXPECT_NE(staging, nullptr);
    return open_error;
  }
  absl::Status Write(std::span<const Placed> pages) override {
    before_write();
    for (const Placed& placed : pages) {
      ++written;
      last_offset = placed.offset;
      std::copy(placed.page.begin(), placed.page.end(), staging + placed.offset);
    }
    after_write();
    return absl::OkStatus();
  }
  PeerLink* sender() override { return link_.get(); }

  absl::StatusOr<std::span<const EncodedPage>> Into(std::vector<std::byte>& memory, uint32_t first,
                                                    size_t count) {
    encoded_.clear();
    for (size_t i = 0; i < count; ++i) {
      const TestPage& page = pages_[first + i];
      const MutableByteView room = MutableByteView(memory).subspan(i * kPageBytes, kPageBytes);
      std::copy(page.bytes.begin(), page.bytes.end(), room.begin());
      encoded_.push_back({Encoding::kWide, room, page.crcs});
    }
    return std::span<const EncodedPage>(encoded_);
  }

  const std::vector<TestPage> pages_;
  std::vector<std::byte> memory_;
  std::vector<std::byte> host_;
  std::unique_ptr<PeerLink> link_;
  std::vector<EncodedPage> encoded_;
};

class DevicePushTest : public DeviceFetchTest {
 protected:
  void BeginOver(std::vector<DataPath> allowed, uint64_t staging_pages = 16,
                 const FakeFabricOptions& options = {}) {
    fabric_ = std::make_shared<FakeFabric>(options);
    push_paths_ = std::move(allowed);
    OpenStaging(staging_pages * kUnit);
    Begin();
    spec_ = testing::SmallSpec("pushed");
    spec_.codec.transform_hash.clear();  // WIDE pages alone
    const auto opened = store().OpenNamespace(spec_, /*create=*/true);
    ASSERT_OK(opened);
    pushed_ = *opened;
    chain2_ = Chain(*pushed_, 100, 8);
  }
  void ConnectToPush(std::vector<DataPath> paths = {}) {
    ClientOptions options;
    options.endpoint = endpoint_;
    options.push_timeout = push_timeout_;
    options.peer_meet_timeout = peer_meet_timeout_;
    options.push_paths = std::move(paths);
    auto made = Client::Create(options);
    ASSERT_OK(made);
    client_ = *std::move(made);
    auto opened = client_->OpenNamespace(spec_, "");
    ASSERT_OK(opened);
    remote_ = *std::move(opened);
  }
  std::unique_ptr<ChainSource> Source() {
    std::vector<TestPage> pages;
    for (const TestItem& item : chain2_)
      pages.push_back(MakePage(*pushed_, item.encoding, item.seed));
    return std::make_unique<ChainSource>(std::move(pages));
  }
  std::unique_ptr<ChainSource> Sending() {
    auto source = Source();
    source->SendOver(std::make_unique<SharedFabric>(fabric_));
    return source;
  }
  PushReport Push(ChainSource& source) {
    std::vector<std::string> keys;
    for (const TestItem& item : chain2_) keys.push_back(item.key);
    const auto report = remote_->PushFrom(source, {.keys = keys});
    EXPECT_OK(report);
    return report.ok() ? *report : PushReport();
  }
  // Pages first..last-1 are stored, whole, and no others.
  void ExpectStored(size_t last) {
    for (size_t i = 0; i < chain2_.size(); ++i) {
      const ItemStatus found = testing::ReadPage(store(), *pushed_, chain2_[i]);
      EXPECT_EQ(found == ItemStatus::kOk, i < last) << i;
    }
  }
  // Nothing is on its way any more.
  void AwaitNothing() {
    while (staging_->used_bytes() > 0) std::this_thread::yield();
    EXPECT_EQ(peer_service_->pushes()->pushes(), 0u);
  }

  absl::Duration push_timeout_ = absl::Seconds(20);
  NamespaceSpec spec_;
  const oscarkv::Namespace* pushed_ = nullptr;
  std::vector<TestItem> chain2_;
};

TEST_F(DevicePushTest, PagesAreWrittenToTheServersGpuVerifiedAndStored) {
  BeginOver({DataPath::kIpc, DataPath::kGrpc});
  ConnectToPush();
  const auto source = Source();
  const PushReport report = Push(*source);
  EXPECT_OK(report.store);
  EXPECT_THAT(report.statuses, Each(ItemStatus::kOk));
  EXPECT_EQ(report.path, DataPath::kIpc) << client_->path(Direction::kPush).reason;
  EXPECT_EQ(client_->path(Direction::kPush).device_path, DataPath::kIpc);
  EXPECT_EQ(report.bytes_wire, 8 * kPageBytes);
  EXPECT_EQ(source->written, 8);
  ExpectStored(8);
  EXPECT_EQ(context_->transfers().bytes(DataPath::kIpc, Direction::kPush), 8 * kPageBytes);
  AwaitNothing();
  // They are copied to the GPU tier, used again or not.
  CopyMover mover(store(), {});
  while (mover.Step()) {
  }
  EXPECT_EQ(gpu_->Stats().reserved_slots, 8u);
  // What is there is not moved again.
  const PushReport again = Push(*source);
  EXPECT_THAT(again.statuses, Each(ItemStatus::kExists));
  EXPECT_EQ(again.bytes_wire, 0u);
  EXPECT_EQ(source->written, 8);
}

TEST_F(DevicePushTest, PagesAreSentToTheServersGpuVerifiedAndStored) {
  BeginOver({DataPath::kNccl, DataPath::kGrpc}, 16,
            {.seed = 1, .delay_polls_max = 5, .eager_percent = 50});
  ConnectToPush();
  const auto source = Sending();
  source->at_once = 3;
  const PushReport report = Push(*source);
  EXPECT_OK(report.store);
  EXPECT_THAT(report.statuses, Each(ItemStatus::kOk));
  EXPECT_EQ(report.path, DataPath::kNccl) << client_->path(Direction::kPush).reason;
  EXPECT_EQ(report.bytes_wire, 8 * kPageBytes);
  ExpectStored(8);
  EXPECT_EQ(context_->transfers().bytes(DataPath::kNccl, Direction::kPush), 8 * kPageBytes);
  AwaitNothing();
  EXPECT_EQ(hub_->Stats().peers, 1u);
}

TEST_F(DevicePushTest, PagesThatFindNoRoomAtOnceComeOneAfterTheOther) {
  BeginOver({DataPath::kIpc}, /*staging_pages=*/3);
  ConnectToPush();
  const auto source = Source();
  EXPECT_THAT(Push(*source).statuses, Each(ItemStatus::kOk));
  ExpectStored(8);
  AwaitNothing();
}

TEST_F(DevicePushTest, WithoutRoomItIsOfferedAgain) {
  BeginOver({DataPath::kIpc}, /*staging_pages=*/1);
  ConnectToPush();
  auto taken = staging_->Reserve(kPageBytes);
  ASSERT_OK(taken);
  const auto source = Source();
  std::thread frees_room([&] {
    while (client_->counters().busy_retries == 0) std::this_thread::yield();
    taken->reset();
  });
  EXPECT_THAT(Push(*source).statuses, Each(ItemStatus::kOk));
  frees_room.join();
}

TEST_F(DevicePushTest, WhatIsSpoiledOnItsWayIsNotStored) {
  BeginOver({DataPath::kIpc, DataPath::kGrpc});
  ConnectToPush();
  const auto source = Source();
  // Another client that writes where it no longer may.
  source->after_write = [&] { staging_memory_[source->last_offset + 100] ^= std::byte{1}; };
  const PushReport report = Push(*source);
  const auto bad = std::find(report.statuses.begin(), report.statuses.end(), ItemStatus::kCorrupt);
  ASSERT_NE(bad, report.statuses.end());
  const auto at = static_cast<size_t>(bad - report.statuses.begin());
  EXPECT_THAT(report.messages[at], HasSubstr("expected crc32c"));
  ExpectStored(at);
  source->after_write = [] {};
  Push(*source);
  ExpectStored(8);
}

TEST_F(DevicePushTest, MemoryThatCannotBeWrittenToIsLeftForGrpc) {
  BeginOver({DataPath::kIpc, DataPath::kGrpc});
  ConnectToPush();
  const auto source = Source();
  source->open_error = absl::UnavailableError("not in this container");
  for (int i = 0; i < 2; ++i) {
    const PushReport report = Push(*source);
    EXPECT_EQ(report.path, DataPath::kGrpc);
    EXPECT_THAT(report.statuses, Each(i == 0 ? ItemStatus::kOk : ItemStatus::kExists));
  }
  EXPECT_EQ(source->brought, 1) << "once in a session";
  const PathUse use = client_->path(Direction::kPush);
  EXPECT_THAT(use.reason, HasSubstr("ipc has failed in this session: not in this container"));
  EXPECT_EQ(use.fallbacks, 1u);
  ExpectStored(8);
}

TEST_F(DevicePushTest, WhileTheRanksMeetPagesGoByAnotherPath) {
  push_timeout_ = absl::Milliseconds(300);
  BeginOver({DataPath::kNccl, DataPath::kGrpc}, 16, {.never_meets = true});
  ConnectToPush();
  const auto source = Sending();
  const PushReport report = Push(*source);
  EXPECT_OK(report.store);
  EXPECT_THAT(report.statuses, Each(ItemStatus::kOk));
  EXPECT_EQ(report.path, DataPath::kGrpc);
  EXPECT_EQ(source->brought, 1);
  EXPECT_EQ(client_->path(Direction::kPush).device_path, DataPath::kNccl) << "not given up";
  ExpectStored(8);
}

TEST_F(DevicePushTest, RanksThatDoNotMeetAreGivenUpOnceInASession) {
  peer_meet_timeout_ = absl::Milliseconds(50);
  BeginOver({DataPath::kNccl, DataPath::kGrpc}, 16, {.never_meets = true});
  ConnectToPush();
  for (int i = 0; i < 2; ++i) {
    const auto source = Sending();
    EXPECT_EQ(Push(*source).path, DataPath::kGrpc);
    EXPECT_EQ(source->brought, i == 0 ? 1 : 0);
  }
  const PathUse use = client_->path(Direction::kPush);
  EXPECT_THAT(use.reason, HasSubstr("nccl has failed in this session: the peer of epoch 1"));
  EXPECT_EQ(use.fallbacks, 1u);
  ExpectStored(8);
}

TEST_F(DevicePushTest, PathsThatAreForbiddenAreNotTaken) {
  BeginOver({DataPath::kNccl, DataPath::kGrpc});
  ConnectToPush({DataPath::kIpc, DataPath::kGrpc});
  const auto source = Sending();
  EXPECT_EQ(Push(*source).path, DataPath::kGrpc);
  EXPECT_THAT(client_->path(Direction::kPush).device_path, std::nullopt);
  EXPECT_EQ(source->written, 0);
  EXPECT_EQ(hub_->Stats().peers, 0u);
  ExpectStored(8);
}

TEST_F(DevicePushTest, ASourceWithoutADeviceGoesByGrpc) {
  BeginOver({DataPath::kIpc, DataPath::kNccl, DataPath::kGrpc});
  ConnectToPush();
  const auto source = Sending();
  source->has_device = false;
  EXPECT_EQ(Push(*source).path, DataPath::kGrpc);
  ExpectStored(8);
}

class LostPushTest : public DevicePushTest,
                     public ::testing::WithParamInterface<FakeFabricOptions> {};

TEST_P(LostPushTest, IsNotStoredAndTheNextOneIs) {
  push_timeout_ = absl::Milliseconds(300);
  BeginOver({DataPath::kNccl}, 16, GetParam());
  ConnectToPush({DataPath::kNccl});
  const auto source = Sending();
  source->at_once = 2;
  const PushReport lost = Push(*source);
  EXPECT_FALSE(lost.store.ok());
  EXPECT_THAT(lost.statuses[7], ItemStatus::kSkipped);
  const auto stored = std::count(lost.statuses.begin(), lost.statuses.end(), ItemStatus::kOk);
  ExpectStored(static_cast<size_t>(stored));
  fabric_->set_options({});
  remote_.reset();
  client_.reset();
  AwaitNothing();
  push_timeout_ = absl::Seconds(20);
  ConnectToPush({DataPath::kNccl});
  const auto again = Sending();
  const PushReport whole = Push(*again);
  EXPECT_OK(whole.store);
  EXPECT_EQ(whole.path, DataPath::kNccl);
  ExpectStored(8);
  EXPECT_GE(hub_->Stats().broken, 1u);
}

INSTANTIATE_TEST_SUITE_P(
    OnItsWay, LostPushTest,
    ::testing::Values(FakeFabricOptions{.seed = 2, .closing_polls_max = 20, .drop_from = 0},
                      FakeFabricOptions{.seed = 3, .closing_polls_max = 20, .drop_from = 2},
                      FakeFabricOptions{.seed = 4, .tells_of_aborts = true, .drop_from = 1},
                      FakeFabricOptions{.seed = 5, .fail_from = 0},
                      FakeFabricOptions{.seed = 6, .delay_polls_max = 9, .fail_from = 3}));

TEST_F(DevicePushTest, AClientThatGoesBeforeItHasWrittenGivesItsPlacesBack) {
  BeginOver({DataPath::kIpc});
  ConnectToPush();
  const auto source = Source();
  source->before_write = [&] { client_->Close(); };
  const PushReport report = Push(*source);
  EXPECT_FALSE(report.store.ok());
  AwaitNothing();
  ExpectStored(0);
}

TEST_F(DevicePushTest, WhatMakesNoSenseIsRefused) {
  BeginOver({DataPath::kIpc, DataPath::kNccl});
  const auto stub =
      v1::Peer::NewStub(grpc::CreateChannel(endpoint_, grpc::InsecureChannelCredentials()));
  v1::BeginPushRequest request;
  request.mutable_put()->mutable_scope()->set_fingerprint(pushed_->fingerprint());
  v1::PutItem* item = request.mutable_put()->add_items();
  item->set_key(chain2_[0].key);
  item->set_encoding(v1::WIDE);
  item->set_bytes(kPageBytes);
  request.set_deadline_ms(1000);
  const auto begin = [&](v1::BeginPushReply* reply) {
    grpc::ClientContext call;
    return stub->BeginPush(&call, request, reply).error_code();
  };
  v1::BeginPushReply reply;
  request.set_session_id(12345);
  EXPECT_EQ(begin(&reply), grpc::StatusCode::UNAVAILABLE) << "no such session";
  request.set_peer_id(99);
  EXPECT_EQ(begin(&reply), grpc::StatusCode::NOT_FOUND) << "no such peer";
  request.mutable_put()->add_items()->CopyFrom(*item);
  EXPECT_EQ(begin(&reply), grpc::StatusCode::INVALID_ARGUMENT) << "a key twice";
  v1::EndPushRequest end;
  end.set_push_id(7);
  v1::EndPushReply ended;
  grpc::ClientContext call;
  EXPECT_EQ(stub->EndPush(&call, end, &ended).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(staging_->used_bytes(), 0u);
}

}  // namespace
}  // namespace oscarkv::client
