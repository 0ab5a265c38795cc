// Several tenants' pages in one order; what the store makes of it is in tenant_test.cc.
#include "server/core/fair_eviction.h"

#include <array>
#include <map>
#include <random>
#include <set>

#include "gtest/gtest.h"

#include "server/core/learnt_policy.h"
#include "server/core/lru_policy.h"

namespace oscarkv::testing {
namespace {

PageTraits TraitsOf(PageId page, absl::Duration now) {
  return {.bytes = 1000, .key_hash = page * 0x9e3779b97f4a7c15, .request = {}, .now = now};
}

class FairEvictionTest : public ::testing::TestWithParam<bool> {
 protected:
  FairEvictionTest() {
    for (uint32_t i = 0; i < 3; ++i) {
      tenants_.push_back(std::make_unique<Tenant>(std::string(1, static_cast<char>('a' + i)), i,
                                                  TenantQuota{}, 0));
      eviction_.Add(*tenants_.back());
    }
  }
  std::unique_ptr<EvictionPolicy> MakePolicy() {
    if (GetParam()) return std::make_unique<LearntPolicy>();
    return std::make_unique<LruPolicy>();
  }
  Tenant& tenant(size_t i) { return *tenants_[i]; }

  FairEviction eviction_{MakePolicy()};
  std::vector<std::unique_ptr<Tenant>> tenants_;
};

// Against a model: pages change hands as their numbers are used anew, and each tenant's victims are
// its own evictable pages.
TEST_P(FairEvictionTest, RandomOperationsKeepEachTenantsPagesApart) {
  std::mt19937_64 random(12);
  std::map<PageId, size_t> owners;
  std::array<std::set<PageId>, 3> evictable;
  for (int step = 0; step < 30'000; ++step) {
    const auto page = static_cast<PageId>(random() % 200);
    const uint64_t action = random() % 8;
    const absl::Duration now = absl::Milliseconds(step);
    const auto owner = owners.find(page);
    if (owner == owners.end()) {
      const size_t to = random() % 3;
      eviction_.OnInsert(tenant(to), page, TraitsOf(page, now));
      ASSERT_TRUE(tenant(to).TakeHost(1000));
      owners[page] = to;
    } else if (action < 3) {
      eviction_.SetEvictable(tenant(owner->second), page, action != 0);
      if (action != 0)
        evictable[owner->second].insert(page);
      else
        evictable[owner->second].erase(page);
    } else if (action == 3) {
      eviction_.OnRemove(tenant(owner->second), page, RemoveReason::kDeleted);
      tenant(owner->second).GiveBackHost(1000);
      evictable[owner->second].erase(page);
      owners.erase(owner);
    } else if (action < 6) {
      const UsedPage used{page, page * 0x9e3779b97f4a7c15};
      eviction_.OnUse(tenant(owner->second), {&used, 1}, {}, now);
    }
    for (size_t i = 0; i < 3; ++i) {
      const auto victim = eviction_.Next(tenant(i), true, now);
      ASSERT_EQ(victim.has_value(), !evictable[i].empty()) << step;
      ASSERT_TRUE(!victim.has_value() || evictable[i].contains(victim->page)) << step;
    }
    // Of whom holds most, among those that have a page that may go.
    uint64_t most = 0;
    for (size_t i = 0; i < 3; ++i)
      if (!evictable[i].empty()) most = std::max(most, tenant(i).Stats().host_bytes);
    const auto victim = eviction_.Next(tenant(0), false, now);
    ASSERT_EQ(victim.has_value(), most > 0);
    if (victim.has_value()) {
      ASSERT_EQ(victim->tenant->Stats().host_bytes, most);
    }
  }
}

TEST_P(FairEvictionTest, MemoryIsThatOfThePagesThereWere) {
  constexpr PageId kPages = 100'000;
  for (PageId page = 0; page < kPages; ++page)
    eviction_.OnInsert(tenant(page % 3), page, TraitsOf(page, absl::Seconds(1)));
  const uint64_t full = eviction_.memory_bytes();
  EXPECT_LE(full, uint64_t{kPages} * 320 + 3 * (4 << 20));
  for (int round = 0; round < 10; ++round) {
    for (PageId page = 0; page < kPages; ++page) {
      eviction_.OnRemove(tenant(page % 3), page, RemoveReason::kEvicted);
      eviction_.OnInsert(tenant(page % 3), page, TraitsOf(page, absl::Seconds(2)));
    }
  }
  EXPECT_LE(eviction_.memory_bytes(), full + full / 4);
}

// A put holds the page that it extends; what is deleted leaves the index all the same.
TEST_P(FairEvictionTest, APutIsJudgedThoughItsParentHasGone) {
  eviction_.OnInsert(tenant(0), 5, TraitsOf(5, absl::Seconds(1)));
  eviction_.OnRemove(tenant(0), 5, RemoveReason::kDeleted);
  PageTraits put = TraitsOf(6, absl::Seconds(2));
  put.parent = 5;
  put.request.number = 1;
  const std::optional<double> chance = eviction_.PutChance(tenant(0), put);
  EXPECT_TRUE(eviction_.Admits(tenant(0), put));
  put.parent = kNoPage;
  EXPECT_EQ(chance, eviction_.PutChance(tenant(0), put));
  // Its number may be that of another page by now, of another sequence.
  put.parent = 5;
  eviction_.OnInsert(tenant(0), 7, TraitsOf(7, absl::Seconds(3)));
  put.request.number = 2;
  EXPECT_EQ(chance, eviction_.PutChance(tenant(0), put));
  put.request.number = 3;
  eviction_.OnRefuse(tenant(0), put);
}

INSTANTIATE_TEST_SUITE_P(LruAndLearnt, FairEvictionTest, ::testing::Bool());

}  // namespace
}  // namespace oscarkv::testing
