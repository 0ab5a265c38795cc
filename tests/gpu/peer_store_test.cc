// oscarkvd and a worker in two processes on one GPU: the worker reads the copies in the server's
// GPU memory where they are, and what becomes of it when either dies.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include <grpcpp/grpcpp.h>

#include "client/cpp/client.h"
#include "client/gpu/gpu_pages.h"
#include "kernels/base/sha256.h"
#include "kernels/codec/transform_file.h"
#include "kernels/device/status.h"
#include "kernels/device/stream.h"
#include "proto/wire/page_key.h"
#include "server/config/load.h"
#include "server/server.h"
#include "tests/codec/page_testing.h"
#include "tests/gpu/gpu_cache.h"
#include "tests/gpu/process_runner.h"
#include "tests/support/status_matchers.h"

#include "oscarkv/v1/kv_cache.grpc.pb.h"
#include "oscarkv/v1/peer.grpc.pb.h"
#include "oscarkv/v1/server_config.pb.h"

namespace oscarkv::testing {
namespace {

using client::ClientOptions;
using client::FetchReport;
using client::GpuPageSink;
using ::testing::HasSubstr;

// The layers and heads of Qwen3-8B, 64 tokens a page: 1.3 MB of 2 bits, 9.4 MB of bf16.
constexpr Geometry kModel{.layers = 36,
                          .kv_heads = 8,
                          .k_head_dim = 128,
                          .v_head_dim = 128,
                          .page_tokens = 64,
                          .dtype = DType::kBf16};
constexpr uint32_t kPages = 128;
constexpr int64_t kTokens = kPages * 64;
constexpr int64_t kTokenBytes = 8 * 128 * 2;

// What a process does, and when.
void Say(const char* what) {
  static const absl::Time start = absl::Now();
  std::printf("  %d, %6.0f ms: %s\n", getpid(), absl::ToDoubleMilliseconds(absl::Now() - start),
              what);
  std::fflush(stdout);
}

std::unique_ptr<PeerRunner> MakeRunner() {
  return std::make_unique<ProcessRunner>([](int) { return nullptr; });
}
std::string Endpoint() { return "unix:/tmp/oscarkv_peer_test_" + std::to_string(getpid()); }

// On one GPU two ranks have to look as if they were on two hosts.
void MakeHost(const char* name) {
  int devices = 0;
  OrDie(device::ToStatus(cudaGetDeviceCount(&devices), "counting devices"));
  if (devices > 1) return;
  setenv("NCCL_HOSTID", name, 1);
  setenv("NCCL_SOCKET_IFNAME", "lo", 1);
}
const char* NcclLibrary() {
  const char* library = std::getenv("OSCARKV_NCCL_LIBRARY");
  return library == nullptr ? "libnccl.so.2" : library;
}

std::unique_ptr<Server> Serve(const std::string& endpoint, const std::string& gpu_capacity) {
  v1::ServerConfig config;
  config.add_listen(endpoint);
  config.set_metrics_listen("off");
  config.mutable_host()->set_capacity("1GiB");
  config.mutable_gpu()->set_capacity(gpu_capacity);
  config.mutable_gpu()->set_required(true);
  config.mutable_gpu()->set_nccl(NcclLibrary());
  MakeHost("server");
  config.set_log_level("warning");
  return OrDie(Server::Create(WithDefaults(config, uint64_t{8} << 30)));
}

// The server's process: serves until it is told to stop, or to die.
void ServeUntilTold(PeerSide& side, const std::string& gpu_capacity) {
  auto server = Serve(side.Hear(), gpu_capacity);
  Say("serving");
  side.Tell("serving");
  if (side.Hear() == "die") side.Die();
  server.reset();
  Say("stopped");
}

// A worker with a cache of kPages pages on the GPU.
class Worker {
 public:
  explicit Worker(const std::string& endpoint, ClientOptions options = {}) {
    spec_.model = "qwen3-8b";
    spec_.geometry = kModel;
    spec_.codec.sink_tokens = 0;
    spec_.codec.recent_tokens = 0;
    const auto transforms = IdentitySet(kModel, 0.9f, 0.9f);
    const std::string file = SerializeTransformFile(*transforms, "{}");
    set_ = OrDie(ParseTransformFile(AsBytes(file)));
    spec_.codec.transform_hash = Sha256Of(AsBytes(file));
    codec_ = OrDie(cuda::CudaPageCodec::Create(kModel, spec_.codec, &*set_));
    MakeCache();
    sink_ = OrDie(GpuPageSink::Create(codec_, {.pages_max = kPages}));
    std::vector<uint32_t> prompt(kTokens);
    for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<uint32_t>(i);
    keys_ = ChainKeys(prompt, 64);
    for (int64_t token = 0; token < kTokens; ++token) slots_.push_back(token);
    options.endpoint = endpoint;
    options.fetch_timeout = absl::Seconds(5);
    client_ = OrDie(client::Client::Create(options));
    space_ = OrDie(client_->OpenNamespace(spec_, file));
    Say("a worker is ready");
  }
  ~Worker() { Say("a worker ends"); }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // From now on, fetches may come over NCCL; to the second GPU if there is one, where all of the
  // worker's memory has to be then.
  void ReceiveOverNccl() {
    MakeHost("worker");
    comm::NcclOptions options;
    options.library = NcclLibrary();
    OrDie(device::ToStatus(cudaGetDevice(&options.device), "asking for the device"));
    OrDie(sink_->ReceiveOverNccl(options, {.slots = 4, .slot_bytes = 64 << 20}));
  }

  client::Client& client() { return *client_; }
  const std::vector<std::string>& keys() const { return keys_; }
  const NamespaceSpec& spec() const { return spec_; }

  void Push() {
    FillCache();
    const auto source = OrDie(client::GpuPageSource::Create(codec_, {.pages_max = kPages}));
    OrDie(source->Start({.cache = *cache_, .slots = slots_}, stream_.get()));
    const auto report = OrDie(space_->PushFrom(*source, {.keys = keys_}));
    EXPECT_OK(report.store);
    EXPECT_THAT(report.statuses, ::testing::Each(ItemStatus::kOk));
    Say("pushed");
  }
  // Has all pages copied to the server's GPU.
  void AwaitCopies() {
    for (int i = 0; i < 2; ++i) OrDie(space_->Touch(keys_).status());
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    uint64_t used = 0;
    while (used < kPages * codec_->layout(Encoding::kPacked).page_bytes()) {
      ASSERT_LT(absl::Now(), deadline) << used << " bytes are copied";
      for (const client::TierUse& tier : OrDie(client_->Stats()).tiers)
        if (tier.tier == "gpu") used = tier.used_bytes;
      std::this_thread::yield();
    }
    Say("copied");
  }

  // Empties the cache and fetches pages; `wrap` may put something between.
  using Wrap = std::function<client::PageSink&(GpuPageSink&)>;
  FetchReport Fetch(absl::Duration* took = nullptr, uint32_t pages = kPages,
                    const Wrap& wrap = {}) {
    OrDie(device::ToStatus(cudaMemset(pool_.data(), 0, pool_.size()), "emptying the cache"));
    OrDie(device::ToStatus(cudaDeviceSynchronize(), "emptying the cache"));
    const auto slots = std::span(slots_).first(pages * kModel.page_tokens);
    const absl::Time start = absl::Now();
    OrDie(sink_->Start(
        {.cache = *cache_, .part = {{0, kModel.layers}, {0, kModel.kv_heads}}, .slots = slots},
        stream_.get()));
    client::PageSink& sink = wrap == nullptr ? *sink_ : wrap(*sink_);
    const auto report = space_->FetchTo(sink, {.keys = std::span(keys_).first(pages)});
    if (took != nullptr) *took = absl::Now() - start;
    Say("fetched");
    EXPECT_OK(report);
    return report.ok() ? *report : FetchReport();
  }
  std::vector<std::byte> Cache() const {
    std::vector<std::byte> bytes(pool_.size());
    OrDie(pool_.CopyTo(bytes));
    return bytes;
  }

 private:
  void MakeCache() {
    constexpr uint64_t kSide = kTokens * kTokenBytes;
    pool_ = OrDie(device::DeviceBuffer::Allocate(2 * kModel.layers * kSide));
    std::vector<std::byte*> bases;
    for (uint64_t i = 0; i < 2 * kModel.layers; ++i) bases.push_back(pool_.data() + i * kSide);
    EngineView view;
    view.slots = kTokens;
    view.k.layer_base = std::span(bases).first(kModel.layers);
    view.v.layer_base = std::span(bases).last(kModel.layers);
    for (EngineSide* side : {&view.k, &view.v}) {
      side->block_stride = side->token_stride = kTokenBytes;
      side->head_stride = 256;
    }
    cache_ = std::make_unique<client::GpuCache>(
        OrDie(client::GpuCache::Create(view, kModel, {.k = kSide, .v = kSide})));
  }
  void FillCache() {
    std::vector<uint16_t> rows((4 << 20) / 2);
    for (size_t i = 0; i < rows.size(); ++i)
      rows[i] = static_cast<uint16_t>(0x3c00 + (i * 2654435761u >> 20) % 0x400);
    const ByteView pattern = std::as_bytes(std::span(rows));
    for (uint64_t done = 0; done < pool_.size(); done += pattern.size()) {
      OrDie(device::ToStatus(cudaMemcpy(pool_.data() + done, pattern.data(),
                                        std::min<uint64_t>(pattern.size(), pool_.size() - done),
                                        cudaMemcpyHostToDevice),
                             "filling the cache"));
    }
    OrDie(device::ToStatus(cudaDeviceSynchronize(), "filling the cache"));
  }

  NamespaceSpec spec_;
  std::optional<TransformSet> set_;
  std::shared_ptr<const cuda::CudaPageCodec> codec_;
  device::Stream stream_ = OrDie(device::Stream::Create());
  device::DeviceBuffer pool_;
  std::unique_ptr<client::GpuCache> cache_;
  std::unique_ptr<GpuPageSink> sink_;
  std::vector<std::string> keys_;
  std::vector<int64_t> slots_;
  std::unique_ptr<client::Client> client_;
  std::unique_ptr<client::Namespace> space_;
};

// A sink that lets the test act when everything has been taken, and nobody was asked yet whether it
// stayed.
class PausedSink final : public client::PageSink {
 public:
  PausedSink(client::PageSink& sink, std::function<void()> pause)
      : sink_(sink), pause_(std::move(pause)) {}
  uint64_t pages() const override { return sink_.pages(); }
  std::vector<BlockRange> LayerGroups(BlockRange layers) const override {
    return sink_.LayerGroups(layers);
  }
  absl::Status Begin(BlockRange layers, BlockRange heads) override {
    return sink_.Begin(layers, heads);
  }
  absl::StatusOr<MutableByteView> Room(uint32_t page, Encoding encoding, BlockRange layers,
                                       uint64_t bytes) override {
    return sink_.Room(page, encoding, layers, bytes);
  }
  absl::Status Take(std::span<const uint32_t> crcs) override { return sink_.Take(crcs); }
  client::DevicePages* device_pages() override { return sink_.device_pages(); }
  absl::Status EndLayers(BlockRange layers, uint32_t pages) override {
    return sink_.EndLayers(layers, pages);
  }
  absl::StatusOr<std::vector<absl::Status>> Finish() override {
    pause_();
    return sink_.Finish();
  }
  void Abandon(const absl::Status& reason) override { sink_.Abandon(reason); }

 private:
  client::PageSink& sink_;
  const std::function<void()> pause_;
};

// The worker on the second GPU, if there is one.
void UseLastDevice() {
  int devices = 0;
  OrDie(device::ToStatus(cudaGetDeviceCount(&devices), "counting devices"));
  OrDie(device::ToStatus(cudaSetDevice(devices - 1), "taking the last device"));
}

double GbPerSecond(uint64_t bytes, absl::Duration took) {
  return static_cast<double>(bytes) / absl::ToDoubleSeconds(took) * 1e-9;
}

TEST(IpcTest, FetchesInPlaceTheSameBytesAsByGrpc) {
  MakeRunner()->Run([](PeerSide& side) {
    if (side.rank() == 1) return ServeUntilTold(side, "1GiB");
    side.Tell(Endpoint());
    ASSERT_EQ(side.Hear(), "serving");
    UseLastDevice();
    Worker worker(Endpoint());
    Worker by_grpc(Endpoint(), {.fetch_paths = {DataPath::kGrpc}});
    worker.Push();
    worker.AwaitCopies();
    for (Worker* who : {&by_grpc, &worker}) {
      absl::Duration best = absl::InfiniteDuration();
      FetchReport report;
      for (int i = 0; i < 6; ++i) {
        absl::Duration took;
        report = who->Fetch(&took);
        best = std::min(best, took);
        ASSERT_EQ(report.pages, kPages) << report.store;
      }
      EXPECT_EQ(report.path, who == &worker ? DataPath::kIpc : DataPath::kGrpc)
          << worker.client().path(Direction::kFetch).reason;
      std::printf("%u pages, %.0f MB encoded, by %s: %.2f ms, %.2f GB/s, %.1f GB/s of bf16\n",
                  kPages, static_cast<double>(report.bytes_wire) * 1e-6,
                  std::string(DataPathName(report.path)).c_str(), absl::ToDoubleMilliseconds(best),
                  GbPerSecond(report.bytes_wire, best),
                  GbPerSecond(2ull * kModel.layers * kTokens * kTokenBytes, best));
    }
    const auto expected = by_grpc.Cache();
    EXPECT_TRUE(worker.Cache() == expected);
    EXPECT_GT(std::count_if(expected.begin(), expected.end(),
                            [](std::byte byte) { return byte != std::byte{0}; }),
              static_cast<ptrdiff_t>(expected.size() / 2));
    side.Tell("stop");
  });
}

TEST(IpcTest, AServerThatDiesInMidFetchAndTheNextOne) {
  const auto runner = MakeRunner();
  std::unique_ptr<Worker> worker;
  runner->Run([&](PeerSide& side) {
    if (side.rank() == 1) return ServeUntilTold(side, "1GiB");
    side.Tell(Endpoint());
    ASSERT_EQ(side.Hear(), "serving");
    worker = std::make_unique<Worker>(Endpoint());
    worker->Push();
    worker->AwaitCopies();
    ASSERT_EQ(worker->Fetch().path, DataPath::kIpc);
    std::unique_ptr<PausedSink> paused;
    absl::Duration took;
    const FetchReport report = worker->Fetch(
        &took, kPages, [&](GpuPageSink & sink) -> auto& {
          paused = std::make_unique<PausedSink>(sink, [&] {
            side.Tell("die");
            EXPECT_EQ(side.Hear(), "");  // its end
          });
          return *paused;
        });
    EXPECT_EQ(report.pages, 0u);
    EXPECT_EQ(report.statuses[0], ItemStatus::kFenced);
    std::printf("the server died in mid-fetch: %u pages count, answered after %.0f ms\n",
                report.pages, absl::ToDoubleMilliseconds(took));
  });
  runner->Run([&](PeerSide& side) {
    if (side.rank() == 1) return ServeUntilTold(side, "1GiB");
    side.Tell(Endpoint());
    ASSERT_EQ(side.Hear(), "serving");
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    // The pages went with the server; the connection comes back by itself.
    while (!worker->client().Stats().ok()) ASSERT_LT(absl::Now(), deadline);
    worker->Push();
    worker->AwaitCopies();
    const FetchReport report = worker->Fetch();
    EXPECT_EQ(report.pages, kPages) << report.store;
    EXPECT_EQ(report.path, DataPath::kIpc) << worker->client().path(Direction::kFetch).reason;
    side.Tell("stop");
  });
}

TEST(NcclTest, FetchesTheSameBytesAsByGrpc) {
  MakeRunner()->Run([](PeerSide& side) {
    if (side.rank() == 1) return ServeUntilTold(side, "1GiB");
    side.Tell(Endpoint());
    ASSERT_EQ(side.Hear(), "serving");
    UseLastDevice();
    Worker worker(Endpoint(), {.fetch_paths = {DataPath::kNccl, DataPath::kGrpc}});
    worker.ReceiveOverNccl();
    Worker by_grpc(Endpoint(), {.fetch_paths = {DataPath::kGrpc}});
    worker.Push();
    worker.AwaitCopies();
    ASSERT_EQ(by_grpc.Fetch().pages, kPages);
    absl::Duration best = absl::InfiniteDuration();
    FetchReport report;
    for (int i = 0; i < 4; ++i) {
      absl::Duration took;
      report = worker.Fetch(&took);
      best = std::min(best, took);
      ASSERT_EQ(report.pages, kPages) << report.store;
    }
    EXPECT_EQ(report.path, DataPath::kNccl) << worker.client().path(Direction::kFetch).reason;
    std::printf("%u pages, %.0f MB encoded, by nccl: %.2f ms, %.2f GB/s\n", kPages,
                static_cast<double>(report.bytes_wire) * 1e-6, absl::ToDoubleMilliseconds(best),
                GbPerSecond(report.bytes_wire, best));
    EXPECT_TRUE(worker.Cache() == by_grpc.Cache());
    Say("compared");
    side.Tell("stop");
  });
  Say("the server has stopped");
}

TEST(NcclTest, AServerThatDiesInMidFetchIsAMissAndTheNextOneIsNot) {
  const auto runner = MakeRunner();
  std::unique_ptr<Worker> worker;
  runner->Run([&](PeerSide& side) {
    if (side.rank() == 1) return ServeUntilTold(side, "1GiB");
    side.Tell(Endpoint());
    ASSERT_EQ(side.Hear(), "serving");
    UseLastDevice();
    worker = std::make_unique<Worker>(
        Endpoint(), ClientOptions{.fetch_paths = {DataPath::kNccl, DataPath::kGrpc}});
    worker->ReceiveOverNccl();
    worker->Push();
    worker->AwaitCopies();
    ASSERT_EQ(worker->Fetch().path, DataPath::kNccl);
    // Not at a point that anybody chose.
    std::thread killer([&] {
      side.Tell("die");
      side.Hear();
    });
    absl::Duration took;
    FetchReport report;
    do {
      report = worker->Fetch(&took);
    } while (report.pages == kPages);
    killer.join();
    EXPECT_FALSE(report.store.ok());
    std::printf("the server died: %u pages count, \"%s\" after %.0f ms\n", report.pages,
                report.store.ToString().c_str(), absl::ToDoubleMilliseconds(took));
    EXPECT_LE(took, absl::Seconds(7));  // its deadline, and what ending takes
  });
  runner->Run([&](PeerSide& side) {
    if (side.rank() == 1) return ServeUntilTold(side, "1GiB");
    side.Tell(Endpoint());
    ASSERT_EQ(side.Hear(), "serving");
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (!worker->client().Stats().ok()) ASSERT_LT(absl::Now(), deadline);
    worker->Push();
    worker->AwaitCopies();
    const FetchReport report = worker->Fetch();
    EXPECT_EQ(report.pages, kPages) << report.store;
    EXPECT_EQ(report.path, DataPath::kNccl) << worker->client().path(Direction::kFetch).reason;
    side.Tell("stop");
  });
}

// Asks the server for a hold on pages, as another client.
class Prober {
 public:
  Prober(const std::string& endpoint, const NamespaceSpec& spec) : fingerprint_(Fingerprint(spec)) {
    const auto channel = grpc::CreateChannel(endpoint, grpc::InsecureChannelCredentials());
    cache_ = v1::KvCache::NewStub(channel);
    peer_ = v1::Peer::NewStub(channel);
    session_ = cache_->Session(&call_);
    v1::SessionReply reply;
    EXPECT_TRUE(session_->Write({}) && session_->Read(&reply));
    session_id_ = reply.session_id();
  }
  ~Prober() {
    session_->WritesDone();
    session_->Finish();
  }
  grpc::StatusCode Hold(std::span<const std::string> keys) {
    v1::HoldPagesRequest request;
    request.mutable_scope()->set_fingerprint(fingerprint_);
    request.set_session_id(session_id_);
    for (const std::string& key : keys) request.add_keys(key);
    v1::HoldPagesReply reply;
    grpc::ClientContext call;
    return peer_->HoldPages(&call, request, &reply).error_code();
  }

 private:
  const std::string fingerprint_;
  std::unique_ptr<v1::KvCache::Stub> cache_;
  std::unique_ptr<v1::Peer::Stub> peer_;
  grpc::ClientContext call_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionReply>> session_;
  uint64_t session_id_ = 0;
};

TEST(IpcTest, AWorkerThatDiesInMidFetchGivesItsMemoryBack) {
  MakeRunner()->Run([](PeerSide& side) {
    if (side.rank() == 1) {
      Worker worker(side.Hear());
      worker.Push();
      worker.AwaitCopies();
      std::unique_ptr<PausedSink> paused;
      worker.Fetch(
          nullptr, 96, [&](GpuPageSink & sink) -> auto& {
            paused = std::make_unique<PausedSink>(sink, [&] {
              side.Tell("reads");
              side.Hear();
              side.Die();
            });
            return *paused;
          });
      return;
    }
    const std::string endpoint = Endpoint();
    // Readers may hold half of it: 120 MB are too little for 128 pages.
    const auto server = Serve(endpoint, "260MiB");
    side.Tell(endpoint);
    ASSERT_EQ(side.Hear(), "reads");
    const Worker other(endpoint);  // for its keys
    Prober prober(endpoint, other.spec());
    const auto rest = std::span(other.keys()).subspan(96);
    EXPECT_EQ(prober.Hold(rest), grpc::StatusCode::RESOURCE_EXHAUSTED);
    side.Tell("die");
    const absl::Time died = absl::Now();
    while (prober.Hold(rest) != grpc::StatusCode::OK)
      ASSERT_LT(absl::Now(), died + absl::Seconds(20));
    std::printf("a worker died in mid-fetch: what it held was free after %.0f ms\n",
                absl::ToDoubleMilliseconds(absl::Now() - died));
  });
}

TEST(IpcTest, MemoryThatCannotBeOpenedIsAReasonToTakeAnotherPath) {
  // A process cannot open its own memory.
  const auto server = Serve(Endpoint(), "1GiB");
  Worker worker(Endpoint());
  worker.Push();
  worker.AwaitCopies();
  const FetchReport report = worker.Fetch();
  EXPECT_EQ(report.pages, kPages);
  EXPECT_NE(report.path, DataPath::kIpc);
  const client::PathUse use = worker.client().path(Direction::kFetch);
  EXPECT_THAT(use.reason, HasSubstr("ipc has failed in this session: CUDA, opening"));
  std::printf("%s\n", use.reason.c_str());
}

}  // namespace
}  // namespace oscarkv::testing
