// A client that dies at any step, as the server sees it: the other end of the connection is gone.
// Everything that it held comes back, by that alone, and the next client finds all as it should be.
#include <atomic>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/transport/door_testing.h"

namespace oscarkv::testing {
namespace {

using ::testing::AnyOf;

class ClientDeathTest : public DoorTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(ClientDeathTest, GivesEverythingBack) {
  constexpr uint64_t kStaging = 64 << 10;
  OpenDoor({.socket = {}, .staging_bytes_total = kStaging, .mapped_bytes_max = 3 * kPageBytes},
           {.lease_max = absl::InfiniteDuration()});
  const auto session = Join();
  const auto stored = Stored(1, 3);
  const auto pushed = Chain(space(), 100, 2);
  std::atomic<int> deaths = 0;
  {
    DoorClient client;
    absl::Notification connected;
    const AtFaultPoint point(GetParam(), [&] {
      connected.WaitForNotification();
      if (deaths.fetch_add(1) == 0) client.socket().Shutdown();
    });
    client = DoorClient(Connect());
    connected.Notify();
    // A whole life, of which what comes after the death fails.
    const absl::StatusOr<v1::DoorReply> welcome = client.Hello(HelloOf(session->id(), kStaging));
    if (welcome.ok() && !client.staging().empty()) {
      const v1::DoorRequest commit = CommitRequest(client, pushed);
      client.Ask(MapRequest(stored)).IgnoreError();
      client.Ask(commit).IgnoreError();
      v1::DoorRequest release;
      release.mutable_release();
      client.Send(release).IgnoreError();
      client.Ask(MapRequest(stored)).IgnoreError();
      client.socket().Shutdown();
    }
    AwaitNoLinks();
    EXPECT_GE(deaths, 1) << "nobody came to " << GetParam();
    EXPECT_TRUE(client.arena().empty() || client.fenced());
  }
  ExpectNothingMapped();
  EXPECT_EQ(store().Stats().sessions, 1u);  // the connection's end is not the session's
  // What was pushed is there whole, or not at all.
  for (const TestItem& item : pushed)
    EXPECT_THAT(Read(item), AnyOf(ItemStatus::kOk, ItemStatus::kMiss));
  // All staging memory, and all that may be mapped, is there for the next one.
  DoorClient next = Enter(session->id(), kStaging);
  EXPECT_EQ(next.staging().size(), kStaging);
  const v1::DoorMapped mapped = Map(next, stored);
  ASSERT_GE(mapped.pages_size(), 1);
  ExpectMapped(next, mapped.pages(0), stored[0]);
  EXPECT_THAT(Commit(next, CommitRequest(next, pushed)),
              ::testing::Each(AnyOf(v1::OK, v1::EXISTS)));
}

INSTANTIATE_TEST_SUITE_P(AtEachStep, ClientDeathTest,
                         ::testing::Values("shm.server.accepted", "shm.server.greeted",
                                           "shm.server.welcomed", "shm.server.pinned",
                                           "shm.server.mapped", "shm.server.copied",
                                           "shm.server.committed", "shm.server.released",
                                           "shm.server.fenced"),
                         [](const ::testing::TestParamInfo<const char*>& tested) {
                           const std::string point = tested.param;
                           return point.substr(point.rfind('.') + 1);
                         });

}  // namespace
}  // namespace oscarkv::testing
