// Times moving pages between pinned host memory and a cache on the GPU, end to end: 128K tokens of
// Qwen3-8B (36 layers, 8 KV heads of 128, bf16), 2 bits, a random rotation for each head, random
// rows. Beside it, in the same run: one copy of as many pinned bytes, and the kernel that reads the
// pinned pages itself, without copies.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "nlohmann/json.hpp"

#include "client/gpu/gpu_fetcher.h"
#include "client/gpu/gpu_pusher.h"
#include "kernels/device/status.h"
#include "tests/codec/page_testing.h"
#include "tests/gpu/gpu_bench.h"
#include "tests/gpu/gpu_cache.h"

namespace oscarkv::testing {
namespace {

using client::GpuFetcher;
using client::GpuPusher;
using client::GpuTransferOptions;
using client::HostPage;
using client::HostPageRoom;
using Clock = std::chrono::steady_clock;

constexpr Geometry kModel{.layers = 36,
                          .kv_heads = 8,
                          .k_head_dim = 128,
                          .v_head_dim = 128,
                          .page_tokens = 64,
                          .dtype = DType::kBf16};
constexpr uint32_t kTokens = 128 << 10;
constexpr int kRepeats = 11;
constexpr uint64_t kRowBytes = 128 * 2;
constexpr uint64_t kTokenBytes = 8 * kRowBytes;

double Milliseconds(Clock::time_point since) {
  return std::chrono::duration<double, std::milli>(Clock::now() - since).count();
}

struct Spread {
  double median = 0;
  double least = 0;
  double most = 0;
};

Spread SpreadOf(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front(), times.back()};
}

// A cache of random rows on the device, and room for its encoded pages in pinned memory, in no
// order: as a host tier holds them after a while.
class World {
 public:
  World(uint32_t tokens, int repeats) : pages_(tokens / kModel.page_tokens), repeats_(repeats) {
    const auto transforms = RotationSet(kModel, 0.9f);
    CodecSpec spec;
    spec.transform_hash = std::string(32, 't');
    codec_ = OrDie(cuda::CudaPageCodec::Create(kModel, spec, transforms.get()));
    MakeCache(tokens);
    page_bytes_ = codec_->layout(Encoding::kPacked).page_bytes();
    arena_ = OrDie(device::PinnedBuffer::Allocate(page_bytes_ * pages_));
    crcs_.resize(size_t{pages_} * kModel.blocks());
    std::vector<size_t> order(pages_);
    std::iota(order.begin(), order.end(), size_t{0});
    std::shuffle(order.begin(), order.end(), std::mt19937(1));
    for (size_t page = 0; page < pages_; ++page) {
      rooms_.push_back({.encoding = Encoding::kPacked,
                        .bytes = arena_.bytes().data() + order[page] * page_bytes_,
                        .block_crc32c = crcs_.data() + page * kModel.blocks()});
      held_.push_back({Encoding::kPacked, rooms_[page].bytes, rooms_[page].block_crc32c});
    }
  }

  uint64_t bytes() const { return arena_.bytes().size(); }

  // One copy of everything.
  Spread Copy(cudaMemcpyKind kind) {
    const auto on_device = OrDie(device::DeviceBuffer::Allocate(bytes()));
    std::byte* host = arena_.bytes().data();
    const bool to_device = kind == cudaMemcpyHostToDevice;
    return Time([&] {
      OrDie(device::ToStatus(
          cudaMemcpyAsync(to_device ? on_device.data() : host, to_device ? host : on_device.data(),
                          bytes(), kind, stream_.get()),
          "copying"));
      OrDie(stream_.Synchronize());
    });
  }

  Spread Push(const GpuTransferOptions& options) {
    const auto pusher = OrDie(GpuPusher::Create(codec_, options));
    return Time([&] {
      OrDie(pusher->Begin({.cache = *cache_, .slots = slots_}, stream_.get()));
      OrDie(pusher->Add(0, rooms_));
      if (OrDie(pusher->Finish()).nonfinite_rows != 0) OrDie(absl::InternalError("NaN rows"));
    });
  }

  // Also how long it took until another thread's stream had layer 0, and until everything was
  // enqueued.
  Spread Fetch(const GpuTransferOptions& options, double* first_layer_ms, double* enqueued_ms) {
    const auto fetcher = OrDie(GpuFetcher::Create(codec_, options));
    const auto engine = OrDie(device::Stream::Create());
    std::vector<double> first_layer;
    std::vector<double> enqueued;
    const Spread spread = Time([&] {
      const auto start = Clock::now();
      OrDie(fetcher->Begin(
          {.cache = *cache_, .part = {{0, kModel.layers}, {0, kModel.kv_heads}}, .slots = slots_},
          stream_.get()));
      std::thread waiter([&] {
        OrDie(fetcher->WaitLayer(0, engine.get()));
        OrDie(engine.Synchronize());
        first_layer.push_back(Milliseconds(start));
      });
      OrDie(fetcher->AddAll(held_));
      enqueued.push_back(Milliseconds(start));
      for (const absl::Status& page : OrDie(fetcher->Finish())) OrDie(page);
      waiter.join();
    });
    *first_layer_ms = SpreadOf(first_layer).median;
    *enqueued_ms = SpreadOf(enqueued).median;
    return spread;
  }

  // The decode kernel reading pinned memory over the link: no copies, no ring, all processors.
  Spread FetchDirectly() {
    std::vector<const std::byte*> pointers;
    for (const HostPage& page : held_) pointers.push_back(page.bytes);
    const auto device_pointers = OrDie(device::DeviceBuffer::CopyOf(std::span(pointers)));
    const auto device_slots = OrDie(device::DeviceBuffer::CopyOf(std::span(slots_)));
    const auto device_crcs = OrDie(device::DeviceBuffer::CopyOf(std::span(crcs_)));
    const std::vector<uint32_t> clear(crcs_.size(), 0);
    const auto status = OrDie(device::DeviceBuffer::CopyOf(std::span(clear)));
    const cuda::DeviceDecodeBatch batch = {.encoding = Encoding::kPacked,
                                           .layers = {0, kModel.layers},
                                           .heads = {0, kModel.kv_heads},
                                           .pages = pages_,
                                           .page_bytes = device_pointers.as<const std::byte*>(),
                                           .slots = device_slots.as<int64_t>(),
                                           .block_crc32c = device_crcs.as<uint32_t>(),
                                           .status = status.as<uint32_t>()};
    return Time([&] {
      OrDie(codec_->Decode(batch, DecodeBasis::kModel, cache_->view(), stream_.get()));
      OrDie(stream_.Synchronize());
    });
  }

 private:
  void MakeCache(uint32_t tokens) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    std::vector<uint16_t> rows((48 << 20) / 2);
    for (uint16_t& value : rows)
      value = static_cast<uint16_t>(std::bit_cast<uint32_t>(normal(random)) >> 16);
    std::vector<std::byte*> k;
    std::vector<std::byte*> v;
    for (uint32_t layer = 0; layer < kModel.layers; ++layer) {
      memory_.push_back(Repeated(std::as_bytes(std::span(rows)), 2 * tokens * kTokenBytes));
      k.push_back(memory_.back().data());
      v.push_back(memory_.back().data() + tokens * kTokenBytes);
    }
    EngineView view{.k = {.layer_base = k,
                          .block_stride = kTokenBytes,
                          .token_stride = kTokenBytes,
                          .head_stride = kRowBytes},
                    .v = {.layer_base = v,
                          .block_stride = kTokenBytes,
                          .token_stride = kTokenBytes,
                          .head_stride = kRowBytes},
                    .slots = tokens};
    const uint64_t side = tokens * kTokenBytes;
    cache_ = std::make_unique<client::GpuCache>(
        OrDie(client::GpuCache::Create(view, kModel, {.k = side, .v = side})));
    std::vector<int64_t> places(pages_);
    std::iota(places.begin(), places.end(), 0);
    std::shuffle(places.begin(), places.end(), std::mt19937(2));
    for (int64_t place : places) {
      for (int64_t token = 0; token < kModel.page_tokens; ++token)
        slots_.push_back(place * kModel.page_tokens + token);
    }
  }

  Spread Time(const std::function<void()>& work) const {
    work();
    std::vector<double> times;
    for (int i = 0; i < repeats_; ++i) {
      const auto start = Clock::now();
      work();
      times.push_back(Milliseconds(start));
    }
    return SpreadOf(std::move(times));
  }

  uint32_t pages_;
  int repeats_;
  device::Stream stream_ = OrDie(device::Stream::Create());
  std::shared_ptr<const cuda::CudaPageCodec> codec_;
  std::vector<device::DeviceBuffer> memory_;
  std::unique_ptr<client::GpuCache> cache_;
  std::vector<int64_t> slots_;
  uint64_t page_bytes_ = 0;
  device::PinnedBuffer arena_;
  std::vector<uint32_t> crcs_;
  std::vector<HostPageRoom> rooms_;
  std::vector<HostPage> held_;
};

// The rows of all transfers, in the report and on the screen.
class TransferRows {
 public:
  TransferRows(Bench& bench, uint64_t bytes) : bench_(bench), bytes_(bytes) {
    std::printf("%-44s %8s %8s %8s %7s %8s\n", "128K tokens of Qwen3-8B, host and device", "ms",
                "least", "most", "GB/s", "of copy");
  }

  // `copy` is the link's time for as many bytes.
  void Add(const std::string& name, const Spread& ms, const Spread& copy,
           const nlohmann::json& more = nlohmann::json::object()) {
    const double rate = static_cast<double>(bytes_) / ms.median * 1e-6;
    nlohmann::json row = {{"name", name},         {"ms", ms.median},
                          {"ms_least", ms.least}, {"ms_most", ms.most},
                          {"gb_per_s", rate},     {"of_copy", copy.median / ms.median}};
    row.update(more);
    bench_.AddRow("transfers", row);
    std::printf("%-44s %8.2f %8.2f %8.2f %7.2f %6.1f %%", name.c_str(), ms.median, ms.least,
                ms.most, rate, 100.0 * copy.median / ms.median);
    for (const auto& [key, value] : more.items())
      std::printf("  %s %.2f", key.c_str(), value.get<double>());
    std::printf("\n");
    std::fflush(stdout);
  }

 private:
  Bench& bench_;
  uint64_t bytes_;
};

using Fetch = std::function<void(const std::string&, const GpuTransferOptions&)>;

void SweepFetches(const Fetch& fetch) {
  for (uint64_t kib : {36u, 72u, 144u, 256u, 512u}) {
    for (uint64_t mib : {8u, 16u, 32u}) {
      fetch("fetch/piece_kib:" + std::to_string(kib) + "/stage_mib:" + std::to_string(mib),
            {.stage_bytes = mib << 20, .piece_bytes = kib << 10});
    }
  }
  for (uint32_t stages : {2u, 3u, 6u})
    fetch("fetch/stages:" + std::to_string(stages), {.stages = stages});
}

}  // namespace

void BenchTransfers(Bench& bench) {
  if (!bench.Wants("transfers")) return;
  World world(kTokens, kRepeats);
  TransferRows rows(bench, world.bytes());
  world.Push({});  // fills the arena with what is measured from then on
  const Spread down = world.Copy(cudaMemcpyDeviceToHost);
  const Spread up = world.Copy(cudaMemcpyHostToDevice);
  rows.Add("copy/to_host", down, down);
  rows.Add("copy/to_device", up, up);
  // Before the fetches, which leave rows in the cache that were in two bits once.
  rows.Add("push", world.Push({}), down);
  for (uint64_t mib : {8u, 32u}) {
    if (!bench.sweeps()) break;
    rows.Add("push/stage_mib:" + std::to_string(mib), world.Push({.stage_bytes = mib << 20}), down);
  }
  const Fetch fetch = [&](const std::string& name, const GpuTransferOptions& options) {
    double first_layer = 0;
    double enqueued = 0;
    const Spread ms = world.Fetch(options, &first_layer, &enqueued);
    rows.Add(name, ms, up, {{"first_layer_ms", first_layer}, {"enqueued_ms", enqueued}});
  };
  fetch("fetch", {});
  rows.Add("fetch/kernel_reads_host_memory", world.FetchDirectly(), up);
  if (bench.sweeps()) SweepFetches(fetch);
}

}  // namespace oscarkv::testing
