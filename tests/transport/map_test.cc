// Reading pages where they lie: they stay as they are while a client reads them, and a client from
// whom they were taken can tell.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/base/checksum.h"
#include "tests/transport/door_testing.h"

namespace oscarkv::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using absl::StatusCode;

class MapTest : public DoorTest {
 protected:
  uint64_t FetchedBytes() const {
    return context_->transfers().bytes(DataPath::kShm, Direction::kFetch);
  }
  bool Holds(const DoorClient& client, const v1::MappedPage& mapped, const TestItem& item) const {
    return std::ranges::equal(client.BytesOf(mapped), BytesOf(item));
  }
};

TEST_F(MapTest, PagesAreWhereTheReplySays) {
  OpenDoor();
  const auto session = Join();
  DoorClient client = Enter(session->id());
  const auto chain = Stored(1, 3);
  const v1::DoorMapped mapped = Map(client, chain);
  ASSERT_EQ(mapped.pages_size(), 3);
  for (int i = 0; i < 3; ++i) ExpectMapped(client, mapped.pages(i), chain[static_cast<size_t>(i)]);
  EXPECT_EQ(door_->Stats().mapped_bytes, 3 * kPageBytes);
  EXPECT_EQ(store().Stats().pins, 3u);
  EXPECT_EQ(FetchedBytes(), 0u);  // not over yet
  client.Release();
  EXPECT_EQ(Map(client, {}).pages_size(), 0);  // behind the release
  EXPECT_EQ(FetchedBytes(), 3 * kPageBytes);
  EXPECT_EQ(context_->transfers().duration(DataPath::kShm, Direction::kFetch).count, 1u);
  EXPECT_EQ(store().Stats().counters.fetch_bytes, 3 * kPageBytes);
  ExpectNothingMapped();
  EXPECT_FALSE(client.fenced());
}

TEST_F(MapTest, TheLeadingPagesThatAreThere) {
  OpenDoor();
  const auto session = Join();
  DoorClient client = Enter(session->id());
  auto chain = Stored(1, 3);
  chain.insert(chain.begin() + 2, Chain(space(), 999, 1)[0]);
  const v1::DoorMapped mapped = Map(client, chain);
  ASSERT_EQ(mapped.pages_size(), 3);
  ExpectMapped(client, mapped.pages(1), chain[1]);
  EXPECT_EQ(mapped.pages(2).result().status(), v1::MISS);
  EXPECT_EQ(store().Stats().pins, 2u);
}

TEST_F(MapTest, APageThatIsGoneWithItsLeaseIsFenced) {
  OpenDoor();
  const auto session = Join();
  DoorClient client = Enter(session->id());
  const auto chain = Stored(1, 1);
  const auto keys = testing::KeysOf(chain);
  const LookupResult leased =
      store().Lookup(space(), {.keys = keys, .lease_session = session->id()});
  ASSERT_NE(leased.lease, 0u);
  v1::DoorRequest request = MapRequest(chain);
  request.mutable_map()->set_lease_id(leased.lease);
  ExpectMapped(client, client.Ask(request)->mapped().pages(0), chain[0]);
  client.Release();
  ASSERT_EQ(store().ReleaseLease(leased.lease), ItemStatus::kOk);
  store().Delete(space(), keys);
  const absl::StatusOr<v1::DoorReply> reply = client.Ask(request);
  ASSERT_OK(reply);
  ASSERT_EQ(reply->mapped().pages_size(), 1);
  EXPECT_EQ(reply->mapped().pages(0).result().status(), v1::FENCED);
}

TEST_F(MapTest, AMapCountsAsAUse) {
  OpenDoor({}, {}, /*wide_pages=*/2);
  const auto session = Join();
  DoorClient client = Enter(session->id());
  const auto first = Stored(1, 1);
  const auto second = Stored(100, 1);
  Map(client, first);
  client.Release();
  Map(client, {});
  Stored(200, 1);  // there is room for two: the one used last stays
  EXPECT_EQ(Prefix(first), 1u);
  EXPECT_EQ(Prefix(second), 0u);
}

// --- What was mapped stays ---

TEST_F(MapTest, PagesStayWhileTheyAreRead) {
  OpenDoor({}, {}, /*wide_pages=*/8);
  const auto session = Join();
  DoorClient client = Enter(session->id());
  const auto chain = Stored(1, 2);
  const v1::DoorMapped mapped = Map(client, chain);
  store().Delete(space(), testing::KeysOf(chain));
  Overwrite();
  EXPECT_EQ(Prefix(chain), 0u);
  EXPECT_FALSE(client.fenced());
  for (int i = 0; i < 2; ++i)
    EXPECT_TRUE(Holds(client, mapped.pages(i), chain[static_cast<size_t>(i)]));
  client.Release();
  Map(client, {});
  Overwrite();
  // Read without being held: what the client must not do.
  for (int i = 0; i < 2; ++i)
    EXPECT_FALSE(Holds(client, mapped.pages(i), chain[static_cast<size_t>(i)]));
}

TEST_F(MapTest, TheNextMapLetsGoOfTheOneBefore) {
  OpenDoor();
  const auto session = Join();
  DoorClient client = Enter(session->id());
  const auto first = Stored(1, 3);
  const auto second = Stored(100, 1);
  Map(client, first);
  ExpectMapped(client, Map(client, second).pages(0), second[0]);
  EXPECT_EQ(store().Stats().pins, 1u);
  EXPECT_EQ(door_->Stats().mapped_bytes, kPageBytes);
  // So does one that is refused.
  v1::DoorRequest bad = MapRequest(second);
  bad.mutable_map()->mutable_scope()->set_fingerprint("none");
  EXPECT_THAT(client.Ask(bad), Refuses(StatusCode::kFailedPrecondition, HasSubstr("fingerprint")));
  ExpectNothingMapped();
}

TEST_F(MapTest, ACommitKeepsWhatIsRead) {
  OpenDoor();
  const auto session = Join();
  DoorClient client = Enter(session->id(), 64 << 10);
  const auto chain = Stored(1, 1);
  const v1::DoorMapped mapped = Map(client, chain);
  Commit(client, CommitRequest(client, Chain(space(), 100, 2)));
  EXPECT_EQ(store().Stats().pins, 1u);
  EXPECT_TRUE(Holds(client, mapped.pages(0), chain[0]));
}

// --- A client that reads for too long ---

TEST_F(MapTest, TheFenceIsUpBeforeAPageCanChange) {
  OpenDoor({}, {.lease_max = absl::ZeroDuration()}, /*wide_pages=*/8);
  const auto session = Join();
  DoorClient client = Enter(session->id());
  const auto chain = Stored(1, 1);
  v1::DoorMapped mapped;
  std::atomic<int> fenced = 0;
  {
    // The client is stalled from before the answer on; the lease ends at once.
    const AtFaultPoint stalled("shm.server.fenced", [&] {
      EXPECT_TRUE(client.fenced());
      EXPECT_EQ(store().Stats().pins, 1u);
      store().Delete(space(), testing::KeysOf(chain));
      Overwrite();
      ++fenced;
    });
    mapped = Map(client, chain);
    client.AwaitEnd();
    AwaitNoLinks();
    EXPECT_EQ(fenced, 1);
    EXPECT_EQ(door_->Stats().revoked, 1u);
    EXPECT_TRUE(Holds(client, mapped.pages(0), chain[0]));
  }
  ExpectNothingMapped();
  Overwrite();
  EXPECT_FALSE(Holds(client, mapped.pages(0), chain[0]));
  EXPECT_TRUE(client.fenced());
}

TEST_F(MapTest, AClientThatReadsForTooLongComesBack) {
  OpenDoor({}, {.lease_max = absl::ZeroDuration()});
  const auto session = Join();
  const auto chain = Stored(1, 1);
  for (int i = 0; i < 3; ++i) {
    DoorClient client = Enter(session->id());
    ASSERT_EQ(Map(client, chain).pages_size(), 1);
    client.AwaitEnd();
  }
  AwaitNoLinks();
  ExpectNothingMapped();
  EXPECT_EQ(Prefix(chain), 1u);
}

// Readers take pages for as long as the fence is down, while they are cut off in the middle and the
// memory is used for other pages all the while: none takes another page's bytes for its own.
TEST_F(MapTest, NobodyTakesAnotherPagesBytes) {
  OpenDoor({}, {.lease_max = absl::Milliseconds(1)}, /*wide_pages=*/4);
  constexpr int kRounds = 100;
  std::atomic<bool> done = false;
  std::thread others([&] {
    for (uint64_t key = 0; !done.load(std::memory_order_relaxed); ++key)
      Put(Chain(space(), 1000 + key, 1)[0]);
  });
  std::vector<std::thread> readers;
  std::atomic<int> taken = 0;
  std::atomic<int> wrong = 0;
  for (uint64_t reader = 1; reader <= 2; ++reader) {
    readers.emplace_back([&, reader] {
      const auto session = Join();
      const TestItem item = Chain(space(), reader, 1)[0];
      const std::vector<std::byte> expected = BytesOf(item);
      std::vector<std::byte> found(kPageBytes);
      for (int round = 0; round < kRounds; ++round) {
        Put(item);
        DoorClient client = Enter(session->id());
        const v1::DoorMapped mapped = Map(client, {item});
        ASSERT_EQ(mapped.pages_size(), 1);
        if (mapped.pages(0).result().status() != v1::OK) continue;  // gone already
        bool raised = false;
        while (!raised) {
          std::ranges::copy(client.BytesOf(mapped.pages(0)), found.begin());
          raised = client.fenced();
          if (raised) break;
          ++taken;
          if (found != expected) ++wrong;
        }
      }
    });
  }
  for (std::thread& reader : readers) reader.join();
  done = true;
  others.join();
  EXPECT_EQ(wrong, 0);
  RecordProperty("taken", taken);
}

// --- How much may be read at once ---

TEST_F(MapTest, OneClientCannotHoldEverything) {
  OpenDoor({.socket = {}, .mapped_bytes_max = 4 * kPageBytes});
  const auto greedy = Join();
  const auto modest = Join();
  const auto chain = Stored(1, 6);
  DoorClient never_releases = Enter(greedy->id());
  DoorClient nor_this = Enter(greedy->id());
  // As many as there was room for; more when it has read these.
  EXPECT_EQ(Map(never_releases, chain).pages_size(), 2);
  const v1::DoorMapped none = Map(nor_this, chain);
  ASSERT_EQ(none.pages_size(), 1);
  EXPECT_EQ(none.pages(0).result().status(), v1::BUSY);
  EXPECT_THAT(none.pages(0).result().message(), HasSubstr("try again"));
  EXPECT_EQ(store().Stats().pins, 2u);
  DoorClient other = Enter(modest->id());
  EXPECT_EQ(Map(other, chain).pages_size(), 1);
  EXPECT_EQ(Map(never_releases, chain).pages_size(), 1);  // shared with the other now
  never_releases = DoorClient();
  other = DoorClient();
  while (door_->Stats().links > 1) std::this_thread::yield();
  EXPECT_EQ(Map(nor_this, chain).pages_size(), 2);
}

TEST_F(MapTest, APageLargerThanTheBudgetIsReadAlone) {
  OpenDoor({.socket = {}, .mapped_bytes_max = 1});
  const auto session = Join();
  DoorClient client = Enter(session->id());
  const auto chain = Stored(1, 2);
  const v1::DoorMapped mapped = Map(client, chain);
  ASSERT_EQ(mapped.pages_size(), 1);
  ExpectMapped(client, mapped.pages(0), chain[0]);
}

TEST_F(MapTest, AClientThatNeverReleasesDoesNotStopTheStore) {
  OpenDoor({.socket = {}, .mapped_bytes_max = 4 * kPageBytes}, {}, /*wide_pages=*/8);
  const auto session = Join();
  DoorClient client = Enter(session->id());
  const auto chain = Stored(1, 8);
  EXPECT_EQ(Map(client, chain).pages_size(), 2);
  store().Clear(space());
  for (uint64_t key = 1000; key < 1020; ++key)
    EXPECT_EQ(Put(Chain(space(), key, 1)[0]), ItemStatus::kOk);
}

// --- Requests that are wrong ---

TEST_F(MapTest, WrongRequestsSayWhatIsWrongAndChangeNothing) {
  OpenDoor({}, {.max_items = 4});
  const auto session = Join();
  DoorClient client = Enter(session->id());
  const auto chain = Stored(1, 1);

  v1::DoorRequest request = MapRequest(chain);
  request.mutable_map()->mutable_scope()->set_fingerprint(std::string(32, 'f'));
  EXPECT_THAT(client.Ask(request),
              Refuses(StatusCode::kFailedPrecondition, HasSubstr("fingerprint")));

  request = MapRequest(chain);
  request.mutable_map()->mutable_scope()->set_server_epoch(context_->epoch() + 1);
  EXPECT_THAT(client.Ask(request), Refuses(StatusCode::kAborted, HasSubstr("epoch")));

  request = MapRequest(chain);
  request.mutable_map()->add_keys("short");
  EXPECT_THAT(client.Ask(request),
              Refuses(StatusCode::kInvalidArgument, AllOf(HasSubstr("key 1"), HasSubstr("5"))));

  request = MapRequest(chain);
  request.mutable_map()->add_keys(std::string(100'000, 'k'));
  EXPECT_THAT(client.Ask(request), Refuses(StatusCode::kInvalidArgument, HasSubstr("key 1")));

  request = MapRequest({});
  for (uint64_t key = 0; key < 5; ++key) request.mutable_map()->add_keys(KeyOf(key));
  EXPECT_THAT(client.Ask(request), Refuses(StatusCode::kInvalidArgument,
                                           AllOf(HasSubstr("at most 4"), HasSubstr("found 5"))));
  ExpectNothingMapped();
  ExpectMapped(client, Map(client, chain).pages(0), chain[0]);
}

TEST_F(MapTest, ADrainingServerTakesNoNewCalls) {
  OpenDoor();
  const auto session = Join();
  DoorClient client = Enter(session->id());
  const auto chain = Stored(1, 1);
  ExpectMapped(client, Map(client, chain).pages(0), chain[0]);
  context_->StartDrain();
  EXPECT_THAT(client.Ask(MapRequest(chain)),
              Refuses(StatusCode::kUnavailable, HasSubstr("draining")));
  ExpectNothingMapped();
}

// --- Pages that are damaged ---

TEST_F(MapTest, ADamagedPageIsFoundByTheReaderAndDropped) {
  OpenDoor();
  const auto session = Join();
  DoorClient client = Enter(session->id());
  const auto chain = Stored(1, 2);
  ASSERT_TRUE(tier_->FlipBit(1, 300));
  const v1::DoorMapped mapped = Map(client, chain);
  ASSERT_EQ(mapped.pages_size(), 2);
  ExpectMapped(client, mapped.pages(0), chain[0]);
  const ByteView block = client.BytesOf(mapped.pages(1)).subspan(256, 256);
  uint32_t expected = 0;
  std::memcpy(&expected,
              client.arena().data() + mapped.pages(1).offset() + kPageBytes + sizeof(uint32_t),
              sizeof(expected));
  EXPECT_NE(Crc32c(block), expected);
  client.Release({1});
  Map(client, {});
  EXPECT_EQ(Prefix(chain), 1u);
  EXPECT_EQ(store().Stats().counters.corrupt_pages, 1u);
}

TEST_F(MapTest, APageThatIsSaidToBeDamagedAndIsNotStays) {
  OpenDoor();
  const auto session = Join();
  DoorClient client = Enter(session->id());
  const auto chain = Stored(1, 2);
  Map(client, chain);
  client.Release({0, 1, 2, 0xffffffff, 1});
  Map(client, {});
  EXPECT_EQ(Prefix(chain), 2u);
  EXPECT_EQ(store().Stats().counters.corrupt_pages, 0u);
  client.Release({0});  // of nothing
  ExpectMapped(client, Map(client, chain).pages(1), chain[1]);
}

}  // namespace
}  // namespace oscarkv::testing
