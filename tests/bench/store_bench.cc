// The store's index and data path, in one process: what a lookup, a put under pressure, a fetch and
// a lease cost. Pages are those of SmolLM2-135M with 16 tokens (30 layers, 3 heads of 64): 57,600
// bytes PACKED.
#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "benchmark/benchmark.h"

#include "kernels/base/checksum.h"
#include "kernels/codec/oscar/format.h"
#include "server/core/clock.h"
#include "server/core/page_store.h"
#include "server/core/re_encoder.h"
#include "server/tier/host_tier.h"

namespace oscarkv {
namespace {

// Pages of one WIDE block of 64 bytes, for what depends on their number only.
NamespaceSpec TinySpec() {
  NamespaceSpec spec;
  spec.model = "tiny";
  spec.geometry = {
      .layers = 1, .kv_heads = 1, .k_head_dim = 16, .v_head_dim = 16, .page_tokens = 1};
  return spec;
}

NamespaceSpec SmolSpec() {
  NamespaceSpec spec;
  spec.model = "SmolLM2-135M";
  spec.geometry = {
      .layers = 30, .kv_heads = 3, .k_head_dim = 64, .v_head_dim = 64, .page_tokens = 16};
  spec.codec.transform_hash = std::string(32, 'T');
  spec.codec.sink_tokens = 0;
  return spec;
}

std::string KeyOf(uint64_t number) {
  std::string key(32, '\0');
  // Spread like a hash.
  for (size_t i = 0; i < 4; ++i) {
    const uint64_t word = (number + i) * 0x9e3779b97f4a7c15u;
    std::memcpy(&key[i * 8], &word, 8);
  }
  return key;
}

struct World {
  SystemClock clock;
  std::unique_ptr<PageStore> store;
  const Namespace* space = nullptr;
  Encoding encoding = Encoding::kWide;
  std::vector<std::byte> page;
  std::vector<uint32_t> crcs;

  World(const NamespaceSpec& spec, Encoding page_encoding, uint64_t capacity_bytes)
      : encoding(page_encoding) {
    store = *PageStore::Create({}, *HostTier::Create({.capacity_bytes = capacity_bytes}), nullptr,
                               clock);
    space = *store->OpenNamespace(spec, true);
    const PageLayout& layout = space->layout(encoding);
    page.resize(layout.page_bytes());
    for (uint32_t layer = 0; layer < spec.geometry.layers; ++layer) {
      for (uint32_t head = 0; head < spec.geometry.kv_heads; ++head) {
        const MutableByteView block = MutableByteView(page).subspan(
            layout.block_offset(layer, head), layout.block(layer).bytes);
        std::fill(block.begin(), block.end(), static_cast<std::byte>(layer + head));
        crcs.push_back(Crc32c(block));
      }
    }
  }

  void Put(std::string_view key, std::string_view parent, uint64_t position) {
    BeginPutResult begun = store->BeginPut(*space, {.key = key,
                                                    .parent = parent,
                                                    .first_position = position,
                                                    .encoding = encoding,
                                                    .bytes = page.size(),
                                                    .block_crcs = crcs});
    std::memcpy(begun.slot.bytes().data(), page.data(), page.size());
    benchmark::DoNotOptimize(begun.slot.Commit());
  }
};

constexpr uint64_t kChainPages = 128;

// Chains of 128 pages, `pages` in all, and the keys of each.
struct Chains {
  World world;
  std::vector<std::vector<std::string>> keys;
  std::vector<std::vector<std::string_view>> views;

  explicit Chains(uint64_t pages) : world(TinySpec(), Encoding::kWide, pages * 160 + (16 << 20)) {
    for (uint64_t chain = 0; chain < pages / kChainPages; ++chain) {
      keys.emplace_back();
      for (uint64_t i = 0; i < kChainPages; ++i) {
        keys.back().push_back(KeyOf(chain * kChainPages + i));
        world.Put(keys.back()[i], i == 0 ? std::string_view() : keys.back()[i - 1], i);
      }
      views.emplace_back(keys.back().begin(), keys.back().end());
    }
  }
};

Chains& ChainsOf(uint64_t pages) {
  static std::unique_ptr<Chains> chains;
  static uint64_t held = 0;
  if (held != pages) {
    chains.reset();
    chains = std::make_unique<Chains>(pages);
    held = pages;
  }
  return *chains;
}

// Chains in an order that the processor cannot foresee, so that records come from memory.
size_t NextChain(size_t* state, size_t count) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (*state >> 33) % count;
}

void BM_Lookup128(benchmark::State& state) {
  Chains& chains = ChainsOf(static_cast<uint64_t>(state.range(0)));
  size_t random = 1;
  for (auto _ : state) {
    const auto& keys = chains.views[NextChain(&random, chains.views.size())];
    benchmark::DoNotOptimize(chains.world.store->Lookup(*chains.world.space, {.keys = keys}));
  }
  state.SetItemsProcessed(state.iterations() * int64_t{kChainPages});
  const StoreStats stats = chains.world.store->Stats();
  state.counters["pages"] = static_cast<double>(stats.pages);
  state.counters["index_bytes_per_page"] =
      static_cast<double>(stats.index_bytes) / static_cast<double>(stats.pages);
}
BENCHMARK(BM_Lookup128)->ArgName("pages")->Arg(1 << 14)->Arg(1 << 20);

void BM_LookupMiss(benchmark::State& state) {
  Chains& chains = ChainsOf(1 << 20);
  const std::string key = KeyOf(uint64_t{1} << 40);
  const std::vector<std::string_view> keys(kChainPages, key);
  for (auto _ : state)
    benchmark::DoNotOptimize(chains.world.store->Lookup(*chains.world.space, {.keys = keys}));
}
BENCHMARK(BM_LookupMiss);

void BM_LeaseAndRelease128(benchmark::State& state) {
  Chains& chains = ChainsOf(1 << 20);
  PageStore& store = *chains.world.store;
  const SessionId session = store.OpenSession("bench");
  size_t random = 1;
  for (auto _ : state) {
    const auto& keys = chains.views[NextChain(&random, chains.views.size())];
    const LookupResult found =
        store.Lookup(*chains.world.space, {.keys = keys, .lease_session = session});
    store.ReleaseLease(found.lease);
  }
  store.CloseSession(session);
  state.SetItemsProcessed(state.iterations() * int64_t{kChainPages});
}
BENCHMARK(BM_LeaseAndRelease128);

void BM_Touch128(benchmark::State& state) {
  Chains& chains = ChainsOf(1 << 20);
  size_t random = 1;
  for (auto _ : state) {
    const auto& keys = chains.views[NextChain(&random, chains.views.size())];
    benchmark::DoNotOptimize(chains.world.store->Touch(*chains.world.space, keys));
  }
  state.SetItemsProcessed(state.iterations() * int64_t{kChainPages});
}
BENCHMARK(BM_Touch128);

// A full store: each put evicts a page. Beside it, the copy of the page alone.
void BM_PutAndEvict(benchmark::State& state) {
  World world(SmolSpec(), Encoding::kPacked, 64 << 20);
  uint64_t next = 0;
  for (; world.store->Stats().counters.evicted_bytes == 0; ++next) world.Put(KeyOf(next), {}, 0);
  for (auto _ : state) world.Put(KeyOf(next++), {}, 0);
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(world.page.size()));
}
BENCHMARK(BM_PutAndEvict);

void BM_PinVerifyCopy(benchmark::State& state) {
  World world(SmolSpec(), Encoding::kPacked, 64 << 20);
  constexpr uint64_t kPages = 900;
  std::vector<std::string> keys;
  for (uint64_t i = 0; i < kPages; ++i) {
    keys.push_back(KeyOf(i));
    world.Put(keys.back(), {}, 0);
  }
  std::vector<std::byte> out(world.page.size());
  uint64_t next = 0;
  for (auto _ : state) {
    PinResult pin = world.store->Pin(*world.space, keys[next++ % kPages]);
    const ByteView bytes = *pin.page.VerifiedPage();
    std::memcpy(out.data(), bytes.data(), bytes.size());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(world.page.size()));
}
BENCHMARK(BM_PinVerifyCopy);

// What the two above are to be compared with: 64 MiB of pages, copied one after another.
void BM_MemcpyPage(benchmark::State& state) {
  const World world(SmolSpec(), Encoding::kPacked, 1 << 20);
  const size_t bytes = world.page.size();
  const std::vector<std::byte> source(bytes * 900, std::byte{1});
  std::vector<std::byte> out(bytes);
  size_t next = 0;
  for (auto _ : state) {
    std::memcpy(out.data(), source.data() + bytes * (next++ % 900), bytes);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(bytes));
}
BENCHMARK(BM_MemcpyPage);

NamespaceSpec QwenSpec() {
  NamespaceSpec spec;
  spec.model = "Qwen3-8B";
  spec.geometry = {
      .layers = 36, .kv_heads = 8, .k_head_dim = 128, .v_head_dim = 128, .page_tokens = 64};
  spec.codec.transform_hash = std::string(32, 'T');
  spec.codec.sink_tokens = 0;
  return spec;
}

// One page of Qwen3-8B with 64 tokens, 9.4 MB, from WIDE to PACKED in place: verified, encoded, a
// layer compared, the slots exchanged. Its rows are Gaussian.
void BM_ReEncode(benchmark::State& state) {
  World world(QwenSpec(), Encoding::kWide, 256 << 20);
  const Geometry& geometry = world.space->spec().geometry;
  const PageLayout& layout = world.space->layout(Encoding::kWide);
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  world.crcs.clear();
  for (size_t i = 0; i < world.page.size(); i += 2)
    StoreElement(world.page.data() + i, DType::kBf16, normal(random));
  for (uint32_t block = 0; block < geometry.blocks(); ++block) {
    const uint64_t offset =
        layout.block_offset(block / geometry.kv_heads, block % geometry.kv_heads);
    world.crcs.push_back(Crc32c(ByteView(world.page).subspan(offset, layout.block(0).bytes)));
  }
  const auto codec = *MakePageCodec(
      CodecBackend::kCpu, geometry, world.space->spec().codec,
      std::make_shared<const TransformSet>(*MakeHadamardTransformSet(geometry, 0.86f, 0.86f)));
  world.store->SetStoreWide(*world.space, StoreWide::kNever);
  world.store->SetCodec(*world.space, codec.get());
  ReEncoder encoder(*world.store);
  uint64_t next = 0;
  for (auto _ : state) {
    state.PauseTiming();
    world.Put(KeyOf(next++), {}, 0);
    state.ResumeTiming();
    benchmark::DoNotOptimize(encoder.Step());
  }
  const LadderStats stats = world.store->Stats().ladder;
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(world.page.size()));
  const auto pages = static_cast<double>(stats.due_pages);
  state.counters["cpu_ms_per_page"] = static_cast<double>(stats.cpu_ns) / 1e6 / pages;
  state.counters["k_error"] = stats.k_error.sum / pages;
  state.counters["v_error"] = stats.v_error.sum / pages;
}
BENCHMARK(BM_ReEncode)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace oscarkv

BENCHMARK_MAIN();
