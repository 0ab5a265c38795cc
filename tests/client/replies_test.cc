// Everything else that a store can say and should not: the client believes what can be, and no
// more.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"

#include "tests/client/fake_store.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::client {
namespace {

using ::oscarkv::testing::Fixture;
using ::oscarkv::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(LookupReply, HonestHit) {
  Fixture f;
  ASSERT_OK(f.Push());
  const auto hit = f.space->Lookup(f.keys);
  ASSERT_OK(hit);
  EXPECT_EQ(hit->pages, 3u);
  EXPECT_EQ(hit->usable_tokens, 12u);
  EXPECT_EQ(hit->bytes, 3 * 1024u);
  EXPECT_FALSE(hit->lease);
}

struct LookupLie {
  const char* name;
  void (*tell)(v1::LookupReply* reply);
  uint32_t pages;
};
void PrintTo(const LookupLie& lie, std::ostream* out) { *out << lie.name; }

class LookupOfLies : public ::testing::TestWithParam<LookupLie> {};

TEST_P(LookupOfLies, OnlyWhatMakesSenseIsAHit) {
  Fixture f;
  ASSERT_OK(f.Push());
  f.store.edit_lookup = GetParam().tell;
  const auto hit = f.space->Lookup(f.keys);
  ASSERT_OK(hit);
  EXPECT_OK(hit->store);
  EXPECT_EQ(hit->pages, GetParam().pages);
  EXPECT_EQ(hit->encodings.size(), GetParam().pages);
  EXPECT_EQ(hit->usable_tokens, GetParam().pages * 4);
  EXPECT_EQ(hit->bytes, GetParam().pages * 1024);
}

INSTANTIATE_TEST_SUITE_P(
    , LookupOfLies,
    ::testing::Values(
        LookupLie{"MorePagesThanAskedFor",
                  [](v1::LookupReply* r) {
                    for (int i = 0; i < 9; ++i) *r->add_pages() = r->pages(0);
                    r->set_prefix_pages(12);
                  },
                  3},
        LookupLie{"HugeCount", [](v1::LookupReply* r) { r->set_prefix_pages(~uint32_t{0}); }, 3},
        LookupLie{"MoreThanItDescribes",
                  [](v1::LookupReply* r) { r->mutable_pages()->RemoveLast(); }, 2},
        LookupLie{"HolesInThePrefix",
                  [](v1::LookupReply* r) { r->mutable_pages(1)->set_status(v1::EVICTED); }, 1},
        LookupLie{"NoSuchEncoding",
                  [](v1::LookupReply* r) {
                    r->mutable_pages(1)->set_encoding(static_cast<v1::Encoding>(7));
                  },
                  1},
        LookupLie{"PackedWithoutTransforms",
                  [](v1::LookupReply* r) { r->mutable_pages(0)->set_encoding(v1::PACKED); }, 0},
        LookupLie{"OtherBytes", [](v1::LookupReply* r) { r->set_fetch_bytes(~uint64_t{0}); }, 3}),
    [](const auto& lie) { return lie.param.name; });

TEST(LookupReply, TimesThatAreNoTimesAreLeftOut) {
  Fixture f;
  for (const double time :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(), -1.0}) {
    f.store.edit_lookup = [=](v1::LookupReply* r) { r->set_expected_fetch_ms(time); };
    const auto hit = f.space->Lookup(f.keys);
    EXPECT_EQ(hit->forecast.server_ms, 0.0);
    EXPECT_GE(hit->expected_ms, 0.0);
    EXPECT_TRUE(std::isfinite(hit->expected_ms));
  }
}

TEST(LookupReply, AdviceComparesAFetchWithComputing) {
  Fixture f;
  ASSERT_OK(f.Push());
  f.store.edit_lookup = [](v1::LookupReply* r) { r->set_expected_fetch_ms(1000.0); };
  EXPECT_EQ(f.space->Lookup(f.keys)->advice, Advice::kNone);
  // 12 tokens: in 12 ms, or in 12,000 s.
  const auto quick = f.space->Lookup(f.keys, {.recompute = TokensPerSecond(1000)});
  EXPECT_EQ(quick->usable_tokens, 12u);
  EXPECT_GT(quick->expected_ms, 12.0);
  EXPECT_EQ(quick->advice, Advice::kRecompute);
  EXPECT_EQ(f.space->Lookup(f.keys, {.recompute = TokensPerSecond(0.001)})->advice, Advice::kLoad);
  uint64_t asked = 0;
  const auto cost = [&](uint64_t tokens) {
    asked = tokens;
    return 1e9;
  };
  EXPECT_EQ(f.space->Lookup(f.keys, {.recompute = cost})->advice, Advice::kLoad);
  EXPECT_EQ(asked, 12u);
  f.store.edit_lookup = [](v1::LookupReply* r) { r->set_prefix_pages(0); };
  EXPECT_EQ(f.space->Lookup(f.keys, {.recompute = cost})->advice, Advice::kNone);
}

TEST(LookupReply, TailPolicyLeavesTheRecentWindowOfAPackedHitToTheEngine) {
  const auto transforms = ::oscarkv::testing::SmallTransformFile();
  Fixture f({}, transforms);
  f.keys.resize(2);
  f.slots.resize(8);
  client::PushRequest request;
  request.keys = f.keys;
  request.slots = f.slots;
  request.end_position = 12;
  const auto report = f.space->Push(f.source.view(), request);
  ASSERT_OK(report);
  EXPECT_EQ(report->packed_pages, 2u);
  EXPECT_EQ(f.store.transform_file(), transforms);
  EXPECT_EQ(f.space->Lookup(f.keys, {.tail = TailPolicy::kTake})->usable_tokens, 8u);
  const auto hit = f.space->Lookup(f.keys, {.tail = TailPolicy::kRecompute});
  EXPECT_EQ(hit->pages, 2u);
  EXPECT_EQ(hit->usable_tokens, 4u);
}

TEST(PutReply, EachResultIsTheItemsOwn) {
  Fixture f;
  f.store.edit_put = [](v1::PutReply* r) {
    r->mutable_results(1)->set_status(v1::CONFLICT);
    r->mutable_results(1)->set_message("other bytes");
    r->mutable_results(2)->set_status(v1::SKIPPED);
  };
  const auto report = f.Push();
  ASSERT_OK(report);
  EXPECT_THAT(report->statuses,
              ElementsAre(ItemStatus::kOk, ItemStatus::kConflict, ItemStatus::kSkipped));
  EXPECT_THAT(report->messages, ElementsAre("", "other bytes", ""));
}

TEST(PutReply, TooManyResultsAreIgnoredAndMissingOnesAreNoSuccess) {
  Fixture f;
  f.store.edit_put = [](v1::PutReply* r) {
    for (int i = 0; i < 9; ++i) r->add_results()->set_status(v1::CONFLICT);
  };
  EXPECT_THAT(f.Push()->statuses, ElementsAre(ItemStatus::kOk, ItemStatus::kOk, ItemStatus::kOk));
  f.store.edit_put = [](v1::PutReply* r) { r->mutable_results()->DeleteSubrange(1, 2); };
  EXPECT_THAT(f.Push()->statuses,
              ElementsAre(ItemStatus::kOk, ItemStatus::kSkipped, ItemStatus::kSkipped));
  f.store.edit_put = [](v1::PutReply* r) {
    r->mutable_results(0)->set_status(static_cast<v1::ItemStatus>(77));
  };
  EXPECT_EQ(f.Push()->statuses[0], ItemStatus::kInvalid);
}

// Says BUSY of the second page and those behind it, `times` times.
void SayBusy(Fixture* f, int times) {
  f->store.edit_put = [times, said = std::make_shared<std::atomic<int>>()](v1::PutReply* r) {
    if (said->fetch_add(1) >= times) return;
    const int second = r->results_size() == 3 ? 1 : 0;
    for (int i = second; i < r->results_size(); ++i)
      r->mutable_results(i)->set_status(i == second ? v1::BUSY : v1::SKIPPED);
  };
}

TEST(PutReply, WhatIsBusyIsOfferedAgainWithWhatFollowsIt) {
  Fixture f;
  SayBusy(&f, 3);
  const auto report = f.Push();
  ASSERT_OK(report);
  EXPECT_THAT(report->statuses, ElementsAre(ItemStatus::kOk, ItemStatus::kOk, ItemStatus::kOk));
  EXPECT_EQ(f.store.calls("Put"), 4);
  EXPECT_EQ(f.client->counters().busy_retries, 3u);
  EXPECT_EQ(f.client->counters().retries, 0u);
  // The first page was not sent again, and what came is what was pushed.
  EXPECT_EQ(report->bytes_wire, (3 + 3 * 2) * 1024u);
  ASSERT_EQ(f.Fetch()->pages, 3u);
  EXPECT_TRUE(f.destination.SameRows(f.source, 0, 12));
}

TEST(PutReply, WhatStaysBusyIsSoInTheReport) {
  Fixture f({.push_timeout = absl::Milliseconds(50)});
  SayBusy(&f, std::numeric_limits<int>::max());
  const auto report = f.Push();
  ASSERT_OK(report);
  EXPECT_THAT(report->statuses,
              ElementsAre(ItemStatus::kOk, ItemStatus::kBusy, ItemStatus::kSkipped));
  EXPECT_EQ(f.store.calls("Put"), 1 + static_cast<int>(f.client->counters().busy_retries));
}

TEST(PutReply, AWaitForABusyStoreEndsWithTheNamespace) {
  Fixture f({.push_timeout = absl::Minutes(5)});
  SayBusy(&f, std::numeric_limits<int>::max());
  absl::StatusOr<client::PushReport> pushed;
  client::PushRequest request;
  request.keys = f.keys;
  request.slots = f.slots;
  absl::Notification done;
  ASSERT_TRUE(f.space->PushAsync(f.source.view(), request, [&](auto report) {
    pushed = std::move(report);
    done.Notify();
  }));
  f.store.AwaitCalls("Put", 2);
  f.space.reset();
  done.WaitForNotification();
  ASSERT_OK(pushed);
  EXPECT_EQ(pushed->statuses[0], ItemStatus::kOk);
  EXPECT_NE(pushed->statuses[1], ItemStatus::kOk);
}

// Says BUSY of a get's second page, `times` times.
void SayBusyOfGets(Fixture* f, int times) {
  f->store.edit_get =
      [times, said = std::make_shared<std::atomic<int>>()](std::vector<v1::GetReply>* replies) {
        int pages = 0;
        for (size_t i = 0; i < replies->size(); ++i) {
          if (!(*replies)[i].has_item()) continue;
          ++pages;
          // Of all three pages it is the second; of what is left of them, the first.
          const int busy = said->load() == 0 ? 2 : 1;
          if (pages != busy || said->fetch_add(1) >= times) continue;
          (*replies)[i].mutable_item()->mutable_result()->set_status(v1::BUSY);
          replies->resize(i + 1);
          return;
        }
      };
}

TEST(GetReply, WhatIsBusyIsAskedForAgainFromThereOn) {
  Fixture f;
  ASSERT_OK(f.Push());
  SayBusyOfGets(&f, 3);
  const auto report = f.Fetch();
  ASSERT_OK(report);
  EXPECT_EQ(report->pages, 3u);
  EXPECT_THAT(report->statuses, ElementsAre(ItemStatus::kOk, ItemStatus::kOk, ItemStatus::kOk));
  EXPECT_TRUE(f.destination.SameRows(f.source, 0, 12));
  EXPECT_EQ(f.store.calls("Get"), 4);
  EXPECT_EQ(f.client->counters().busy_retries, 3u);
}

TEST(GetReply, WhatStaysBusyIsSoInTheReport) {
  Fixture f({.fetch_timeout = absl::Milliseconds(50)});
  ASSERT_OK(f.Push());
  SayBusyOfGets(&f, std::numeric_limits<int>::max());
  const auto report = f.Fetch();
  ASSERT_OK(report);
  EXPECT_OK(report->store);
  EXPECT_EQ(report->pages, 1u);
  EXPECT_THAT(report->statuses,
              ElementsAre(ItemStatus::kOk, ItemStatus::kBusy, ItemStatus::kSkipped));
}

TEST(KeysReply, MissingResultsAreMisses) {
  Fixture f;
  f.store.edit_keys = [](v1::KeysReply* r) { r->mutable_results()->RemoveLast(); };
  EXPECT_THAT(*f.space->Delete(f.keys),
              ElementsAre(ItemStatus::kOk, ItemStatus::kOk, ItemStatus::kMiss));
}

TEST(PersistReply, OnlyWhatTheServerSaysIsDurable) {
  Fixture f;
  const auto persist = [&] { return f.space->Persist(f.keys, absl::Seconds(60)).value(); };
  EXPECT_TRUE(persist().durable());
  f.store.edit_keys = [](v1::KeysReply* r) { r->mutable_results()->RemoveLast(); };
  EXPECT_THAT(persist().statuses,
              ElementsAre(ItemStatus::kOk, ItemStatus::kOk, ItemStatus::kSkipped));
  EXPECT_FALSE(persist().durable());
  f.store.edit_keys = [](v1::KeysReply* r) {
    r->mutable_results(1)->set_status(v1::NO_SPACE);
    r->mutable_results(1)->set_message("full");
    r->add_results()->set_status(v1::OK);
  };
  const PersistReport refused = persist();
  EXPECT_OK(refused.store);
  EXPECT_FALSE(refused.durable());
  EXPECT_THAT(refused.statuses,
              ElementsAre(ItemStatus::kOk, ItemStatus::kNoSpace, ItemStatus::kOk));
  EXPECT_THAT(refused.messages, ElementsAre("", "full", ""));
  f.store.fail = [](const std::string& method) {
    return method == "Persist" ? grpc::Status(grpc::FAILED_PRECONDITION, "no disk tier")
                               : grpc::Status::OK;
  };
  const PersistReport without = persist();
  EXPECT_THAT(without.store, StatusIs(absl::StatusCode::kFailedPrecondition, "no disk tier"));
  EXPECT_THAT(without.statuses,
              ElementsAre(ItemStatus::kSkipped, ItemStatus::kSkipped, ItemStatus::kSkipped));
}

TEST(ListReply, AListThatDoesNotGetOnEnds) {
  Fixture f;
  f.store.edit_list = [](v1::ListReply* r) { r->set_cursor("again"); };
  EXPECT_THAT(f.space->List(100), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("get on")));
  f.store.edit_list = [](v1::ListReply* r) {
    for (int i = 0; i < 500; ++i) r->add_pages()->set_key("0123456789abcdef");
  };
  EXPECT_EQ(f.space->List(100)->size(), 100u);
}

TEST(OpenRequest, BringsTheSettingsEachTimeThatTheNamespaceIsOpened) {
  Fixture f;
  std::vector<v1::OpenNamespaceRequest> requests;
  f.store.on_open = [&](const v1::OpenNamespaceRequest& request) { requests.push_back(request); };
  f.space =
      f.client
          ->OpenNamespace(f.spec, "", /*create=*/true,
                          {.store_wide = StoreWide::kUntilPressure, .page_ttl = absl::Seconds(90)})
          .value();
  f.store.SetEpoch(2);
  f.space->Lookup(f.keys).IgnoreError();
  const auto again = f.client->OpenNamespace(f.spec, "");
  ASSERT_EQ(requests.size(), 3u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(requests[i].store_wide(), v1::WIDE_UNTIL_PRESSURE);
    EXPECT_EQ(requests[i].page_ttl_ms(), 90'000u);
  }
  EXPECT_EQ(requests[2].store_wide(), v1::STORE_WIDE_UNSPECIFIED);
  EXPECT_EQ(requests[2].page_ttl_ms(), 0u);
  for (const absl::Duration ttl :
       {absl::Microseconds(999), -absl::Seconds(1), absl::InfiniteDuration()}) {
    EXPECT_THAT(f.client->OpenNamespace(f.spec, "", true, {.page_ttl = ttl}),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("page_ttl")));
  }
}

TEST(OpenReply, AServerThatUnderstandsTheSpecOtherwiseIsRefused) {
  Fixture f;
  const auto open = [&] { return f.client->OpenNamespace(f.spec, "").status(); };
  f.store.edit_open = [](v1::OpenNamespaceReply* r) { r->set_fingerprint("another"); };
  EXPECT_THAT(open(), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("fingerprint")));
  f.store.edit_open = [](v1::OpenNamespaceReply* r) { r->set_wide_page_bytes(1088); };
  EXPECT_THAT(open(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("1024 and 1088 bytes")));
}

TEST(OpenReply, LimitsThatCannotBeAreNotFollowed) {
  Fixture f;
  for (const uint32_t limit : {0u, ~0u}) {
    f.store.edit_open = [=](v1::OpenNamespaceReply* r) {
      r->mutable_limits()->set_max_items(limit);
      r->mutable_limits()->set_max_chunk_bytes(limit);
    };
    f.space = f.client->OpenNamespace(f.spec, "").value();
    ASSERT_OK(f.Push());
    EXPECT_EQ(f.Fetch()->pages, 3u);
    EXPECT_TRUE(f.destination.SameRows(f.source, 0, 12));
  }
}

TEST(Epoch, ANewEpochIsOpenedAgainAndNothingOfTheOldOneIsBelieved) {
  Fixture f;
  ASSERT_OK(f.Push());
  f.store.SetEpoch(2);
  const auto report = f.Fetch();
  ASSERT_OK(report);
  EXPECT_OK(report->store);
  EXPECT_EQ(report->statuses[0], ItemStatus::kMiss);
  EXPECT_EQ(f.client->counters().reopens, 1u);
  EXPECT_EQ(f.space->Lookup(f.keys)->pages, 0u);
  EXPECT_EQ(f.store.last_lookup().scope().server_epoch(), 2u);
  EXPECT_THAT(f.Push()->statuses, ElementsAre(ItemStatus::kOk, ItemStatus::kOk, ItemStatus::kOk));
}

TEST(Epoch, AServerThatIsAlwaysOfAnotherEpochIsAMiss) {
  Fixture f;
  f.store.fail = [](const std::string& method) {
    return method == "OpenNamespace" ? grpc::Status::OK : grpc::Status(grpc::ABORTED, "no");
  };
  const auto report = f.Fetch();
  ASSERT_OK(report);
  EXPECT_THAT(report->store, StatusIs(absl::StatusCode::kAborted));
  EXPECT_EQ(report->statuses[0], ItemStatus::kMiss);
  EXPECT_EQ(f.store.calls("Get"), 2);
  EXPECT_EQ(f.store.calls("OpenNamespace"), 2);
}

TEST(Epoch, TheTransformSetIsUploadedAgainForAPush) {
  const auto transforms = ::oscarkv::testing::SmallTransformFile();
  Fixture f({}, transforms);
  EXPECT_EQ(f.store.transform_file(), transforms);
  f.store.SetEpoch(2);
  EXPECT_OK(f.space->Lookup(f.keys)->store);
  EXPECT_EQ(f.store.transform_file(), "") << "a look-up needs none";
  EXPECT_EQ(f.Push()->packed_pages, 2u);
  EXPECT_EQ(f.store.transform_file(), transforms);
}

// Of page `item`, the first `bytes` bytes of its first chunk come in its item.
void MoveIntoItem(std::vector<v1::GetReply>* replies, uint32_t item, size_t bytes) {
  v1::GetItem* head = nullptr;
  for (v1::GetReply& reply : *replies) {
    if (reply.has_item() && reply.item().item() == item) head = reply.mutable_item();
    if (!reply.has_chunk() || reply.chunk().item() != item || reply.chunk().offset() != 0) continue;
    const std::string data = reply.chunk().data();
    head->set_data(data.substr(0, bytes));
    reply.mutable_chunk()->set_offset(std::min(bytes, data.size()));
    reply.mutable_chunk()->set_data(data.substr(std::min(bytes, data.size())));
  }
}

TEST(GetReply, ItemsMayBringTheirFirstBytes) {
  for (const size_t bytes : {1u, 100u, 1024u}) {
    Fixture f;
    ASSERT_OK(f.Push());
    f.store.edit_get = [&](std::vector<v1::GetReply>* replies) { MoveIntoItem(replies, 1, bytes); };
    const auto report = f.Fetch();
    ASSERT_OK(report);
    EXPECT_EQ(report->pages, 3u) << bytes;
    EXPECT_TRUE(f.destination.SameRows(f.source, 0, 12));
  }
}

TEST(GetReply, ItemsThatBringMoreThanTheyAreAreRefused) {
  Fixture f;
  ASSERT_OK(f.Push());
  f.store.edit_get = [](std::vector<v1::GetReply>* replies) {
    for (v1::GetReply& reply : *replies) {
      if (reply.has_item() && reply.item().item() == 1)
        reply.mutable_item()->set_data(std::string(1025, 'x'));
    }
  };
  const auto report = f.Fetch();
  ASSERT_OK(report);
  EXPECT_THAT(report->store, StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(report->pages, 1u);
  EXPECT_TRUE(f.destination.SameRows(f.untouched, 4, 64));
}

}  // namespace
}  // namespace oscarkv::client
