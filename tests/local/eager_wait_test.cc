// When a wait looks before it sleeps.
#include "proto/local/eager_wait.h"

#include <sched.h>

#include <optional>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace oscarkv::testing {
namespace {

// Looks until it looks no more.
void WaitInVain(EagerWait* waits) {
  EagerWait::Look look(waits);
  while (look.Again()) {
  }
}

// Waits shortly until that is noticed, and the next wait looks: on a busy machine some waits turn
// out long.
void WaitShortly(EagerWait* waits) {
  do {
    EagerWait::Look(waits).Came();
  } while (!EagerWait::Look(waits).Again());
}

int Cores() {
  cpu_set_t cores;
  EXPECT_EQ(sched_getaffinity(0, sizeof(cores), &cores), 0);
  return CPU_COUNT(&cores);
}

class EagerWaitTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (Cores() < 2) GTEST_SKIP() << "with one core no wait looks";
  }
  EagerWait waits_;
};

TEST_F(EagerWaitTest, LooksOnlyAfterAShortWait) {
  EXPECT_FALSE(EagerWait::Look(&waits_).Again());
  WaitShortly(&waits_);
  EXPECT_FALSE(EagerWait::Look(nullptr).Again());
}

TEST_F(EagerWaitTest, LooksInVainOnceAndForABoundedTime) {
  WaitShortly(&waits_);
  const auto start = std::chrono::steady_clock::now();
  EagerWait::Look look(&waits_);
  while (look.Again()) {
  }
  EXPECT_GE(std::chrono::steady_clock::now() - start, EagerWait::kLookMax);
  EXPECT_FALSE(look.Again());
  look.Came();  // late
  EXPECT_FALSE(EagerWait::Look(&waits_).Again());
  WaitShortly(&waits_);
  WaitInVain(&waits_);  // what was waited for never came
  EXPECT_FALSE(EagerWait::Look(&waits_).Again());
}

TEST_F(EagerWaitTest, HalfOfTheCoresLookAtMost) {
  const auto most = static_cast<size_t>(Cores() / 2);
  std::vector<EagerWait> many(most + 1);
  for (EagerWait& waits : many) WaitShortly(&waits);
  {
    std::vector<std::optional<EagerWait::Look>> looks(most);
    for (size_t i = 0; i < most; ++i) looks[i].emplace(&many[i]);
    EXPECT_FALSE(EagerWait::Look(&many[most]).Again());
  }
  WaitShortly(&many[most]);
}

}  // namespace
}  // namespace oscarkv::testing
