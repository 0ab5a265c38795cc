#include "server/core/lru_policy.h"

#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/core/eviction_policy_contract.h"

namespace oscarkv::testing {
namespace {

using ::testing::ElementsAre;

[[maybe_unused]] const int kRegistered =
    RegisterEvictionPolicyContract({"lru", [] { return std::make_unique<LruPolicy>(); }});

std::vector<PageId> Drain(LruPolicy& policy) {
  std::vector<PageId> order;
  while (const std::optional<PageId> victim = policy.Victim({})) {
    order.push_back(*victim);
    policy.OnRemove(*victim, RemoveReason::kEvicted);
  }
  return order;
}

TEST(LruPolicyTest, OldestUseGoesFirst) {
  LruPolicy policy;
  for (PageId page = 0; page < 5; ++page) {
    policy.OnInsert(page, {});
    policy.SetEvictable(page, true);
  }
  const std::vector<UsedPage> used = {{0}, {3}};
  policy.OnUse(used, {}, {});
  EXPECT_THAT(Drain(policy), ElementsAre(1, 2, 4, 0, 3));
}

TEST(LruPolicyTest, PageEvictableLateTakesItsPlaceByItsLastUse) {
  LruPolicy policy;
  for (PageId page = 0; page < 5; ++page) policy.OnInsert(page, {});
  for (const PageId page : {4u, 2u, 3u}) policy.SetEvictable(page, true);
  const UsedPage used{1};
  policy.OnUse({&used, 1}, {}, {});
  policy.SetEvictable(1, true);
  policy.SetEvictable(0, true);
  EXPECT_THAT(Drain(policy), ElementsAre(0, 2, 3, 4, 1));
}

TEST(LruPolicyTest, AgreesWithASortedListOverManyOperations) {
  LruPolicy policy;
  std::mt19937_64 random(3);
  std::vector<PageId> by_use;  // oldest first
  for (PageId page = 0; page < 300; ++page) {
    policy.OnInsert(page, {});
    policy.SetEvictable(page, true);
    by_use.push_back(page);
  }
  for (int step = 0; step < 5000; ++step) {
    const auto page = static_cast<PageId>(random() % 300);
    if (step % 3 == 0) policy.SetEvictable(page, false);
    const UsedPage used{page};
    policy.OnUse({&used, 1}, {}, {});
    policy.SetEvictable(page, true);
    std::erase(by_use, page);
    by_use.push_back(page);
    ASSERT_EQ(policy.Victim({}), by_use.front());
  }
  EXPECT_EQ(Drain(policy), by_use);
}

}  // namespace
}  // namespace oscarkv::testing
