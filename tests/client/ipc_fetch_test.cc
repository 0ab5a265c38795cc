// Pages that a sink reads in a GPU's memory, which here is a fake in host memory: what goes by that
// path and what by another, and that nothing counts which did not stay where it was read.
#include "client/cpp/ipc_fetch.h"

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"

#include "client/cpp/client.h"
#include "kernels/base/host_id.h"
#include "server/core/copy_mover.h"
#include "server/rpc/peer_service.h"
#include "server/tier/gpu_tier.h"
#include "tests/rpc/rpc_test.h"
#include "tests/support/fake_device_memory.h"

namespace oscarkv::client {
namespace {

using ::oscarkv::testing::Chain;
using ::oscarkv::testing::FakeDeviceMemory;
using ::oscarkv::testing::FakeTier;
using ::oscarkv::testing::IsOkAndHolds;
using ::oscarkv::testing::kWideSlotBytes;
using ::oscarkv::testing::MakePage;
using ::oscarkv::testing::PutChain;
using ::oscarkv::testing::RpcTest;
using ::oscarkv::testing::SmallSpec;
using ::oscarkv::testing::StatusIs;
using ::oscarkv::testing::TestItem;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kUnit = 1088;       // a WIDE page of SmallSpec with its checksums
constexpr uint64_t kLayerBytes = 512;  // of a WIDE page

// Fetches one layer after another. Reads what lies in the GPU's memory when the fetch ends, as late
// as a sink may.
class DeviceSink final : public PageSink, private DevicePages {
 public:
  using Read = std::function<std::vector<std::byte>(uint64_t offset, uint64_t bytes)>;
  DeviceSink(uint64_t pages, Read read) : pages_(pages), read_(std::move(read)) {}

  uint64_t pages() const override { return pages_; }
  std::vector<BlockRange> LayerGroups(BlockRange) const override { return {{0, 1}, {1, 1}}; }
  absl::Status Begin(BlockRange, BlockRange) override { return absl::OkStatus(); }
  absl::StatusOr<MutableByteView> Room(uint32_t page, Encoding, BlockRange layers,
                                       uint64_t bytes) override {
    ++received;
    auto& room = blocks[{page, layers.first}];
    room.resize(bytes);
    return MutableByteView(room);
  }
  absl::Status Take(std::span<const uint32_t>) override { return absl::OkStatus(); }
  absl::Status EndLayers(BlockRange) override { return absl::OkStatus(); }
  absl::StatusOr<std::vector<absl::Status>> Finish() override {
    before_reading();
    std::vector<absl::Status> results(pages_);
    for (const auto& [page, place] : places_)
      blocks[{page, place.layers.first}] = read_(place.offset, place.bytes);
    for (auto& [first, count, hold] : kept_) {
      const absl::Status ended = hold->End();
      for (uint32_t page = first; page < first + count && !ended.ok(); ++page)
        results[page] = absl::AbortedError(ended.message());
    }
    kept_.clear();
    return results;
  }
  void Abandon(const absl::Status&) override { kept_.clear(); }
  DevicePages* device_pages() override { return this; }

  int opens = 0;
  absl::Status open_error;
  std::function<void()> before_reading = [] {};
  int received = 0;  // page parts that were sent
  std::map<std::pair<uint32_t, uint32_t>, std::vector<std::byte>> blocks;  // by page and layer
  int placed() const { return static_cast<int>(places_.size()); }

 private:
  absl::Status Open(const std::string& handle) override {
    ++opens;
    EXPECT_EQ(handle, "fake handle");
    return open_error;
  }
  void Keep(uint32_t first, uint32_t count, std::unique_ptr<PagesHold> hold) override {
    kept_.emplace_back(first, count, std::move(hold));
  }
  absl::Status TakeAt(uint32_t page, const DevicePlace& place, std::span<const uint32_t>) override {
    places_.emplace_back(page, place);
    return absl::OkStatus();
  }

  const uint64_t pages_;
  const Read read_;
  std::vector<std::tuple<uint32_t, uint32_t, std::unique_ptr<PagesHold>>> kept_;
  std::vector<std::pair<uint32_t, DevicePlace>> places_;
};

// A server of eight WIDE pages, of which some have copies, and a client.
class IpcFetchTest : public RpcTest {
 protected:
  void Begin(PeerOptions options = {.memory_handle = std::string("fake handle"),
                                    .memory_bytes = 16 * kUnit,
                                    .host = HostId()},
             std::vector<DataPath> allowed = {DataPath::kIpc, DataPath::kGrpc}) {
    auto tier = GpuTier::Create(std::make_unique<FakeDeviceMemory>(16 * kUnit), kUnit);
    ASSERT_OK(tier);
    gpu_ = tier->get();
    auto books = PageCopies::Create({}, *std::move(tier));
    ASSERT_OK(books);
    OpenOver(std::make_unique<FakeTier>(64 * kWideSlotBytes), {}, *std::move(books));
    holds_ = std::make_unique<DeviceHolds>(
        DeviceHoldsOptions{.bytes_max = 16 * kUnit, .hold_max = absl::Minutes(1)}, clock_);
    RpcOptions rpc;
    rpc.paths[0] = std::move(allowed);
    context_ = std::make_unique<RpcContext>(rpc, store(), logger_);
    context_->set_device_holds(holds_.get());
    cache_service_ = std::make_unique<CacheService>(*context_);
    peer_service_ = std::make_unique<PeerService>(*context_, std::move(options));
    Listen(peer_service_.get());
    chain_ = Chain(space(), 1, 8);
    ASSERT_EQ(PutChain(store(), space(), chain_), ItemStatus::kOk);
    for (const TestItem& item : chain_) keys_.push_back(item.key);
  }
  void Listen(grpc::Service* peer) {
    grpc::ServerBuilder builder;
    builder.RegisterService(cache_service_.get());
    builder.RegisterService(peer);
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    server_ = builder.BuildAndStart();
    endpoint_ = "127.0.0.1:" + std::to_string(port);
  }
  void Connect(std::vector<DataPath> paths = {}) {
    ClientOptions options;
    options.endpoint = endpoint_;
    options.fetch_timeout = absl::Seconds(20);
    options.fetch_paths = std::move(paths);
    auto made = Client::Create(options);
    ASSERT_OK(made);
    client_ = *std::move(made);
    auto opened = client_->InspectNamespace(SmallSpec());
    ASSERT_OK(opened);
    remote_ = *std::move(opened);
  }
  void TearDown() override {
    remote_.reset();
    client_.reset();
    Stop();
    ExpectNothingHeld();
    EXPECT_EQ(holds_->Stats().holds, 0u);
  }

  // Copies pages first.. before last.
  void Copy(size_t first, size_t last) {
    std::vector<std::string_view> keys(keys_.begin() + static_cast<ptrdiff_t>(first),
                                       keys_.begin() + static_cast<ptrdiff_t>(last));
    for (int i = 0; i < 2; ++i) store().Touch(space(), keys);
    CopyMover mover(store(), {});
    while (mover.Step()) {
    }
  }
  DeviceSink MakeSink() {
    return DeviceSink(keys_.size(), [this](uint64_t offset, uint64_t bytes) {
      std::vector<std::byte> read(bytes);
      const auto out = gpu_->CopyOut({offset, bytes}, read);
      EXPECT_OK(out);
      EXPECT_OK((*out)->Wait());
      return read;
    });
  }
  FetchReport Fetch(DeviceSink& sink, FetchRequest request = {}) {
    request.keys = keys_;
    const auto report = remote_->FetchTo(sink, request);
    EXPECT_OK(report);
    return report.ok() ? *report : FetchReport();
  }
  void ExpectWhole(const DeviceSink& sink, size_t pages) {
    for (uint32_t page = 0; page < pages; ++page) {
      const auto expected = MakePage(space(), chain_[page].encoding, chain_[page].seed).bytes;
      for (uint32_t layer = 0; layer < 2; ++layer) {
        const auto found = sink.blocks.find({page, layer});
        ASSERT_NE(found, sink.blocks.end()) << page << ", layer " << layer;
        EXPECT_TRUE(std::ranges::equal(
            found->second, ByteView(expected).subspan(layer * kLayerBytes, kLayerBytes)))
            << page << ", layer " << layer;
      }
    }
  }

  GpuTier* gpu_ = nullptr;
  std::unique_ptr<DeviceHolds> holds_;
  std::unique_ptr<PeerService> peer_service_;
  std::string endpoint_;
  std::vector<TestItem> chain_;
  std::vector<std::string> keys_;
  std::unique_ptr<Client> client_;
  std::unique_ptr<Namespace> remote_;
};

TEST_F(IpcFetchTest, CopiesAreReadInPlaceAndTheRestIsSent) {
  Begin();
  Copy(0, 3);
  Copy(5, 7);
  Connect();
  DeviceSink sink = MakeSink();
  const FetchReport report = Fetch(sink);
  EXPECT_EQ(report.pages, 8u);
  EXPECT_OK(report.store);
  EXPECT_EQ(sink.placed(), 2 * 5);
  EXPECT_EQ(sink.received, 2 * 3);
  ExpectWhole(sink, 8);
  EXPECT_EQ(report.bytes_wire, 8 * 2 * kLayerBytes);
  EXPECT_EQ(context_->transfers().bytes(DataPath::kIpc, Direction::kFetch), 5 * 2 * kLayerBytes);
  EXPECT_EQ(client_->path(Direction::kFetch).fallbacks, 0u);
}

TEST_F(IpcFetchTest, AMissIsOne) {
  Begin();
  Copy(0, 8);
  Connect();
  keys_.push_back(std::string(32, 'x'));
  DeviceSink sink = MakeSink();
  const FetchReport report = Fetch(sink);
  EXPECT_EQ(report.pages, 8u);
  EXPECT_EQ(report.path, DataPath::kIpc);
  EXPECT_EQ(report.statuses[8], ItemStatus::kMiss);
  EXPECT_EQ(sink.received, 0);
  ExpectWhole(sink, 8);
}

TEST_F(IpcFetchTest, MemoryThatCannotBeOpenedHasGrpcTakeItsPlaceOnce) {
  Begin();
  Copy(0, 8);
  Connect();
  for (int fetch = 0; fetch < 2; ++fetch) {
    DeviceSink sink = MakeSink();
    sink.open_error = absl::UnavailableError("CUDA: invalid device context");
    const FetchReport report = Fetch(sink);
    EXPECT_EQ(report.pages, 8u);
    EXPECT_EQ(report.path, DataPath::kGrpc);
    EXPECT_EQ(sink.opens, fetch == 0 ? 1 : 0);
    ExpectWhole(sink, 8);
  }
  const PathUse use = client_->path(Direction::kFetch);
  EXPECT_EQ(use.fallbacks, 1u);
  EXPECT_THAT(use.reason, HasSubstr("ipc has failed in this session: CUDA: invalid device"));
}

TEST_F(IpcFetchTest, AServerThatSharesNothingIsAskedOnce) {
  Begin({.memory_handle = absl::UnavailableError("not supported"),
         .memory_bytes = 0,
         .host = HostId()});
  Copy(0, 8);
  Connect();
  DeviceSink sink = MakeSink();
  EXPECT_EQ(Fetch(sink).pages, 8u);
  DeviceSink again = MakeSink();
  EXPECT_EQ(Fetch(again).pages, 8u);
  EXPECT_EQ(sink.opens + again.opens, 0);
  EXPECT_EQ(context_->calls().count(Method::kShareDevice, 12), 1u);
  EXPECT_THAT(client_->path(Direction::kFetch).reason, HasSubstr("not supported"));
}

TEST_F(IpcFetchTest, EitherSideMayForbidIt) {
  Begin();
  Copy(0, 8);
  Connect({DataPath::kGrpc});
  DeviceSink sink = MakeSink();
  EXPECT_EQ(Fetch(sink).pages, 8u);
  EXPECT_EQ(sink.received, 16);
  EXPECT_EQ(context_->calls().count(Method::kShareDevice, 0), 0u);
}

TEST_F(IpcFetchTest, TheServerMayForbidIt) {
  Begin({.memory_handle = std::string("fake handle"), .memory_bytes = kUnit, .host = HostId()},
        {DataPath::kGrpc});
  Copy(0, 8);
  Connect();
  DeviceSink sink = MakeSink();
  EXPECT_EQ(Fetch(sink).pages, 8u);
  EXPECT_EQ(sink.received, 16);
  EXPECT_THAT(client_->path(Direction::kFetch).reason, HasSubstr("configuration forbids"));
}

TEST_F(IpcFetchTest, PagesThatDidNotStayDoNotCount) {
  Begin();
  Copy(0, 8);
  Connect();
  DeviceSink sink = MakeSink();
  // The server thinks that the client has died, and gives the memory to others.
  sink.before_reading = [&] {
    clock_.Advance(absl::Minutes(2));
    holds_->Expire();
  };
  const FetchReport report = Fetch(sink);
  EXPECT_EQ(report.pages, 0u);
  EXPECT_EQ(report.statuses[0], ItemStatus::kFenced);
  EXPECT_EQ(client_->counters().corrupt_pages, 0u);
}

TEST_F(IpcFetchTest, WhatIsHeldTooMuchGoesByAnotherPath) {
  Begin();
  Copy(0, 8);
  holds_ = std::make_unique<DeviceHolds>(
      DeviceHoldsOptions{.bytes_max = kUnit, .hold_max = absl::Minutes(1)}, clock_);
  context_->set_device_holds(holds_.get());
  Connect();
  DeviceSink sink = MakeSink();
  EXPECT_EQ(Fetch(sink).pages, 8u);
  EXPECT_EQ(sink.placed(), 0);
  ExpectWhole(sink, 8);
}

TEST_F(IpcFetchTest, SomeHeadsAndDecodedPagesAreSent) {
  Begin();
  Copy(0, 8);
  Connect();
  DeviceSink sink = MakeSink();
  EXPECT_EQ(Fetch(sink, {.heads = {0, 1}}).pages, 8u);
  EXPECT_EQ(sink.placed(), 0);
}

// A server that answers whatever the test says.
class LyingPeer final : public v1::Peer::Service {
 public:
  grpc::Status ShareDevice(grpc::ServerContext*, const v1::ShareDeviceRequest*,
                           v1::ShareDeviceReply* reply) override {
    reply->set_handle("fake handle");
    reply->set_bytes(16 * kUnit);
    return grpc::Status::OK;
  }
  grpc::Status HoldPages(grpc::ServerContext*, const v1::HoldPagesRequest*,
                         v1::HoldPagesReply* reply) override {
    *reply = answer;
    return grpc::Status::OK;
  }
  grpc::Status EndHold(grpc::ServerContext*, const v1::EndHoldRequest*,
                       v1::EndHoldReply* reply) override {
    reply->set_held(true);
    return grpc::Status::OK;
  }
  v1::HoldPagesReply answer;
};

TEST_F(IpcFetchTest, AnswersThatMakeNoSenseAreRefusedBeforeAnythingIsRead) {
  Begin();
  LyingPeer liar;
  Stop();
  Listen(&liar);
  Connect();
  v1::HoldPagesReply good;
  good.set_hold_id(7);
  v1::HeldPage* page = good.add_pages();
  page->set_encoding(v1::WIDE);
  page->set_offset(64);
  page->set_bytes(kLayerBytes);
  page->add_block_crc32c(1);
  page->add_block_crc32c(2);
  std::vector<v1::HoldPagesReply> bad(9, good);
  bad[0].mutable_pages(0)->set_offset(16 * kUnit);         // beyond the memory
  bad[1].mutable_pages(0)->set_offset(~uint64_t{0} - 63);  // so that the end wraps around
  bad[2].mutable_pages(0)->set_offset(65);                 // no place for a block
  bad[3].mutable_pages(0)->set_bytes(kLayerBytes * 2);     // another size
  bad[4].mutable_pages(0)->add_block_crc32c(3);            // another number of blocks
  bad[5].mutable_pages(0)->set_encoding(v1::ENCODING_UNSPECIFIED);
  bad[6].set_elsewhere(1);                                  // both
  bad[7].set_hold_id(0);                                    // pages that nobody holds
  for (int i = 0; i < 8; ++i) *bad[8].add_pages() = *page;  // more than were asked for
  for (size_t i = 0; i < bad.size(); ++i) {
    liar.answer = bad[i];
    DeviceSink sink = MakeSink();
    const FetchReport report = Fetch(sink);
    EXPECT_EQ(report.pages, 0u) << i;
    EXPECT_EQ(sink.placed(), 0) << i;
    EXPECT_THAT(report.store, StatusIs(absl::StatusCode::kDataLoss)) << i;
  }
}

}  // namespace
}  // namespace oscarkv::client
