// A store over a faulty tier over host memory, with a clock that the test moves.
#ifndef OSCARKV_TESTS_CORE_STORE_TEST_H_
#define OSCARKV_TESTS_CORE_STORE_TEST_H_

#include <memory>
#include <utility>

#include "gtest/gtest.h"

#include "server/core/page_store.h"
#include "tests/support/fake_clock.h"
#include "tests/support/fake_tier.h"
#include "tests/support/faulty_tier.h"
#include "tests/support/status_matchers.h"
#include "tests/support/store_pages.h"

namespace oscarkv::testing {

// Bytes that one page of SmallSpec takes in a tier: its blocks and four checksums.
inline constexpr uint64_t kWideSlotBytes = 4 * 256 + 4 * 4;

class StoreTest : public ::testing::Test {
 protected:
  // A store with room for `wide_pages` WIDE pages of SmallSpec.
  void Open(uint64_t wide_pages = 64, PageStoreOptions options = {}) {
    OpenOver(std::make_unique<FakeTier>(wide_pages * kWideSlotBytes), options);
  }
  void OpenOver(std::unique_ptr<MappedTier> base, PageStoreOptions options = {},
                std::unique_ptr<PageCopies> copies = nullptr,
                std::unique_ptr<PageArchive> archive = nullptr) {
    auto tier = std::make_unique<FaultyTier>(std::move(base));
    tier_ = tier.get();
    auto store = PageStore::Create(options, std::move(tier), std::move(policy_), clock_,
                                   std::move(copies), std::move(archive));
    ASSERT_OK(store);
    store_ = *std::move(store);
    auto space = store_->OpenNamespace(SmallSpec(), true);
    ASSERT_OK(space);
    space_ = *space;
  }

  PageStore& store() { return *store_; }
  const Namespace& space() const { return *space_; }
  ItemStatus Put(const TestItem& item) { return PutPage(*store_, *space_, item).status; }
  ItemStatus Read(const TestItem& item) { return ReadPage(*store_, *space_, item); }
  uint32_t Prefix(const std::vector<TestItem>& items) {
    return PrefixPages(*store_, *space_, items);
  }
  uint64_t UsedBytes() const { return store_->Stats().tiers.back().used_bytes; }

  std::unique_ptr<EvictionPolicy> policy_;  // of the next store that is opened; null: the default
  FakeClock clock_;
  FaultyTier* tier_ = nullptr;
  std::unique_ptr<PageStore> store_;
  const Namespace* space_ = nullptr;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_CORE_STORE_TEST_H_
