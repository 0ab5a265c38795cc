// What one tenant can see of another: nothing but how much memory is left above its own share, and
// how busy the server is. A tenant within its share gets the same answers, whatever others do.
#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/core/learnt_policy.h"
#include "tests/core/store_test.h"

namespace oscarkv::testing {
namespace {

using ::testing::Each;

NamespaceSpec SpecOf(std::string_view tenant) {
  NamespaceSpec spec = SmallSpec();
  spec.tenant = std::string(tenant);
  return spec;
}

// One tenant's random use of the store, written down with every answer it gets.
class Observer {
 public:
  Observer(PageStore& store, const Namespace& space, uint64_t seed)
      : store_(store), space_(space), random_(seed), session_(store.OpenSession("observer")) {}

  void Act() {
    const uint64_t first = 10 * (random_() % 12);
    const std::vector<TestItem> chain = Chain(space_, first, 6);
    const std::vector<std::string_view> keys = KeysOf(chain);
    switch (random_() % 8) {
      case 0:
      case 1:
      case 2:
        for (const TestItem& item : chain) Note(PutPage(store_, space_, item).status);
        break;
      case 3:
        for (const TestItem& item : chain) Fetch(item.key);
        for (const ItemStatus status : store_.Touch(space_, keys)) Note(status);
        break;
      case 4: {
        const LookupResult found = store_.Lookup(space_, {.keys = keys,
                                                          .mode = LookupMode::kEach,
                                                          .lease_session = session_,
                                                          .lease_duration = NextLeaseLife()});
        for (const FoundPage& page : found.pages) Note(page.status);
        Note(found.lease_status);
        transcript_ += absl::StrCat(found.fetch_bytes, " ");
        break;
      }
      case 5: {
        TestItem other = chain[0];
        other.seed += 1000;  // other bytes under the same key
        Note(PutPage(store_, space_, other).status);
        break;
      }
      case 6:
        if (random_() % 4 == 0)
          for (const ItemStatus status : store_.Delete(space_, {&keys[3], 1})) Note(status);
        break;
      default: {
        std::vector<std::string> listed;
        for (const ListedPage& page : store_.List(space_, 1000, 0).pages)
          listed.push_back(page.key);
        std::sort(listed.begin(), listed.end());
        for (const std::string& key : listed) transcript_ += key;
        transcript_ += absl::StrCat(store_.CountUnseen(space_, keys), " ");
      }
    }
  }

  const std::string& transcript() const { return transcript_; }

 private:
  void Fetch(std::string_view key) {
    PinResult pin = store_.Pin(space_, key);
    Note(pin.status);
    if (pin.status != ItemStatus::kOk) return;
    EXPECT_OK(pin.page.VerifiedPage());
    transcript_ += absl::StrCat(pin.page.block_crcs()[0], " ");
  }
  // No two leases end at once: in which order they would is chance.
  absl::Duration NextLeaseLife() {
    return absl::Seconds(random_() % 20 + 1) + absl::Microseconds(++leases_);
  }
  void Note(ItemStatus status) { transcript_ += absl::StrCat(static_cast<int>(status), " "); }

  PageStore& store_;
  const Namespace& space_;
  std::mt19937_64 random_;
  const SessionId session_;
  int leases_ = 0;
  std::string transcript_;
};

class IsolationTest : public StoreTest, public ::testing::WithParamInterface<bool> {
 protected:
  // What a tenant of 40 pages gets to see in 3,000 steps, beside `others` others that want all
  // memory and use the same keys.
  std::string Observe(uint64_t seed, int others) {
    clock_.Advance(-clock_.Now());  // what is learnt depends on it
    if (GetParam()) policy_ = std::make_unique<LearntPolicy>();
    Open(160);
    const TenantQuota share = {.host_bytes = 40 * kWideSlotBytes,
                               .protected_host_bytes = 40 * kWideSlotBytes};
    const TenantQuota rest = {.host_bytes = 120 * kWideSlotBytes};
    store().SetQuotas({.named = {{"observer", share}}, .others = rest});
    Observer observer(store(), **store().OpenNamespace(SpecOf("observer"), true), seed);
    std::vector<Observer> noise;
    for (int i = 0; i < others; ++i) {
      const auto* space = *store().OpenNamespace(SpecOf(absl::StrCat("other ", i)), true);
      noise.emplace_back(store(), *space, seed + 1 + static_cast<uint64_t>(i));
      // More pages than there is room for, so that memory is full all the time.
      for (uint64_t key = 0; key < 200; ++key)
        PutPage(store(), *space, Chain(*space, 100'000 + key, 1)[0]);
    }
    for (int step = 0; step < 3000; ++step) {
      clock_.Advance(absl::Milliseconds(700));
      store().ExpireLeases();
      for (Observer& other : noise) other.Act();
      observer.Act();
    }
    return observer.transcript();
  }
};

TEST_P(IsolationTest, AnswersDoNotDependOnOtherTenants) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    const std::string alone = Observe(seed, 0);
    EXPECT_GT(alone.size(), 10'000u);
    EXPECT_TRUE(Observe(seed, 1) == alone) << "seed " << seed;
    EXPECT_TRUE(Observe(seed, 3) == alone) << "seed " << seed;
  }
}

TEST_P(IsolationTest, AnothersPageIsAMissLikeAnyOther) {
  Open();
  const Namespace& owner = **store().OpenNamespace(SpecOf("owner"), true);
  const Namespace& other = **store().OpenNamespace(SpecOf("other"), true);
  const std::vector<TestItem> chain = Chain(owner, 0, 4);
  ASSERT_EQ(PutChain(store(), owner, chain), ItemStatus::kOk);
  const std::vector<std::string_view> keys = KeysOf(chain);
  EXPECT_EQ(PrefixPages(store(), other, chain), 0u);
  EXPECT_EQ(ReadPage(store(), other, chain[0]), ItemStatus::kMiss);
  EXPECT_THAT(store().Touch(other, keys), Each(ItemStatus::kMiss));
  EXPECT_THAT(store().Delete(other, keys), Each(ItemStatus::kMiss));
  EXPECT_EQ(store().CountUnseen(other, keys), 4u);
  EXPECT_EQ(PutPage(store(), other, chain[1]).status, ItemStatus::kSkipped);
  EXPECT_TRUE(store().List(other, 100, 0).pages.empty());
  // Its own bytes under the same key are no conflict.
  TestItem own = chain[0];
  own.seed = 77;
  EXPECT_EQ(PutPage(store(), other, own).status, ItemStatus::kOk);
  EXPECT_EQ(ReadPage(store(), owner, chain[0]), ItemStatus::kOk);
}

TEST_P(IsolationTest, WhatIsRememberedOfDroppedKeysIsNotDrivenOutByOthers) {
  if (GetParam()) policy_ = std::make_unique<LearntPolicy>();
  Open(8, {.dropped_keys_remembered = 64});
  const TenantQuota four = {.host_bytes = 4 * kWideSlotBytes};
  store().SetQuotas({.named = {}, .others = four});
  const Namespace& space = **store().OpenNamespace(SpecOf("a"), true);
  const Namespace& other = **store().OpenNamespace(SpecOf("b"), true);
  for (uint64_t key = 0; key < 8; ++key) PutPage(store(), space, Chain(space, key, 1)[0]);
  for (uint64_t key = 0; key < 10'000; ++key) PutPage(store(), other, Chain(other, key, 1)[0]);
  for (uint64_t key = 0; key < 4; ++key)
    EXPECT_EQ(ReadPage(store(), space, Chain(space, key, 1)[0]), ItemStatus::kEvicted) << key;
}

INSTANTIATE_TEST_SUITE_P(LruAndLearnt, IsolationTest, ::testing::Bool());

// Where a lookup looks: in the shard and the group of the table that the hash names. The hashes of
// one key in two namespaces have nothing to do with each other, so a key that another tenant holds
// is met neither in its shard nor in its group more often than chance has it: a lookup of it takes
// the same steps, and as long, as one of a key that nobody holds.
TEST(IndexIsolationTest, PlacesOfOneKeyInTwoNamespacesAreIndependent) {
  const RecordTable records;
  const Namespace a = *Namespace::Create(SpecOf("a"), 0);
  const Namespace b = *Namespace::Create(SpecOf("b"), 1);
  constexpr int kKeys = 100'000;
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{0x9e3779b97f4a7c15}}) {
    const PageIndex index(records, seed);
    int same_shard = 0;  // the upper six bits
    int same_tag = 0;    // the lower seven, which a table compares before it compares keys
    int same_bits = 0;
    for (int i = 0; i < kKeys; ++i) {
      const std::string key = KeyOf(static_cast<uint64_t>(i));
      const uint64_t difference = index.Probe(a, key).hash ^ index.Probe(b, key).hash;
      same_shard += difference >> 58 == 0 ? 1 : 0;
      same_tag += (difference & 0x7f) == 0 ? 1 : 0;
      same_bits += 64 - __builtin_popcountll(difference);
    }
    // Within five standard deviations.
    const auto expect_about = [](int found, double chance, double tries) {
      EXPECT_NEAR(found, tries * chance, 5 * std::sqrt(tries * chance * (1 - chance)));
    };
    expect_about(same_shard, 1.0 / 64, kKeys);
    expect_about(same_tag, 1.0 / 128, kKeys);
    expect_about(same_bits, 0.5, 64.0 * kKeys);
  }
}

}  // namespace
}  // namespace oscarkv::testing
