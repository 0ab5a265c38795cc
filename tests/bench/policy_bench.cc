// What an eviction policy costs over a million pages, requests of one page and of 64.
#include <memory>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"

#include "server/core/learnt_policy.h"
#include "server/core/lru_policy.h"

namespace oscarkv::bench {
namespace {

constexpr PageId kPages = 1'000'000;

uint64_t HashOf(uint64_t number) { return (number + 1) * 0x9e3779b97f4a7c15; }

// Requests that store `run` pages each, a chain; time passes with them.
class Load {
 public:
  Load(std::unique_ptr<EvictionPolicy> policy, PageId run) : policy_(std::move(policy)), run_(run) {
    for (PageId first = 0; first + run_ <= kPages; first += run_) Put(first);
  }

  void Put(PageId first) {
    now_ += absl::Microseconds(500) * run_;
    const uint64_t request = ++requests_;
    for (PageId i = 0; i < run_; ++i) {
      PageTraits traits;
      traits.parent = i == 0 ? kNoPage : first + i - 1;
      traits.first_position = i;
      traits.key_hash = HashOf(++keys_);
      traits.ends_put = i + 1 == run_;
      traits.request.number = request;
      traits.request.new_tokens = uint64_t{run_} * 64;
      traits.request.output_tokens = static_cast<uint32_t>(request * 37 % 700);
      traits.now = now_;
      if (i > 0) policy_->SetEvictable(first + i - 1, false);
      policy_->OnInsert(first + i, traits);
      policy_->SetEvictable(first + i, true);
    }
  }

  // One request's pages used again.
  void Use(PageId first) {
    now_ += absl::Microseconds(500) * run_;
    used_.clear();
    for (PageId i = run_; i-- > 0;) used_.push_back({first + i, HashOf(first + i)});
    policy_->OnUse(used_, {.number = ++requests_, .output_tokens = 100}, now_);
  }

  // As the store makes room: as many pages go as a request stores; their numbers are used anew.
  void PutAndEvict() {
    for (PageId i = 0; i < run_;) {
      const PageId victim = *policy_->Victim(now_);
      if (victim % run_ != 0) policy_->SetEvictable(victim - 1, true);
      policy_->OnRemove(victim, RemoveReason::kEvicted);
      if (victim % run_ == 0) free_.push_back(victim);
      ++i;
    }
    if (free_.empty()) return;  // runs that are half gone
    Put(free_.back());
    free_.pop_back();
  }

  double bytes_a_page() const {
    return static_cast<double>(policy_->memory_bytes()) / static_cast<double>(kPages);
  }

 private:
  std::unique_ptr<EvictionPolicy> policy_;
  const PageId run_;
  absl::Duration now_ = absl::Seconds(1);
  uint64_t requests_ = 0;
  uint64_t keys_ = 0;
  std::vector<UsedPage> used_;
  std::vector<PageId> free_;
};

std::unique_ptr<EvictionPolicy> Make(const std::string& name) {
  if (name == "lru") return std::make_unique<LruPolicy>();
  return std::make_unique<LearntPolicy>();
}

void Use(benchmark::State& state, const std::string& name, PageId run) {
  Load load(Make(name), run);
  uint64_t next = 1;
  for (auto _ : state) {
    next = next * 6364136223846793005 + 1442695040888963407;
    load.Use(static_cast<PageId>((next >> 33) % (kPages / run)) * run);
  }
  state.SetItemsProcessed(state.iterations() * run);
}

void PutAndEvict(benchmark::State& state, const std::string& name, PageId run) {
  Load load(Make(name), run);
  for (auto _ : state) load.PutAndEvict();
  state.SetItemsProcessed(state.iterations() * run);
  state.counters["bytes_a_page"] = load.bytes_a_page();
}

[[maybe_unused]] const bool kRegistered = [] {
  for (const std::string name : {"lru", "learnt"}) {
    for (const PageId run : {PageId{1}, PageId{64}}) {
      const std::string suffix = "/" + name + "/" + std::to_string(run);
      benchmark::RegisterBenchmark(("Use" + suffix).c_str(),
                                   [=](benchmark::State& state) { Use(state, name, run); });
      benchmark::RegisterBenchmark(("PutAndEvict" + suffix).c_str(),
                                   [=](benchmark::State& state) { PutAndEvict(state, name, run); });
    }
  }
  return true;
}();

}  // namespace
}  // namespace oscarkv::bench

BENCHMARK_MAIN();
