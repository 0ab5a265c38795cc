// The precision ladder when memory, or what a tenant may hold of it, is short: bits go before pages
// do.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "server/tier/host_tier.h"
#include "tests/core/ladder_test.h"

namespace oscarkv::testing {
namespace {

TEST_F(LadderTest, UntilPressureGivesUpBitsBeforePages) {
  // Room for 20 WIDE pages: short beyond 18. Re-encoding frees about half a page.
  Begin(StoreWide::kUntilPressure, 20);
  const auto chain = Stored(0, 8);
  const auto second = Stored(100, 10);
  ReEncodeAll();
  EXPECT_EQ(FormsOf(chain) + FormsOf(second), "WWWWWWWWWWWWWWWWWW");
  EXPECT_EQ(Stats().waiting_past, 12u);
  EXPECT_EQ(Stats().waiting_tail, 4u);
  const auto third = Stored(200, 1);
  ReEncodeAll();
  // Those that came first, and no more than it takes.
  EXPECT_EQ(FormsOf(chain), "WPPPWWWW");
  EXPECT_EQ(FormsOf(second), "WWWWWWWWWW");
  // All that is outgrown goes before a tail does, and all of them before a page does.
  for (uint64_t i = 0; i < 5; ++i) {
    Stored(1000 + 100 * i, 1);
    ReEncodeAll();
  }
  EXPECT_EQ(FormsOf(chain) + FormsOf(second), "WPPPPPPWWPPPPPPPWW");
  for (uint64_t i = 5; i < 7; ++i) {
    Stored(1000 + 100 * i, 1);
    ReEncodeAll();
  }
  EXPECT_EQ(FormsOf(chain) + FormsOf(second), "WPPPPPPPWPPPPPPPPP");
  EXPECT_EQ(FormsOf(third), "W");
  EXPECT_EQ(Evicted(), 0u);
  EXPECT_EQ(Stats().evicted_ahead, 0u);
  EXPECT_EQ(Stats().due_pages, 0u);
  EXPECT_EQ(Stats().pressed_pages, 16u);
  ExpectSound(chain);
  ExpectSound(second);
}

TEST_F(LadderTest, TailsAboveTheirShareGoTooWhenMemoryIsShort) {
  Begin(StoreWide::kTail, 20, {.reencode_free_share = 0.3, .wide_tails_share_max = 0.2});
  std::vector<std::vector<TestItem>> chains;
  for (uint64_t i = 0; i < 10; ++i) {
    chains.push_back(Stored(i * 100, 2));
    ReEncodeAll();
  }
  // Four tails may stay. The sinks are ten.
  std::string tails;
  for (const auto& chain : chains) tails += FormsOf(chain)[1];
  EXPECT_EQ(tails, "PPPPPPWWWW");
  EXPECT_EQ(Evicted(), 0u);
}

TEST_F(LadderTest, ATenantAtItsQuotaGivesUpBitsBeforePagesAndNobodyElseDoes) {
  Begin(StoreWide::kUntilPressure, 64);
  // Ten WIDE pages: short beyond nine.
  TenantQuotas quotas;
  quotas.named["limited"].host_bytes = 10 * kWideSlotBytes;
  store().SetQuotas(std::move(quotas));
  const Namespace* const free = space_;
  const auto others = Stored(0, 8);
  NamespaceSpec spec = free->spec();
  spec.tenant = "limited";
  space_ = *store().OpenNamespace(spec, true);
  store().SetCodec(space(), codec_.get());
  const auto chain = Stored(100, 9);
  EXPECT_FALSE(encoder_->Step());
  for (uint64_t i = 0; i < 3; ++i) {
    Stored(1000 + 100 * i, 1);
    ReEncodeAll();
  }
  EXPECT_EQ(FormsOf(chain), "WPPPPPPPW");
  ExpectSound(chain);
  EXPECT_EQ(Evicted(), 0u);
  EXPECT_EQ(store().Stats().tenants[1].host_bytes, 5 * kWideSlotBytes + 7 * kPackedSlotBytes);
  // One that comes before the re-encoder has had its turn is told to come again; pages go when
  // there are no bits left.
  Stored(1300, 1);
  const auto last = Chain(space(), 1400, 1);
  EXPECT_EQ(Put(last[0]), ItemStatus::kBusy);
  EXPECT_EQ(Evicted(), 0u);
  ReEncodeAll();
  EXPECT_EQ(FormsOf(chain), "WPPPPPPPP");
  EXPECT_EQ(Put(last[0]), ItemStatus::kOk);
  EXPECT_EQ(FormsOf(chain), "WPPPPPPP-");
  EXPECT_EQ(Evicted(), 1u);
  EXPECT_EQ(Stats().evicted_ahead, 0u);
  space_ = free;
  EXPECT_EQ(FormsOf(others), "WWWWWWWW");
}

TEST_F(LadderTest, ALoweredQuotaTakesBitsBeforePagesAndNotForLong) {
  Begin(StoreWide::kUntilPressure);
  const auto chain = Stored(0, 12);
  const auto lower = [&](uint64_t bytes) {
    store().SetQuotas({.named = {{"default", {.host_bytes = bytes}}}, .others = {}});
  };
  lower(8 * kWideSlotBytes);
  ReEncodeAll();
  EXPECT_EQ(store().EnforceQuotas(), 0u);
  EXPECT_EQ(Evicted(), 0u);
  EXPECT_LE(store().Stats().tenants[0].host_bytes, 8 * kWideSlotBytes);
  ExpectSound(chain);
  lower(Budget::kNoLimit);
  Stored(100, 6);
  lower(2 * kWideSlotBytes);
  EXPECT_EQ(Evicted(), 0u);
  clock_.Advance(absl::Seconds(11));
  EXPECT_GT(store().EnforceQuotas(), 0u);
  EXPECT_LE(store().Stats().tenants[0].host_bytes, 2 * kWideSlotBytes);
}

TEST_F(LadderTest, ALoneSequenceThatFillsMemoryIsToldToComeAgain) {
  BeginOver(std::make_unique<FakeTier>(8 * kWideSlotBytes + kPackedSlotBytes),
            StoreWide::kUntilPressure);
  const std::vector<TestItem> chain = Chain(space(), 0, 10);
  for (size_t i = 0; i < 8; ++i) ASSERT_EQ(Put(chain[i]), ItemStatus::kOk);
  for (size_t i = 8; i < 10; ++i) {
    EXPECT_EQ(Put(chain[i]), ItemStatus::kBusy);
    ReEncodeAll();
    EXPECT_EQ(Put(chain[i]), ItemStatus::kOk);
  }
  EXPECT_EQ(Evicted(), 0u);
  ExpectSound(chain);
}

TEST_F(LadderTest, BitsGoToTheLastSlotBeforeAnyPageDoes) {
  // Nothing but whole WIDE pages fits; or regions of 8 WIDE pages or 15 PACKED ones.
  std::unique_ptr<MappedTier> tiers[] = {
      std::make_unique<FakeTier>(24 * kWideSlotBytes),
      *HostTier::Create({.capacity_bytes = 3 * 8704, .unit_bytes = 8704})};
  for (std::unique_ptr<MappedTier>& tier : tiers) {
    BeginOver(std::move(tier), StoreWide::kUntilPressure, {.reencode_free_share = 0});
    const std::vector<TestItem> chain = Chain(space(), 0, 30);
    int busy = 0;
    for (const TestItem& item : chain) {
      ItemStatus status = Put(item);
      for (int tries = 0; status == ItemStatus::kBusy && tries < 10; ++tries, ++busy) {
        ReEncodeAll();
        status = Put(item);
      }
      ASSERT_EQ(status, ItemStatus::kOk);
    }
    EXPECT_GT(busy, 0);
    EXPECT_EQ(Evicted(), 0u);
    EXPECT_EQ(Stats().no_room, 0u);
    ExpectSound(chain);
  }
}

TEST_F(LadderTest, WhenItMakesNoRoomPagesGoAndAreCounted) {
  Begin(StoreWide::kUntilPressure, 8);
  for (uint64_t i = 0; i < 3; ++i) Stored(i * 100, 2);
  Stored(300, 1);
  // The last slot is kept for re-encoding.
  const auto next = Chain(space(), 400, 1);
  EXPECT_EQ(Put(next[0]), ItemStatus::kBusy);
  clock_.Advance(absl::Milliseconds(999));
  EXPECT_EQ(Put(next[0]), ItemStatus::kBusy);
  // As long as pages are re-encoded it gets on.
  auto taken = encoder_->Take();
  ASSERT_TRUE(taken.has_value());
  PinResult reader = store().Pin(space(), Chain(space(), 0, 2)[1].key);  // its slot does not return
  EXPECT_TRUE(encoder_->Finish(*std::move(taken)));
  EXPECT_EQ(Put(next[0]), ItemStatus::kBusy);
  EXPECT_EQ(Evicted(), 0u);
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(Put(next[0]), ItemStatus::kOk);
  EXPECT_EQ(Evicted(), 1u);
  EXPECT_EQ(Stats().evicted_ahead, 1u);
}

TEST_F(LadderTest, ATenantWithinItsShareDoesNotWaitForOthersBits) {
  Begin(StoreWide::kUntilPressure, 8);
  TenantQuotas quotas;
  quotas.named["protected"].protected_host_bytes = 4 * kWideSlotBytes;
  store().SetQuotas(std::move(quotas));
  const auto flood = Stored(0, 7);
  NamespaceSpec spec = space().spec();
  spec.tenant = "protected";
  space_ = *store().OpenNamespace(spec, true);
  Stored(100, 1);
  Stored(200, 1);
  EXPECT_EQ(Evicted(), 1u);
}

TEST_F(LadderTest, AFloodLeavesRoomToThoseWithinTheirSharesWhileBitsCanGo) {
  // Half of what is freed ahead of need is theirs: 5 pages of 50.
  Begin(StoreWide::kUntilPressure, 50, {.reencode_free_share = 0.2});
  const Namespace* const flooding = space_;
  NamespaceSpec spec = space().spec();
  spec.tenant = "protected";
  const Namespace* const within = *store().OpenNamespace(spec, true);
  store().SetQuotas(
      {.named = {{"protected", {.protected_host_bytes = 10 * kWideSlotBytes}}}, .others = {}});
  const std::vector<TestItem> flood = Chain(space(), 1000, 46);
  for (size_t i = 0; i < 45; ++i) ASSERT_EQ(Put(flood[i]), ItemStatus::kOk);
  EXPECT_EQ(Put(flood[45]), ItemStatus::kBusy);
  space_ = within;
  for (uint64_t i = 0; i < 4; ++i) Stored(100 * i, 1);
  EXPECT_EQ(Evicted(), 0u);
  // Re-encoding makes room for either.
  space_ = flooding;
  EXPECT_EQ(Put(flood[45]), ItemStatus::kBusy);
  ReEncodeAll();
  EXPECT_EQ(Put(flood[45]), ItemStatus::kOk);
  ExpectSound(flood);
  EXPECT_EQ(Evicted(), 0u);
  EXPECT_EQ(Stats().evicted_ahead, 0u);
}

TEST_F(LadderTest, RoomToReEncodeIsKeptUntilTheTransformSetComes) {
  for (const uint64_t unit_bytes : {uint64_t{0}, uint64_t{8704}}) {
    // Slots of their own, or regions of 8 WIDE pages; none of which can be re-encoded yet.
    const uint64_t bytes = 64 * 8704;
    std::unique_ptr<MappedTier> tier = std::make_unique<FakeTier>(bytes);
    if (unit_bytes != 0)
      tier = *HostTier::Create({.capacity_bytes = bytes, .unit_bytes = unit_bytes});
    BeginOver(std::move(tier), StoreWide::kNever, {}, nullptr);
    store().SetCodec(space(), nullptr);
    std::vector<TestItem> last;
    for (uint64_t i = 0; i < 400; ++i) last = Stored(100 * i, 2);
    const uint64_t evicted = Evicted();
    EXPECT_GT(evicted, 200u);
    store().SetCodec(space(), codec_.get());
    ReEncodeAll();
    EXPECT_EQ(FormsOf(last), "WP");
    EXPECT_GT(Stats().due_pages, 200u);
    EXPECT_EQ(Evicted(), evicted);
    EXPECT_EQ(Stats().no_room, 0u);
  }
}

TEST_F(LadderTest, APutThatFindsNoRoomCallsForIt) {
  // Never short by its share: only by being full.
  Begin(StoreWide::kUntilPressure, 4, {.reencode_free_share = 0});
  const auto chain = Chain(space(), 0, 4);
  for (size_t i = 0; i < 3; ++i) ASSERT_EQ(Put(chain[i]), ItemStatus::kOk);
  uint64_t heard = 0;
  ASSERT_FALSE(encoder_->Step());
  EXPECT_EQ(Put(chain[3]), ItemStatus::kBusy);
  EXPECT_TRUE(store().reencode_bell().Await(&heard));
  EXPECT_TRUE(encoder_->Step());
}

TEST_F(LadderTest, WithoutRoomForItThePageWaitsAndPagesGo) {
  Begin(StoreWide::kTail, 4, {.wide_tails_share_max = 1});
  const auto chain = Stored(0, 4);
  // Full, and none may go: the next is asked for again when there is something new.
  std::vector<PinResult> pins;
  for (const TestItem& item : chain) pins.push_back(store().Pin(space(), item.key));
  EXPECT_FALSE(encoder_->Step());
  EXPECT_EQ(Stats().no_room, 1u);
  EXPECT_EQ(FormsOf(chain), "WWWW");
  pins.clear();
  EXPECT_TRUE(encoder_->Step());
  // One page went for the first PACKED one.
  EXPECT_EQ(FormsOf(chain), "WPW-");
}

TEST_F(LadderTest, ReEncodedPagesShareMemoryCutIntoSlabs) {
  // Regions of 8 WIDE pages; a re-encoded page needs one of its own size.
  BeginOver(*HostTier::Create({.capacity_bytes = 6 * 8704, .unit_bytes = 8704}),
            StoreWide::kUntilPressure, {.reencode_free_share = 0.5});
  std::vector<std::vector<TestItem>> chains;
  for (uint64_t i = 0; i < 8; ++i) {
    chains.push_back(Stored(i * 100, 8));
    ReEncodeAll();
  }
  EXPECT_GT(store().Stats().counters.moved_pages, 0u);
  EXPECT_EQ(Evicted(), 0u);
  for (const auto& chain : chains) ExpectSound(chain);
}

TEST_F(LadderTest, APageThatMovesMeanwhileIsNotMixedUp) {
  BeginOver(*HostTier::Create({.capacity_bytes = 2 * 8704, .unit_bytes = 8704}), StoreWide::kNever,
            {.reencode_free_share = 0});
  // Two regions of WIDE pages, one of them nearly empty; nobody re-encodes meanwhile.
  const auto stored = [&](uint64_t first_key, uint32_t pages) {
    std::vector<TestItem> chain = Chain(space(), first_key, pages);
    for (const TestItem& item : chain) {
      ItemStatus status = Put(item);
      if (status == ItemStatus::kBusy) {
        clock_.Advance(absl::Seconds(1));
        status = Put(item);
      }
      EXPECT_EQ(status, ItemStatus::kOk);
    }
    return chain;
  };
  const auto chain = stored(0, 9);
  const std::string_view seventh = chain[7].key;
  ASSERT_EQ(store().Delete(space(), {&seventh, 1})[0], ItemStatus::kOk);
  const auto other = stored(500, 4);
  const auto left = std::vector<TestItem>(chain.begin(), chain.begin() + 7);
  // A PACKED page needs a region: the pages of one move, and in the middle of that are re-encoded.
  bool once = true;
  ReEncoder inner(store());
  tier_->OnReserve([&] {
    if (!std::exchange(once, false)) return;
    auto taken = inner.Take();
    if (taken.has_value()) inner.Finish(*std::move(taken));
  });
  ReEncodeAll();
  tier_->OnReserve(nullptr);
  ReEncodeAll();
  for (const auto& each : {left, other}) {
    for (const TestItem& item : each) {
      PinResult pin = store().Pin(space(), item.key);
      if (pin.status == ItemStatus::kOk) ExpectBytes(pin.page, item);
    }
  }
  EXPECT_EQ(store().Stats().tiers.back().reserved_slots, store().Stats().pages);
}

}  // namespace
}  // namespace oscarkv::testing
