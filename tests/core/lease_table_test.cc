#include "server/core/lease_table.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace oscarkv::testing {
namespace {

using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class LeaseTableTest : public ::testing::Test {
 protected:
  LeaseTable table_{{.leased_bytes_max = 1000, .leases_max = 100}};
  std::vector<PageId> dropped_;
};

TEST_F(LeaseTableTest, CountsDistinctBytes) {
  const SessionId session = table_.OpenSession("a");
  const std::vector<LeasedPage> pages = {{1, 400}, {2, 400}};
  const auto first = table_.Add(session, pages, absl::Seconds(1));
  const auto second = table_.Add(session, pages, absl::Seconds(2));
  EXPECT_EQ(first.status, ItemStatus::kOk);
  EXPECT_EQ(second.status, ItemStatus::kOk);
  EXPECT_EQ(table_.Stats().leased_bytes, 800u);
  EXPECT_EQ(table_.Stats().holds, 4u);
  EXPECT_TRUE(table_.Release(first.lease, &dropped_));
  EXPECT_EQ(table_.Stats().leased_bytes, 800u);
  EXPECT_TRUE(table_.Release(second.lease, &dropped_));
  EXPECT_EQ(table_.Stats().leased_bytes, 0u);
  EXPECT_THAT(dropped_, UnorderedElementsAre(1, 2, 1, 2));
}

TEST_F(LeaseTableTest, RefusalLeavesNothing) {
  const SessionId session = table_.OpenSession("a");
  const std::vector<LeasedPage> pages = {{1, 400}, {2, 601}};
  EXPECT_EQ(table_.Add(session, pages, absl::Seconds(1)).status, ItemStatus::kNoSpace);
  const LeaseStats stats = table_.Stats();
  EXPECT_EQ(stats.leased_bytes, 0u);
  EXPECT_EQ(stats.holds, 0u);
  EXPECT_EQ(stats.leases, 0u);
  EXPECT_EQ(stats.refused, 1u);
  EXPECT_TRUE(table_.CloseSession(session, &dropped_));
  EXPECT_THAT(dropped_, IsEmpty());
}

TEST_F(LeaseTableTest, ExpireTakesTheEarliestOnly) {
  const SessionId session = table_.OpenSession("a");
  const std::vector<LeasedPage> one = {{1, 10}};
  const std::vector<LeasedPage> two = {{2, 10}};
  const auto late = table_.Add(session, one, absl::Seconds(5));
  table_.Add(session, two, absl::Seconds(2));
  EXPECT_EQ(table_.Expire(absl::Seconds(1), &dropped_), 0u);
  EXPECT_EQ(table_.Expire(absl::Seconds(2), &dropped_), 1u);
  EXPECT_THAT(dropped_, UnorderedElementsAre(2));
  EXPECT_TRUE(table_.Has(late.lease));
}

TEST_F(LeaseTableTest, CloseOfOneSessionLeavesTheOthers) {
  const SessionId first = table_.OpenSession("a");
  const SessionId second = table_.OpenSession("b");
  const std::vector<LeasedPage> pages = {{1, 10}};
  table_.Add(first, pages, absl::Seconds(5));
  const auto kept = table_.Add(second, pages, absl::Seconds(5));
  EXPECT_TRUE(table_.CloseSession(first, &dropped_));
  EXPECT_FALSE(table_.HasSession(first));
  EXPECT_TRUE(table_.Has(kept.lease));
  EXPECT_EQ(table_.Stats().holds, 1u);
  EXPECT_EQ(table_.Add(first, pages, absl::Seconds(5)).status, ItemStatus::kFenced);
}

}  // namespace
}  // namespace oscarkv::testing
