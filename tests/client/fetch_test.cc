// Fetches from a store that does not say the truth: a page is right or not there, and nothing else
// is written.
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"

#include "tests/client/fake_store.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::client {
namespace {

using ::oscarkv::testing::Fixture;
using ::testing::ElementsAre;
using Replies = std::vector<v1::GetReply>;

TEST(Fetch, HonestPagesArrive) {
  Fixture f;
  ASSERT_OK(f.Push());
  const auto report = f.Fetch();
  ASSERT_OK(report);
  EXPECT_OK(report->store);
  EXPECT_EQ(report->pages, 3u);
  EXPECT_EQ(report->tokens, 12u);
  EXPECT_THAT(report->statuses, ElementsAre(ItemStatus::kOk, ItemStatus::kOk, ItemStatus::kOk));
  EXPECT_TRUE(f.destination.SameRows(f.source, 0, 12));
  EXPECT_TRUE(f.destination.SameRows(f.untouched, 12, 64));
}

TEST(Fetch, TokensLeftOutAreNotWritten) {
  Fixture f;
  ASSERT_OK(f.Push());
  f.slots[5] = -1;
  ASSERT_OK(f.Fetch());
  EXPECT_TRUE(f.destination.SameRows(f.source, 0, 5));
  EXPECT_TRUE(f.destination.SameRows(f.untouched, 5, 6));
  EXPECT_TRUE(f.destination.SameRows(f.source, 6, 12));
}

// Its three pages come over two connections: the first over one, the others over another.
ClientOptions TwoChannels() { return {.bulk_channels = 2, .bulk_part_bytes = 1}; }

TEST(FetchOverTwoChannels, PagesArriveOnceAndInOrder) {
  Fixture f(TwoChannels());
  ASSERT_OK(f.Push());
  const auto report = f.Fetch();
  ASSERT_OK(report);
  EXPECT_OK(report->store);
  EXPECT_EQ(report->pages, 3u);
  EXPECT_EQ(report->bytes_wire, 3 * f.space->codec().layout(Encoding::kWide).page_bytes());
  EXPECT_TRUE(f.destination.SameRows(f.source, 0, 12));
  EXPECT_TRUE(f.destination.SameRows(f.untouched, 12, 64));
  EXPECT_EQ(f.store.calls("Get"), 2);
}

TEST(FetchOverTwoChannels, NothingAfterAHoleIsWritten) {
  for (const uint32_t hole : {0u, 1u, 2u}) {
    Fixture f(TwoChannels());
    ASSERT_OK(f.Push());
    f.store.edit_get = [hole](Replies* replies) {
      const bool first = replies->size() == 4;  // of one page
      if (first != (hole == 0)) return;
      const std::ptrdiff_t at = hole == 2 ? 3 : 0;
      (*replies)[static_cast<size_t>(at)].mutable_item()->mutable_result()->set_status(v1::MISS);
      replies->erase(replies->begin() + at + 1, replies->end() - 1);
    };
    const auto report = f.Fetch();
    ASSERT_OK(report);
    EXPECT_OK(report->store);
    EXPECT_EQ(report->pages, hole);
    EXPECT_EQ(report->statuses[hole], ItemStatus::kMiss);
    EXPECT_TRUE(f.destination.SameRows(f.source, 0, 4 * hole));
    EXPECT_TRUE(f.destination.SameRows(f.untouched, 4 * hole, 64));
  }
}

TEST(FetchOverTwoChannels, WhatFailsIsAskedForAgain) {
  for (const int failing : {1, 2}) {
    Fixture f(TwoChannels());
    ASSERT_OK(f.Push());
    const auto begun = std::make_shared<std::atomic<int>>(0);
    f.store.fail = [begun, failing](const std::string& method) {
      const bool fails = method == "Get" && ++*begun == failing;
      return fails ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "not now") : grpc::Status::OK;
    };
    const auto report = f.Fetch();
    ASSERT_OK(report);
    EXPECT_OK(report->store);
    EXPECT_EQ(report->pages, 3u);
    EXPECT_TRUE(f.destination.SameRows(f.source, 0, 12));
  }
}

TEST(FetchOverTwoChannels, DamageInTheSecondLeavesWhatCameBefore) {
  Fixture f(TwoChannels());
  ASSERT_OK(f.Push());
  f.store.edit_get = [](Replies* replies) {
    if (replies->size() < 5) return;  // of one page
    std::string* data = (*replies)[replies->size() - 2].mutable_chunk()->mutable_data();
    data->back() = static_cast<char>(data->back() ^ 1);
  };
  const auto report = f.Fetch();
  ASSERT_OK(report);
  EXPECT_EQ(report->pages, 2u);
  EXPECT_EQ(report->statuses[2], ItemStatus::kCorrupt);
  EXPECT_TRUE(f.destination.SameRows(f.source, 0, 8));
  EXPECT_TRUE(f.destination.SameRows(f.untouched, 8, 64));
}

// A page of the fake is [item, chunk of 1000 bytes, chunk of 24]: the second page begins at 3.
constexpr size_t kItem = 3, kFirst = 4, kSecond = 5;

struct Lie {
  const char* name;
  void (*tell)(Replies& replies);
  absl::StatusCode store = absl::StatusCode::kDataLoss;
  ItemStatus status = ItemStatus::kCorrupt;
};

void PrintTo(const Lie& lie, std::ostream* out) { *out << lie.name; }

class FetchOfLies : public ::testing::TestWithParam<Lie> {};

TEST_P(FetchOfLies, PageIsRefusedAndNothingOfItIsWritten) {
  Fixture f;
  ASSERT_OK(f.Push());
  f.store.edit_get = [](Replies* replies) { GetParam().tell(*replies); };
  const auto report = f.Fetch();
  ASSERT_OK(report);
  EXPECT_EQ(report->store.code(), GetParam().store) << report->store;
  EXPECT_THAT(report->statuses,
              ElementsAre(ItemStatus::kOk, GetParam().status, ItemStatus::kSkipped));
  EXPECT_EQ(report->pages, 1u);
  EXPECT_TRUE(f.destination.SameRows(f.source, 0, 4));
  EXPECT_TRUE(f.destination.SameRows(f.untouched, 4, 64));
  // The client is none the worse for it.
  f.store.edit_get = [](Replies*) {};
  EXPECT_EQ(f.Fetch()->pages, 3u);
}

constexpr auto kAnswered = absl::StatusCode::kOk;

INSTANTIATE_TEST_SUITE_P(
    , FetchOfLies,
    ::testing::Values(
        Lie{"OneByteMore", [](Replies& r) { r[kItem].mutable_item()->set_bytes(1025); }},
        Lie{"OneByteLess", [](Replies& r) { r[kItem].mutable_item()->set_bytes(1023); }},
        Lie{"HugeSize", [](Replies& r) { r[kItem].mutable_item()->set_bytes(uint64_t{1} << 60); }},
        Lie{"ChecksumMissing",
            [](Replies& r) { r[kItem].mutable_item()->mutable_block_crc32c()->RemoveLast(); }},
        Lie{"ChecksumTooMany", [](Replies& r) { r[kItem].mutable_item()->add_block_crc32c(1); }},
        Lie{"WrongChecksum",
            [](Replies& r) {
              auto& crcs = *r[kItem].mutable_item()->mutable_block_crc32c();
              crcs.Set(3, crcs.Get(3) ^ 1);
            },
            kAnswered},
        Lie{"FlippedBit",
            [](Replies& r) { (*r[kSecond].mutable_chunk()->mutable_data())[23] ^= 1; }, kAnswered},
        Lie{"AnotherPagesBytes",
            [](Replies& r) {
              for (size_t i : {kFirst, kSecond})
                r[i].mutable_chunk()->set_data(r[i - kItem].chunk().data());
            },
            kAnswered},
        Lie{"NoSuchEncoding",
            [](Replies& r) {
              r[kItem].mutable_item()->set_encoding(static_cast<v1::Encoding>(9));
            }},
        Lie{"PackedWithoutTransforms",
            [](Replies& r) { r[kItem].mutable_item()->set_encoding(v1::PACKED); }},
        Lie{"NoSuchStatus",
            [](Replies& r) {
              r[kItem].mutable_item()->mutable_result()->set_status(
                  static_cast<v1::ItemStatus>(99));
            },
            kAnswered, ItemStatus::kInvalid},
        Lie{"ChunksSwapped", [](Replies& r) { std::swap(r[kFirst], r[kSecond]); }},
        Lie{"ChunkTwice", [](Replies& r) { r.insert(r.begin() + kFirst, r[kFirst]); }},
        Lie{"ChunkLeftOut", [](Replies& r) { r.erase(r.begin() + kFirst); }},
        Lie{"OffsetPastTheEnd", [](Replies& r) { r[kSecond].mutable_chunk()->set_offset(1024); }},
        Lie{"OffsetThatWrapsRound",
            [](Replies& r) { r[kSecond].mutable_chunk()->set_offset(~uint64_t{0}); }},
        Lie{"ChunkBeyondThePage",
            [](Replies& r) { r[kSecond].mutable_chunk()->mutable_data()->append("x"); }},
        Lie{"ChunkOfAnotherItem", [](Replies& r) { r[kSecond].mutable_chunk()->set_item(2); }},
        Lie{"ChunkWithoutItem", [](Replies& r) { r.erase(r.begin() + kItem); }},
        Lie{"ItemInThePage", [](Replies& r) { r.insert(r.begin() + kSecond, r[kItem]); }},
        Lie{"TakenBack",
            [](Replies& r) {
              r[kSecond].mutable_item()->set_item(1);
              r[kSecond].mutable_item()->mutable_result()->set_status(v1::CORRUPT);
            },
            kAnswered},
        Lie{"AnotherTakenBack",
            [](Replies& r) {
              r[kSecond].mutable_item()->set_item(2);
              r[kSecond].mutable_item()->mutable_result()->set_status(v1::CORRUPT);
            }},
        Lie{"ItemTwice", [](Replies& r) { r[kItem].mutable_item()->set_item(0); }},
        Lie{"ItemLeftOut", [](Replies& r) { r.erase(r.begin() + kItem, r.begin() + 2 * kItem); }},
        Lie{"ItemNotAskedFor", [](Replies& r) { r[kItem].mutable_item()->set_item(3); }},
        Lie{"ItemFarOut", [](Replies& r) { r[kItem].mutable_item()->set_item(~uint32_t{0}); }},
        Lie{"EndInThePage", [](Replies& r) { r.erase(r.begin() + kSecond, r.end() - 1); }},
        Lie{"SilentEndInThePage", [](Replies& r) { r.erase(r.begin() + kSecond, r.end()); }}),
    [](const auto& lie) { return lie.param.name; });

TEST(Fetch, ItemsBeyondThoseAskedForAreRefused) {
  Fixture f;
  ASSERT_OK(f.Push());
  f.store.edit_get = [](Replies* replies) {
    Replies more(replies->begin(), replies->begin() + 3);
    more[0].mutable_item()->set_item(3);
    more[1].mutable_chunk()->set_item(3);
    more[2].mutable_chunk()->set_item(3);
    replies->insert(replies->end() - 1, more.begin(), more.end());
  };
  const auto report = f.Fetch();
  ASSERT_OK(report);
  EXPECT_EQ(report->pages, 3u);
  EXPECT_TRUE(f.destination.SameRows(f.source, 0, 12));
  EXPECT_TRUE(f.destination.SameRows(f.untouched, 12, 64));
}

TEST(Fetch, AnAnswerThatEndsEarlyIsAskedForTheRest) {
  Fixture f;
  ASSERT_OK(f.Push());
  f.store.edit_get = [](Replies* replies) {
    replies->erase(replies->begin() + kItem, replies->end() - 1);
  };
  EXPECT_EQ(f.Fetch()->pages, 3u);
  EXPECT_EQ(f.store.calls("Get"), 3);
  f.store.edit_get = [](Replies* replies) { replies->clear(); };
  const auto report = f.Fetch();
  ASSERT_OK(report);
  EXPECT_OK(report->store);
  EXPECT_THAT(report->statuses,
              ElementsAre(ItemStatus::kMiss, ItemStatus::kSkipped, ItemStatus::kSkipped));
  EXPECT_EQ(f.store.calls("Get"), 4);
}

TEST(Fetch, TheEndNeedNotBeSaid) {
  Fixture f;
  ASSERT_OK(f.Push());
  f.store.edit_get = [](Replies* replies) { replies->pop_back(); };
  EXPECT_EQ(f.Fetch()->pages, 3u);
  EXPECT_EQ(f.store.calls("Get"), 1);
}

TEST(Fetch, DamagedPagesAreCounted) {
  Fixture f;
  ASSERT_OK(f.Push());
  f.store.edit_get = [](Replies* r) { (*(*r)[1].mutable_chunk()->mutable_data())[0] ^= 1; };
  ASSERT_OK(f.Fetch());
  ASSERT_OK(f.Fetch());
  EXPECT_EQ(f.client->counters().corrupt_pages, 2u);
}

TEST(Fetch, ARetryGoesOnAfterThePagesThatAreThere) {
  Fixture f;
  ASSERT_OK(f.Push());
  std::vector<size_t> lengths;  // of the honest answers
  f.store.edit_get = [&](Replies* replies) {
    lengths.push_back(replies->size());
    if (lengths.size() == 1) replies->resize(kSecond);  // breaks off in the second page
  };
  f.store.end_get = [&] {
    return lengths.size() == 1 ? grpc::Status(grpc::UNAVAILABLE, "going down") : grpc::Status::OK;
  };
  const auto report = f.Fetch();
  ASSERT_OK(report);
  EXPECT_OK(report->store);
  EXPECT_EQ(report->pages, 3u);
  EXPECT_THAT(lengths, ElementsAre(3 * 3 + 1, 2 * 3 + 1));
  EXPECT_TRUE(f.destination.SameRows(f.source, 0, 12));
}

}  // namespace
}  // namespace oscarkv::client
