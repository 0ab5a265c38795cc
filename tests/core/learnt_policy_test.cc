#include "server/core/learnt_policy.h"

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"

#include "tests/core/eviction_policy_contract.h"

namespace oscarkv::testing {
namespace {

[[maybe_unused]] const int kRegistered =
    RegisterEvictionPolicyContract({"learnt", [] { return std::make_unique<LearntPolicy>(); }});

// Sequences of some pages, stored by one put each, of clients that give hints or none.
class LearntPolicyTest : public ::testing::Test {
 protected:
  static constexpr uint32_t kPagesOfOne = 4;

  static uint64_t HashOf(PageId page) { return (page + 1) * 0x9e3779b97f4a7c15; }

  PageTraits TraitsOf(PageId first, uint32_t i, RequestTraits request) {
    PageTraits traits;
    traits.parent = i == 0 ? kNoPage : first + i - 1;
    traits.first_position = i;
    traits.key_hash = HashOf(first + i);
    traits.ends_put = i + 1 == kPagesOfOne;
    traits.request = request;
    traits.now = now_;
    return traits;
  }
  void Put(PageId first, RequestTraits request) {
    request.number = ++requests_;
    for (uint32_t i = 0; i < kPagesOfOne; ++i) {
      policy_.OnInsert(first + i, TraitsOf(first, i, request));
      if (i > 0) policy_.SetEvictable(first + i - 1, false);
      policy_.SetEvictable(first + i, true);
    }
  }
  void Use(PageId first) {
    std::vector<UsedPage> used;
    for (uint32_t i = kPagesOfOne; i-- > 0;) used.push_back({first + i, HashOf(first + i)});
    policy_.OnUse(used, {}, now_);
  }
  // Takes pages out as the store does, until `left` are there.
  void Evict(size_t count) {
    for (size_t i = 0; i < count; ++i) {
      const std::optional<PageId> victim = policy_.Victim(now_);
      ASSERT_TRUE(victim.has_value());
      if (*victim % kPagesOfOne != 0) policy_.SetEvictable(*victim - 1, true);
      policy_.OnRemove(*victim, RemoveReason::kEvicted);
      gone_.push_back(*victim);
    }
  }
  // Sequences of two kinds: one is used again after a minute, the other never. None is left.
  void Learn(const RequestTraits& good, const RequestTraits& bad) {
    for (PageId round = 0; round < 100; ++round) {
      const PageId first = 2 * round * kPagesOfOne;
      Put(first, good);
      Put(first + kPagesOfOne, bad);
      now_ += absl::Seconds(60);
      Use(first);
      policy_.Victim(now_);
    }
    for (PageId page = 0; page < 200 * kPagesOfOne; ++page)
      policy_.OnRemove(page, RemoveReason::kDeleted);
  }
  // How many of the pages that went are of the sequence.
  size_t GoneOf(PageId first) const {
    return static_cast<size_t>(std::count_if(gone_.begin(), gone_.end(), [&](PageId page) {
      return page / kPagesOfOne == first / kPagesOfOne;
    }));
  }

  LearntPolicy policy_;
  absl::Duration now_ = absl::Seconds(1);
  uint64_t requests_ = 0;
  std::vector<PageId> gone_;
};

TEST_F(LearntPolicyTest, WhatIsUsedAgainOutlivesWhatNeverIs) {
  Learn({.new_tokens = 100, .output_tokens = 50}, {.new_tokens = 100, .output_tokens = 400});
  Put(4000, {.new_tokens = 100, .output_tokens = 50});
  Put(4004, {.new_tokens = 100, .output_tokens = 400});  // stored last: of LRU the last to go
  now_ += absl::Seconds(30);
  Evict(4);
  EXPECT_EQ(GoneOf(4004), 4u);
}

TEST_F(LearntPolicyTest, ChancesAreThoseOfTheKindAndFallWithAge) {
  const RequestTraits good{.new_tokens = 100, .output_tokens = 50};
  const RequestTraits bad{.new_tokens = 100, .output_tokens = 400};
  EXPECT_FALSE(policy_.PutChance(TraitsOf(4000, 0, good)).has_value());
  Learn(good, bad);
  EXPECT_GT(policy_.PutChance(TraitsOf(4000, 0, good)), 0.9);
  EXPECT_LT(policy_.PutChance(TraitsOf(4000, 0, bad)), 0.2);
  Put(4000, good);
  Put(4004, bad);
  EXPECT_GT(policy_.UseChance(4000, now_), 0.9);
  EXPECT_LT(policy_.UseChance(4004, now_), 0.2);
  // All that ever were used were used after a minute.
  EXPECT_LT(policy_.UseChance(4000, now_ + absl::Hours(1)), 0.5);
}

TEST_F(LearntPolicyTest, WhatNeverIsUsedAgainIsRefused) {
  const RequestTraits good{.new_tokens = 100, .output_tokens = 50};
  const RequestTraits bad{.new_tokens = 100, .output_tokens = 400};
  Learn(good, bad);
  Put(4000, good);
  ASSERT_EQ(policy_.Victim(now_), 4003u);
  // The victim is the end of a put, and so are these.
  PageTraits end = TraitsOf(4008, 0, good);
  end.ends_put = true;
  EXPECT_TRUE(policy_.Admits(end));
  end.request = bad;
  EXPECT_FALSE(policy_.Admits(end));
}

TEST_F(LearntPolicyTest, NothingIsRefusedWhereNothingWasEverUsed) {
  constexpr PageId kRoom = 100 * kPagesOfOne;
  now_ = absl::Hours(1);
  size_t refused = 0;
  for (PageId first = 0; first < 4 * kRoom; first += kPagesOfOne) {
    const RequestTraits request{.number = ++requests_, .new_tokens = 100};
    for (uint32_t i = 0; i < kPagesOfOne; ++i) {
      const PageTraits traits = TraitsOf(first, i, request);
      if (i > 0) policy_.SetEvictable(first + i - 1, false);
      if (first >= kRoom) {
        policy_.Victim(now_);
        if (!policy_.Admits(traits)) ++refused;
        Evict(1);
      }
      policy_.OnInsert(first + i, traits);
      policy_.SetEvictable(first + i, true);
      now_ += absl::Milliseconds(10);
    }
  }
  EXPECT_EQ(refused, 0u);
}

TEST_F(LearntPolicyTest, HintsAreLearntFromAndNotObeyed) {
  // A client whose hints say the opposite of what happens.
  Learn({.reuse = ReuseHint::kSessionOver}, {.reuse = ReuseHint::kWillReturn});
  Put(4000, {.reuse = ReuseHint::kSessionOver});
  Put(4004, {.reuse = ReuseHint::kWillReturn});
  Evict(4);
  EXPECT_EQ(GoneOf(4004), 4u);
}

TEST_F(LearntPolicyTest, HintsAreBelievedUntilSomethingIsKnown) {
  Put(0, {.reuse = ReuseHint::kWillReturn});
  Put(kPagesOfOne, {.reuse = ReuseHint::kSessionOver});
  now_ += absl::Seconds(1);
  Evict(kPagesOfOne);
  EXPECT_EQ(GoneOf(kPagesOfOne), kPagesOfOne);
}

TEST_F(LearntPolicyTest, PriorityCounts) {
  Put(0, {.priority = 2});
  Put(kPagesOfOne, {});
  Put(2 * kPagesOfOne, {.priority = -2});
  Evict(2 * kPagesOfOne);
  for (size_t i = 0; i < gone_.size(); ++i)
    EXPECT_EQ(gone_[i] / kPagesOfOne, i < kPagesOfOne ? 2u : 1u);
}

TEST_F(LearntPolicyTest, RunsUnderWatchAreBounded) {
  for (PageId i = 0; i < 3 * RunWatch::kRunsMin; ++i) {
    policy_.OnInsert(i % 1000, TraitsOf(i, 0, {}));
    policy_.OnRemove(i % 1000, RemoveReason::kEvicted);
    now_ += absl::Milliseconds(10);
  }
  EXPECT_EQ(policy_.watch().runs(), RunWatch::kRunsMin);
}

TEST_F(LearntPolicyTest, RunThatWasDroppedIsRecognisedWhenItComesBack) {
  // Everything is dropped at once, and half of it comes back: that is learnt all the same.
  for (PageId round = 0; round < 60; ++round) {
    const PageId first = 2 * round * kPagesOfOne;
    Put(first, {.new_tokens = 100, .output_tokens = 50});
    Put(first + kPagesOfOne, {.new_tokens = 100, .output_tokens = 400});
    Evict(2 * kPagesOfOne);
    now_ += absl::Seconds(60);
    Put(first, {.output_tokens = 50});
    Evict(kPagesOfOne);
  }
  gone_.clear();
  Put(4000, {.new_tokens = 100, .output_tokens = 50});
  Put(4000 + kPagesOfOne, {.new_tokens = 100, .output_tokens = 400});
  now_ += absl::Seconds(30);
  Evict(kPagesOfOne);
  EXPECT_EQ(GoneOf(4000 + kPagesOfOne), kPagesOfOne);
}

}  // namespace
}  // namespace oscarkv::testing
