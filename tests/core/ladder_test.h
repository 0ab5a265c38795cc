// A store with a re-encoder that runs step by step on the test's thread.
#ifndef OSCARKV_TESTS_CORE_LADDER_TEST_H_
#define OSCARKV_TESTS_CORE_LADDER_TEST_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "server/core/re_encoder.h"
#include "tests/core/store_test.h"

namespace oscarkv::testing {

inline constexpr uint64_t kPackedSlotBytes = 4 * 128 + 4 * 4;
inline constexpr uint64_t kFreedBytes = kWideSlotBytes - kPackedSlotBytes;

class LadderTest : public StoreTest {
 protected:
  // A store with room for `pages` WIDE pages and a codec, where a tail is two pages long and the
  // first page of a sequence is a sink.
  void Begin(StoreWide mode, uint64_t pages = 64, PageStoreOptions options = {},
             std::unique_ptr<PageCopies> copies = nullptr) {
    BeginOver(std::make_unique<FakeTier>(pages * kWideSlotBytes), mode, options, std::move(copies));
  }
  void BeginOver(std::unique_ptr<MappedTier> tier, StoreWide mode, PageStoreOptions options = {},
                 std::unique_ptr<PageCopies> copies = nullptr) {
    store_.reset();
    options.store_wide = mode;
    OpenOver(std::move(tier), options, std::move(copies));
    NamespaceSpec spec = SmallSpec();
    spec.codec.sink_tokens = 1;
    auto opened = store().OpenNamespace(spec, true);
    ASSERT_OK(opened);
    space_ = *opened;
    codec_ = MakeCodec(space());
    store().SetCodec(space(), codec_.get());
    encoder_ = std::make_unique<ReEncoder>(store());
  }
  void ReEncodeAll() {
    while (encoder_->Step()) {
    }
  }
  std::vector<TestItem> Stored(uint64_t first_key, uint32_t pages) {
    std::vector<TestItem> chain = Chain(space(), first_key, pages);
    EXPECT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
    return chain;
  }
  // One letter a page: W, P, or - for one that is not there.
  std::string FormsOf(const std::vector<TestItem>& chain) {
    std::string forms;
    const auto keys = KeysOf(chain);
    for (const FoundPage& page :
         store().Lookup(space(), {.keys = keys, .mode = LookupMode::kEach}).pages) {
      forms += page.status != ItemStatus::kOk          ? '-'
               : page.meta.encoding == Encoding::kWide ? 'W'
                                                       : 'P';
    }
    return forms;
  }
  // Whether `page` has the bytes of `item`, in the form that it says.
  void ExpectBytes(PinnedPage& page, const TestItem& item) {
    const auto bytes = page.VerifiedPage();
    ASSERT_OK(bytes);
    const TestPage wide = MakePage(space(), Encoding::kWide, item.seed);
    const TestPage expected =
        page.meta().encoding == Encoding::kWide ? wide : PackedFormOf(*codec_, wide);
    EXPECT_TRUE(std::ranges::equal(*bytes, expected.bytes));
    EXPECT_TRUE(std::ranges::equal(page.block_crcs(), expected.crcs));
  }
  void ExpectSound(const std::vector<TestItem>& chain) {
    for (const TestItem& item : chain) {
      PinResult pin = store().Pin(space(), item.key);
      ASSERT_EQ(pin.status, ItemStatus::kOk);
      ExpectBytes(pin.page, item);
    }
  }
  LadderStats Stats() { return store().Stats().ladder; }
  uint64_t Evicted() {
    return store().Stats().counters.removed_by_reason[static_cast<size_t>(RemoveReason::kEvicted)];
  }

  std::unique_ptr<PageCodec> codec_;
  std::unique_ptr<ReEncoder> encoder_;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_CORE_LADDER_TEST_H_
