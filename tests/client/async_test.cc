// The asynchronous forms, and what the end of a namespace does to them.
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"

#include "tests/client/fake_store.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::client {
namespace {

using ::oscarkv::testing::Fixture;
using ::oscarkv::testing::StatusIs;
using ::testing::Each;
using ::testing::SizeIs;

PushRequest PushOf(const Fixture& f) {
  PushRequest request;
  request.keys = f.keys;
  request.slots = f.slots;
  return request;
}

FetchRequest FetchOf(const Fixture& f) {
  FetchRequest request;
  request.keys = f.keys;
  request.slots = f.slots;
  return request;
}

TEST(Async, FormsDoWhatTheSynchronousOnesDo) {
  Fixture f;
  absl::Notification pushed, looked, fetched;
  f.space->PushAsync(f.source.view(), PushOf(f), [&](const absl::StatusOr<PushReport>& report) {
    EXPECT_THAT(report->statuses, Each(ItemStatus::kOk));
    pushed.Notify();
  });
  pushed.WaitForNotification();
  f.space->LookupAsync(f.keys, {}, [&](const absl::StatusOr<Hit>& hit) {
    EXPECT_EQ(hit->pages, 3u);
    looked.Notify();
  });
  f.space->FetchAsync(f.destination.view(), FetchOf(f),
                      [&](const absl::StatusOr<FetchReport>& report) {
                        EXPECT_EQ(report->pages, 3u);
                        fetched.Notify();
                      });
  absl::Notification persisted;
  f.space->PersistAsync(f.keys, absl::Seconds(60),
                        [&](const absl::StatusOr<PersistReport>& report) {
                          EXPECT_TRUE(report->durable());
                          persisted.Notify();
                        });
  persisted.WaitForNotification();
  looked.WaitForNotification();
  fetched.WaitForNotification();
  EXPECT_TRUE(f.destination.SameRows(f.source, 0, 12));
}

TEST(Async, MisuseArrivesThere) {
  Fixture f;
  f.slots.pop_back();
  absl::Notification done;
  f.space->FetchAsync(f.destination.view(), FetchOf(f),
                      [&](const absl::StatusOr<FetchReport>& report) {
                        EXPECT_THAT(report, StatusIs(absl::StatusCode::kInvalidArgument));
                        done.Notify();
                      });
  done.WaitForNotification();
}

TEST(Async, TheEndOfANamespaceCancelsWhatIsUnderWayAndRunsEveryDone) {
  Fixture f({.fetch_timeout = absl::Hours(1), .async_threads = 2});
  ASSERT_OK(f.Push());
  absl::Notification over;
  f.store.enter = [&](const std::string& method) {
    if (method == "Get") over.WaitForNotification();
  };
  std::vector<absl::Status> ends;
  absl::Mutex mutex;
  for (int i = 0; i < 5; ++i) {  // two of them are under way, three wait
    f.space->FetchAsync(f.destination.view(), FetchOf(f),
                        [&](const absl::StatusOr<FetchReport>& report) {
                          const absl::MutexLock lock(&mutex);
                          ends.push_back(report->store);
                        });
  }
  f.store.AwaitCalls("Get", 2);
  f.space.reset();
  EXPECT_THAT(ends, SizeIs(5));
  EXPECT_THAT(ends, Each(StatusIs(absl::StatusCode::kCancelled)));
  EXPECT_TRUE(f.destination.SameRows(f.untouched, 0, 64));
  EXPECT_EQ(f.store.calls("Get"), 2);
  EXPECT_EQ(f.client->counters().failures, 0u) << "says nothing about the store";
  over.Notify();
}

TEST(Async, OtherNamespacesOfTheClientGoOn) {
  Fixture f({.fetch_timeout = absl::Hours(1)});
  ASSERT_OK(f.Push());
  auto other = f.client->OpenNamespace(f.spec, "").value();
  absl::Notification over;
  f.store.enter = [&](const std::string& method) {
    if (method == "Get") over.WaitForNotification();
  };
  absl::Notification done;
  f.space->FetchAsync(f.destination.view(), FetchOf(f),
                      [&](const absl::StatusOr<FetchReport>& report) {
                        EXPECT_EQ(report->pages, 3u);
                        done.Notify();
                      });
  f.store.AwaitCalls("Get", 1);
  other.reset();
  over.Notify();
  done.WaitForNotification();
}

TEST(Async, ANamespaceOutlivesItsClient) {
  Fixture f;
  f.client.reset();
  absl::Notification pushed;
  f.space->PushAsync(f.source.view(), PushOf(f), [&](const absl::StatusOr<PushReport>& report) {
    EXPECT_OK(report->store);
    pushed.Notify();
  });
  pushed.WaitForNotification();
  EXPECT_EQ(f.Fetch()->pages, 3u);
}

TEST(Async, ManyCallsFromManyThreadsAtOnce) {
  Fixture f({.lookup_timeout = absl::Seconds(60),
             .fetch_timeout = absl::Seconds(60),
             .async_threads = 4});
  ASSERT_OK(f.Push());
  const int calls = 100;
  absl::BlockingCounter left(2 * calls);
  std::atomic<int> found = 0;
  // All fetches write the same, so they may not write to one place: they leave every token out.
  const std::vector<int64_t> none(f.slots.size(), -1);
  FetchRequest request = FetchOf(f);
  request.slots = none;
  const EngineView view = f.destination.view();
  for (int i = 0; i < calls; ++i) {
    f.space->LookupAsync(f.keys, {.lease = i % 2 == 0}, [&](const absl::StatusOr<Hit>& hit) {
      found += static_cast<int>(hit->pages);
      left.DecrementCount();
    });
    f.space->FetchAsync(view, request, [&](const absl::StatusOr<FetchReport>& report) {
      found += static_cast<int>(report->pages);
      left.DecrementCount();
    });
  }
  left.Wait();
  EXPECT_EQ(found, 2 * calls * 3);
}

TEST(PushQueue, WhatFindsNoRoomIsDroppedAndCounted) {
  const uint64_t kPushBytes = 3 * 2 * 2 * 4 * 2 * 16 * 2;  // pages, layers, heads, tokens, K and V
  Fixture f({.push_timeout = absl::Hours(1), .push_queue_bytes = 2 * kPushBytes});
  absl::Notification over;
  f.store.enter = [&](const std::string& method) {
    if (method == "Put") over.WaitForNotification();
  };
  const EngineView view = f.source.view();
  std::atomic<int> stored = 0;
  const auto count = [&](const absl::StatusOr<PushReport>& report) {
    stored += report->store.ok();
  };
  EXPECT_TRUE(f.space->PushAsync(view, PushOf(f), count));
  EXPECT_TRUE(f.space->PushAsync(view, PushOf(f), count));
  absl::Notification told;
  EXPECT_FALSE(f.space->PushAsync(view, PushOf(f), [&](const absl::StatusOr<PushReport>& report) {
    EXPECT_THAT(report->store, StatusIs(absl::StatusCode::kResourceExhausted));
    EXPECT_THAT(report->statuses, Each(ItemStatus::kSkipped));
    told.Notify();
  }));
  told.WaitForNotification();
  EXPECT_FALSE(f.space->PushAsync(view, PushOf(f), nullptr));
  ClientCounters counters = f.client->counters();
  EXPECT_EQ(counters.pushes_dropped, 2u);
  EXPECT_EQ(counters.pages_dropped, 6u);
  EXPECT_EQ(counters.bytes_dropped, 2 * kPushBytes);
  EXPECT_FALSE(f.client->AwaitPushes(absl::ZeroDuration()));
  over.Notify();
  EXPECT_TRUE(f.client->AwaitPushes(absl::Seconds(60)));
  EXPECT_EQ(stored, 2);
  EXPECT_TRUE(f.space->PushAsync(view, PushOf(f), nullptr)) << "there is room again";
  EXPECT_TRUE(f.client->AwaitPushes(absl::Seconds(60)));
  EXPECT_EQ(f.client->counters().pushes_dropped, 2u);
}

TEST(PushQueue, OnePushGoesHoweverSmallTheQueue) {
  Fixture f({.push_queue_bytes = 1});
  EXPECT_TRUE(f.space->PushAsync(f.source.view(), PushOf(f), nullptr));
  EXPECT_TRUE(f.client->AwaitPushes(absl::Seconds(60)));
  EXPECT_EQ(f.Fetch()->pages, 3u);
}

TEST(PushQueue, FetchesDoNotWaitBehindPushes) {
  Fixture f({.push_timeout = absl::Hours(1), .async_threads = 1});
  ASSERT_OK(f.Push());
  absl::Notification over;
  f.store.enter = [&](const std::string& method) {
    if (method == "Put") over.WaitForNotification();
  };
  for (int i = 0; i < 4; ++i) f.space->PushAsync(f.source.view(), PushOf(f), nullptr);
  absl::Notification fetched;
  f.space->FetchAsync(f.destination.view(), FetchOf(f),
                      [&](const absl::StatusOr<FetchReport>& report) {
                        EXPECT_EQ(report->pages, 3u);
                        fetched.Notify();
                      });
  fetched.WaitForNotification();
  over.Notify();
}

TEST(PushQueue, TheEndOfANamespaceEndsItsPushes) {
  Fixture f({.push_timeout = absl::Hours(1)});
  absl::Notification over;
  f.store.enter = [&](const std::string& method) {
    if (method == "Put") over.WaitForNotification();
  };
  std::atomic<int> cancelled = 0;
  for (int i = 0; i < 3; ++i) {
    f.space->PushAsync(f.source.view(), PushOf(f), [&](const absl::StatusOr<PushReport>& report) {
      cancelled += absl::IsCancelled(report->store);
    });
  }
  f.store.AwaitCalls("Put", 1);
  f.space.reset();
  EXPECT_EQ(cancelled, 3);
  EXPECT_EQ(f.store.calls("Put"), 1);
  over.Notify();
}

}  // namespace
}  // namespace oscarkv::client
