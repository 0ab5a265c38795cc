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

uint64_t HashOf(PageId page) { return page * 0x9e3779b97f4a7c15; }

PageTraits TraitsOf(PageId page, PageId parent = kNoPage, absl::Duration now = kNow) {
  PageTraits traits;
  traits.parent = parent;
  traits.bytes = 1000;
  traits.key_hash = HashOf(page);
  traits.now = now;
  return traits;
}

void Insert(EvictionPolicy& policy, PageId page, PageId parent = kNoPage) {
  policy.OnInsert(page, TraitsOf(page, parent));
}

void Use(EvictionPolicy& policy, const std::vector<PageId>& pages, absl::Duration now) {
  std::vector<UsedPage> used;
  for (const PageId page : pages) used.push_back({page, HashOf(page)});
  policy.OnUse(used, {}, now);
}

// Of pages of any history, and of those that are put.
void ChancesAreChances(EvictionPolicy& policy) {
  const auto expect_chance = [](std::optional<double> chance) {
    if (!chance.has_value()) return;
    EXPECT_GE(*chance, 0.0);
    EXPECT_LE(*chance, 1.0);
  };
  for (PageId page = 0; page < 200; ++page) {
    Insert(policy, page);
    policy.SetEvictable(page, true);
    for (const int seconds : {1, 30, 4000, 100'000}) {
      expect_chance(policy.UseChance(page, kNow + absl::Seconds(seconds)));
      expect_chance(policy.PutChance(TraitsOf(200, kNoPage, kNow + absl::Seconds(seconds))));
    }
    Use(policy, {page / 2}, kNow + absl::Seconds(100'000));
    policy.Victim(kNow + absl::Seconds(100'000));
  }
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
  Use(policy, {1, 0, 1}, kNow);
  policy.OnUse({}, {}, kNow);
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

void PagesThatMayGoFirstGoFirst(EvictionPolicy& policy) {
  for (PageId page = 0; page < 20; ++page) {
    PageTraits traits = TraitsOf(page);
    if (page % 2 == 1) traits.request.residency = Residency::kMayGoFirst;
    policy.OnInsert(page, traits);
    policy.SetEvictable(page, true);
  }
  // A use refreshes them, and does not make them stay; unless it says so.
  Use(policy, {1, 2, 3}, kNow + absl::Seconds(1));
  const UsedPage five{5, HashOf(5)};
  policy.OnUse({&five, 1}, {.residency = Residency::kNormal}, kNow + absl::Seconds(1));
  for (int i = 0; i < 9; ++i) {
    const std::optional<PageId> victim = policy.Victim(kNow + absl::Seconds(2));
    ASSERT_TRUE(victim.has_value());
    EXPECT_EQ(*victim % 2, 1u);
    EXPECT_NE(*victim, 5u);
    policy.OnRemove(*victim, RemoveReason::kEvicted);
  }
  EXPECT_NE(policy.Victim(kNow + absl::Seconds(2)).value_or(kNoPage) % 2, 1u);
}

void RefusedPagesAreNoVictims(EvictionPolicy& policy) {
  Insert(policy, 0);
  policy.SetEvictable(0, true);
  PageTraits refused = TraitsOf(7, 0);
  refused.request.number = 1;
  policy.OnRefuse(refused);
  refused.parent = kNoPage;
  refused.key_hash = HashOf(8);
  policy.OnRefuse(refused);
  EXPECT_EQ(policy.Victim(kNow), 0u);
  // The same page gets in later.
  policy.OnRemove(0, RemoveReason::kEvicted);
  Insert(policy, 7);
  EXPECT_FALSE(policy.Victim(kNow).has_value());
}

void AdmitsWhereNothingIsWorthMore(EvictionPolicy& policy) {
  Insert(policy, 0);
  EXPECT_TRUE(policy.Admits(TraitsOf(1)));  // nothing may go
  policy.SetEvictable(0, true);
  ASSERT_EQ(policy.Victim(kNow + absl::Hours(30)), 0u);
  EXPECT_TRUE(policy.Admits(TraitsOf(1, kNoPage, kNow + absl::Hours(30))));
}

void MemoryIsStatedAndBounded(EvictionPolicy& policy) {
  constexpr PageId kPages = 50'000;
  for (PageId page = 0; page < kPages; ++page) Insert(policy, page);
  const uint64_t full = policy.memory_bytes();
  EXPECT_GE(full, uint64_t{kPages} * 12);
  // Pages of sequences of one: the dearest there are.
  EXPECT_LE(full, uint64_t{kPages} * 300 + (4 << 20));
  // Pages come and go, with keys that never come back.
  for (uint64_t round = 0; round < 20; ++round) {
    for (PageId page = 0; page < kPages; ++page) {
      policy.OnRemove(page, RemoveReason::kEvicted);
      PageTraits traits = TraitsOf(page);
      traits.key_hash += (round + 1) << 40;
      policy.OnInsert(page, traits);
    }
  }
  EXPECT_LE(policy.memory_bytes(), full + full / 4);
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
      policy.OnInsert(page, TraitsOf(page, kNoPage, now));
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
      Use(policy, {page}, now);
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
      {"ChancesAreChances", ChancesAreChances},
      {"EmptyHasNoVictim", EmptyHasNoVictim},
      {"InsertedPageIsNoVictimUntilEvictable", InsertedPageIsNoVictimUntilEvictable},
      {"VictimIsStableUntilSomethingChanges", VictimIsStableUntilSomethingChanges},
      {"WithdrawnPageIsNoVictim", WithdrawnPageIsNoVictim},
      {"UseDoesNotMakeEvictable", UseDoesNotMakeEvictable},
      {"NumbersAreReusedClean", NumbersAreReusedClean},
      {"FarNumbersWork", FarNumbersWork},
      {"PagesThatMayGoFirstGoFirst", PagesThatMayGoFirstGoFirst},
      {"RefusedPagesAreNoVictims", RefusedPagesAreNoVictims},
      {"AdmitsWhereNothingIsWorthMore", AdmitsWhereNothingIsWorthMore},
      {"MemoryIsStatedAndBounded", MemoryIsStatedAndBounded},
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
