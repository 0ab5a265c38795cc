// oscarkvd and a worker in two processes, for tests of what goes between their GPUs.
#ifndef OSCARKV_TESTS_GPU_PEER_WORKER_H_
#define OSCARKV_TESTS_GPU_PEER_WORKER_H_

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

#include "client/cpp/client.h"
#include "client/cpp/pending_fetch.h"
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

#include "oscarkv/v1/server_config.pb.h"

namespace oscarkv::testing {

using client::ClientOptions;
using client::FetchReport;
using client::GpuPageSink;

// The layers and heads of Qwen3-8B, 64 tokens a page: 1.3 MB of 2 bits, 9.4 MB of bf16.
inline constexpr Geometry kModel{.layers = 36,
                                 .kv_heads = 8,
                                 .k_head_dim = 128,
                                 .v_head_dim = 128,
                                 .page_tokens = 64,
                                 .dtype = DType::kBf16};
inline constexpr uint32_t kPages = 128;
inline constexpr int64_t kTokens = kPages * 64;
inline constexpr int64_t kTokenBytes = 8 * 128 * 2;

// What a process does, and when.
inline bool silent = false;
inline void Say(const char* what) {
  if (silent) return;
  static const absl::Time start = absl::Now();
  std::printf("  %d, %6.0f ms: %s\n", getpid(), absl::ToDoubleMilliseconds(absl::Now() - start),
              what);
  std::fflush(stdout);
}

inline std::unique_ptr<PeerRunner> MakeRunner(std::vector<std::string> within = {}) {
  return std::make_unique<ProcessRunner>([](int) { return nullptr; }, std::move(within));
}
inline std::string Endpoint() { return "unix:/tmp/oscarkv_peer_test_" + std::to_string(getpid()); }

// On one GPU two ranks have to look as if they were on two hosts: each process names its own.
inline void MakeHost() {
  int devices = 0;
  OrDie(device::ToStatus(cudaGetDeviceCount(&devices), "counting devices"));
  if (devices > 1) return;
  setenv("NCCL_HOSTID", std::to_string(getpid()).c_str(), 1);
  setenv("NCCL_SOCKET_IFNAME", "lo", 1);
}
inline const char* NcclLibrary() {
  const char* library = std::getenv("OSCARKV_NCCL_LIBRARY");
  return library == nullptr ? "libnccl.so.2" : library;
}

inline std::unique_ptr<Server> Serve(const std::string& endpoint, const std::string& gpu_capacity,
                                     const std::string& metrics_listen = "off") {
  v1::ServerConfig config;
  config.add_listen(endpoint);
  config.set_metrics_listen(metrics_listen);
  config.mutable_host()->set_capacity("1GiB");
  config.mutable_gpu()->set_capacity(gpu_capacity);
  config.mutable_gpu()->set_required(true);
  config.mutable_gpu()->set_nccl(NcclLibrary());
  MakeHost();
  config.set_log_level("warning");
  return OrDie(Server::Create(WithDefaults(config, uint64_t{8} << 30)));
}

// The server's process: serves until it is told to stop, or to die.
inline void ServeUntilTold(PeerSide& side, const std::string& gpu_capacity) {
  auto server = Serve(side.Hear(), gpu_capacity);
  Say("serving");
  side.Tell("serving");
  if (side.Hear() == "die") side.Die();
  server.reset();
  Say("stopped");
}

// The worker on the second GPU, if there is one.
inline void UseLastDevice() {
  int devices = 0;
  OrDie(device::ToStatus(cudaGetDeviceCount(&devices), "counting devices"));
  OrDie(device::ToStatus(cudaSetDevice(devices - 1), "taking the last device"));
}

// Runs `body` in this process while another serves at Endpoint(), until it is told to stop or die.
inline void BesideServer(PeerRunner& runner, const std::function<void(PeerSide&)>& body) {
  runner.Run([&](PeerSide& side) {
    if (side.rank() == 1) return ServeUntilTold(side, "1GiB");
    side.Tell(Endpoint());
    ASSERT_EQ(side.Hear(), "serving");
    UseLastDevice();
    body(side);
  });
}

// A worker with a cache of kPages pages on the GPU.
class Worker {
 public:
  explicit Worker(const std::string& endpoint, ClientOptions options = {},
                  const std::string& model = "qwen3-8b", absl::Duration timeout = absl::Seconds(5),
                  const Geometry& geometry = kModel, uint32_t pages = kPages)
      : geometry_(geometry), pages_(pages) {
    spec_.model = model;
    spec_.geometry = geometry_;
    spec_.codec.sink_tokens = 0;
    spec_.codec.recent_tokens = 0;
    const auto transforms = IdentitySet(geometry_, 0.9f, 0.9f);
    const std::string file = SerializeTransformFile(*transforms, "{}");
    set_ = OrDie(ParseTransformFile(AsBytes(file)));
    spec_.codec.transform_hash = Sha256Of(AsBytes(file));
    codec_ = OrDie(cuda::CudaPageCodec::Create(geometry_, spec_.codec, &*set_));
    MakeCache();
    sink_ = OrDie(GpuPageSink::Create(codec_, {.pages_max = pages_}));
    source_ = OrDie(client::GpuPageSource::Create(codec_, {.pages_max = pages_}));
    std::vector<uint32_t> prompt(static_cast<size_t>(tokens()));
    for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<uint32_t>(i);
    keys_ = ChainKeys(prompt, geometry_.page_tokens);
    for (int64_t token = 0; token < tokens(); ++token) slots_.push_back(token);
    reads_in_place_ = options.fetch_paths.size() == 1 && options.fetch_paths[0] == DataPath::kIpc;
    options.endpoint = endpoint;
    options.fetch_timeout = options.push_timeout = timeout;
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
    OrDie(sink_->ReceiveOverNccl(Nccl(), {.slots = 4, .slot_bytes = 64 << 20}));
  }
  void SendOverNccl() { OrDie(source_->SendOverNccl(Nccl())); }
  // The same over another fabric, around NCCL's.
  using WrapFabric =
      std::function<std::unique_ptr<comm::PeerFabric>(std::unique_ptr<comm::PeerFabric>)>;
  void ReceiveOver(const WrapFabric& wrap) {
    OrDie(sink_->ReceiveOver(wrap(OrDie(comm::MakeNcclFabric(Nccl()))),
                             {.slots = 4, .slot_bytes = 64 << 20}));
  }

  client::Client& client() { return *client_; }
  const std::vector<std::string>& keys() const { return keys_; }
  const NamespaceSpec& spec() const { return spec_; }

  void Push() {
    const client::PushReport report = TryPush();
    EXPECT_OK(report.store);
    EXPECT_THAT(report.statuses, ::testing::Each(ItemStatus::kOk));
  }
  // Whatever becomes of it.
  client::PushReport TryPush(absl::Duration* took = nullptr) {
    FillCache();
    auto report = PushPages(pages_, took);
    Say("pushed");
    return report;
  }
  // The first pages, from what the cache holds.
  client::PushReport PushPages(uint32_t pages, absl::Duration* took) {
    const auto slots = std::span(slots_).first(pages * geometry_.page_tokens);
    const absl::Time start = absl::Now();
    OrDie(source_->Start({.cache = *cache_, .slots = slots}, stream_.get()));
    auto report = OrDie(space_->PushFrom(*source_, {.keys = std::span(keys_).first(pages)}));
    if (took != nullptr) *took = absl::Now() - start;
    return report;
  }
  // A page stays, with those that it extends, while it is copied.
  void Clear() {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    do {
      ASSERT_LT(absl::Now(), deadline);
      OrDie(space_->Clear().status());
    } while (!OrDie(space_->List(1)).empty());
  }
  // Has all pages copied to the server's GPU. Of a worker that may read them there, they are when
  // it does.
  void AwaitCopies() {
    for (int i = 0; i < 2; ++i) OrDie(space_->Touch(keys_).status());
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    uint64_t used = 0;
    while (used < pages_ * codec_->layout(Encoding::kPacked).page_bytes()) {
      ASSERT_LT(absl::Now(), deadline) << used << " bytes are copied";
      for (const client::TierUse& tier : OrDie(client_->Stats()).tiers)
        if (tier.tier == "gpu") used = tier.used_bytes;
      std::this_thread::yield();
    }
    Say("copied");
    for (bool whole = !reads_in_place_; !whole;) {
      ASSERT_LT(absl::Now(), deadline) << "not all pages are copied";
      const FetchReport report = FetchPages(pages_, nullptr);
      whole = report.pages == pages_ && report.path == DataPath::kIpc;
      if (!report.store.ok()) return;  // it has died
    }
  }

  // Empties the cache and fetches pages; `wrap` may put something between.
  using Wrap = std::function<client::PageSink&(GpuPageSink&)>;
  FetchReport Fetch(absl::Duration* took = nullptr, std::optional<uint32_t> pages = {},
                    const Wrap& wrap = {}) {
    OrDie(device::ToStatus(cudaMemset(pool_.data(), 0, pool_.size()), "emptying the cache"));
    OrDie(device::ToStatus(cudaDeviceSynchronize(), "emptying the cache"));
    const FetchReport report = FetchPages(pages.value_or(pages_), took, wrap);
    Say("fetched");
    return report;
  }
  FetchReport FetchPages(uint32_t pages, absl::Duration* took, const Wrap& wrap = {}) {
    const absl::Time start = absl::Now();
    StartSink(pages);
    client::PageSink& sink = wrap == nullptr ? *sink_ : wrap(*sink_);
    const auto report = space_->FetchTo(sink, {.keys = std::span(keys_).first(pages)});
    if (took != nullptr) *took = absl::Now() - start;
    EXPECT_OK(report);
    return report.ok() ? *report : FetchReport();
  }
  // The same, layer by layer; both must stay until it has ended.
  std::unique_ptr<client::PendingFetch> StartFetch(client::StartFetchOptions options) {
    StartSink(pages_);
    return space_->StartFetchTo(*sink_, {.keys = keys_}, std::move(options));
  }
  // Has a stream wait for a layer of it, and waits for that stream.
  void WaitLayer(uint32_t layer) {
    const auto engine = OrDie(device::Stream::Create());
    OrDie(sink_->WaitLayer(layer, engine.get()));
    OrDie(engine.Synchronize());
  }
  // Whether the first pages of the cache are those of another.
  bool SamePages(const std::vector<std::byte>& other, uint32_t pages) const {
    const std::vector<std::byte> mine = Cache();
    const auto bytes = static_cast<ptrdiff_t>(pages * geometry_.page_tokens * kTokenBytes);
    for (uint64_t side = 0; side < 2 * geometry_.layers; ++side) {
      const auto at = static_cast<ptrdiff_t>(side * side_bytes());
      if (!std::equal(mine.begin() + at, mine.begin() + at + bytes, other.begin() + at))
        return false;
    }
    return true;
  }
  std::vector<std::byte> Cache() const {
    std::vector<std::byte> bytes(pool_.size());
    OrDie(pool_.CopyTo(bytes));
    return bytes;
  }

 private:
  static comm::NcclOptions Nccl() {
    MakeHost();
    comm::NcclOptions options;
    options.library = NcclLibrary();
    OrDie(device::ToStatus(cudaGetDevice(&options.device), "asking for the device"));
    return options;
  }
  int64_t tokens() const { return int64_t{pages_} * geometry_.page_tokens; }
  uint64_t side_bytes() const { return static_cast<uint64_t>(tokens() * kTokenBytes); }
  void StartSink(uint32_t pages) {
    OrDie(sink_->Start({.cache = *cache_,
                        .part = {{0, geometry_.layers}, {0, geometry_.kv_heads}},
                        .slots = std::span(slots_).first(pages * geometry_.page_tokens)},
                       stream_.get()));
  }
  void MakeCache() {
    pool_ = OrDie(device::DeviceBuffer::Allocate(2 * geometry_.layers * side_bytes()));
    std::vector<std::byte*> bases;
    for (uint64_t i = 0; i < 2 * geometry_.layers; ++i)
      bases.push_back(pool_.data() + i * side_bytes());
    EngineView view;
    view.slots = tokens();
    view.k.layer_base = std::span(bases).first(geometry_.layers);
    view.v.layer_base = std::span(bases).last(geometry_.layers);
    for (EngineSide* side : {&view.k, &view.v}) {
      side->block_stride = side->token_stride = kTokenBytes;
      side->head_stride = 256;
    }
    cache_ = std::make_unique<client::GpuCache>(
        OrDie(client::GpuCache::Create(view, geometry_, {.k = side_bytes(), .v = side_bytes()})));
  }

 public:
  // Rows of no pattern.
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

 private:
  const Geometry geometry_;
  const uint32_t pages_;
  bool reads_in_place_ = false;  // and in no other way
  NamespaceSpec spec_;
  std::optional<TransformSet> set_;
  std::shared_ptr<const cuda::CudaPageCodec> codec_;
  device::Stream stream_ = OrDie(device::Stream::Create());
  device::DeviceBuffer pool_;
  std::unique_ptr<client::GpuCache> cache_;
  std::unique_ptr<GpuPageSink> sink_;
  std::unique_ptr<client::GpuPageSource> source_;
  std::vector<std::string> keys_;
  std::vector<int64_t> slots_;
  std::unique_ptr<client::Client> client_;
  std::unique_ptr<client::Namespace> space_;
};

// After others have died: a worker in a process of its own pushes and fetches all pages by `path`,
// and they are what gRPC brings. The server at `endpoint` is rank 0's.
inline void ExpectTheNextWorkersPagesWhole(PeerRunner& runner, const std::string& endpoint,
                                           DataPath path, const Geometry& geometry = kModel) {
  runner.Run([&](PeerSide& side) {
    if (side.rank() == 0) {
      side.Tell(endpoint);
      EXPECT_EQ(side.Hear(), "whole");
      return;
    }
    UseLastDevice();
    const std::string where = side.Hear();
    const auto by = [&](DataPath only) {
      return std::make_unique<Worker>(where,
                                      ClientOptions{.fetch_paths = {only}, .push_paths = {only}},
                                      "qwen3-8b", absl::Seconds(5), geometry);
    };
    const auto worker = by(path);
    if (path == DataPath::kNccl) {
      worker->ReceiveOverNccl();
      worker->SendOverNccl();
    }
    worker->Clear();
    worker->Push();
    worker->AwaitCopies();
    const FetchReport report = worker->Fetch();
    EXPECT_EQ(report.path, path) << worker->client().path(Direction::kFetch).reason;
    const auto by_grpc = by(DataPath::kGrpc);
    by_grpc->Fetch();
    const bool whole = report.pages == kPages && worker->SamePages(by_grpc->Cache(), kPages);
    side.Tell(whole ? "whole" : "not whole");
  });
}

inline double GbPerSecond(uint64_t bytes, absl::Duration took) {
  return static_cast<double>(bytes) / absl::ToDoubleSeconds(took) * 1e-9;
}

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_GPU_PEER_WORKER_H_
