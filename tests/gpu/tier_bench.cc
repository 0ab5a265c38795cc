// The GPU tier's transfers against plain copies of page-locked memory, each way, in one run.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"
#include "kernels/device/buffer.h"
#include "kernels/device/status.h"
#include "kernels/device/stream.h"
#include "server/core/copy_mover.h"
#include "server/core/page_store.h"
#include "server/tier/gpu_tier.h"
#include "server/tier/host_tier.h"
#include "tests/gpu/gpu_bench.h"
#include "tests/gpu/gpu_cache.h"
#include "tests/support/store_pages.h"

namespace oscarkv::testing {
namespace {

constexpr uint64_t kBytes = uint64_t{2} << 30;
constexpr int kRepeats = 11;
constexpr int kStoreRepeats = 3;
constexpr uint64_t kStoreBytes = uint64_t{1} << 30;
constexpr size_t kUnderWay = 16;

// GB/s; the median of `repeats` runs.
double Rate(double bytes, int repeats, const std::function<void()>& run) {
  std::vector<double> rates;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    rates.push_back(bytes / time.count() * 1e-9);
  }
  std::sort(rates.begin(), rates.end());
  return rates[rates.size() / 2];
}

double PlainCopy(cudaMemcpyKind kind) {
  constexpr uint64_t kPlain = uint64_t{1} << 30;
  const auto host = OrDie(device::PinnedBuffer::Allocate(kPlain));
  const auto there = OrDie(device::DeviceBuffer::Allocate(kPlain));
  const auto stream = OrDie(device::Stream::Create());
  const bool in = kind == cudaMemcpyHostToDevice;
  void* const to = in ? static_cast<void*>(there.data()) : host.bytes().data();
  const void* const from = in ? static_cast<const void*>(host.bytes().data()) : there.data();
  return Rate(static_cast<double>(kPlain), kRepeats, [&] {
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

struct Copies {
  double in;
  double out;
};

void Tell(Bench& bench, const std::string& name, double rate, double copy) {
  bench.AddRow("tier", {{"name", name}, {"gb_per_s", rate}, {"of_copy", rate / copy}});
  std::printf("%-40s %27.2f %6.0f %%\n", name.c_str(), rate, 100.0 * rate / copy);
  std::fflush(stdout);
}

void Measure(Bench& bench, const Copies& plain, const std::string& name, uint64_t blocks,
             uint64_t block_bytes) {
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
  // The first transfers page-lock the host arena.
  Tell(bench, "promote_first/" + name, Rate(all, 1, [&] { RunAll(pages, in); }), plain.in);
  Tell(bench, "promote/" + name, Rate(all, kRepeats, [&] { RunAll(pages, in); }), plain.in);
  Tell(bench, "demote/" + name, Rate(all, kRepeats, [&] { RunAll(pages, out); }), plain.out);
  for (const Page& page : pages) {
    host->Release(page.host);
    gpu->Release(page.gpu);
  }
}

// The same through the store: uses queue the pages, the mover pins, copies, compares, publishes.
void MeasureStore(Bench& bench, const Copies& plain) {
  auto host = OrDie(HostTier::Create({.capacity_bytes = kStoreBytes}));
  auto copies = OrDie(PageCopies::Create(
      {}, OrDie(GpuTier::Create(OrDie(MakeDeviceMemory(
              {.bytes = kStoreBytes, .device = 0, .host_arena = host->arena()}))))));
  const SystemClock clock;
  const auto store =
      OrDie(PageStore::Create({}, std::move(host), nullptr, clock, std::move(copies)));
  NamespaceSpec spec = SmallSpec();
  spec.geometry = kQwen3;
  spec.geometry.layers = 36;
  spec.codec.bits = {{.k = 2, .v = 2}};
  const Namespace& space = *OrDie(store->OpenNamespace(spec, true));
  const uint64_t page_bytes = space.page_bytes(Encoding::kPacked);
  const auto chain =
      Chain(space, 0, static_cast<uint32_t>(kStoreBytes / 8 * 7 / page_bytes), Encoding::kPacked);
  const TestPage page = MakePage(space, Encoding::kPacked, 0);
  CopyMover mover(*store, {});
  const auto put_and_use = [&] {
    store->Clear(space);
    for (const TestItem& item : chain) {
      BeginPutResult begun = store->BeginPut(space, AsPutItem(item, page));
      std::ranges::copy(page.bytes, begun.slot.bytes().begin());
      OrDie(begun.slot.Commit().ok() ? absl::OkStatus() : absl::InternalError("a put failed"));
    }
    for (int i = 0; i < 2; ++i) store->Touch(space, KeysOf(chain));
  };
  const auto move_all = [&] {
    put_and_use();
    const auto start = std::chrono::steady_clock::now();
    while (mover.Step()) {
    }
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    return static_cast<double>(page_bytes * chain.size()) / time.count() * 1e-9;
  };
  move_all();  // page-locks the host arena
  std::vector<double> rates;
  for (int i = 0; i < kStoreRepeats; ++i) rates.push_back(move_all());
  std::sort(rates.begin(), rates.end());
  if (store->Stats().copies.copied_pages != (kStoreRepeats + 1) * chain.size())
    OrDie(absl::InternalError("a page was not copied"));
  Tell(bench, "promote_by_store/packed", rates[rates.size() / 2], plain.in);
}

}  // namespace

void BenchTier(Bench& bench) {
  if (!bench.Wants("tier")) return;
  const Copies plain{PlainCopy(cudaMemcpyHostToDevice), PlainCopy(cudaMemcpyDeviceToHost)};
  std::printf("%-40s %27s %8s   (copies: in %.2f, out %.2f GB/s)\n", "the GPU tier, with checksums",
              "GB/s", "of copy", plain.in, plain.out);
  // Qwen3-8B: 36 layers of 8 heads of 128, 64 tokens a page.
  Measure(bench, plain, "packed", 36 * 8, 64 * 72);
  Measure(bench, plain, "wide", 36 * 8, 64 * 512);
  MeasureStore(bench, plain);
}

}  // namespace oscarkv::testing
