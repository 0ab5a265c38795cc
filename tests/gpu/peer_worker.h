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
inline void Say(const char* what) {
  static const absl::Time start = absl::Now();
  std::printf("  %d, %6.0f ms: %s\n", getpid(), absl::ToDoubleMilliseconds(absl::Now() - start),
              what);
  std::fflush(stdout);
}

inline std::unique_ptr<PeerRunner> MakeRunner() {
  return std::make_unique<ProcessRunner>([](int) { return nullptr; });
}
inline std::string Endpoint() { return "unix:/tmp/oscarkv_peer_test_" + std::to_string(getpid()); }

// On one GPU two ranks have to look as if they were on two hosts.
inline void MakeHost(const char* name) {
  int devices = 0;
  OrDie(device::ToStatus(cudaGetDeviceCount(&devices), "counting devices"));
  if (devices > 1) return;
  setenv("NCCL_HOSTID", name, 1);
  setenv("NCCL_SOCKET_IFNAME", "lo", 1);
}
inline const char* NcclLibrary() {
  const char* library = std::getenv("OSCARKV_NCCL_LIBRARY");
  return library == nullptr ? "libnccl.so.2" : library;
}

inline std::unique_ptr<Server> Serve(const std::string& endpoint, const std::string& gpu_capacity) {
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
inline void ServeUntilTold(PeerSide& side, const std::string& gpu_capacity) {
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
  explicit Worker(const std::string& endpoint, ClientOptions options = {},
                  const std::string& model = "qwen3-8b") {
    spec_.model = model;
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
    source_ = OrDie(client::GpuPageSource::Create(codec_, {.pages_max = kPages}));
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
    OrDie(sink_->ReceiveOverNccl(Nccl(), {.slots = 4, .slot_bytes = 64 << 20}));
  }
  void SendOverNccl() { OrDie(source_->SendOverNccl(Nccl())); }

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
    const absl::Time start = absl::Now();
    OrDie(source_->Start({.cache = *cache_, .slots = slots_}, stream_.get()));
    auto report = OrDie(space_->PushFrom(*source_, {.keys = keys_}));
    if (took != nullptr) *took = absl::Now() - start;
    Say("pushed");
    return report;
  }
  void Clear() { OrDie(space_->Clear().status()); }
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
  static comm::NcclOptions Nccl() {
    MakeHost("worker");
    comm::NcclOptions options;
    options.library = NcclLibrary();
    OrDie(device::ToStatus(cudaGetDevice(&options.device), "asking for the device"));
    return options;
  }
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
  std::unique_ptr<client::GpuPageSource> source_;
  std::vector<std::string> keys_;
  std::vector<int64_t> slots_;
  std::unique_ptr<client::Client> client_;
  std::unique_ptr<client::Namespace> space_;
};

// The worker on the second GPU, if there is one.
inline void UseLastDevice() {
  int devices = 0;
  OrDie(device::ToStatus(cudaGetDeviceCount(&devices), "counting devices"));
  OrDie(device::ToStatus(cudaSetDevice(devices - 1), "taking the last device"));
}

inline double GbPerSecond(uint64_t bytes, absl::Duration took) {
  return static_cast<double>(bytes) / absl::ToDoubleSeconds(took) * 1e-9;
}

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_GPU_PEER_WORKER_H_
