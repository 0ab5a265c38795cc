// Attention of one new token over 2-bit pages of Qwen3-8B's heads (32 query heads, 8 KV heads of
// 128, pages of 64), one layer: microseconds from replays of a CUDA graph that holds many calls,
// each over other pages, so that no cache holds them. Medians.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "kernels/attention/attend.h"
#include "kernels/codec/page_layout.h"
#include "kernels/device/buffer.h"
#include "kernels/device/status.h"
#include "kernels/device/stream.h"
#include "tests/codec/page_testing.h"
#include "tests/gpu/gpu_cache.h"
#include "tests/gpu/gpu_timing.h"

namespace oscarkv::testing {
namespace {

using device::DeviceBuffer;

constexpr int kRepeats = 61;
constexpr uint32_t kQueryHeads = 32;

struct Setting {
  uint32_t requests;
  uint32_t length;
  uint32_t wide_pages;  // of each request: one sink page, the others recent
};

// Pages of Gaussian rows, many times over in one stretch of memory.
struct Pool {
  std::unique_ptr<cuda::Attention> attention;
  size_t packed_bytes = 0;
  size_t wide_bytes = 0;
  size_t packed_count = 0;
  size_t wide_count = 0;
  DeviceBuffer packed;
  DeviceBuffer wide;

  explicit Pool(size_t packed_tokens) {
    CodecSpec spec;
    spec.transform_hash = std::string(32, 't');
    const auto transforms = RotationSet(kQwen3, 0.9f);
    const auto cpu = OrDie(MakePageCodec(CodecBackend::kCpu, kQwen3, spec, transforms));
    attention = OrDie(cuda::Attention::Create(kQwen3, spec, *transforms, kQueryHeads));
    constexpr int64_t kDistinct = 64;
    EngineCache source(EngineLayout::kTokenMajor, kQwen3, DType::kBf16, kDistinct * 64);
    source.FillGaussian(1);
    Bytes bytes[2];
    for (int64_t page = 0; page < kDistinct; ++page) {
      std::vector<int64_t> slots(64);
      for (int64_t i = 0; i < 64; ++i) slots[static_cast<size_t>(i)] = page * 64 + i;
      for (Encoding encoding : {Encoding::kPacked, Encoding::kWide}) {
        const Bytes one = EncodePage(*cpu, encoding, source, slots).bytes;
        Bytes& all = bytes[encoding == Encoding::kPacked ? 0 : 1];
        all.insert(all.end(), one.begin(), one.end());
      }
    }
    packed_bytes = bytes[0].size() / kDistinct;
    wide_bytes = bytes[1].size() / kDistinct;
    packed_count = packed_tokens / 64 / kDistinct * kDistinct;
    wide_count = 10 * kDistinct;
    const auto fill = [&](const Bytes& from, size_t size) {
      DeviceBuffer to = OrDie(DeviceBuffer::Allocate(size));
      for (size_t at = 0; at < size; at += from.size()) {
        OrDie(device::ToStatus(
            cudaMemcpy(to.data() + at, from.data(), from.size(), cudaMemcpyHostToDevice),
            "filling"));
      }
      return to;
    };
    packed = fill(bytes[0], packed_count * packed_bytes);
    wide = fill(bytes[1], wide_count * wide_bytes);
  }
};

// One call's tables on the device.
struct Call {
  std::vector<DeviceBuffer> memory;
  cuda::AttendBatch batch;

  Call(const Pool& pool, const Setting& setting, size_t& next, std::mt19937& random) {
    std::vector<cuda::AttendPage> table;
    std::vector<uint32_t> first{0};
    const uint32_t pages = setting.length / 64;
    for (uint32_t request = 0; request < setting.requests; ++request) {
      for (uint32_t page = 0; page < pages; ++page) {
        const bool wide =
            setting.wide_pages > 0 && (page == 0 || page + setting.wide_pages > pages);
        const size_t number = wide ? random() % pool.wide_count : next++ % pool.packed_count;
        table.push_back({.bytes = wide ? pool.wide.data() + number * pool.wide_bytes
                                       : pool.packed.data() + number * pool.packed_bytes,
                         .position = page * 64,
                         .tokens = 64,
                         .encoding = wide ? Encoding::kWide : Encoding::kPacked});
      }
      first.push_back(static_cast<uint32_t>(table.size()));
    }
    std::vector<uint32_t> lengths(setting.requests, setting.length);
    const size_t elements = size_t{setting.requests} * kQueryHeads * 128;
    std::normal_distribution<float> normal;
    Bytes queries(elements * 2);
    for (size_t i = 0; i < elements; ++i) {
      const uint16_t bits = FloatToBf16(normal(random));
      StoreLe(queries.data() + 2 * i, bits);
    }
    const auto put = [&](auto& host) {
      memory.push_back(OrDie(DeviceBuffer::CopyOf(std::span(host))));
      return memory.back().data();
    };
    batch.requests = setting.requests;
    batch.softmax_scale = 0.088388f;
    batch.pages = reinterpret_cast<const cuda::AttendPage*>(put(table));
    batch.first_page = reinterpret_cast<const uint32_t*>(put(first));
    batch.lengths = reinterpret_cast<const uint32_t*>(put(lengths));
    batch.queries = put(queries);
    batch.output = put(queries);
  }
};

void Measure(const Pool& pool, const Setting& setting, double copy, cudaStream_t stream) {
  const uint32_t packed_tokens = setting.length - setting.wide_pages * 64;
  const double bytes =
      setting.requests * (8.0 * 72 * packed_tokens + 8.0 * 512 * 64 * setting.wide_pages);
  const int calls = std::clamp(static_cast<int>(600e6 / bytes), 4, 40);
  std::mt19937 random(5);
  size_t next = 0;
  std::vector<Call> all;
  for (int i = 0; i < calls; ++i) all.emplace_back(pool, setting, next, random);
  const size_t workspace_bytes = pool.attention->WorkspaceBytes(setting.requests, 1);
  const auto workspace = OrDie(DeviceBuffer::Allocate(workspace_bytes));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  OrDie(device::ToStatus(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capturing"));
  for (const Call& call : all)
    OrDie(pool.attention->Attend(call.batch, workspace.data(), workspace_bytes, stream));
  OrDie(device::ToStatus(cudaStreamEndCapture(stream, &graph), "capturing"));
  OrDie(device::ToStatus(cudaGraphInstantiate(&executable, graph, 0), "instantiating"));
  const double microseconds =
      Median(stream, kRepeats,
             [&] { OrDie(device::ToStatus(cudaGraphLaunch(executable, stream), "replaying")); }) /
      calls;
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  const double rate = bytes / microseconds * 1e-6;
  std::printf("%8u %8u %6u %10.1f %8.2f %8.0f %% %10.1f\n", setting.requests, setting.length,
              setting.wide_pages, microseconds, rate, 100.0 * rate / copy, bytes / copy * 1e-6);
  std::fflush(stdout);
}

void Run() {
  cudaDeviceProp device;
  OrDie(device::ToStatus(cudaGetDeviceProperties(&device, 0), "asking for device 0"));
  const auto stream = OrDie(device::Stream::Create());
  const double copy = CopyBandwidth(stream.get());
  std::printf("%s, %d multiprocessors; copy %.2f TB/s, counting reads and writes\n", device.name,
              device.multiProcessorCount, copy);
  std::printf("%8s %8s %6s %10s %8s %10s %10s\n", "requests", "length", "wide", "us", "TB/s",
              "of copy", "floor us");
  const Pool pool(size_t{2} << 20);
  for (uint32_t wide : {0u, 5u}) {
    for (const auto& [requests, length] : std::initializer_list<std::pair<uint32_t, uint32_t>>{
             {1, 4096}, {1, 32768}, {1, 81920}, {1, 131072}, {8, 32768}, {32, 4096}, {32, 32768}})
      Measure(pool, {requests, length, wide}, copy, stream.get());
  }
}

}  // namespace
}  // namespace oscarkv::testing

int main() {
  oscarkv::testing::Run();
  return 0;
}
