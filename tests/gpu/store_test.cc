// The store with copies of its pages in a device's memory: they are what they should be, whatever
// comes and goes meanwhile.
#include "tests/core/store_test.h"

#include <algorithm>
#include <memory>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/core/copy_mover.h"
#include "server/tier/device_memory.h"
#include "server/tier/gpu_tier.h"
#include "server/tier/host_tier.h"

namespace oscarkv::testing {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

class GpuStoreTest : public StoreTest {
 protected:
  void Begin(uint64_t gpu_bytes, NamespaceSpec spec, absl::Duration window) {
    auto host = HostTier::Create({.capacity_bytes = 256 * kMiB});
    ASSERT_OK(host);
    auto memory =
        MakeDeviceMemory({.bytes = gpu_bytes, .device = 0, .host_arena = (*host)->arena()});
    ASSERT_OK(memory);
    auto gpu = GpuTier::Create(*std::move(memory));
    ASSERT_OK(gpu);
    gpu_ = gpu->get();
    auto copies = PageCopies::Create({.window = window}, *std::move(gpu));
    ASSERT_OK(copies);
    OpenOver(*std::move(host), {}, *std::move(copies));
    auto space = store().OpenNamespace(spec, true);
    ASSERT_OK(space);
    space_ = *space;
  }

  // 4 layers of 8 heads of 128, 64 tokens a page; 4 bits for K in the first layer, so that blocks
  // are of two sizes.
  static NamespaceSpec LargeSpec() {
    NamespaceSpec spec = SmallSpec("large");
    spec.geometry = {.layers = 4,
                     .kv_heads = 8,
                     .k_head_dim = 128,
                     .v_head_dim = 128,
                     .page_tokens = 64,
                     .dtype = DType::kBf16};
    spec.codec.bits = {{.k = 4, .v = 2}, {.k = 2, .v = 2}, {.k = 2, .v = 2}, {.k = 2, .v = 2}};
    return spec;
  }

  std::vector<TestItem> Stored(uint64_t first_key, uint32_t pages, Encoding encoding) {
    auto chain = Chain(space(), first_key, pages, encoding);
    EXPECT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
    return chain;
  }
  void UseTwice(const std::vector<TestItem>& chain) {
    for (int i = 0; i < 2; ++i) store().Touch(space(), KeysOf(chain));
  }
  // Copies that there are of the chain; the bytes of each must be its page's.
  uint32_t SoundCopies(const std::vector<TestItem>& chain) {
    uint32_t count = 0;
    for (const TestItem& item : chain) {
      const PinResult pin = store().Pin(space(), item.key);
      if (pin.status != ItemStatus::kOk) continue;
      const PinnedCopy copy = store().PinCopy(pin.page);
      if (!copy) continue;
      ++count;
      std::vector<std::byte> bytes(copy.slot().bytes);
      auto out = gpu_->CopyOut(copy.slot(), bytes);
      EXPECT_OK(out);
      if (!out.ok()) continue;
      EXPECT_OK((*out)->Wait());
      const TestPage page = MakePage(space(), item.encoding, item.seed);
      const auto parts = std::span(bytes);
      EXPECT_TRUE(std::ranges::equal(page.bytes, parts.first(page.bytes.size())));
      EXPECT_TRUE(std::ranges::equal(std::as_bytes(std::span(page.crcs)),
                                     parts.subspan(page.bytes.size())));
    }
    return count;
  }

  GpuTier* gpu_ = nullptr;
};

TEST_F(GpuStoreTest, CopiesHoldTheirPages) {
  Begin(64 * kMiB, LargeSpec(), absl::Seconds(60));
  CopyMover mover(store(), {});
  for (const Encoding encoding : {Encoding::kWide, Encoding::kPacked}) {
    const auto chain = Stored(encoding == Encoding::kWide ? 0 : 1000, 20, encoding);
    UseTwice(chain);
    while (mover.Step()) {
    }
    EXPECT_EQ(SoundCopies(chain), 20u);
  }
  EXPECT_EQ(store().Stats().copies.failed_pages, 0u);
  EXPECT_GE(store().Stats().tiers[0].pinned_host_bytes, 64 * kMiB);
}

TEST_F(GpuStoreTest, RotInHostMemoryIsFoundByTheDevice) {
  Begin(64 * kMiB, LargeSpec(), absl::Seconds(60));
  CopyMover mover(store(), {});
  for (const uint64_t byte :
       {uint64_t{0}, uint64_t{70'001}, space().page_bytes(Encoding::kPacked)}) {
    const auto chain = Stored(byte * 10, 2, Encoding::kPacked);
    UseTwice(chain);
    ASSERT_TRUE(tier_->FlipBit(tier_->held() - 2, byte, 3));
    while (mover.Step()) {
    }
    EXPECT_EQ(Read(chain[0]), ItemStatus::kCorrupt);
    EXPECT_EQ(SoundCopies(chain), 0u);  // what extends it went along
    store().Clear(space());
  }
  EXPECT_EQ(store().Stats().copies.failed_pages, 0u);
  EXPECT_EQ(store().Stats().tiers[0].degraded, "");
}

TEST_F(GpuStoreTest, AWorkerMovesUnderPressure) {
  // Room for a third of the pages; a copy gives way as soon as another page is used.
  Begin(2 * kMiB, SmallSpec(), absl::Nanoseconds(1));
  std::vector<std::vector<TestItem>> chains;
  for (uint64_t i = 0; i < 100; ++i)
    chains.push_back(Stored(i * 100, 60, i % 2 == 0 ? Encoding::kWide : Encoding::kPacked));
  {
    const CopyWorker worker(store(), {}, [](const std::string& why) { ADD_FAILURE() << why; });
    for (int round = 0; round < 3; ++round) {
      for (const auto& chain : chains) {
        UseTwice(chain);
        clock_.Advance(absl::Nanoseconds(2));
      }
      const std::string_view key = chains[static_cast<size_t>(round)][30].key;
      store().Delete(space(), {&key, 1});
    }
    while (store().Stats().copies.dropped_pages < 1000) {
      for (const auto& chain : chains) UseTwice(chain);
      clock_.Advance(absl::Nanoseconds(2));
    }
  }
  uint32_t sound = 0;
  for (const auto& chain : chains) sound += SoundCopies(chain);
  EXPECT_GT(sound, 500u);
  EXPECT_EQ(store().Stats().copies.failed_pages, 0u);
  store().Clear(space());
  EXPECT_EQ(gpu_->Stats().reserved_slots, 0u);
}

}  // namespace
}  // namespace oscarkv::testing
