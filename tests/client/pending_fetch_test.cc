// Fetches that come layer by layer, and what cancelling them does.
#include "client/cpp/pending_fetch.h"

#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>
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
using ::testing::Pair;

constexpr absl::Duration kSoon = absl::Seconds(60);  // of what is to happen at once

FetchRequest RequestOf(const Fixture& f) {
  FetchRequest request;
  request.keys = f.keys;
  request.slots = f.slots;
  return request;
}

StartFetchOptions LayerByLayer() {
  StartFetchOptions options;
  options.layers_at_once = 1;
  return options;
}

bool Readable(int fd) {
  pollfd polled = {.fd = fd, .events = POLLIN, .revents = 0};
  return poll(&polled, 1, 0) == 1;
}

void Drain(int fd) {
  uint64_t count = 0;
  EXPECT_EQ(read(fd, &count, sizeof(count)), static_cast<ssize_t>(sizeof(count)));
}

TEST(PendingFetch, LayersComeOneAfterTheOther) {
  Fixture f;
  ASSERT_OK(f.Push());
  absl::Notification second;
  std::atomic<int> gets = 0;
  f.store.enter = [&](const std::string& method) {
    if (method == "Get" && ++gets == 2) second.WaitForNotification();
  };
  std::vector<std::pair<uint32_t, uint32_t>> told;  // first layer, pages
  StartFetchOptions options = LayerByLayer();
  options.on_layers = [&](BlockRange layers, uint32_t pages) {
    told.emplace_back(layers.first, pages);
  };
  std::atomic<int> ended = 0;
  options.done = [&](const absl::StatusOr<FetchReport>& report) {
    EXPECT_EQ(report->pages, 3u);
    ++ended;
  };
  const auto fetch = f.space->StartFetch(f.destination.view(), RequestOf(f), std::move(options));
  EXPECT_EQ(fetch->AwaitLayer(0, kSoon).value(), 3u);
  EXPECT_TRUE(Readable(fetch->event_fd()));
  Drain(fetch->event_fd());
  EXPECT_FALSE(Readable(fetch->event_fd()));
  EXPECT_THAT(fetch->AwaitLayer(1, absl::ZeroDuration()),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(fetch->Await(absl::ZeroDuration()), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_FALSE(fetch->done());
  second.Notify();
  EXPECT_EQ(fetch->AwaitLayer(1, kSoon).value(), 3u);
  const absl::StatusOr<FetchReport> report = fetch->Await(kSoon);
  ASSERT_OK(report);
  EXPECT_OK(report->store);
  EXPECT_EQ(report->pages, 3u);
  EXPECT_TRUE(Readable(fetch->event_fd()));
  EXPECT_EQ(ended, 1);
  EXPECT_THAT(told, ElementsAre(Pair(0, 3), Pair(1, 3)));
  EXPECT_TRUE(f.destination.SameRows(f.source, 0, 12));
  EXPECT_EQ(fetch->AwaitLayer(2, kSoon).value(), 0u) << "there is no such layer";
}

TEST(PendingFetch, OwnsTheRequest) {
  Fixture f;
  ASSERT_OK(f.Push());
  auto keys = std::make_unique<std::vector<std::string>>(f.keys);
  auto slots = std::make_unique<std::vector<int64_t>>(f.slots);
  FetchRequest request;
  request.keys = *keys;
  request.slots = *slots;
  absl::Notification begin;
  f.store.enter = [&](const std::string&) { begin.WaitForNotification(); };
  const auto fetch = f.space->StartFetch(f.destination.view(), request);
  keys.reset();
  slots.reset();
  begin.Notify();
  EXPECT_EQ(fetch->Await(kSoon)->pages, 3u);
}

TEST(PendingFetch, WhatALaterLayerLacksCutsThoseBefore) {
  Fixture f;
  ASSERT_OK(f.Push());
  std::atomic<int> gets = 0;
  f.store.edit_get = [&](std::vector<v1::GetReply>* replies) {
    if (++gets == 2) {
      for (v1::GetReply& reply : *replies) {
        if (reply.has_chunk() && reply.chunk().item() == 1)
          (*reply.mutable_chunk()->mutable_data())[3] ^= 1;
      }
    }
  };
  const auto fetch = f.space->StartFetch(f.destination.view(), RequestOf(f), LayerByLayer());
  EXPECT_EQ(fetch->AwaitLayer(0, kSoon).value(), 3u);
  EXPECT_EQ(fetch->AwaitLayer(1, kSoon).value(), 1u);
  const absl::StatusOr<FetchReport> report = fetch->Await(kSoon);
  EXPECT_EQ(report->pages, 1u);
  EXPECT_THAT(report->statuses,
              ElementsAre(ItemStatus::kOk, ItemStatus::kCorrupt, ItemStatus::kSkipped));
  EXPECT_TRUE(f.destination.SameRows(f.source, 0, 4));
}

TEST(PendingFetch, CancellingEndsItWhateverTheStoreDoes) {
  Fixture f({.fetch_timeout = absl::Hours(1)});
  ASSERT_OK(f.Push());
  absl::Notification over;
  f.store.enter = [&](const std::string& method) {
    if (method == "Get") over.WaitForNotification();
  };
  const auto fetch = f.space->StartFetch(f.destination.view(), RequestOf(f), LayerByLayer());
  f.store.AwaitCalls("Get", 1);
  fetch->Cancel();
  const absl::StatusOr<FetchReport> report = fetch->Await(kSoon);
  ASSERT_OK(report);
  EXPECT_THAT(report->store, StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(report->pages, 0u);
  EXPECT_EQ(fetch->AwaitLayer(0, kSoon).value(), 0u);
  EXPECT_TRUE(f.destination.SameRows(f.untouched, 0, 64));
  EXPECT_EQ(f.client->counters().failures, 0u) << "says nothing about the store";
  over.Notify();
  EXPECT_EQ(f.Fetch()->pages, 3u) << "other fetches of the namespace go on";
}

TEST(PendingFetch, CancelledBeforeItBeganAsksNobody) {
  Fixture f({.fetch_timeout = absl::Hours(1), .async_threads = 1});
  ASSERT_OK(f.Push());
  absl::Notification over;
  f.store.enter = [&](const std::string& method) {
    if (method == "Get") over.WaitForNotification();
  };
  const auto first = f.space->StartFetch(f.destination.view(), RequestOf(f));
  const auto second = f.space->StartFetch(f.destination.view(), RequestOf(f));
  f.store.AwaitCalls("Get", 1);
  second->Cancel();
  first->Cancel();
  EXPECT_THAT(second->Await(kSoon)->store, StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(f.store.calls("Get"), 1);
  over.Notify();
}

TEST(PendingFetch, LettingGoOfItCancels) {
  Fixture f({.fetch_timeout = absl::Hours(1)});
  ASSERT_OK(f.Push());
  absl::Notification over;
  f.store.enter = [&](const std::string& method) {
    if (method == "Get") over.WaitForNotification();
  };
  auto fetch = f.space->StartFetch(f.destination.view(), RequestOf(f));
  f.store.AwaitCalls("Get", 1);
  fetch.reset();
  EXPECT_TRUE(f.destination.SameRows(f.untouched, 0, 64));
  over.Notify();
}

TEST(PendingFetch, OutlivesItsNamespace) {
  Fixture f({.fetch_timeout = absl::Hours(1)});
  ASSERT_OK(f.Push());
  absl::Notification over;
  f.store.enter = [&](const std::string& method) {
    if (method == "Get") over.WaitForNotification();
  };
  const auto fetch = f.space->StartFetch(f.destination.view(), RequestOf(f));
  f.store.AwaitCalls("Get", 1);
  f.space.reset();
  EXPECT_TRUE(fetch->done());
  EXPECT_THAT(fetch->Await(absl::ZeroDuration())->store, StatusIs(absl::StatusCode::kCancelled));
  fetch->Cancel();
  over.Notify();
}

TEST(PendingFetch, MisuseArrivesThere) {
  Fixture f;
  f.slots.pop_back();
  const auto fetch = f.space->StartFetch(f.destination.view(), RequestOf(f));
  EXPECT_THAT(fetch->Await(kSoon), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(fetch->AwaitLayer(0, kSoon).value(), 0u);
}

}  // namespace
}  // namespace oscarkv::client
