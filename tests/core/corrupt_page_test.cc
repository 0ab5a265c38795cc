// A page that is corrupt is told of in one way, wherever that is found: once, with its key, block
// and tier.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "server/core/copy_mover.h"
#include "server/core/re_encoder.h"
#include "server/tier/gpu_tier.h"
#include "tests/core/store_test.h"
#include "tests/support/fake_device_memory.h"

namespace oscarkv::testing {
namespace {

// Of a WIDE page of SmallSpec: 2 layers of 2 heads, 256 bytes a block.
constexpr uint64_t kByteOfLayer1Head0 = 2 * 256 + 77;

class CorruptPageTest : public StoreTest {
 protected:
  void Begin(std::unique_ptr<PageCopies> copies = nullptr) {
    PageStoreOptions options{.store_wide = StoreWide::kNever};
    options.on_corrupt = [this](const CorruptPage& page) {
      ++told_;
      EXPECT_EQ(page.fingerprint, space().fingerprint());
      ASSERT_TRUE(page.block.has_value());
      last_ = {std::string(page.key), page.tier, page.at, *page.block, std::string(page.error)};
    };
    OpenOver(std::make_unique<FakeTier>(16 * kWideSlotBytes), options, std::move(copies));
    chain_ = Chain(space(), 0, 2);
    ASSERT_EQ(PutChain(store(), space(), chain_), ItemStatus::kOk);
  }
  void Rot() { ASSERT_TRUE(tier_->FlipBit(0, kByteOfLayer1Head0)); }
  void ExpectTold(CorruptAt at) {
    EXPECT_EQ(told_, 1);
    EXPECT_EQ(last_.key, chain_[0].key);
    EXPECT_EQ(last_.tier, TierKind::kHost);
    EXPECT_EQ(last_.at, at);
    EXPECT_EQ(last_.block.layer, 1u);
    EXPECT_EQ(last_.block.head, 0u);
    EXPECT_TRUE(last_.error.starts_with("layer 1, head 0: expected crc32c ")) << last_.error;
  }

  struct Told {
    std::string key;
    TierKind tier = TierKind::kHost;
    CorruptAt at = CorruptAt::kServe;
    BlockPlace block;
    std::string error;
  };
  std::vector<TestItem> chain_;
  int told_ = 0;
  Told last_;
};

TEST_F(CorruptPageTest, InAPut) {
  Begin();
  chain_ = Chain(space(), 100, 1);
  const TestPage page = MakePage(space(), Encoding::kWide, chain_[0].seed);
  BeginPutResult put = store().BeginPut(space(), AsPutItem(chain_[0], page));
  ASSERT_TRUE(put.result.ok());
  std::ranges::copy(page.bytes, put.slot.bytes().begin());
  put.slot.bytes()[kByteOfLayer1Head0] ^= std::byte{1};
  EXPECT_EQ(put.slot.Commit().status, ItemStatus::kCorrupt);
  ExpectTold(CorruptAt::kPut);
}

TEST_F(CorruptPageTest, StoredWhenAnotherPutOfItsKeyComes) {
  Begin();
  Rot();
  TestItem other = chain_[0];
  other.seed += 1;
  EXPECT_EQ(Put(other), ItemStatus::kOk);
  ExpectTold(CorruptAt::kPut);
}

TEST_F(CorruptPageTest, WhenItIsServed) {
  Begin();
  Rot();
  PinResult pin = store().Pin(space(), chain_[0].key);
  PinResult again = store().Pin(space(), chain_[0].key);
  EXPECT_FALSE(pin.page.VerifiedPage().ok());
  // Once, however many read it.
  EXPECT_FALSE(again.page.VerifiedPage().ok());
  ExpectTold(CorruptAt::kServe);
}

TEST_F(CorruptPageTest, WhenItIsScrubbed) {
  Begin();
  Rot();
  EXPECT_EQ(store().Verify(0, 1 << 20).pages_corrupt, 1u);
  ExpectTold(CorruptAt::kScrub);
}

TEST_F(CorruptPageTest, WhenItIsReEncoded) {
  Begin();
  const auto codec = MakeCodec(space());
  store().SetCodec(space(), codec.get());
  Rot();
  ReEncoder encoder(store());
  while (encoder.Step()) {
  }
  ExpectTold(CorruptAt::kMove);
}

TEST_F(CorruptPageTest, WhenItIsCopiedToTheGpu) {
  constexpr uint64_t kUnit = 2176;
  auto gpu = *GpuTier::Create(std::make_unique<FakeDeviceMemory>(8 * kUnit), kUnit);
  Begin(*PageCopies::Create({}, std::move(gpu)));
  const std::vector<std::string_view> keys = KeysOf(chain_);
  store().WantCopies(space(), std::span(keys).first(1));
  Rot();
  CopyMover mover(store(), {});
  while (mover.Step()) {
  }
  ExpectTold(CorruptAt::kMove);
}

}  // namespace
}  // namespace oscarkv::testing
