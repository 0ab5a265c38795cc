// The precision ladder: which WIDE pages are re-encoded and when, what readers see meanwhile, and
// what failures do. The re-encoder runs step by step on the test's thread.
#include "server/core/ladder.h"

#include <algorithm>
#include <set>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/core/copy_mover.h"
#include "server/tier/gpu_tier.h"
#include "tests/core/ladder_test.h"
#include "tests/support/fake_device_memory.h"

namespace oscarkv::testing {
namespace {

TEST_F(LadderTest, ATailBecomesPackedWhenItsSequenceHasOutgrownIt) {
  Begin(StoreWide::kTail);
  auto chain = Stored(0, 3);
  EXPECT_FALSE(encoder_->Step());
  EXPECT_EQ(FormsOf(chain), "WWW");
  EXPECT_EQ(Stats().waiting_tail, 2u);
  // Of four pages the last two are the tail; the first is a sink.
  chain = Stored(0, 4);
  EXPECT_EQ(Stats().waiting_due, 1u);
  ReEncodeAll();
  EXPECT_EQ(FormsOf(chain), "WPWW");
  chain = Stored(0, 7);
  ReEncodeAll();
  EXPECT_EQ(FormsOf(chain), "WPPPPWW");
  ExpectSound(chain);
  const LadderStats stats = Stats();
  EXPECT_EQ(stats.due_pages, 4u);
  EXPECT_EQ(stats.pressed_pages, 0u);
  EXPECT_EQ(stats.freed_bytes, 4 * kFreedBytes);
  EXPECT_EQ(stats.retired_slots, 0u);
  EXPECT_EQ(UsedBytes(), 3 * kWideSlotBytes + 4 * kPackedSlotBytes);
  EXPECT_GT(stats.cpu_ns, 0u);
  // 4 bits for K, 2 for V.
  EXPECT_EQ(stats.k_error.count, 4u);
  EXPECT_EQ(stats.v_error.count, 4u);
  EXPECT_GT(stats.k_error.sum, 4 * 0.01);
  EXPECT_LT(stats.k_error.sum, 4 * 0.15);
  EXPECT_GT(stats.v_error.sum, 4 * 0.15);
  EXPECT_LT(stats.v_error.sum, 4 * 0.6);
}

TEST_F(LadderTest, APageIsOutgrownByAnyBranchAndByPackedPages) {
  Begin(StoreWide::kTail);
  const auto trunk = Stored(0, 2);
  auto branch = Chain(space(), 100, 2, Encoding::kPacked);
  for (size_t i = 0; i < branch.size(); ++i) {
    branch[i].parent = i == 0 ? trunk[1].key : branch[0].key;
    branch[i].first_position = (2 + i) * space().page_tokens();
    EXPECT_EQ(FormsOf(trunk), "WW");
    ASSERT_EQ(Put(branch[i]), ItemStatus::kOk);
    ReEncodeAll();
  }
  EXPECT_EQ(FormsOf(trunk), "WP");
}

TEST_F(LadderTest, NeverKeepsSinksOnly) {
  Begin(StoreWide::kNever);
  const auto chain = Stored(0, 4);
  ReEncodeAll();
  EXPECT_EQ(FormsOf(chain), "WPPP");
  ExpectSound(chain);
}

TEST_F(LadderTest, AReaderKeepsTheFormThatItHas) {
  Begin(StoreWide::kNever);
  const auto chain = Stored(0, 2);
  PinResult before = store().Pin(space(), chain[1].key);
  PinResult again = store().Pin(space(), chain[1].key);
  ReEncodeAll();
  EXPECT_EQ(Stats().retired_slots, 1u);
  EXPECT_EQ(Stats().retired_bytes, kWideSlotBytes);
  PinResult after = store().Pin(space(), chain[1].key);
  EXPECT_EQ(before.page.meta().encoding, Encoding::kWide);
  EXPECT_EQ(after.page.meta().encoding, Encoding::kPacked);
  ExpectBytes(before.page, chain[1]);
  ExpectBytes(after.page, chain[1]);
  const uint64_t used = UsedBytes();
  before.page.Reset();
  EXPECT_EQ(UsedBytes(), used);
  ExpectBytes(again.page, chain[1]);
  again.page.Reset();
  EXPECT_EQ(UsedBytes(), used - kWideSlotBytes);
  EXPECT_EQ(Stats().retired_slots, 0u);
  ExpectBytes(after.page, chain[1]);
  // Now the page goes, and the reader's slot with the reader.
  const std::string_view key = chain[1].key;
  store().Delete(space(), {&key, 1});
  ExpectBytes(after.page, chain[1]);
  after.page.Reset();
  EXPECT_EQ(UsedBytes(), kWideSlotBytes);
}

TEST_F(LadderTest, ABadFormThatWasReplacedDoesNotTakeThePageWithIt) {
  Begin(StoreWide::kNever);
  const auto chain = Stored(0, 3);
  PinResult before = store().Pin(space(), chain[1].key);
  ReEncodeAll();
  ASSERT_EQ(FormsOf(chain), "WPP");
  ASSERT_TRUE(tier_->FlipBit(1, 77));  // of the slot that is kept for the reader
  EXPECT_TRUE(absl::IsDataLoss(before.page.VerifiedPage().status()));
  EXPECT_EQ(store().Stats().counters.corrupt_pages, 1u);
  before.page.Reset();
  EXPECT_EQ(FormsOf(chain), "WPP");
  ExpectSound(chain);
}

TEST_F(LadderTest, ADeletedPageLeavesWithBothItsForms) {
  Begin(StoreWide::kNever);
  const auto chain = Stored(0, 2);
  PinResult wide = store().Pin(space(), chain[1].key);
  ReEncodeAll();
  PinResult packed = store().Pin(space(), chain[1].key);
  const std::string_view key = chain[1].key;
  store().Delete(space(), {&key, 1});
  EXPECT_EQ(store().Stats().detached_pages, 1u);
  packed.page.Reset();
  ExpectBytes(wide.page, chain[1]);
  wide.page.Reset();
  EXPECT_EQ(store().Stats().detached_pages, 0u);
  EXPECT_EQ(UsedBytes(), kWideSlotBytes);
}

TEST_F(LadderTest, ALeaseHoldsTheFormThatItWasTold) {
  Begin(StoreWide::kNever);
  const auto chain = Stored(0, 3);
  const SessionId session = store().OpenSession("test");
  const auto keys = KeysOf(chain);
  const auto lease = [&] {
    return store().Lookup(space(), {.keys = keys, .lease_session = session}).lease;
  };
  const LeaseId first = lease();
  const LeaseId second = lease();
  EXPECT_FALSE(encoder_->Step());
  EXPECT_EQ(FormsOf(chain), "WWW");
  EXPECT_EQ(store().ReleaseLease(first), ItemStatus::kOk);
  EXPECT_FALSE(encoder_->Step());
  // One is granted while a page is being re-encoded, which has to do without.
  EXPECT_EQ(store().ReleaseLease(second), ItemStatus::kOk);
  auto taken = encoder_->Take();
  ASSERT_TRUE(taken.has_value());
  const LeaseId third = lease();
  EXPECT_TRUE(encoder_->Finish(*std::move(taken)));
  EXPECT_EQ(FormsOf(chain), "WWW");
  EXPECT_FALSE(encoder_->Step());
  // A page that is read meanwhile does not wait for the reader.
  PinResult pin = store().Pin(space(), chain[1].key);
  uint64_t heard = 0;
  EXPECT_EQ(store().ReleaseLease(third), ItemStatus::kOk);
  EXPECT_TRUE(store().reencode_bell().Await(&heard));
  ReEncodeAll();
  EXPECT_EQ(FormsOf(chain), "WPP");
  pin.page.Reset();
  EXPECT_EQ(UsedBytes(), kWideSlotBytes + 2 * kPackedSlotBytes);
}

TEST_F(LadderTest, APageThatGoesWhileItIsReEncodedIsGone) {
  Begin(StoreWide::kNever);
  const auto chain = Stored(0, 3);
  auto first = encoder_->Take();
  auto second = encoder_->Take();
  ASSERT_TRUE(first.has_value() && second.has_value());
  const std::string_view key = chain[1].key;
  ASSERT_EQ(store().Delete(space(), {&key, 1})[0], ItemStatus::kOk);
  EXPECT_TRUE(encoder_->Finish(*std::move(second)));
  EXPECT_TRUE(encoder_->Finish(*std::move(first)));
  EXPECT_EQ(FormsOf(chain), "W--");
  EXPECT_FALSE(encoder_->Step());
  EXPECT_EQ(UsedBytes(), kWideSlotBytes);
  EXPECT_EQ(store().Stats().tiers.back().reserved_slots, 1u);
}

TEST_F(LadderTest, ARottenPageIsDroppedAndNotReEncoded) {
  Begin(StoreWide::kNever);
  const auto chain = Stored(0, 3);
  ASSERT_TRUE(tier_->FlipBit(1, 77));
  ReEncodeAll();
  EXPECT_EQ(FormsOf(chain), "W--");
  EXPECT_EQ(store().Stats().counters.corrupt_pages, 1u);
  EXPECT_EQ(Stats().due_pages, 0u);
}

TEST_F(LadderTest, APageThatCannotBePackedStaysWideAndIsTriedOnce) {
  Begin(StoreWide::kNever);
  Stored(0, 1);
  auto chain = Chain(space(), 0, 3);
  const TestPage infinite = MakeInfinitePage(space(), 7);
  BeginPutResult put = store().BeginPut(space(), AsPutItem(chain[1], infinite));
  ASSERT_TRUE(put.result.ok());
  std::ranges::copy(infinite.bytes, put.slot.bytes().begin());
  ASSERT_TRUE(put.slot.Commit().ok());
  ASSERT_EQ(Put(chain[2]), ItemStatus::kOk);
  ReEncodeAll();
  EXPECT_EQ(FormsOf(chain), "WWP");
  EXPECT_EQ(Stats().stays_wide[static_cast<size_t>(StaysWide::kNonFinite)], 1u);
  EXPECT_FALSE(encoder_->Step());
  store().SetStoreWide(space(), StoreWide::kUntilPressure);
  store().SetStoreWide(space(), StoreWide::kNever);
  EXPECT_FALSE(encoder_->Step());
  EXPECT_EQ(UsedBytes(), 2 * kWideSlotBytes + kPackedSlotBytes);
  PinResult pin = store().Pin(space(), chain[1].key);
  const auto bytes = pin.page.VerifiedPage();
  ASSERT_OK(bytes);
  EXPECT_TRUE(std::ranges::equal(*bytes, infinite.bytes));
}

TEST_F(LadderTest, WithoutATransformSetPagesStayWideUntilItComes) {
  Begin(StoreWide::kTail);
  NamespaceSpec spec = SmallSpec("late");
  auto late = store().OpenNamespace(spec, true);
  ASSERT_OK(late);
  space_ = *late;
  const auto chain = Stored(0, 6);
  EXPECT_FALSE(encoder_->Step());
  EXPECT_FALSE(store().Stats().namespaces.back().can_pack);
  codec_ = MakeCodec(space());
  store().SetCodec(space(), codec_.get());
  EXPECT_TRUE(store().Stats().namespaces.back().can_pack);
  ReEncodeAll();
  EXPECT_EQ(FormsOf(chain), "PPPPWW");
  ExpectSound(chain);

  spec.codec.transform_hash = "";
  spec.model = "wide only";
  space_ = *store().OpenNamespace(spec, true);
  store().SetCodec(space(), codec_.get());
  EXPECT_FALSE(store().Stats().namespaces.back().can_pack);
  Stored(0, 6);
  EXPECT_FALSE(encoder_->Step());
}

TEST_F(LadderTest, TheRulesOfANamespaceCanChange) {
  Begin(StoreWide::kUntilPressure);
  const auto chain = Stored(0, 6);
  ReEncodeAll();
  EXPECT_EQ(FormsOf(chain), "WWWWWW");
  store().SetStoreWide(space(), StoreWide::kTail);
  ReEncodeAll();
  EXPECT_EQ(FormsOf(chain), "WPPPWW");
  store().SetStoreWide(space(), StoreWide::kNever);
  ReEncodeAll();
  EXPECT_EQ(FormsOf(chain), "WPPPPP");
}

TEST_F(LadderTest, AReEncodedPageIsThereForPutsOfEitherForm) {
  Begin(StoreWide::kNever);
  auto chain = Stored(0, 2);
  ReEncodeAll();
  EXPECT_EQ(Put(chain[1]), ItemStatus::kExists);
  const TestPage packed = PackedFormOf(*codec_, MakePage(space(), Encoding::kWide, chain[1].seed));
  chain[1].encoding = Encoding::kPacked;
  EXPECT_EQ(store().BeginPut(space(), AsPutItem(chain[1], packed)).result.status,
            ItemStatus::kExists);
  EXPECT_EQ(Put(chain[1]), ItemStatus::kConflict);  // other codes
}

TEST_F(LadderTest, APutKeepsItsParentThroughReEncoding) {
  Begin(StoreWide::kNever);
  const auto chain = Chain(space(), 0, 3);
  ASSERT_EQ(Put(chain[0]), ItemStatus::kOk);
  ASSERT_EQ(Put(chain[1]), ItemStatus::kOk);
  const TestPage page = MakePage(space(), Encoding::kWide, chain[2].seed);
  BeginPutResult put = store().BeginPut(space(), AsPutItem(chain[2], page));
  ASSERT_TRUE(put.result.ok());
  ReEncodeAll();
  EXPECT_EQ(FormsOf(chain), "WP-");
  std::ranges::copy(page.bytes, put.slot.bytes().begin());
  EXPECT_TRUE(put.slot.Commit().ok());
  ReEncodeAll();
  EXPECT_EQ(FormsOf(chain), "WPP");
  EXPECT_EQ(UsedBytes(), kWideSlotBytes + 2 * kPackedSlotBytes);
}

TEST_F(LadderTest, PinnedBytesFollowTheForm) {
  Begin(StoreWide::kTail);
  const auto chain = Stored(0, 4);
  store().Touch(space(), KeysOf(chain), {.residency = Residency::kPinned});
  EXPECT_EQ(store().Stats().pinned_bytes, 4 * kWideSlotBytes);
  ReEncodeAll();
  EXPECT_EQ(store().Stats().pinned_bytes, 3 * kWideSlotBytes + kPackedSlotBytes);
  store().Touch(space(), KeysOf(chain), {.residency = Residency::kNormal});
  EXPECT_EQ(store().Stats().pinned_bytes, 0u);
}

TEST_F(LadderTest, ACopyOfTheFormBeforeGoes) {
  constexpr uint64_t kUnit = 2176;
  auto gpu = *GpuTier::Create(std::make_unique<FakeDeviceMemory>(8 * kUnit), kUnit);
  GpuTier* const device = gpu.get();
  Begin(StoreWide::kTail, 64, {}, *PageCopies::Create({}, std::move(gpu)));
  const auto chain = Stored(0, 2);
  CopyMover mover(store(), {});
  const auto use_twice = [&] {
    for (int i = 0; i < 2; ++i) store().Touch(space(), KeysOf(chain));
  };
  use_twice();
  while (mover.Step()) {
  }
  PinResult wide = store().Pin(space(), chain[1].key);
  PinnedCopy held = store().PinCopy(wide.page);
  ASSERT_TRUE(held);
  Stored(0, 4);
  ReEncodeAll();
  ASSERT_EQ(FormsOf(chain), "WP");
  EXPECT_FALSE(store().PinCopy(wide.page));
  PinResult packed = store().Pin(space(), chain[1].key);
  EXPECT_EQ(packed.page.meta().tier, TierKind::kHost);
  EXPECT_FALSE(store().PinCopy(packed.page));
  // Used again it is copied as it is now, and who has it WIDE does not get that copy.
  use_twice();
  while (mover.Step()) {
  }
  const PinnedCopy copy = store().PinCopy(packed.page);
  ASSERT_TRUE(copy);
  EXPECT_FALSE(store().PinCopy(wide.page));
  std::vector<std::byte> bytes(copy.slot().bytes);
  ASSERT_OK((*device->CopyOut(copy.slot(), bytes))->Wait());
  const TestPage expected =
      PackedFormOf(*codec_, MakePage(space(), Encoding::kWide, chain[1].seed));
  EXPECT_TRUE(std::ranges::equal(expected.bytes, std::span(bytes).first(expected.bytes.size())));
  EXPECT_EQ(held.slot().bytes, kWideSlotBytes);  // held on
}

TEST_F(LadderTest, TheThreadsWorkWhenThereIsSomethingToDoAndStop) {
  Begin(StoreWide::kTail);
  {
    const ReEncodePool pool(store(), {.max_cores = 1.5});
    const auto chain = Stored(0, 8);
    while (FormsOf(chain) != "WPPPPPWW") std::this_thread::yield();
    ExpectSound(chain);
  }
  EXPECT_EQ(Stats().due_pages, 5u);
}

TEST(ReEncodePoolTest, RestsForAsLongAsItsShareAsksFor) {
  const auto work = absl::Milliseconds(6);
  EXPECT_EQ(ReEncodePool::RestAfter(work, 1.0), absl::ZeroDuration());
  EXPECT_EQ(ReEncodePool::RestAfter(work, 0.5), work);
  EXPECT_EQ(ReEncodePool::RestAfter(work, 0.25), 3 * work);
}

}  // namespace
}  // namespace oscarkv::testing
