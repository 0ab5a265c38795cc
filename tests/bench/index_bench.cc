// What the index costs at scale: fills a store with pages whose bytes take no memory, and measures
// the memory that is left, and lookups. Prints JSON.
//
//   index_bench [PAGES]      (default 10,000,000)
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include "kernels/base/checksum.h"
#include "server/core/clock.h"
#include "server/core/learnt_policy.h"
#include "server/core/page_store.h"

namespace oscarkv::bench {
namespace {

constexpr uint64_t kChainPages = 128;

// All of its slots are the same bytes: pages of one content take no memory.
class OnePageTier final : public MappedTier {
 public:
  explicit OnePageTier(uint64_t bytes)
      : bytes_(bytes), page_(std::make_unique<Line[]>(bytes / sizeof(Line) + 1)) {}
  TierKind kind() const override { return TierKind::kHost; }
  uint64_t capacity_bytes() const override { return uint64_t{1} << 46; }
  absl::StatusOr<TierSlot> Reserve(uint64_t bytes) override {
    if (bytes > bytes_) return absl::InvalidArgumentError("larger than the one page");
    return TierSlot{next_.fetch_add(kTierSlotAlignment, std::memory_order_relaxed), bytes};
  }
  void Release(const TierSlot& /*slot*/) override {}
  MutableByteView Map(const TierSlot& slot) override {
    return {reinterpret_cast<std::byte*>(page_.get()), slot.bytes};
  }
  void SetOwner(const TierSlot& /*slot*/, TierSlotOwner /*owner*/) override {}
  std::vector<TierSlotOwner> BeginEvacuation(
      uint64_t /*bytes*/, absl::FunctionRef<bool(TierSlotOwner)> /*movable*/) override {
    return {};
  }
  void EndEvacuation() override {}
  bool CanShrinkRegion(uint64_t, uint64_t) const override { return true; }
  TierStats Stats() const override { return {}; }

 private:
  struct alignas(kTierSlotAlignment) Line {
    std::byte bytes[kTierSlotAlignment];
  };
  const uint64_t bytes_;
  std::unique_ptr<Line[]> page_;
  std::atomic<uint64_t> next_{0};
};

uint64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  uint64_t total = 0;
  uint64_t resident = 0;
  file >> total >> resident;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// 32 bytes that look like a hash.
std::string KeyOf(uint64_t number) {
  std::string key(32, '\0');
  for (size_t i = 0; i < 4; ++i) {
    uint64_t word = (number * 4 + i + 1) * 0x9e3779b97f4a7c15u;
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9u;
    word = (word ^ (word >> 27)) * 0x94d049bb133111ebu;
    word ^= word >> 31;
    std::memcpy(&key[i * 8], &word, 8);
  }
  return key;
}

NamespaceSpec TinySpec(const std::string& tenant) {
  NamespaceSpec spec;
  spec.tenant = tenant;
  spec.model = "tiny";
  spec.geometry = {
      .layers = 1, .kv_heads = 1, .k_head_dim = 16, .v_head_dim = 16, .page_tokens = 1};
  return spec;
}

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The keys of one chain.
struct Keys {
  std::vector<std::string> keys;
  std::vector<std::string_view> views;
  explicit Keys(uint64_t chain) {
    for (uint64_t i = 0; i < kChainPages; ++i) keys.push_back(KeyOf(chain * kChainPages + i));
    views.assign(keys.begin(), keys.end());
  }
  Keys(const Keys&) = delete;
  Keys(Keys&&) = default;
};

nlohmann::json TimesOf(std::vector<double> us) {
  const double mean = std::accumulate(us.begin(), us.end(), 0.0) / static_cast<double>(us.size());
  std::sort(us.begin(), us.end());
  const auto at = [&](double share) {
    return us[static_cast<size_t>(share * static_cast<double>(us.size() - 1))];
  };
  return {{"mean", mean},   {"p10", at(0.1)},  {"p50", at(0.5)},
          {"p90", at(0.9)}, {"p99", at(0.99)}, {"p999", at(0.999)}};
}

class World {
 public:
  explicit World(uint64_t pages) : chains_(pages / kChainPages) {
    const Namespace probe = *Namespace::Create(TinySpec("holder"), 0);
    page_.resize(probe.page_bytes(Encoding::kWide));
    crc_ = Crc32c(page_);
    const uint64_t before = ResidentBytes();
    store_ = *PageStore::Create({}, std::make_unique<OnePageTier>(page_.size() + sizeof(crc_)),
                                std::make_unique<LearntPolicy>(), clock_);
    holder_ = *store_->OpenNamespace(TinySpec("holder"), true);
    other_ = *store_->OpenNamespace(TinySpec("other"), true);
    const auto start = std::chrono::steady_clock::now();
    for (uint64_t chain = 0; chain < chains_; ++chain) PutChain(chain);
    fill_s_ = SecondsSince(start);
    resident_bytes_ = ResidentBytes() - before;
  }

  nlohmann::json Run() {
    const StoreStats stats = store_->Stats();
    const auto pages = static_cast<double>(stats.pages);
    nlohmann::json out = {
        {"pages", stats.pages},
        {"fill_seconds", fill_s_},
        {"resident_bytes_per_page", static_cast<double>(resident_bytes_) / pages},
        {"told_bytes_per_page",
         static_cast<double>(stats.index_bytes + stats.policy_bytes) / pages},
    };
    // Chains that are not looked up twice, in an order that the processor cannot foresee.
    constexpr size_t kLookups = 20'000;
    std::vector<uint64_t> some(chains_);
    std::iota(some.begin(), some.end(), uint64_t{0});
    uint64_t random = 1;
    for (size_t i = some.size() - 1; i > 0; --i) {
      random = random * 6364136223846793005u + 1442695040888963407u;
      std::swap(some[i], some[(random >> 33) % (i + 1)]);
    }
    const auto chain = [&](size_t i) { return some[i % some.size()]; };
    const auto absent = [&](size_t i) { return chains_ + i; };
    out["prefix_us"] = TimesOf(Look(*holder_, LookupMode::kPrefix, kLookups, chain, kChainPages));
    // One key a lookup would measure the clock: all 128, each by itself, none of them there. Of
    // another tenant's keys, and of keys that nobody has.
    out["anothers_us"] = TimesOf(Look(*other_, LookupMode::kEach, kLookups, chain, 0));
    out["nobodys_us"] = TimesOf(Look(*other_, LookupMode::kEach, kLookups, absent, 0));
    for (const size_t threads : {size_t{1}, size_t{2}})
      out["keys_per_second_" + std::to_string(threads)] = KeysPerSecond(threads, chain);
    const uint64_t memory = ResidentBytes();
    constexpr uint64_t kProbes = 10'000'000;
    const auto start = std::chrono::steady_clock::now();
    for (uint64_t i = 0; i < kProbes / kChainPages; ++i) {
      const Keys keys(2 * chains_ + i);
      store_->Lookup(*holder_, {.keys = keys.views, .mode = LookupMode::kEach});
    }
    out["absent_probes"] = kProbes;
    out["absent_probes_seconds"] = SecondsSince(start);
    out["absent_probes_grew_bytes"] = static_cast<int64_t>(ResidentBytes() - memory);
    return out;
  }

 private:
  // Every page a put of its own, 128 to a request.
  void PutChain(uint64_t chain) {
    std::string parent;
    for (uint64_t i = 0; i < kChainPages; ++i) {
      std::string key = KeyOf(chain * kChainPages + i);
      BeginPutResult begun = store_->BeginPut(*holder_, {.key = key,
                                                         .parent = parent,
                                                         .first_position = i,
                                                         .bytes = page_.size(),
                                                         .block_crcs = {&crc_, 1},
                                                         .request = {.number = chain + 1},
                                                         .ends_put = i + 1 == kChainPages});
      if (!begun.result.ok() || !begun.slot.Commit().ok()) std::abort();
      parent = std::move(key);
    }
  }

  // Microseconds of each lookup.
  template <typename ChainOf>
  std::vector<double> Look(const Namespace& space, LookupMode mode, size_t count, ChainOf chain_of,
                           uint32_t expected) {
    std::vector<double> us;
    us.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      const Keys keys(chain_of(i));
      const auto start = std::chrono::steady_clock::now();
      const LookupResult found = store_->Lookup(space, {.keys = keys.views, .mode = mode});
      us.push_back(SecondsSince(start) * 1e6);
      if (found.prefix_pages != expected) std::abort();
    }
    return us;
  }

  // Of prefixes of 128 keys, for a second, on so many threads.
  template <typename ChainOf>
  double KeysPerSecond(size_t threads, ChainOf chain_of) {
    constexpr size_t kLookups = 5000;
    std::vector<std::vector<Keys>> keys(threads);
    for (size_t i = 0; i < threads * kLookups; ++i) keys[i % threads].emplace_back(chain_of(i));
    std::atomic<uint64_t> looked_up = 0;
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> running;
    for (const std::vector<Keys>& own : keys) {
      running.emplace_back([&] {
        for (size_t i = 0; SecondsSince(start) < 1.0; i = (i + 1) % own.size())
          looked_up += store_->Lookup(*holder_, {.keys = own[i].views}).prefix_pages;
      });
    }
    for (std::thread& thread : running) thread.join();
    return static_cast<double>(looked_up) / SecondsSince(start);
  }

  const uint64_t chains_;
  SystemClock clock_;
  std::vector<std::byte> page_;
  uint32_t crc_ = 0;
  std::unique_ptr<PageStore> store_;
  const Namespace* holder_ = nullptr;
  const Namespace* other_ = nullptr;
  uint64_t resident_bytes_ = 0;
  double fill_s_ = 0.0;
};

}  // namespace
}  // namespace oscarkv::bench

int main(int argc, char** argv) {
  const uint64_t pages = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 10'000'000;
  std::printf("%s\n", oscarkv::bench::World(pages).Run().dump(1).c_str());
  return 0;
}
