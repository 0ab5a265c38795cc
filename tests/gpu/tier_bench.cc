// The GPU tier's transfers against plain copies of page-locked memory: GB/s each way, in one run.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"
#include "kernels/device/buffer.h"
#include "kernels/device/status.h"
#include "kernels/device/stream.h"
#include "server/tier/gpu_tier.h"
#include "server/tier/host_tier.h"

namespace oscarkv::testing {
namespace {

constexpr uint64_t kBytes = uint64_t{4} << 30;
constexpr int kRepeats = 5;
constexpr size_t kUnderWay = 16;

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  if (!value.ok()) {
    std::fprintf(stderr, "gpu_tier_bench: %s\n", std::string(value.status().message()).c_str());
    std::exit(1);
  }
  return *std::move(value);
}
void OrDie(const absl::Status& status) {
  OrDie(absl::StatusOr<int>(status.ok() ? absl::StatusOr<int>(0) : status));
}

// GB/s of the best of some runs: what others do on the bus only takes away.
double Best(double bytes, const std::function<void()>& run) {
  double best = 0;
  for (int i = 0; i < kRepeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    best = std::max(best, bytes / time.count() * 1e-9);
  }
  return best;
}

double PlainCopy(cudaMemcpyKind kind) {
  constexpr uint64_t kPlain = uint64_t{1} << 30;
  const auto host = OrDie(device::PinnedBuffer::Allocate(kPlain));
  const auto there = OrDie(device::DeviceBuffer::Allocate(kPlain));
  const auto stream = OrDie(device::Stream::Create());
  const bool in = kind == cudaMemcpyHostToDevice;
  void* const to = in ? static_cast<void*>(there.data()) : host.bytes().data();
  const void* const from = in ? static_cast<const void*>(host.bytes().data()) : there.data();
  return Best(static_cast<double>(kPlain), [&] {
    OrDie(device::ToStatus(cudaMemcpyAsync(to, from, kPlain, kind, stream.get()), "copying"));
    OrDie(stream.Synchronize());
  });
}

struct Page {
  TierSlot host;
  TierSlot gpu;
  std::vector<uint32_t> crcs;
  std::unique_ptr<PendingTransfer> pending;
};

// Starts every page's transfer, no more than kUnderWay at a time.
void RunAll(std::vector<Page>& pages, const std::function<void(Page&)>& start) {
  for (size_t i = 0; i < pages.size() + kUnderWay; ++i) {
    if (i >= kUnderWay) {
      OrDie(pages[i - kUnderWay].pending->Wait());
      pages[i - kUnderWay].pending.reset();
    }
    if (i < pages.size()) start(pages[i]);
  }
}

void Measure(const char* name, uint64_t blocks, uint64_t block_bytes) {
  auto host = OrDie(HostTier::Create({.capacity_bytes = kBytes}));
  auto gpu = OrDie(GpuTier::Create(
      OrDie(MakeDeviceMemory({.bytes = kBytes, .device = 0, .host_arena = host->arena()}))));
  const uint64_t bytes = blocks * block_bytes + blocks * 4;
  std::vector<Page> pages;
  for (uint64_t used = 0; used + bytes < kBytes / 8 * 7; used += bytes) {
    pages.push_back({OrDie(host->Reserve(bytes)), OrDie(gpu->Reserve(bytes)),
                     std::vector<uint32_t>(blocks + 1), nullptr});
    std::mt19937_64 random(used);
    const MutableByteView page = host->Map(pages.back().host);
    for (size_t i = 0; i + 8 <= page.size(); i += 8) StoreLe(page.data() + i, random());
  }
  const TierPieces pieces[] = {{0, block_bytes, static_cast<uint32_t>(blocks)},
                               {blocks * block_bytes, blocks * 4, 1}};
  const auto in = [&](Page& page) {
    page.pending = OrDie(gpu->CopyIn(page.gpu, host->Map(page.host), pieces, page.crcs));
  };
  const auto out = [&](Page& page) {
    page.pending = OrDie(gpu->CopyOut(page.gpu, host->Map(page.host)));
  };
  const double all = static_cast<double>(bytes * pages.size());
  const double first = [&] {
    const auto start = std::chrono::steady_clock::now();
    RunAll(pages, in);
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    return all / time.count() * 1e-9;
  }();
  const double again = Best(all, [&] { RunAll(pages, in); });
  const double back = Best(all, [&] { RunAll(pages, out); });
  std::printf(
      "%s, %.2f MB: in, with checksums %.1f GB/s (%.1f while the host arena is being "
      "page-locked), out %.1f GB/s\n",
      name, static_cast<double>(bytes) * 1e-6, again, first, back);
  std::fflush(stdout);
  for (const Page& page : pages) {
    host->Release(page.host);
    gpu->Release(page.gpu);
  }
}

}  // namespace
}  // namespace oscarkv::testing

int main() {
  using namespace oscarkv::testing;
  std::printf("page-locked memory, plain copies: in %.1f GB/s, out %.1f GB/s\n",
              PlainCopy(cudaMemcpyHostToDevice), PlainCopy(cudaMemcpyDeviceToHost));
  // Qwen3-8B: 36 layers of 8 heads of 128, 64 tokens a page.
  Measure("PACKED pages", 36 * 8, 64 * 72);
  Measure("WIDE pages", 36 * 8, 64 * 512);
}
