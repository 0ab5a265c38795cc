// Many threads on one small store, for ThreadSanitizer and for the invariants that races break. No
// sleeps: threads meet because the store is small.
#include <algorithm>
#include <array>
#include <atomic>
#include <barrier>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "server/core/copy_mover.h"
#include "server/core/re_encoder.h"
#include "server/tier/gpu_tier.h"
#include "server/tier/host_tier.h"
#include "tests/core/store_test.h"
#include "tests/support/fake_device_memory.h"

namespace oscarkv::testing {
namespace {

constexpr uint64_t kChains = 12;
constexpr uint32_t kChainPages = 6;
constexpr uint64_t kUnit = 8704;     // eight WIDE pages with their checksums
constexpr uint64_t kGpuUnit = 2176;  // two

class StoreStressTest : public StoreTest {
 protected:
  void SetUp() override {
    // 48 WIDE pages for 72: always under pressure; small units, so that regions change size.
    Begin(nullptr);
  }
  void Begin(std::unique_ptr<PageCopies> copies) {
    store_.reset();
    chains_.clear();
    auto tier = HostTier::Create({.capacity_bytes = 6 * kUnit, .unit_bytes = kUnit});
    ASSERT_OK(tier);
    OpenOver(*std::move(tier), {.leased_share_max = 0.3}, std::move(copies));
    for (uint64_t i = 0; i < kChains; ++i) {
      chains_.push_back(
          Chain(space(), i * 100, kChainPages, i % 3 == 0 ? Encoding::kPacked : Encoding::kWide));
      for (const TestItem& item : chains_.back())
        pages_[item.key] = MakePage(space(), item.encoding, item.seed);
    }
  }
  // WIDE pages become PACKED from now on, as soon as they are there.
  void ReEncode() {
    codec_ = MakeCodec(space());
    store().SetStoreWide(space(), StoreWide::kNever);
    store().SetCodec(space(), codec_.get());
    for (const auto& [key, page] : pages_)
      if (page.bytes.size() == space().page_bytes(Encoding::kWide))
        packed_forms_[key] = PackedFormOf(*codec_, page);
  }

  // Runs every worker on a thread of its own, each with a random source of its own, for `steps`.
  using Worker = std::function<void(std::mt19937_64&)>;
  static void RunAll(const std::vector<Worker>& workers, int steps) {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < workers.size(); ++i) {
      threads.emplace_back([&worker = workers[i], i, steps] {
        std::mt19937_64 random(i);
        for (int step = 0; step < steps; ++step) worker(random);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  const std::vector<TestItem>& Some(std::mt19937_64& random) const {
    return chains_[random() % chains_.size()];
  }
  // Puts a chain as far as it goes, sometimes dropping a page half written.
  void PutSome(std::mt19937_64& random) {
    for (const TestItem& item : Some(random)) {
      const TestPage& page = pages_.at(item.key);
      BeginPutResult begun = store().BeginPut(space(), AsPutItem(item, page));
      if (begun.result.status == ItemStatus::kExists) continue;
      if (!begun.result.ok() || random() % 20 == 0) return;
      std::memcpy(begun.slot.bytes().data(), page.bytes.data(), page.bytes.size());
      const ItemStatus committed = begun.slot.Commit().status;
      if (committed == ItemStatus::kConflict || committed == ItemStatus::kCorrupt) ++wrong_;
    }
  }
  void ReadSome(std::mt19937_64& random) {
    const auto& chain = Some(random);
    std::vector<PinnedPage> held;
    for (const TestItem& item : chain) {
      PinResult pin = store().Pin(space(), item.key);
      if (pin.status != ItemStatus::kOk) break;
      held.push_back(std::move(pin.page));
    }
    store().Touch(space(), KeysOf(chain));
    for (size_t i = 0; i < held.size(); ++i) {
      const auto bytes = held[i].VerifiedPage();
      const std::string& key = chain[i].key;
      const bool re_encoded = held[i].meta().encoding != chain[i].encoding;
      const std::vector<std::byte>& expected = (re_encoded ? packed_forms_ : pages_).at(key).bytes;
      if (!bytes.ok() || !std::ranges::equal(*bytes, expected)) ++wrong_;
    }
  }
  void LeaseSome(std::mt19937_64& random) {
    const SessionId session = store().OpenSession("stress");
    for (int i = 0; i < 3; ++i) {
      const auto keys = KeysOf(Some(random));
      const LookupResult found =
          store().Lookup(space(), {.keys = keys,
                                   .lease_session = session,
                                   .lease_duration = absl::Seconds(1 + random() % 3)});
      if (found.lease != 0) {
        // What is leased is there as long as the lease is, in the form that it had.
        const LookupResult again = store().Lookup(space(), {.keys = keys});
        if (again.prefix_pages < found.prefix_pages && !deleting_) ++wrong_;
        for (uint32_t page = 0; page < found.prefix_pages && !deleting_; ++page)
          if (again.pages[page].meta.encoding != found.pages[page].meta.encoding) ++wrong_;
        if (random() % 2 == 0) store().ReleaseLease(found.lease);
      }
    }
    store().CloseSession(session);
  }
  void ExpectDrained() {
    const StoreStats stats = store().Stats();
    EXPECT_EQ(wrong_, 0);
    EXPECT_EQ(stats.pins, 0u);
    EXPECT_EQ(stats.holds, 0u);
    EXPECT_EQ(stats.open_puts, 0u);
    EXPECT_EQ(stats.leases, 0u);
    EXPECT_EQ(stats.leased_bytes, 0u);
    EXPECT_EQ(stats.detached_pages, 0u);
    EXPECT_EQ(stats.ladder.retired_slots, 0u);
    EXPECT_EQ(stats.tiers.back().reserved_slots, stats.pages);
    uint64_t of_tenants = 0;
    for (const TenantStats& tenant : stats.tenants) of_tenants += tenant.host_bytes;
    EXPECT_EQ(of_tenants, stats.tiers.back().used_bytes);
    store().Clear(space());
    EXPECT_EQ(store().Stats().pages, 0u);
    for (const TierStats& tier : store().Stats().tiers) EXPECT_EQ(tier.reserved_slots, 0u);
    EXPECT_EQ(UsedBytes(), 0u);
    for (const TenantStats& tenant : store().Stats().tenants) {
      EXPECT_EQ(tenant.host_bytes, 0u);
      EXPECT_EQ(tenant.host_pages, 0u);
      EXPECT_EQ(tenant.gpu_bytes, 0u);
      EXPECT_EQ(tenant.pinned_bytes, 0u);
    }
  }

  std::vector<std::vector<TestItem>> chains_;
  std::map<std::string, TestPage> pages_;
  std::unique_ptr<PageCodec> codec_;
  std::map<std::string, TestPage> packed_forms_;
  std::atomic<int> wrong_{0};
  bool deleting_ = false;
};

TEST_F(StoreStressTest, PutsReadsAndLeasesUnderPressure) {
  const Worker put = [this](std::mt19937_64& random) { PutSome(random); };
  const Worker read = [this](std::mt19937_64& random) { ReadSome(random); };
  const Worker lease = [this](std::mt19937_64& random) { LeaseSome(random); };
  RunAll({put, put, put, read, read, lease}, 400);
  EXPECT_GT(store().Stats().counters.removed_by_reason[0], 0u);
  ExpectDrained();
}

TEST_F(StoreStressTest, EverythingAtOnce) {
  deleting_ = true;
  const Worker put = [this](std::mt19937_64& random) { PutSome(random); };
  const Worker read = [this](std::mt19937_64& random) { ReadSome(random); };
  const Worker lease = [this](std::mt19937_64& random) { LeaseSome(random); };
  const Worker care = [this](std::mt19937_64& random) {
    const auto& chain = Some(random);
    const std::string_view key = chain[random() % chain.size()].key;
    switch (random() % 8) {
      case 0:
        store().Clear(space());
        break;
      case 1:
        store().List(space(), 7, 0);
        break;
      case 2:
        store().Verify(0, 20'000);
        break;
      case 3:
        clock_.Advance(absl::Seconds(1));
        store().ExpireLeases();
        break;
      case 4:
        store().Stats();
        break;
      default:
        store().Delete(space(), {&key, 1});
    }
  };
  RunAll({put, put, read, read, lease, care}, 400);
  ExpectDrained();
}

TEST_F(StoreStressTest, TenantsAndTheirQuotasChangeMeanwhile) {
  deleting_ = true;
  NamespaceSpec spec = SmallSpec();
  spec.tenant = "other";
  const Namespace& other = **store().OpenNamespace(spec, true);
  const Worker put = [this](std::mt19937_64& random) { PutSome(random); };
  const Worker put_other = [&](std::mt19937_64& random) {
    for (const TestItem& item : Some(random)) PutPage(store(), other, item);
  };
  const Worker read = [this](std::mt19937_64& random) { ReadSome(random); };
  const Worker lease = [this](std::mt19937_64& random) { LeaseSome(random); };
  const Worker quotas = [&](std::mt19937_64& random) {
    TenantQuotas changed;
    const uint64_t most = (5 + random() % 60) * kWideSlotBytes;
    if (random() % 2 == 0) changed.named["other"].host_bytes = most;
    if (random() % 2 == 0) changed.named["default"].host_pages = 10 + random() % 30;
    changed.named["default"].protected_host_bytes = (random() % 40) * kWideSlotBytes;
    store().SetQuotas(std::move(changed));
    store().EnforceQuotas();
    store().Stats();
    std::string name = absl::StrCat("tenant ", random() % 5);
    NamespaceSpec another = SmallSpec();
    another.tenant = std::move(name);
    EXPECT_OK(store().OpenNamespace(another, true).status());
  };
  RunAll({put, put_other, put_other, read, lease, quotas}, 400);
  store().SetQuotas({});
  EXPECT_GT(store().Stats().tenants[0].evicted_pages, 0u);
  store().Clear(other);
  ExpectDrained();
}

TEST_F(StoreStressTest, CopiesComeAndGoMeanwhile) {
  deleting_ = true;
  const auto faults = std::make_shared<DeviceFaults>();
  // A dozen copies for more pages than that.
  auto gpu = *GpuTier::Create(std::make_unique<FakeDeviceMemory>(6 * kGpuUnit, faults), kGpuUnit);
  Begin(*PageCopies::Create({.window = absl::Nanoseconds(30)}, std::move(gpu)));
  const Worker put = [this](std::mt19937_64& random) { PutSome(random); };
  const Worker read = [this](std::mt19937_64& random) {
    clock_.Advance(absl::Nanoseconds(1));
    ReadSome(random);
  };
  const Worker copies = [this](std::mt19937_64& random) {
    std::vector<PinnedCopy> held;
    for (const TestItem& item : Some(random)) {
      const PinResult pin = store().Pin(space(), item.key);
      if (pin.status == ItemStatus::kOk) held.push_back(store().PinCopy(pin.page));
    }
  };
  const Worker care = [this](std::mt19937_64& random) {
    const auto& chain = Some(random);
    const std::string_view key = chain[random() % chain.size()].key;
    if (random() % 3 == 0) store().Delete(space(), {&key, 1});
  };
  {
    const CopyWorker worker(store(), {.pages_max = 4}, [](const std::string&) {});
    RunAll({put, put, read, read, copies, care}, 400);
    EXPECT_EQ(wrong_, 0);
    // However seldom the worker had its turn.
    while (store().Stats().copies.copied_pages == 0) RunAll({put, read, read}, 10);
    faults->FailWait(0, absl::UnavailableError("lost"));
    RunAll({put, read, copies}, 100);
  }
  ExpectDrained();
}

TEST_F(StoreStressTest, PagesAreReEncodedMeanwhile) {
  for (const bool deleting : {false, true}) {
    deleting_ = deleting;
    const auto faults = std::make_shared<DeviceFaults>();
    auto gpu = *GpuTier::Create(std::make_unique<FakeDeviceMemory>(6 * kGpuUnit, faults), kGpuUnit);
    Begin(*PageCopies::Create({.window = absl::Nanoseconds(30)}, std::move(gpu)));
    ReEncode();
    const Worker put = [this](std::mt19937_64& random) { PutSome(random); };
    const Worker read = [this](std::mt19937_64& random) {
      clock_.Advance(absl::Nanoseconds(1));
      ReadSome(random);
    };
    const Worker lease = [this](std::mt19937_64& random) { LeaseSome(random); };
    const Worker care = [this, deleting](std::mt19937_64& random) {
      const auto& chain = Some(random);
      const std::string_view key = chain[random() % chain.size()].key;
      if (deleting) store().Delete(space(), {&key, 1});
      store().Stats();
      store().Verify(0, 20'000);
      store().SetStoreWide(space(), random() % 4 == 0 ? StoreWide::kTail : StoreWide::kNever);
    };
    {
      const CopyWorker worker(store(), {.pages_max = 4}, [](const std::string&) {});
      const ReEncodePool pool(store(), {.max_cores = 2.0});
      RunAll({put, put, read, read, lease, care}, 300);
      store().SetStoreWide(space(), StoreWide::kNever);
      // However seldom the pool had its turn.
      while (store().Stats().ladder.due_pages == 0) RunAll({put, read, read}, 10);
    }
    ExpectDrained();
  }
}

TEST_F(StoreStressTest, OfManyWritersOfOneKeyOneWins) {
  // Four threads commit under one key at the same moment, two by two with the same bytes.
  const auto chain = Chain(space(), 5000, 1);
  for (int round = 0; round < 300; ++round) {
    std::vector<PutSlot> slots;
    for (uint64_t writer = 0; writer < 4; ++writer) {
      TestItem item = chain[0];
      item.seed = writer / 2;
      const TestPage page = MakePage(space(), item.encoding, item.seed);
      BeginPutResult begun = store().BeginPut(space(), AsPutItem(item, page));
      ASSERT_TRUE(begun.result.ok());
      std::memcpy(begun.slot.bytes().data(), page.bytes.data(), page.bytes.size());
      slots.push_back(std::move(begun.slot));
    }
    std::barrier start(4);
    std::array<ItemStatus, 4> outcomes{};
    std::vector<std::thread> threads;
    for (size_t writer = 0; writer < 4; ++writer) {
      threads.emplace_back([&, writer] {
        start.arrive_and_wait();
        outcomes[writer] = slots[writer].Commit().status;
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(std::ranges::count(outcomes, ItemStatus::kOk), 1);
    EXPECT_EQ(std::ranges::count(outcomes, ItemStatus::kExists), 1);
    EXPECT_EQ(std::ranges::count(outcomes, ItemStatus::kConflict), 2);
    EXPECT_EQ(store().Stats().pages, 1u);
    const std::string_view key = chain[0].key;
    EXPECT_EQ(store().Delete(space(), {&key, 1})[0], ItemStatus::kOk);
  }
  ExpectDrained();
}

}  // namespace
}  // namespace oscarkv::testing
