// A reader that looks at the fence after it has read never takes bytes of a later use for those
// that it was given.
#include "proto/local/read_fence.h"

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

#include "proto/local/shared_region.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

TEST(ReadFenceTest, IsDownUntilRaised) {
  absl::StatusOr<SharedRegion> mine =
      SharedRegion::Create("test", kReadFenceBytes, SharedRegion::Others::kRead);
  ASSERT_OK(mine);
  ReadFence fence(mine->writable());
  const absl::StatusOr<SharedRegion> theirs = SharedRegion::Map(
      Descriptor(dup(mine->descriptor())), kReadFenceBytes, SharedRegion::Access::kRead);
  ASSERT_OK(theirs);
  EXPECT_FALSE(ReadFenceRaised(theirs->bytes()));
  fence.Raise();
  EXPECT_TRUE(ReadFenceRaised(theirs->bytes()));
  fence.Raise();
  EXPECT_TRUE(ReadFenceRaised(theirs->bytes()));
}

// One thread gives words out, raises the fence and uses them again; the other reads them all the
// while. The words are atomics, without order, so that what is tested is the fence's order alone.
TEST(ReadFenceTest, OrdersTheLaterUseBehindIt) {
  constexpr size_t kWords = 512;
  constexpr int kRounds = 500;
  for (int round = 0; round < kRounds; ++round) {
    std::vector<std::byte> region(kReadFenceBytes);
    ReadFence fence(region);
    std::vector<std::atomic<uint32_t>> words(kWords);
    for (auto& word : words) word.store(1, std::memory_order_relaxed);
    std::atomic<bool> reads = false;
    std::thread owner([&] {
      while (!reads.load(std::memory_order_relaxed)) std::this_thread::yield();
      fence.Raise();
      for (auto& word : words) word.store(2, std::memory_order_relaxed);
    });
    bool raised = false;
    bool wrong = false;
    while (!raised) {
      // From the end: against the order of the writes, so that a late one is met first.
      bool whole = true;
      for (size_t i = kWords; i-- > 0;)
        whole = whole && words[i].load(std::memory_order_relaxed) == 1;
      raised = ReadFenceRaised(region);
      reads.store(true, std::memory_order_relaxed);
      wrong = wrong || (!whole && !raised);
    }
    owner.join();
    ASSERT_FALSE(wrong) << "round " << round;
  }
}

}  // namespace
}  // namespace oscarkv::testing
