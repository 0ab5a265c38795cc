// Leases: what they hold, and every way in which they end.
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/core/store_test.h"

namespace oscarkv::testing {
namespace {

class LeaseTest : public StoreTest {
 protected:
  void SetUp() override { Reopen({.leased_share_max = 1.0}); }
  void Reopen(const PageStoreOptions& options) {
    Open(8, options);
    session_ = store().OpenSession("test");
    chain_ = Chain(space(), 0, 4);
    ASSERT_EQ(PutChain(store(), space(), chain_), ItemStatus::kOk);
  }
  LookupResult Lease(const std::vector<TestItem>& items, absl::Duration life = {}) {
    const auto keys = KeysOf(items);
    return store().Lookup(space(),
                          {.keys = keys, .lease_session = session_, .lease_duration = life});
  }
  // Puts single pages until everything that may go has gone.
  void Press() {
    for (uint64_t i = 0; i < 20; ++i) Put(Chain(space(), 1000 + i * 10, 1)[0]);
  }

  SessionId session_ = 0;
  std::vector<TestItem> chain_;
};

TEST_F(LeaseTest, HoldsItsPagesUntilReleased) {
  const LookupResult leased = Lease(chain_);
  ASSERT_NE(leased.lease, 0u);
  EXPECT_EQ(leased.lease_status, ItemStatus::kOk);
  EXPECT_EQ(leased.lease_life, absl::Minutes(10));
  EXPECT_EQ(store().Stats().leased_bytes, 4 * kWideSlotBytes);
  Press();
  EXPECT_EQ(Prefix(chain_), 4u);
  EXPECT_TRUE(store().LeaseIsLive(leased.lease));
  EXPECT_EQ(store().ReleaseLease(leased.lease), ItemStatus::kOk);
  EXPECT_EQ(store().ReleaseLease(leased.lease), ItemStatus::kFenced);
  EXPECT_FALSE(store().LeaseIsLive(leased.lease));
  EXPECT_EQ(store().Stats().leased_bytes, 0u);
  EXPECT_EQ(store().Stats().holds, 0u);
  Press();
  EXPECT_EQ(Prefix(chain_), 0u);
}

TEST_F(LeaseTest, CoversTheLeadingPagesOnly) {
  auto asked = chain_;
  asked[2].key = KeyOf(999);
  const LookupResult leased = Lease(asked);
  EXPECT_EQ(leased.prefix_pages, 2u);
  EXPECT_NE(leased.lease, 0u);
  Press();
  EXPECT_EQ(Prefix(chain_), 2u);
}

TEST_F(LeaseTest, OfNothingIsNoLease) {
  const LookupResult leased = Lease(Chain(space(), 900, 2));
  EXPECT_EQ(leased.lease, 0u);
  EXPECT_EQ(leased.lease_status, ItemStatus::kOk);
}

TEST_F(LeaseTest, DiesWithItsSession) {
  const LookupResult leased = Lease(chain_);
  EXPECT_TRUE(store().CloseSession(session_));
  EXPECT_FALSE(store().CloseSession(session_));
  EXPECT_FALSE(store().LeaseIsLive(leased.lease));
  EXPECT_EQ(store().Stats().counters.leases_orphaned, 1u);
  EXPECT_EQ(store().Stats().sessions, 0u);
  Press();
  EXPECT_EQ(Prefix(chain_), 0u);
}

TEST_F(LeaseTest, WithoutASessionIsFencedAndTheLookupAnswers) {
  store().CloseSession(session_);
  const LookupResult leased = Lease(chain_);
  EXPECT_EQ(leased.lease_status, ItemStatus::kFenced);
  EXPECT_EQ(leased.lease, 0u);
  EXPECT_EQ(leased.prefix_pages, 4u);
  EXPECT_EQ(store().Stats().holds, 0u);
}

TEST_F(LeaseTest, EndsAtTheTimeAskedForOrTheCeiling) {
  EXPECT_EQ(Lease(chain_, absl::Seconds(1)).lease_life, absl::Seconds(1));
  EXPECT_EQ(Lease(chain_, absl::Hours(1)).lease_life, absl::Minutes(10));
  clock_.Advance(absl::Milliseconds(999));
  EXPECT_EQ(store().ExpireLeases(), 0u);
  clock_.Advance(absl::Milliseconds(1));
  EXPECT_EQ(store().ExpireLeases(), 1u);
  clock_.Advance(absl::Minutes(10));
  EXPECT_EQ(store().ExpireLeases(), 1u);
  EXPECT_EQ(store().Stats().counters.leases_expired, 2u);
  Press();
  EXPECT_EQ(Prefix(chain_), 0u);
}

TEST_F(LeaseTest, PastItsTimeGivesWayWithoutATick) {
  const auto more = Chain(space(), 100, 4);
  ASSERT_EQ(PutChain(store(), space(), more), ItemStatus::kOk);
  Lease(chain_);
  Lease(more);
  EXPECT_EQ(Put(Chain(space(), 200, 1)[0]), ItemStatus::kNoSpace);
  clock_.Advance(absl::Minutes(11));
  EXPECT_EQ(Put(Chain(space(), 200, 1)[0]), ItemStatus::kOk);
}

TEST_F(LeaseTest, TransfersOutliveTheLease) {
  const LookupResult leased = Lease(chain_);
  PinnedPage page = store().Pin(space(), chain_[3].key).page;
  clock_.Advance(absl::Hours(100));
  EXPECT_EQ(store().ExpireLeases(), 1u);
  EXPECT_FALSE(store().LeaseIsLive(leased.lease));
  Press();
  EXPECT_EQ(Prefix(chain_), 4u);
  EXPECT_OK(page.VerifiedPage());
}

TEST_F(LeaseTest, ShareOfMemoryIsBounded) {
  Reopen({.leased_share_max = 0.5});
  const auto more = Chain(space(), 100, 4);
  ASSERT_EQ(PutChain(store(), space(), more), ItemStatus::kOk);
  const LookupResult first = Lease(chain_);
  EXPECT_NE(first.lease, 0u);
  const LookupResult second = Lease(more);
  EXPECT_EQ(second.lease, 0u);
  EXPECT_EQ(second.lease_status, ItemStatus::kNoSpace);
  EXPECT_EQ(second.prefix_pages, 4u);
  EXPECT_EQ(store().Stats().counters.leases_refused, 1u);
  EXPECT_EQ(store().Stats().holds, 4u);
  // What is held already costs nothing more, whoever asks.
  EXPECT_NE(Lease({chain_[0], chain_[1]}).lease, 0u);
  Press();
  EXPECT_EQ(Prefix(chain_), 4u);
  EXPECT_EQ(Prefix(more), 0u);
  store().ReleaseLease(first.lease);
  EXPECT_EQ(store().Stats().leased_bytes, 2 * kWideSlotBytes);
}

TEST_F(LeaseTest, NumberIsBounded) {
  Reopen({.leases_max = 2});
  EXPECT_NE(Lease({chain_[0]}).lease, 0u);
  EXPECT_NE(Lease({chain_[0]}).lease, 0u);
  EXPECT_EQ(Lease({chain_[0]}).lease_status, ItemStatus::kNoSpace);
}

TEST_F(LeaseTest, KeyTwiceInOneLeaseIsHeldAndLetGo) {
  const std::vector<std::string_view> keys = {chain_[0].key, chain_[0].key};
  const LookupResult leased = store().Lookup(space(), {.keys = keys, .lease_session = session_});
  EXPECT_EQ(leased.prefix_pages, 2u);
  EXPECT_EQ(store().Stats().leased_bytes, kWideSlotBytes);
  EXPECT_EQ(store().ReleaseLease(leased.lease), ItemStatus::kOk);
  Press();
  EXPECT_EQ(Prefix(chain_), 0u);
}

TEST_F(LeaseTest, DeletedPagesAreFreedWithTheLease) {
  const LookupResult leased = Lease(chain_);
  const std::string_view root = chain_[0].key;
  EXPECT_EQ(store().Delete(space(), {&root, 1})[0], ItemStatus::kOk);
  EXPECT_EQ(Prefix(chain_), 0u);
  EXPECT_EQ(UsedBytes(), 4 * kWideSlotBytes);
  EXPECT_EQ(store().Stats().detached_pages, 4u);
  EXPECT_EQ(store().ReleaseLease(leased.lease), ItemStatus::kOk);
  EXPECT_EQ(UsedBytes(), 0u);
}

TEST_F(LeaseTest, IdentifiersAreNotInOrder) {
  const SessionId second = store().OpenSession("another");
  EXPECT_NE(second, session_ + 1);
  EXPECT_NE(second, 0u);
}

}  // namespace
}  // namespace oscarkv::testing
