// Copies of pages in a faster tier: which pages get one, how long it stays, and what faults of the
// tier's memory do. The mover runs step by step on the test's thread.
#include <algorithm>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/base/checksum.h"
#include "server/core/copy_mover.h"
#include "server/tier/gpu_tier.h"
#include "tests/core/store_test.h"
#include "tests/support/fake_device_memory.h"

namespace oscarkv::testing {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kWindow = absl::Seconds(60);
constexpr uint64_t kUnit =
    1088;  // one WIDE page of SmallSpec with its checksums, or several PACKED

class PageCopiesTest : public StoreTest {
 protected:
  void SetUp() override { Begin(8); }

  // A store of 64 pages, with room for `copies` copies.
  void Begin(uint64_t copies, PageCopiesOptions options = {}) {
    mover_.reset();
    store_.reset();
    faults_ = std::make_shared<DeviceFaults>();
    auto tier = GpuTier::Create(std::make_unique<FakeDeviceMemory>(copies * kUnit, faults_), kUnit);
    ASSERT_OK(tier);
    gpu_ = tier->get();
    auto books = PageCopies::Create(options, *std::move(tier));
    ASSERT_OK(books);
    OpenOver(std::make_unique<FakeTier>(64 * kWideSlotBytes), {}, *std::move(books));
    mover_ = std::make_unique<CopyMover>(store(), CopyMoverOptions{});
  }
  void TearDown() override {
    mover_.reset();
    if (store_ == nullptr) return;
    store().Clear(space());
    EXPECT_EQ(gpu_->Stats().reserved_slots, 0u);  // whatever happened, nothing is left behind
  }

  void MoveAll() {
    while (mover_->Step()) {
    }
  }
  void Use(const std::vector<TestItem>& chain) { store().Touch(space(), KeysOf(chain)); }
  // What makes a chain worth a copy.
  void UseTwice(const std::vector<TestItem>& chain) {
    Use(chain);
    Use(chain);
  }
  std::vector<TestItem> Stored(uint64_t first_key, uint32_t pages,
                               Encoding encoding = Encoding::kWide) {
    auto chain = Chain(space(), first_key, pages, encoding);
    EXPECT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
    return chain;
  }
  std::vector<TestItem> Copied(uint64_t first_key, uint32_t pages,
                               Encoding encoding = Encoding::kWide) {
    auto chain = Stored(first_key, pages, encoding);
    UseTwice(chain);
    MoveAll();
    return chain;
  }
  PinnedCopy PinCopyOf(const TestItem& item) {
    PinResult pin = store().Pin(space(), item.key);
    return pin.status == ItemStatus::kOk ? store().PinCopy(pin.page) : PinnedCopy();
  }
  bool HasCopy(const TestItem& item) { return static_cast<bool>(PinCopyOf(item)); }
  // Pages of the chain that have a copy.
  uint32_t Copies(const std::vector<TestItem>& chain) {
    uint32_t count = 0;
    for (const TestItem& item : chain) count += HasCopy(item) ? 1u : 0u;
    return count;
  }
  TierKind TierOf(const TestItem& item) {
    const std::string_view key = item.key;
    return store().Lookup(space(), {.keys = {&key, 1}}).pages.at(0).meta.tier;
  }
  CopyCounters Counters() { return store().Stats().copies; }

  std::shared_ptr<DeviceFaults> faults_;
  GpuTier* gpu_ = nullptr;
  std::unique_ptr<CopyMover> mover_;
};

// --- Admission ---

TEST_F(PageCopiesTest, APageIsCopiedAtItsSecondUse) {
  const auto chain = Stored(0, 3);
  Use(chain);
  EXPECT_FALSE(mover_->Step());
  EXPECT_EQ(Copies(chain), 0u);
  Use(chain);
  MoveAll();
  EXPECT_EQ(Copies(chain), 3u);
  EXPECT_EQ(Counters().copied_pages, 3u);
  EXPECT_EQ(Counters().copied_bytes, 3 * kWideSlotBytes);
  Use(chain);
  EXPECT_FALSE(mover_->Step());
}

TEST_F(PageCopiesTest, TheSecondUseMustComeWithinTheWindow) {
  const auto chain = Stored(0, 1);
  Use(chain);
  clock_.Advance(kWindow + absl::Seconds(1));
  Use(chain);
  EXPECT_FALSE(mover_->Step());
  clock_.Advance(kWindow);
  Use(chain);
  MoveAll();
  EXPECT_EQ(Copies(chain), 1u);
}

TEST_F(PageCopiesTest, LooksArePutsAreNoUse) {
  const auto chain = Stored(0, 1);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(Prefix(chain), 1u);
    EXPECT_EQ(Put(chain[0]), ItemStatus::kExists);
  }
  EXPECT_FALSE(mover_->Step());
}

TEST_F(PageCopiesTest, ACopyHoldsThePagesBytesAndItsChecksums) {
  for (const Encoding encoding : {Encoding::kWide, Encoding::kPacked}) {
    const auto chain = Copied(encoding == Encoding::kWide ? 0 : 100, 2, encoding);
    for (const TestItem& item : chain) {
      const PinnedCopy copy = PinCopyOf(item);
      ASSERT_TRUE(copy);
      std::vector<std::byte> bytes(copy.slot().bytes);
      ASSERT_OK((*gpu_->CopyOut(copy.slot(), bytes))->Wait());
      const TestPage page = MakePage(space(), encoding, item.seed);
      const auto [rest, end] = std::ranges::mismatch(page.bytes, bytes);
      EXPECT_EQ(rest, page.bytes.end());
      EXPECT_TRUE(std::ranges::equal(std::as_bytes(std::span(page.crcs)),
                                     std::span(bytes).subspan(page.bytes.size())));
    }
  }
}

TEST_F(PageCopiesTest, LookupsAndListsSayWhereAPageIs) {
  const auto copied = Copied(0, 1);
  const auto stored = Stored(10, 1);
  EXPECT_EQ(TierOf(copied[0]), TierKind::kGpu);
  EXPECT_EQ(TierOf(stored[0]), TierKind::kHost);
  for (const ListedPage& page : store().List(space(), 10, 0).pages)
    EXPECT_EQ(page.meta.tier, page.key == copied[0].key ? TierKind::kGpu : TierKind::kHost);
  EXPECT_EQ(Read(copied[0]), ItemStatus::kOk);  // from where it always was
  const StoreStats stats = store().Stats();
  ASSERT_EQ(stats.tiers.size(), 2u);
  EXPECT_EQ(stats.tiers[0].kind, TierKind::kGpu);
  EXPECT_EQ(stats.tiers[0].used_bytes, kWideSlotBytes);
  EXPECT_EQ(stats.tiers[0].degraded, "");
  EXPECT_EQ(stats.tiers[1].used_bytes, 2 * kWideSlotBytes);
}

TEST_F(PageCopiesTest, AQueueThatIsFullRefuses) {
  Begin(8, {.queued_max = 2});
  const auto chain = Stored(0, 4);
  UseTwice(chain);
  MoveAll();
  EXPECT_EQ(Copies(chain), 2u);
  EXPECT_TRUE(HasCopy(chain[0]));  // the beginning of a sequence comes first
  EXPECT_EQ(Counters().refused_pages, 2u);
}

// --- Room ---

TEST_F(PageCopiesTest, RoomIsMadeByTheCopyNotUsedForLongest) {
  const auto first = Copied(0, 4);
  const auto second = Copied(100, 4);
  clock_.Advance(kWindow + absl::Seconds(1));
  Use(first);
  const auto third = Copied(200, 2);
  EXPECT_EQ(Copies(third), 2u);
  EXPECT_EQ(Copies(first), 4u);
  EXPECT_EQ(Copies(second), 2u);
  EXPECT_TRUE(HasCopy(second[0]));  // the deepest went first
  EXPECT_EQ(TierOf(second[3]), TierKind::kHost);
  EXPECT_EQ(Counters().dropped_pages, 2u);
}

TEST_F(PageCopiesTest, WhatIsInUseIsNotDrivenOut) {
  const auto first = Copied(0, 8);
  const auto second = Copied(100, 2);
  EXPECT_EQ(Copies(first), 8u);
  EXPECT_EQ(Copies(second), 0u);
  EXPECT_EQ(Counters().refused_pages, 2u);
}

TEST_F(PageCopiesTest, ACopyThatIsReadStays) {
  const auto first = Copied(0, 8);
  const PinnedCopy read = PinCopyOf(first[7]);
  clock_.Advance(2 * kWindow);
  const auto second = Copied(100, 8);
  EXPECT_EQ(Copies(second), 7u);
  EXPECT_TRUE(HasCopy(first[7]));
}

TEST_F(PageCopiesTest, TenantsKeepWithinTheirQuotaOfTheDevice) {
  store().SetQuotas({.named = {{"default", {.gpu_bytes = 2 * kWideSlotBytes}}}, .others = {}});
  const auto chain = Copied(0, 3);
  EXPECT_EQ(Copies(chain), 2u);
  EXPECT_EQ(Counters().refused_pages, 1u);
  EXPECT_EQ(store().Stats().tenants[0].gpu_bytes, 2 * kWideSlotBytes);
  // What goes makes room, when its last reader has let go.
  PinnedCopy held = PinCopyOf(chain[1]);
  const std::string_view second = chain[1].key;
  store().Delete(space(), {&second, 1});
  EXPECT_EQ(store().Stats().tenants[0].gpu_bytes, 2 * kWideSlotBytes);
  held = PinnedCopy();
  EXPECT_EQ(store().Stats().tenants[0].gpu_bytes, kWideSlotBytes);
  EXPECT_EQ(Copies(Copied(100, 3)), 1u);
  // A move that fails gives back what it took.
  store().Clear(space());
  faults_->FailWait(0, absl::InternalError("once"));
  Copied(200, 1);
  EXPECT_EQ(Counters().failed_pages, 1u);
  EXPECT_EQ(store().Stats().tenants[0].gpu_bytes, 0u);
}

TEST_F(PageCopiesTest, OtherSizesFindRoomToo) {
  Copied(0, 8);
  clock_.Advance(2 * kWindow);
  const auto packed = Copied(100, 4, Encoding::kPacked);
  EXPECT_EQ(Copies(packed), 4u);
}

// --- Pages that go ---

TEST_F(PageCopiesTest, ACopyGoesWithItsPage) {
  const auto chain = Copied(0, 2);
  const std::string_view key = chain[1].key;
  store().Delete(space(), {&key, 1});
  EXPECT_EQ(gpu_->Stats().reserved_slots, 1u);
  ASSERT_EQ(Put(chain[1]), ItemStatus::kOk);
  EXPECT_FALSE(HasCopy(chain[1]));
  EXPECT_EQ(TierOf(chain[1]), TierKind::kHost);
}

TEST_F(PageCopiesTest, ACopyThatIsReadOutlivesItsPage) {
  const auto chain = Copied(0, 1);
  {
    const PinnedCopy copy = PinCopyOf(chain[0]);
    store().Clear(space());
    EXPECT_EQ(gpu_->Stats().reserved_slots, 1u);
    std::vector<std::byte> bytes(copy.slot().bytes);
    ASSERT_OK((*gpu_->CopyOut(copy.slot(), bytes))->Wait());
    const TestPage page = MakePage(space(), chain[0].encoding, chain[0].seed);
    EXPECT_TRUE(std::ranges::equal(page.bytes, std::span(bytes).first(page.bytes.size())));
  }
  EXPECT_EQ(gpu_->Stats().reserved_slots, 0u);
}

TEST_F(PageCopiesTest, PagesThatGoWhileQueuedAreNotCopied) {
  const auto chain = Stored(0, 2);
  UseTwice(chain);
  store().Clear(space());
  MoveAll();
  EXPECT_EQ(Counters().copied_pages, 0u);
  // Their records serve other pages now, which nobody has used.
  const auto other = Stored(100, 2);
  MoveAll();
  EXPECT_EQ(Copies(other), 0u);
}

TEST_F(PageCopiesTest, APageThatGoesWhileItMovesHasNoCopy) {
  mover_ = std::make_unique<CopyMover>(store(), CopyMoverOptions{.pages_max = 4});
  const auto chain = Stored(0, 3);
  UseTwice(chain);
  // The first step starts all three and ends one: the other two are under way.
  EXPECT_TRUE(mover_->Step());
  EXPECT_EQ(Copies(chain), 1u);
  const std::string_view key = chain[1].key;
  store().Delete(space(), {&key, 1});
  EXPECT_EQ(store().Stats().detached_pages, 2u);
  MoveAll();
  EXPECT_EQ(store().Stats().detached_pages, 0u);
  EXPECT_EQ(gpu_->Stats().reserved_slots, 1u);
  EXPECT_EQ(Counters().copied_pages, 1u);
}

TEST_F(PageCopiesTest, ARottenPageIsDroppedWhenItIsCopied) {
  const auto chain = Stored(0, 3);
  UseTwice(chain);
  ASSERT_TRUE(tier_->FlipBit(1, 300, 2));
  MoveAll();
  EXPECT_EQ(Prefix(chain), 1u);
  EXPECT_EQ(Read(chain[1]), ItemStatus::kCorrupt);
  EXPECT_EQ(store().Stats().counters.corrupt_pages, 1u);
  EXPECT_EQ(Counters().failed_pages, 0u);  // the tier did nothing wrong
  EXPECT_EQ(store().Stats().tiers[0].degraded, "");
}

TEST_F(PageCopiesTest, RotInTheChecksumsIsFoundToo) {
  const auto chain = Stored(0, 1);
  UseTwice(chain);
  ASSERT_TRUE(tier_->FlipBit(0, kWideSlotBytes - 1));
  MoveAll();
  EXPECT_EQ(Read(chain[0]), ItemStatus::kCorrupt);
}

// --- Faults of the device ---

TEST_F(PageCopiesTest, ACopyThatFailsFailsAlone) {
  for (const bool at_start : {true, false}) {
    const auto chain = Stored(at_start ? 0 : 100, 3);
    UseTwice(chain);
    if (at_start) {
      faults_->FailStart(1, absl::InternalError("once"));
    } else {
      faults_->FailWait(1, absl::InternalError("once"));
    }
    MoveAll();
    EXPECT_EQ(Copies(chain), 2u);
    EXPECT_FALSE(HasCopy(chain[1]));
  }
  EXPECT_EQ(Counters().failed_pages, 2u);
  EXPECT_EQ(store().Stats().tiers[0].degraded, "");
}

TEST_F(PageCopiesTest, ADamagedCopyIsNeverMadeKnown) {
  for (const uint64_t byte : {0u, 700u, 1023u, 1030u}) {  // in blocks, in the checksums
    const auto chain = Stored(byte * 10, 2);
    UseTwice(chain);
    faults_->FlipInCopy(0, byte);
    MoveAll();
    EXPECT_FALSE(HasCopy(chain[0]));
    EXPECT_TRUE(HasCopy(chain[1]));
    EXPECT_EQ(Read(chain[0]), ItemStatus::kOk);
  }
  EXPECT_EQ(Counters().failed_pages, 4u);
  EXPECT_EQ(store().Stats().counters.corrupt_pages, 0u);
  EXPECT_EQ(store().Stats().tiers[0].degraded, "");
}

TEST_F(PageCopiesTest, MemoryThatDamagesEverythingGoesOutOfUse) {
  const auto good = Copied(0, 1);
  const auto bad = Stored(100, 4);
  for (uint32_t i = 0; i < 4; ++i) {
    UseTwice({bad[i]});
    faults_->FlipInCopy(0, 9);
    MoveAll();
  }
  EXPECT_THAT(store().Stats().tiers[0].degraded, HasSubstr("3 copies in a row"));
  EXPECT_EQ(Counters().failed_pages, 3u);
  EXPECT_EQ(Copies(good), 0u);
  EXPECT_EQ(Prefix(bad), 4u);
}

TEST_F(PageCopiesTest, ALostDeviceLeavesTheStoreServing) {
  for (const bool at_start : {true, false}) {
    Begin(8);
    const auto copied = Copied(0, 2);
    const auto chain = Stored(100, 4);
    UseTwice(chain);
    const absl::Status lost = absl::UnavailableError("the device has fallen off the bus");
    if (at_start) {
      faults_->FailStart(2, lost);
    } else {
      faults_->FailWait(2, lost);  // while the fourth page is under way
    }
    MoveAll();
    const StoreStats stats = store().Stats();
    EXPECT_THAT(stats.tiers[0].degraded, HasSubstr("fallen off the bus"));
    EXPECT_EQ(stats.tiers[0].used_bytes, 0u);
    EXPECT_EQ(stats.pins, 0u);
    EXPECT_EQ(Copies(copied) + Copies(chain), 0u);
    EXPECT_EQ(TierOf(copied[0]), TierKind::kHost);
    for (const TestItem& item : chain) EXPECT_EQ(Read(item), ItemStatus::kOk);
    // Nothing is tried any more.
    const uint64_t transfers = faults_->transfers();
    UseTwice(Stored(200, 2));
    MoveAll();
    EXPECT_EQ(faults_->transfers(), transfers);
  }
}

TEST_F(PageCopiesTest, WithoutATierTheReasonIsShown) {
  mover_.reset();
  store_.reset();
  auto copies = PageCopies::Create({}, absl::ResourceExhaustedError("2 GiB are free"));
  ASSERT_OK(copies);
  OpenOver(std::make_unique<FakeTier>(64 * kWideSlotBytes), {}, *std::move(copies));
  const auto chain = Stored(0, 2);
  UseTwice(chain);
  EXPECT_EQ(Copies(chain), 0u);
  const StoreStats stats = store().Stats();
  EXPECT_EQ(stats.tiers[0].kind, TierKind::kGpu);
  EXPECT_EQ(stats.tiers[0].capacity_bytes, 0u);
  EXPECT_EQ(stats.tiers[0].degraded, "2 GiB are free");
  store_.reset();
}

TEST_F(PageCopiesTest, OptionsAreChecked) {
  for (const PageCopiesOptions& options :
       {PageCopiesOptions{.window = absl::ZeroDuration()}, PageCopiesOptions{.queued_max = 0},
        PageCopiesOptions{.uses_remembered = 48}, PageCopiesOptions{.uses_remembered = 0}}) {
    EXPECT_THAT(PageCopies::Create(options, absl::UnknownError("none")),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

// --- On a thread of its own ---

TEST_F(PageCopiesTest, AWorkerMovesAndTellsOfALostDevice) {
  mover_.reset();
  absl::Mutex mutex;
  std::string told;
  {
    const CopyWorker worker(store(), {}, [&](const std::string& why) {
      const absl::MutexLock lock(&mutex);
      told = why;
    });
    const auto chain = Stored(0, 4);
    UseTwice(chain);
    while (Copies(chain) < 4) std::this_thread::yield();
    faults_->FailWait(0, absl::UnavailableError("lost"));
    const auto second = Stored(100, 1);
    UseTwice(second);
    const absl::MutexLock lock(&mutex);
    const auto was_told = [&] { return !told.empty(); };
    mutex.Await(absl::Condition(&was_told));
  }
  EXPECT_EQ(told, "lost");
}

TEST_F(PageCopiesTest, AWorkerEndsWithMovesUnderWay) {
  mover_.reset();
  const auto chain = Stored(0, 8);
  UseTwice(chain);
  {
    const CopyWorker worker(store(), {.pages_max = 2}, [](const std::string&) {});
  }
  EXPECT_EQ(store().Stats().pins, 0u);
}

}  // namespace
}  // namespace oscarkv::testing
