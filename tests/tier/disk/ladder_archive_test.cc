// Bits go before pages do, also for pages that come back from disk: who asks for one is told to
// come again while WIDE pages are being re-encoded.
#include <memory>
#include <vector>

#include "gtest/gtest.h"

#include "server/core/parent_loader.h"
#include "server/core/re_encoder.h"
#include "tests/tier/disk/disk_archive_testing.h"

namespace oscarkv::testing {
namespace {

constexpr uint32_t kMemory = 8;  // WIDE pages

class LadderArchiveTest : public DiskArchiveTest {
 protected:
  // `pages` of a chain on disk, and memory full of other WIDE pages that can be re-encoded.
  void Begin(uint32_t pages) {
    Open();
    on_disk_ = Chain(space(), 0, pages);
    ASSERT_EQ(PutChain(store(), space(), on_disk_), ItemStatus::kOk);
    WriteAll();
    encoder_.reset();
    Open();
    codec_ = MakeCodec(space());
    store().SetCodec(space(), codec_.get());
    encoder_ = std::make_unique<ReEncoder>(store());
    // The last room is kept for re-encoding.
    for (uint64_t i = 0; i < kMemory - 1; ++i)
      ASSERT_EQ(Put(Chain(space(), 1000 + i, 1)[0]), ItemStatus::kOk);
  }
  void Open() {
    OpenWith(kMemory, {.store_wide = StoreWide::kUntilPressure, .reencode_free_share = 0});
  }
  void ReEncodeAll() {
    while (encoder_->Step()) {
    }
  }
  uint64_t Evicted() {
    return store().Stats().counters.removed_by_reason[static_cast<size_t>(RemoveReason::kEvicted)];
  }
  uint64_t EvictedAhead() { return store().Stats().ladder.evicted_ahead; }

  std::vector<TestItem> on_disk_;
  std::unique_ptr<PageCodec> codec_;
  std::unique_ptr<ReEncoder> encoder_;
};

TEST_F(LadderArchiveTest, AFetchIsToldToComeAgainAndNoPageGoesForIt) {
  Begin(1);
  const std::string_view key = on_disk_[0].key;
  const PinResult told = store().Load(space(), {&key, 1});
  EXPECT_EQ(told.status, ItemStatus::kBusy);
  EXPECT_FALSE(told.message.empty());
  EXPECT_EQ(TierOf(on_disk_[0]), TierKind::kDisk);
  ReEncodeAll();
  EXPECT_EQ(Fetch(on_disk_), ItemStatus::kOk);
  EXPECT_EQ(TierOf(on_disk_[0]), TierKind::kHost);
  EXPECT_EQ(Evicted(), 0u);
}

TEST_F(LadderArchiveTest, AFetchDoesNotWaitForAReEncoderThatIsStuck) {
  Begin(2);
  EXPECT_EQ(Fetch(on_disk_), ItemStatus::kBusy);
  clock_.Advance(absl::Milliseconds(999));
  EXPECT_EQ(Fetch(on_disk_), ItemStatus::kBusy);
  clock_.Advance(absl::Milliseconds(1));
  // The room that was kept, and a page's.
  EXPECT_EQ(Fetch(on_disk_), ItemStatus::kOk);
  EXPECT_EQ(Fetch(on_disk_, 1), ItemStatus::kOk);
  EXPECT_EQ(Evicted(), 1u);
  EXPECT_EQ(EvictedAhead(), 1u);
}

TEST_F(LadderArchiveTest, APutWhoseParentIsOnDiskIsToldToComeAgain) {
  Begin(3);
  std::vector<TestItem> chain = Chain(space(), 0, 4);
  ParentLoader loader(store(), space(), chain[2].key);
  while (loader.Step()) {
  }
  EXPECT_TRUE(loader.busy());
  EXPECT_EQ(Put(chain[3]), ItemStatus::kBusy);
  EXPECT_EQ(Evicted(), 0u);
  // More than once: what has come back can be re-encoded, too.
  ItemStatus status = ItemStatus::kBusy;
  for (int i = 0; i < 4 && status == ItemStatus::kBusy; ++i) {
    ReEncodeAll();
    status = Put(chain[3]);
  }
  EXPECT_EQ(status, ItemStatus::kOk);
  EXPECT_EQ(Prefix(chain), 4u);
  EXPECT_EQ(Evicted(), 0u);
}

TEST_F(LadderArchiveTest, ATenantWithinItsShareHasItsPagesAtOnce) {
  Begin(2);
  store().SetQuotas({.named = {{"default", {.protected_host_bytes = 2 * kMemory * kWideSlotBytes}}},
                     .others = {}});
  EXPECT_EQ(Fetch(on_disk_), ItemStatus::kOk);
  EXPECT_EQ(Fetch(on_disk_, 1), ItemStatus::kOk);
  EXPECT_EQ(Evicted(), 1u);
  EXPECT_EQ(EvictedAhead(), 1u);
}

}  // namespace
}  // namespace oscarkv::testing
