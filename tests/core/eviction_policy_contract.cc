#include "tests/core/eviction_policy_contract.h"

#include <random>
#include <set>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace oscarkv::testing {
namespace {

using Body = std::function<void(EvictionPolicy&)>;

class ContractTest : public ::testing::Test {
 public:
  ContractTest(PolicyUnderTest policy, Body body)
      : policy_(std::move(policy)), body_(std::move(body)) {}
  void TestBody() override {
    const std::unique_ptr<EvictionPolicy> policy = policy_.make();
    EXPECT_FALSE(policy->name().empty());
    body_(*policy);
  }

 private:
  const PolicyUnderTest policy_;
  const Body body_;
};

constexpr absl::Duration kNow = absl::Seconds(1);

void Insert(EvictionPolicy& policy, PageId page, PageId parent = kNoPage) {
  policy.OnInsert(page, {.parent = parent, .bytes = 1000, .now = kNow});
}

void EmptyHasNoVictim(EvictionPolicy& policy) { EXPECT_FALSE(policy.Victim(kNow).has_value()); }

void InsertedPageIsNoVictimUntilEvictable(EvictionPolicy& policy) {
  Insert(policy, 0);
  EXPECT_FALSE(policy.Victim(kNow).has_value());
  policy.SetEvictable(0, true);
  EXPECT_EQ(policy.Victim(kNow), 0u);
}

void VictimIsStableUntilSomethingChanges(EvictionPolicy& policy) {
  for (PageId page = 0; page < 10; ++page) {
    Insert(policy, page);
    policy.SetEvictable(page, true);
  }
  const std::optional<PageId> victim = policy.Victim(kNow);
  ASSERT_TRUE(victim.has_value());
  EXPECT_EQ(policy.Victim(kNow), victim);
  policy.OnRemove(*victim, RemoveReason::kEvicted);
  EXPECT_NE(policy.Victim(kNow), victim);
}

void WithdrawnPageIsNoVictim(EvictionPolicy& policy) {
  Insert(policy, 0);
  policy.SetEvictable(0, true);
  policy.SetEvictable(0, true);
  policy.SetEvictable(0, false);
  policy.SetEvictable(0, false);
  EXPECT_FALSE(policy.Victim(kNow).has_value());
  policy.SetEvictable(0, true);
  EXPECT_EQ(policy.Victim(kNow), 0u);
}

void UseDoesNotMakeEvictable(EvictionPolicy& policy) {
  Insert(policy, 0);
  Insert(policy, 1, 0);
  policy.SetEvictable(1, true);
  const std::vector<PageId> used = {1, 0, 1};
  policy.OnUse(used, kNow);
  policy.OnUse({}, kNow);
  EXPECT_EQ(policy.Victim(kNow), 1u);
  policy.OnRemove(1, RemoveReason::kEvicted);
  EXPECT_FALSE(policy.Victim(kNow).has_value());
}

void NumbersAreReusedClean(EvictionPolicy& policy) {
  Insert(policy, 5);
  policy.SetEvictable(5, true);
  policy.OnRemove(5, RemoveReason::kDeleted);
  EXPECT_FALSE(policy.Victim(kNow).has_value());
  Insert(policy, 5);
  EXPECT_FALSE(policy.Victim(kNow).has_value());
  policy.SetEvictable(5, true);
  EXPECT_EQ(policy.Victim(kNow), 5u);
}

void FarNumbersWork(EvictionPolicy& policy) {
  Insert(policy, 100'000);
  Insert(policy, 3);
  policy.SetEvictable(100'000, true);
  EXPECT_EQ(policy.Victim(kNow), 100'000u);
}

// Against a model: the victims are evictable pages, and draining names each once.
void RandomOperationsKeepTheSetOfEvictablePages(EvictionPolicy& policy) {
  std::mt19937_64 random(11);
  std::set<PageId> present;
  std::set<PageId> evictable;
  for (int step = 0; step < 20'000; ++step) {
    const auto page = static_cast<PageId>(random() % 200);
    const uint64_t action = random() % 8;
    const absl::Duration now = kNow + absl::Milliseconds(step);
    if (!present.contains(page)) {
      policy.OnInsert(page, {.bytes = 1000, .now = now});
      present.insert(page);
    } else if (action < 3) {
      policy.SetEvictable(page, action != 0);
      if (action != 0)
        evictable.insert(page);
      else
        evictable.erase(page);
    } else if (action == 3) {
      policy.OnRemove(page, RemoveReason::kDeleted);
      present.erase(page);
      evictable.erase(page);
    } else if (action < 6) {
      policy.OnUse({&page, 1}, now);
    }
    const std::optional<PageId> victim = policy.Victim(now);
    ASSERT_EQ(victim.has_value(), !evictable.empty()) << step;
    ASSERT_TRUE(!victim.has_value() || evictable.contains(*victim)) << step;
    if (action == 7 && victim.has_value()) {
      policy.OnRemove(*victim, RemoveReason::kEvicted);
      present.erase(*victim);
      evictable.erase(*victim);
    }
  }
  while (!evictable.empty()) {
    const std::optional<PageId> victim = policy.Victim(kNow);
    ASSERT_TRUE(victim.has_value());
    ASSERT_EQ(evictable.erase(*victim), 1u);
    policy.OnRemove(*victim, RemoveReason::kEvicted);
  }
  EXPECT_FALSE(policy.Victim(kNow).has_value());
}

}  // namespace

int RegisterEvictionPolicyContract(const PolicyUnderTest& policy) {
  const std::pair<const char*, Body> bodies[] = {
      {"EmptyHasNoVictim", EmptyHasNoVictim},
      {"InsertedPageIsNoVictimUntilEvictable", InsertedPageIsNoVictimUntilEvictable},
      {"VictimIsStableUntilSomethingChanges", VictimIsStableUntilSomethingChanges},
      {"WithdrawnPageIsNoVictim", WithdrawnPageIsNoVictim},
      {"UseDoesNotMakeEvictable", UseDoesNotMakeEvictable},
      {"NumbersAreReusedClean", NumbersAreReusedClean},
      {"FarNumbersWork", FarNumbersWork},
      {"RandomOperationsKeepTheSetOfEvictablePages", RandomOperationsKeepTheSetOfEvictablePages},
  };
  const std::string suite = "EvictionPolicyContract/" + policy.name;
  for (const auto& [name, body] : bodies) {
    ::testing::RegisterTest(
        suite.c_str(), name, nullptr, nullptr, __FILE__, __LINE__,
        [policy, body = body]() -> ContractTest* { return new ContractTest(policy, body); });
  }
  return 0;
}

}  // namespace oscarkv::testing
