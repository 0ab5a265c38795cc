// How clients share what they may hold: nobody can take it all.
#include "server/transport/mapped_budget.h"

#include <cstdint>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace oscarkv {
namespace {

constexpr SessionId kFirst = 1;
constexpr SessionId kSecond = 2;
constexpr SessionId kThird = 3;

TEST(MappedBudgetTest, OneAloneGetsHalf) {
  MappedBudget budget(100);
  EXPECT_TRUE(budget.Take(kFirst, 10));
  EXPECT_TRUE(budget.Take(kFirst, 40));
  EXPECT_FALSE(budget.Take(kFirst, 1));
  EXPECT_EQ(budget.taken(), 50u);
}

TEST(MappedBudgetTest, ANewcomerAlwaysFindsSome) {
  MappedBudget budget(800);
  while (budget.Take(kFirst, 1)) {
  }
  EXPECT_EQ(budget.taken(), 400u);
  while (budget.Take(kSecond, 1)) {
  }
  EXPECT_EQ(budget.taken(), 600u);
  EXPECT_TRUE(budget.Take(kThird, 100));
  EXPECT_FALSE(budget.Take(kFirst, 1));
}

TEST(MappedBudgetTest, WhatIsGivenBackIsThereAgain) {
  MappedBudget budget(100);
  ASSERT_TRUE(budget.Take(kFirst, 50));
  EXPECT_FALSE(budget.Take(kSecond, 30));
  budget.Give(kFirst, 20);
  EXPECT_EQ(budget.taken(), 30u);
  EXPECT_TRUE(budget.Take(kSecond, 30));
  budget.Give(kFirst, 30);
  budget.Give(kSecond, 30);
  budget.Give(kThird, 0);  // who has none gives none
  EXPECT_EQ(budget.taken(), 0u);
}

TEST(MappedBudgetTest, OneThatIsLargerGoesAlone) {
  MappedBudget budget(100);
  EXPECT_TRUE(budget.Take(kFirst, 1000));
  EXPECT_FALSE(budget.Take(kFirst, 1));
  EXPECT_FALSE(budget.Take(kSecond, 1));
  budget.Give(kFirst, 1000);
  EXPECT_TRUE(budget.Take(kSecond, 1));
}

TEST(MappedBudgetTest, AbsurdAmountsDoNotWrapAround) {
  MappedBudget budget(100);
  ASSERT_TRUE(budget.Take(kFirst, 1));
  EXPECT_FALSE(budget.Take(kFirst, ~uint64_t{0}));
  EXPECT_FALSE(budget.Take(kSecond, ~uint64_t{0}));
  EXPECT_FALSE(budget.Take(kSecond, uint64_t{1} << 63));
  EXPECT_EQ(budget.taken(), 1u);
}

TEST(MappedBudgetTest, NothingIsLostBetweenThreads) {
  MappedBudget budget(1000);
  std::vector<std::thread> threads;
  for (SessionId session = 1; session <= 4; ++session) {
    threads.emplace_back([&budget, session] {
      for (uint64_t i = 0; i < 2000; ++i)
        if (budget.Take(session, i % 200)) budget.Give(session, i % 200);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(budget.taken(), 0u);
}

}  // namespace
}  // namespace oscarkv
