// What the device's kernels do for one layer of Qwen3-8B (8 KV heads of 128, pages of 64 tokens,
// bf16), beside the bandwidth that a copy reaches in the same run. Medians; bytes are those of the
// model's dtype plus the encoded ones, each moved once.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/codec/oscar/cuda_page_codec.h"
#include "kernels/device/status.h"
#include "kernels/device/stream.h"
#include "tests/codec/page_testing.h"
#include "tests/gpu/gpu_cache.h"
#include "tests/gpu/gpu_timing.h"

namespace oscarkv::testing {
namespace {

constexpr int kRepeats = 100;

struct Workload {
  CodecSpec spec;
  std::unique_ptr<cuda::CudaPageCodec> gpu;
  std::vector<EncodedPage> pages;  // 64 different ones, used again and again

  Workload() {
    spec.transform_hash = std::string(32, 't');
    const auto transforms = RotationSet(kQwen3, 0.9f);
    const auto cpu = OrDie(MakePageCodec(CodecBackend::kCpu, kQwen3, spec, transforms));
    gpu = OrDie(cuda::CudaPageCodec::Create(kQwen3, spec, *transforms));
    EngineCache source(EngineLayout::kTokenMajor, kQwen3, DType::kBf16, 4096);
    source.FillGaussian(1);
    for (int64_t page = 0; page < 64; ++page) {
      std::vector<int64_t> slots(64);
      std::iota(slots.begin(), slots.end(), page * 64);
      pages.push_back(EncodePage(*cpu, Encoding::kPacked, source, slots));
    }
  }
};

void Decode(const Workload& workload, uint32_t tokens, double copy, cudaStream_t stream) {
  EngineCache host(EngineLayout::kTokenMajor, kQwen3, DType::kBf16, tokens);
  const GpuCache cache(host);
  std::vector<int64_t> numbers(tokens / 64);
  std::iota(numbers.begin(), numbers.end(), 0);
  std::shuffle(numbers.begin(), numbers.end(), std::mt19937(1));
  std::vector<EncodedPage> pages;
  std::vector<std::vector<int64_t>> slots;
  for (int64_t number : numbers) {
    pages.push_back(workload.pages[static_cast<size_t>(number) % 64]);
    slots.emplace_back(64);
    std::iota(slots.back().begin(), slots.back().end(), number * 64);
  }
  const GpuBatch batch(std::move(pages), slots, {0, 1}, {0, kQwen3.kv_heads});
  const double encoded = static_cast<double>(workload.pages[0].bytes.size()) * tokens / 64;
  const double bytes = encoded + static_cast<double>(tokens) * 8 * 2 * 128 * 2;
  for (DecodeBasis basis : {DecodeBasis::kModel, DecodeBasis::kTransformed}) {
    const double microseconds = Median(stream, kRepeats, [&] {
      OrDie(workload.gpu->Decode(batch.batch(), basis, cache.View(), stream));
    });
    for (uint32_t word : batch.Status()) {
      if (word != 0) OrDie(absl::InternalError("a block was bad"));
    }
    const double rate = bytes / microseconds * 1e-6;
    std::printf("%-38s %8u %10.1f %8.2f %8.0f %% %10.1f\n",
                basis == DecodeBasis::kModel ? "verify, dequantise, inverse, scatter"
                                             : "verify, dequantise, scatter",
                tokens, microseconds, rate, 100.0 * rate / copy, bytes / copy * 1e-6);
  }
}

void Encode(const Workload& workload, uint32_t tokens, double copy, cudaStream_t stream) {
  EngineCache host(EngineLayout::kTokenMajor, kQwen3, DType::kBf16, tokens);
  host.FillGaussian(2);
  const GpuCache cache(host);
  std::vector<std::vector<int64_t>> slots(tokens / 64, std::vector<int64_t>(64));
  for (size_t page = 0; page < slots.size(); ++page)
    std::iota(slots[page].begin(), slots[page].end(), static_cast<int64_t>(page) * 64);
  std::shuffle(slots.begin(), slots.end(), std::mt19937(1));
  const PageLayout& layout = workload.gpu->layout(Encoding::kPacked);
  const GpuEncodeBatch batch(layout, slots);
  const double bytes = static_cast<double>(layout.page_bytes()) * tokens / 64 +
                       static_cast<double>(tokens) * 8 * 2 * 128 * 2;
  const double microseconds = Median(
      stream, kRepeats, [&] { OrDie(workload.gpu->Encode(cache.View(), batch.batch(), stream)); });
  const double rate = bytes / microseconds * 1e-6;
  std::printf("%-38s %8u %10.1f %8.2f %8.0f %% %10.1f\n", "transform, clip, quantise, checksum",
              tokens, microseconds, rate, 100.0 * rate / copy, bytes / copy * 1e-6);
}

void Run() {
  cudaDeviceProp device;
  OrDie(device::ToStatus(cudaGetDeviceProperties(&device, 0), "asking for device 0"));
  const auto stream = OrDie(device::Stream::Create());
  const double copy = CopyBandwidth(stream.get());
  std::printf("%s, %d multiprocessors; copy %.2f TB/s, counting reads and writes\n", device.name,
              device.multiProcessorCount, copy);
  std::printf("%-38s %8s %10s %8s %10s %10s\n", "one layer", "tokens", "us", "TB/s", "of copy",
              "floor us");
  const Workload workload;
  for (uint32_t tokens : {8192u, 65536u, 262144u}) Encode(workload, tokens, copy, stream.get());
  for (uint32_t tokens : {8192u, 65536u, 262144u}) Decode(workload, tokens, copy, stream.get());
}

}  // namespace
}  // namespace oscarkv::testing

int main() {
  oscarkv::testing::Run();
  return 0;
}
