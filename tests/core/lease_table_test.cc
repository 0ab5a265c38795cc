#include "server/core/lease_table.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace oscarkv::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr absl::Duration kBegin = absl::Seconds(1000);

class LeaseTableTest : public ::testing::Test {
 protected:
  LeaseTable table_{{.leased_bytes_max = 1000, .leases_max = 100}};
  std::vector<PageId> dropped_;
};

TEST_F(LeaseTableTest, CountsDistinctBytes) {
  const SessionId session = table_.OpenSession("a");
  const std::vector<LeasedPage> pages = {{1, 400}, {2, 400}};
  const auto first = table_.Add(session, pages, {kBegin, absl::Seconds(1)});
  const auto second = table_.Add(session, pages, {kBegin, absl::Seconds(2)});
  EXPECT_EQ(first.status, ItemStatus::kOk);
  EXPECT_EQ(second.status, ItemStatus::kOk);
  EXPECT_EQ(table_.Stats(kBegin).leased_bytes, 800u);
  EXPECT_EQ(table_.Stats(kBegin).holds, 4u);
  EXPECT_TRUE(table_.Release(first.lease, kBegin + absl::Milliseconds(50), &dropped_));
  EXPECT_EQ(table_.Stats(kBegin).leased_bytes, 800u);
  EXPECT_TRUE(table_.Release(second.lease, kBegin + absl::Milliseconds(50), &dropped_));
  EXPECT_EQ(table_.Stats(kBegin).leased_bytes, 0u);
  EXPECT_THAT(dropped_, UnorderedElementsAre(1, 2, 1, 2));
}

TEST_F(LeaseTableTest, RefusalLeavesNothing) {
  const SessionId session = table_.OpenSession("a");
  const std::vector<LeasedPage> pages = {{1, 400}, {2, 601}};
  EXPECT_EQ(table_.Add(session, pages, {kBegin, absl::Seconds(1)}).status, ItemStatus::kNoSpace);
  const LeaseStats stats = table_.Stats(kBegin);
  EXPECT_EQ(stats.leased_bytes, 0u);
  EXPECT_EQ(stats.holds, 0u);
  EXPECT_EQ(stats.leases, 0u);
  EXPECT_EQ(stats.refused, 1u);
  EXPECT_TRUE(table_.CloseSession(session, kBegin + absl::Seconds(2), &dropped_));
  EXPECT_THAT(dropped_, IsEmpty());
}

TEST_F(LeaseTableTest, ExpireTakesTheEarliestOnly) {
  const SessionId session = table_.OpenSession("a");
  const std::vector<LeasedPage> one = {{1, 10}};
  const std::vector<LeasedPage> two = {{2, 10}};
  const auto late = table_.Add(session, one, {kBegin, absl::Seconds(5)});
  table_.Add(session, two, {kBegin, absl::Seconds(2)});
  EXPECT_EQ(table_.Expire(kBegin + absl::Seconds(1), &dropped_), 0u);
  EXPECT_EQ(table_.Expire(kBegin + absl::Seconds(2), &dropped_), 1u);
  EXPECT_THAT(dropped_, UnorderedElementsAre(2));
  EXPECT_TRUE(table_.Has(late.lease));
}

TEST_F(LeaseTableTest, CloseOfOneSessionLeavesTheOthers) {
  const SessionId first = table_.OpenSession("a");
  const SessionId second = table_.OpenSession("b");
  const std::vector<LeasedPage> pages = {{1, 10}};
  table_.Add(first, pages, {kBegin, absl::Seconds(5)});
  const auto kept = table_.Add(second, pages, {kBegin, absl::Seconds(5)});
  EXPECT_TRUE(table_.CloseSession(first, kBegin + absl::Seconds(2), &dropped_));
  EXPECT_FALSE(table_.HasSession(first));
  EXPECT_TRUE(table_.Has(kept.lease));
  EXPECT_EQ(table_.Stats(kBegin).holds, 1u);
  EXPECT_EQ(table_.Add(first, pages, {kBegin, absl::Seconds(5)}).status, ItemStatus::kFenced);
}

TEST_F(LeaseTableTest, TellsHowOldLeasesAreAndWere) {
  const SessionId session = table_.OpenSession("a");
  const std::vector<LeasedPage> pages = {{1, 1}};
  EXPECT_EQ(table_.Stats(kBegin).oldest_s, 0.0);
  const auto first = table_.Add(session, pages, {kBegin, absl::Seconds(30)});
  table_.Add(session, pages, {kBegin + absl::Seconds(5), absl::Seconds(15)});
  table_.Add(session, pages, {kBegin + absl::Seconds(6), absl::Seconds(600)});
  EXPECT_EQ(table_.Stats(kBegin + absl::Seconds(8)).oldest_s, 8.0);
  EXPECT_TRUE(table_.Release(first.lease, kBegin + absl::Milliseconds(50), &dropped_));
  EXPECT_EQ(table_.Expire(kBegin + absl::Seconds(20), &dropped_), 1u);
  EXPECT_EQ(table_.Stats(kBegin + absl::Seconds(20)).oldest_s, 14.0);
  EXPECT_TRUE(table_.CloseSession(session, kBegin + absl::Seconds(5006), &dropped_));
  const LeaseStats stats = table_.Stats(kBegin);
  EXPECT_THAT(stats.ages.counts, ElementsAre(0, 1, 0, 0, 1, 0, 0, 0, 1));
  EXPECT_DOUBLE_EQ(stats.ages.sum_s, 0.05 + 15 + 5000);
}

}  // namespace
}  // namespace oscarkv::testing
