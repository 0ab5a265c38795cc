// Who comes in at the door of shared memory, what they are handed, and when they are sent away.
#include "server/transport/door.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <array>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/base/host_id.h"
#include "tests/support/open_descriptors.h"
#include "tests/support/unix_user.h"
#include "tests/transport/door_testing.h"

namespace oscarkv::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using absl::StatusCode;

// --- Sessions are told of it ---

class DoorOfferTest : public DoorTest {
 protected:
  // What a session is told that offers shared memory both ways, from this host or another.
  v1::SessionReply AgreeWith(const std::string& host) const {
    v1::PathOffer offer;
    for (const v1::DataPath path : {v1::SHM, v1::GRPC}) {
      offer.add_fetch(path);
      offer.add_push(path);
    }
    offer.set_host(host);
    v1::SessionReply reply;
    context_->paths().Agree(offer, &reply);
    return reply;
  }
};

TEST_F(DoorOfferTest, ASessionIsToldWhereTheDoorIs) {
  OpenDoor({.socket = {}, .staging_bytes_max = 1 << 20});
  const v1::SessionReply reply = AgreeWith(HostId());
  EXPECT_EQ(reply.fetch().path(), v1::SHM);
  EXPECT_EQ(reply.push().path(), v1::SHM);
  EXPECT_EQ(reply.shm().socket(), folder_.file("door"));
  EXPECT_EQ(reply.shm().uid(), geteuid());
  EXPECT_EQ(reply.shm().staging_bytes(), 1u << 20);
}

TEST_F(DoorOfferTest, AClientOfAnotherHostIsTold) {
  OpenDoor();
  const v1::SessionReply reply = AgreeWith("another boot");
  EXPECT_EQ(reply.fetch().path(), v1::GRPC);
  EXPECT_THAT(reply.fetch().reason(), HasSubstr("shm: the client is on another host"));
  EXPECT_EQ(reply.push().path(), v1::GRPC);
  EXPECT_FALSE(reply.has_shm());
}

// --- The hello ---

TEST_F(DoorTest, AWelcomeSharesTheArena) {
  OpenDoor();
  const auto session = Join();
  const DoorClient client = Enter(session->id());
  EXPECT_EQ(client.arena().size(), host_->arena().size());
  EXPECT_EQ(client.staging().size(), 0u);
  EXPECT_FALSE(client.fenced());
  EXPECT_EQ(door_->Stats().links, 1u);
  host_->arena()[5] = std::byte{42};
  EXPECT_EQ(client.arena()[5], std::byte{42});
}

TEST_F(DoorTest, TheArenaCannotBeWritten) {
  OpenDoor();
  const auto session = Join();
  const DoorClient client = Enter(session->id());
  const std::string path = absl::StrCat("/proc/self/fd/", client.arena_descriptor());
  const Descriptor again(open(path.c_str(), O_RDWR | O_CLOEXEC));
  for (const int number : {client.arena_descriptor(), again.number()}) {
    if (number < 0) continue;  // the system does not even open it
    EXPECT_EQ(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, number, 0), MAP_FAILED);
    EXPECT_LT(pwrite(number, "x", 1, 0), 0);
    EXPECT_NE(fallocate(number, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
    EXPECT_NE(ftruncate(number, 0), 0);
  }
}

TEST_F(DoorTest, AHelloOfAnEarlierServerIsRefused) {
  OpenDoor();
  const auto session = Join();
  v1::DoorHello hello = HelloOf(session->id());
  hello.set_server_epoch(context_->epoch() + 1);
  DoorClient client(Connect());
  EXPECT_THAT(client.Hello(hello),
              Refuses(StatusCode::kAborted, AllOf(HasSubstr(absl::StrCat(context_->epoch())),
                                                  HasSubstr(absl::StrCat(context_->epoch() + 1)))));
  client.AwaitEnd();
}

TEST_F(DoorTest, AHelloOfNoSessionIsRefused) {
  OpenDoor();
  const auto session = Join();
  v1::DoorHello hello = HelloOf(session->id());
  for (const uint64_t id : {uint64_t{0}, session->id() + 1}) {
    hello.set_session_id(id);
    DoorClient client(Connect());
    EXPECT_THAT(client.Hello(hello),
                Refuses(StatusCode::kFailedPrecondition, HasSubstr("session is not open")));
    client.AwaitEnd();
  }
}

TEST_F(DoorTest, WhoDoesNotSayHelloIsSentAway) {
  OpenDoor();
  const auto session = Join();
  const auto chain = Stored(1, 1);
  std::string hello;
  {
    v1::DoorRequest request;
    *request.mutable_hello() = HelloOf(session->id());
    hello = request.SerializeAsString();
  }
  const std::array<std::string, 4> firsts = {"garbage", hello + "\xff",
                                             MapRequest(chain).SerializeAsString(),
                                             std::string(kPacketBytesMax, '\0')};
  for (const std::string& first : firsts) {
    DoorClient client(Connect());
    ASSERT_OK(client.socket().Send(first));
    client.AwaitEnd();
  }
  AwaitNoLinks();
  ExpectNothingMapped();
}

TEST_F(DoorTest, ARequestThatIsNoneEndsTheConnection) {
  OpenDoor();
  const auto session = Join();
  const auto chain = Stored(1, 1);
  v1::DoorRequest second;
  *second.mutable_hello() = HelloOf(session->id());
  for (const std::string& packet : {second.SerializeAsString(), std::string("garbage")}) {
    DoorClient client = Enter(session->id());
    Map(client, chain);
    ASSERT_OK(client.socket().Send(packet));
    client.AwaitEnd();
    AwaitNoLinks();
    EXPECT_TRUE(client.fenced());
    ExpectNothingMapped();
  }
}

TEST_F(DoorTest, DescriptorsOfAClientAreClosed) {
  OpenDoor();
  const auto session = Join();
  DoorClient client = Enter(session->id());
  const auto chain = Stored(1, 1);
  const size_t before = OpenDescriptors();
  const std::array<int, 4> foreign = {0, 0, 0, 0};
  ASSERT_OK(client.socket().Send(MapRequest(chain).SerializeAsString(), foreign));
  EXPECT_OK(client.socket().Receive(absl::InfiniteFuture()));
  EXPECT_OK(client.Ask(MapRequest(chain)));  // the packet before it is gone
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST_F(DoorTest, AConnectionLeavesNoDescriptors) {
  OpenDoor();
  const auto session = Join();
  { const DoorClient warm = Enter(session->id(), 1 << 20); }
  AwaitNoLinks();
  const size_t before = OpenDescriptors();
  for (int i = 0; i < 20; ++i) const DoorClient client = Enter(session->id(), 1 << 20);
  AwaitNoLinks();
  EXPECT_EQ(OpenDescriptors(), before);
}

// --- Staging memory ---

TEST_F(DoorTest, StagingMemoryIsBounded) {
  OpenDoor({.socket = {}, .staging_bytes_max = 64 << 10, .staging_bytes_total = 256 << 10});
  const auto session = Join();
  EXPECT_EQ(Enter(session->id(), 40'000).staging().size(), 36'864u);  // whole pages of memory
  EXPECT_EQ(Enter(session->id(), ~uint64_t{0}).staging().size(), 64u << 10);
  DoorClient client(Connect());
  EXPECT_THAT(client.Hello(HelloOf(session->id(), 4095)),
              Refuses(StatusCode::kInvalidArgument, HasSubstr("4095 bytes")));
  client.AwaitEnd();
}

TEST_F(DoorTest, StagingMemoryIsSharedOutAndComesBack) {
  OpenDoor({.socket = {}, .staging_bytes_max = 64 << 10, .staging_bytes_total = 256 << 10});
  const auto first = Join();
  const auto second = Join();
  std::vector<DoorClient> held;
  for (int i = 0; i < 2; ++i) held.push_back(Enter(first->id(), 64 << 10));
  {
    DoorClient client(Connect());
    EXPECT_THAT(
        client.Hello(HelloOf(first->id(), 64 << 10)),
        Refuses(StatusCode::kResourceExhausted, AllOf(HasSubstr("65536"), HasSubstr("131072"))));
    client.AwaitEnd();
  }
  EXPECT_EQ(Enter(second->id(), 64 << 10).staging().size(), 64u << 10);
  EXPECT_EQ(Enter(first->id()).staging().size(), 0u);  // a fetch needs none
  held.clear();
  AwaitNoLinks();
  EXPECT_EQ(Enter(first->id(), 64 << 10).staging().size(), 64u << 10);
}

TEST_F(DoorTest, StagingMemoryKeepsItsSize) {
  OpenDoor();
  const auto session = Join();
  const DoorClient client = Enter(session->id(), 64 << 10);
  EXPECT_NE(ftruncate(client.staging_descriptor(), 0), 0);
  EXPECT_NE(ftruncate(client.staging_descriptor(), 1 << 30), 0);
  EXPECT_NE(fcntl(client.staging_descriptor(), F_ADD_SEALS, F_SEAL_WRITE), 0);
}

// --- The end ---

TEST_F(DoorTest, TheEndOfASessionIsThatOfItsConnections) {
  OpenDoor();
  auto leaving = Join();
  const auto staying = Join();
  const auto chain = Stored(1, 2);
  DoorClient reader = Enter(leaving->id());
  DoorClient pusher = Enter(leaving->id(), 64 << 10);
  DoorClient other = Enter(staying->id());
  Map(reader, chain);
  leaving.reset();
  reader.AwaitEnd();
  pusher.AwaitEnd();
  while (door_->Stats().links > 1) std::this_thread::yield();
  EXPECT_TRUE(reader.fenced());
  ExpectNothingMapped();
  EXPECT_FALSE(other.fenced());
  ExpectMapped(other, Map(other, chain).pages(0), chain[0]);
}

TEST_F(DoorTest, TheEndOfTheServerIsThatOfAll) {
  OpenDoor();
  const auto session = Join();
  const auto chain = Stored(1, 1);
  DoorClient reader = Enter(session->id());
  DoorClient silent(Connect());
  const v1::DoorMapped mapped = Map(reader, chain);
  door_.reset();
  reader.AwaitEnd();
  silent.AwaitEnd();
  EXPECT_TRUE(reader.fenced());
  // What it maps stays with it.
  ExpectMapped(reader, mapped.pages(0), chain[0]);
  EXPECT_NE(access(folder_.file("door").c_str(), F_OK), 0);
  EXPECT_EQ(store().Stats().pins, 0u);
}

TEST_F(DoorTest, NoMoreConnectionsThanMayBe) {
  OpenDoor({.socket = {}, .links_max = 2});
  const auto session = Join();
  const auto chain = Stored(1, 1);
  DoorClient first = Enter(session->id());
  DoorClient second = Enter(session->id());
  DoorClient third(Connect());
  const auto refusal = third.Hello(HelloOf(session->id()));
  ASSERT_OK(refusal);
  EXPECT_EQ(refusal->code(), static_cast<uint32_t>(StatusCode::kResourceExhausted));
  EXPECT_THAT(refusal->message(), HasSubstr("at most 2"));
  third.AwaitEnd();
  ExpectMapped(first, Map(first, chain).pages(0), chain[0]);
  second = DoorClient();
  while (door_->Stats().links > 1) std::this_thread::yield();
  Enter(session->id());
}

TEST_F(DoorTest, AMapOfMorePagesThanAPacketTellsOfIsAnsweredInPart) {
  OpenDoor({}, {.max_items = 3000});
  const auto session = Join();
  const auto chain = Stored(1, 1);
  DoorClient client = Enter(session->id());
  const std::vector<TestItem> many(3000, chain[0]);
  EXPECT_EQ(Map(client, many).pages_size(), 2048);
}

// --- Whose door it is ---

class DoorFileTest : public DoorTest {
 protected:
  absl::Status Open() {
    return Door::Open({.socket = folder_.file("door")}, *context_, host_->arena(),
                      host_->descriptor())
        .status();
  }
};

TEST_F(DoorFileTest, ADoorThatIsOpenStaysTheOnlyOne) {
  OpenDoor();
  EXPECT_THAT(Open(), StatusIs(StatusCode::kUnavailable, HasSubstr(folder_.file("door"))));
  const auto session = Join();
  Enter(session->id());
}

TEST_F(DoorFileTest, AFileInItsPlaceIsNotTouched) {
  OpenDoor();
  door_.reset();
  std::ofstream(folder_.file("door")) << "precious";
  EXPECT_THAT(Open(), StatusIs(StatusCode::kPermissionDenied, HasSubstr("not a socket")));
  EXPECT_EQ(access(folder_.file("door").c_str(), F_OK), 0);
}

TEST_F(DoorFileTest, ADoorOfAnotherUserIsNotTakenOver) {
  if (!IsRoot()) GTEST_SKIP() << "only root can give a file away";
  OpenDoor();
  ASSERT_EQ(lchown(folder_.file("door").c_str(), kNobody, kNobody), 0);
  EXPECT_THAT(Open(), StatusIs(StatusCode::kPermissionDenied, HasSubstr("user 65534")));
  EXPECT_THAT(PacketSocket::Connect(folder_.file("door"), geteuid()),
              StatusIs(StatusCode::kPermissionDenied, HasSubstr("user 65534")));
}

TEST_F(DoorFileTest, AnotherUserIsSentAway) {
  if (!IsRoot()) GTEST_SKIP() << "only root can act as another user";
  OpenDoor();
  const auto session = Join();
  // Somebody has let all in by the file.
  ASSERT_EQ(chmod(folder_.path().c_str(), 0755), 0);
  ASSERT_EQ(chmod(folder_.file("door").c_str(), 0666), 0);
  DoorClient client = [this] {
    const ActingAs nobody(kNobody);
    EXPECT_TRUE(nobody.done());
    return DoorClient(Connect());
  }();
  client.AwaitEnd();
  Enter(session->id());
}

}  // namespace
}  // namespace oscarkv::testing
