// A server whose copies lie in a fake of a GPU's memory, a client, and a sink that reads them there
// or has them sent.
#ifndef OSCARKV_TESTS_CLIENT_DEVICE_FETCH_TEST_H_
#define OSCARKV_TESTS_CLIENT_DEVICE_FETCH_TEST_H_

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "client/cpp/client.h"
#include "client/cpp/peer_link.h"
#include "kernels/base/host_id.h"
#include "server/core/copy_mover.h"
#include "server/rpc/peer_service.h"
#include "server/tier/gpu_tier.h"
#include "tests/comm/fake_fabric.h"
#include "tests/rpc/device_rpc_test.h"
#include "tests/support/fake_device_memory.h"

namespace oscarkv::testing {

inline constexpr uint64_t kLayerBytes = 512;  // of a WIDE page

// Fetches one layer after another. Reads what lies in the GPU's memory when the fetch ends, as late
// as a sink may.
class DeviceSink final : public client::PageSink, private client::DevicePages {
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
  absl::Status EndLayers(BlockRange, uint32_t) override { return absl::OkStatus(); }
  absl::StatusOr<std::vector<absl::Status>> Finish() override {
    before_reading();
    std::vector<absl::Status> results(pages_);
    for (const auto& [page, place] : places_)
      blocks[{page, place.layers.first}] = read_(place.offset, place.bytes);
    for (const auto& [page, place] : received_) {
      const std::byte* at = slots_.data() + place.offset;
      blocks[{page, place.layers.first}] = {at, at + place.bytes};
    }
    for (auto& [first, count, hold] : kept_) {
      const absl::Status ended = hold->End();
      for (uint32_t page = first; page < first + count && !ended.ok(); ++page)
        results[page] = absl::AbortedError(ended.message());
    }
    kept_.clear();
    return results;
  }
  void Abandon(const absl::Status&) override { kept_.clear(); }
  client::DevicePages* device_pages() override { return this; }

  int opens = 0;
  absl::Status open_error;
  std::function<void()> before_reading = [] {};
  int received = 0;  // page parts that were sent
  std::map<std::pair<uint32_t, uint32_t>, std::vector<std::byte>> blocks;  // by page and layer
  int sent() const { return static_cast<int>(received_.size()); }
  // Slots enough for all pages, so that each can be looked at in the end.
  void ReceiveOver(std::unique_ptr<comm::PeerFabric> fabric, const comm::SlotShape& shape) {
    slots_.resize(shape.bytes());
    receiver_ = std::make_unique<client::PeerLink>(std::move(fabric), slots_.data(), shape);
  }
  bool keeps_slots = false;
  int slots_kept = 0;
  int placed() const { return static_cast<int>(places_.size()); }

 private:
  absl::Status Open(const std::string& handle) override {
    ++opens;
    EXPECT_EQ(handle, "a handle");
    return open_error;
  }
  void Keep(uint32_t first, uint32_t count, std::unique_ptr<client::PagesHold> hold) override {
    kept_.emplace_back(first, count, std::move(hold));
  }
  absl::Status TakeAt(uint32_t page, const client::DevicePlace& place,
                      std::span<const uint32_t>) override {
    const bool was_sent = place.memory == client::DevicePlace::Memory::kReceived;
    (was_sent ? received_ : places_).emplace_back(page, place);
    return absl::OkStatus();
  }

  client::PeerLink* receiver() override { return receiver_.get(); }
  bool receives() const override { return receiver_ != nullptr; }
  absl::StatusOr<uint64_t> ReceiveSlot() override {
    return slot_++ * receiver_->shape().slot_bytes;
  }
  bool MayKeepSlot() const override { return keeps_slots; }
  void KeepSlot() override { ++slots_kept; }

  const uint64_t pages_;
  const Read read_;
  std::vector<std::byte> slots_;
  std::unique_ptr<client::PeerLink> receiver_;
  uint64_t slot_ = 0;
  std::vector<std::pair<uint32_t, client::DevicePlace>> received_;
  std::vector<std::tuple<uint32_t, uint32_t, std::unique_ptr<client::PagesHold>>> kept_;
  std::vector<std::pair<uint32_t, client::DevicePlace>> places_;
};

// A server of eight WIDE pages, of which some have copies, and a client.
class DeviceFetchTest : public DeviceRpcTest {
 protected:
  void Begin(PeerOptions options = {.memory_handle = std::string("a handle"),
                                    .memory_bytes = 16 * kUnit,
                                    .host = HostId()},
             std::vector<DataPath> allowed = {DataPath::kIpc, DataPath::kGrpc}) {
    OpenWithCopies(16, /*held=*/16);
    RpcOptions rpc;
    rpc.paths = {std::move(allowed), push_paths_};
    context_ = std::make_unique<RpcContext>(rpc, store(), logger_);
    context_->set_device_holds(holds_.get());
    if (fabric_ != nullptr) {
      hub_ = std::make_unique<PeerHub>(hub_options_, std::make_unique<SharedFabric>(fabric_));
      context_->set_peer_hub(hub_.get());
    }
    options.memory = device_memory_;
    options.staging = staging_.get();
    peer_service_ = std::make_unique<PeerService>(*context_, std::move(options));
    Listen(peer_service_.get());
    chain_ = Chain(space(), 1, 8);
    ASSERT_EQ(PutChain(store(), space(), chain_), ItemStatus::kOk);
    for (const TestItem& item : chain_) keys_.push_back(item.key);
  }
  void Listen(grpc::Service* peer) {
    lookup_threads_.reset();
    cache_service_ = std::make_unique<CacheService>(*context_);  // a server has one of its own
    grpc::ServerBuilder builder;
    builder.RegisterService(cache_service_.get());
    builder.RegisterService(peer);
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    lookup_threads_ = std::make_unique<LookupThreads>(*cache_service_, builder);
    server_ = builder.BuildAndStart();
    lookup_threads_->Start();
    endpoint_ = "127.0.0.1:" + std::to_string(port);
  }
  void Connect(std::vector<DataPath> paths = {}) {
    client::ClientOptions options;
    options.endpoint = endpoint_;
    options.fetch_timeout = fetch_timeout_;
    options.peer_meet_timeout = peer_meet_timeout_;
    options.fetch_paths = std::move(paths);
    auto made = client::Client::Create(options);
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
    hub_.reset();
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
  // Before Begin: what pushes come through.
  void OpenStaging(uint64_t bytes) {
    auto device = std::make_unique<FakeDeviceMemory>(bytes);
    staging_memory_ = device->address();
    auto handle = device->Handle();
    auto tier = GpuTier::Create(std::move(device), kUnit);
    ASSERT_OK(tier);
    staging_ = std::make_unique<StagingArea>(*std::move(tier), staging_memory_, std::move(handle));
  }
  client::FetchReport Fetch(DeviceSink& sink, client::FetchRequest request = {}) {
    request.keys = keys_;
    const auto report = remote_->FetchTo(sink, request);
    EXPECT_OK(report);
    return report.ok() ? *report : client::FetchReport();
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

  // Both ends' fabric, if there is to be one: before Begin.
  std::shared_ptr<FakeFabric> fabric_;
  PeerHubOptions hub_options_;
  std::vector<DataPath> push_paths_ = {DataPath::kGrpc};
  std::byte* staging_memory_ = nullptr;
  std::unique_ptr<StagingArea> staging_;
  absl::Duration fetch_timeout_ = absl::Seconds(20);
  absl::Duration peer_meet_timeout_ = absl::Seconds(20);

  std::unique_ptr<PeerHub> hub_;
  std::unique_ptr<PeerService> peer_service_;
  std::string endpoint_;
  std::vector<TestItem> chain_;
  std::vector<std::string> keys_;
  std::unique_ptr<client::Client> client_;
  std::unique_ptr<client::Namespace> remote_;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_CLIENT_DEVICE_FETCH_TEST_H_
