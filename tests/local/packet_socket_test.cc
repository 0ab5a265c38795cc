// Packets with descriptors between two ends, and whose socket a path is.
#include "proto/local/packet_socket.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <array>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/support/open_descriptors.h"
#include "tests/support/scoped_folder.h"
#include "tests/support/status_matchers.h"
#include "tests/support/unix_user.h"

namespace oscarkv::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using absl::StatusCode;

// What a process sends that does not go by PacketSocket.
void SendRaw(int socket, size_t bytes, size_t descriptors) {
  std::vector<char> data(bytes, 'x');
  iovec part{data.data(), data.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * 16)> control{};
  const std::vector<int> numbers(descriptors, socket);
  if (descriptors > 0) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(sizeof(int) * descriptors);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * descriptors);
    std::memcpy(CMSG_DATA(header), numbers.data(), sizeof(int) * descriptors);
  }
  ASSERT_EQ(sendmsg(socket, &message, 0), static_cast<ssize_t>(bytes));
}

class PacketSocketTest : public ::testing::Test {
 protected:
  PacketSocketTest() {
    std::array<int, 2> ends{};
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends.data()),
              0);
    raw_ = ends[0];
    here_ = PacketSocket(Descriptor(ends[0]));
    there_ = PacketSocket(Descriptor(ends[1]));
  }

  int raw_ = -1;  // of here_
  PacketSocket here_;
  PacketSocket there_;
};

TEST_F(PacketSocketTest, PacketsComeWholeAndInOrder) {
  const std::string large(kPacketBytesMax, 'l');
  ASSERT_OK(here_.Send("first"));
  ASSERT_OK(here_.Send(large));
  EXPECT_EQ(there_.Receive(absl::InfiniteFuture())->bytes, "first");
  EXPECT_EQ(there_.Receive(absl::InfiniteFuture())->bytes, large);
}

TEST_F(PacketSocketTest, DescriptorsAreOfTheSameFileAndNotInherited) {
  const Descriptor event(eventfd(/*initval=*/7, EFD_NONBLOCK));
  const std::array<int, 2> sent = {event.number(), event.number()};
  ASSERT_OK(here_.Send("take these", sent));
  absl::StatusOr<Packet> packet = there_.Receive(absl::InfiniteFuture());
  ASSERT_OK(packet);
  EXPECT_EQ(packet->bytes, "take these");
  ASSERT_EQ(packet->descriptors.size(), 2u);
  uint64_t value = 0;
  EXPECT_EQ(read(packet->descriptors[1].number(), &value, sizeof(value)),
            static_cast<ssize_t>(sizeof(value)));
  EXPECT_EQ(value, 7u);
  EXPECT_EQ(fcntl(packet->descriptors[0].number(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}

TEST_F(PacketSocketTest, WhatIsTooLargeIsNotSent) {
  EXPECT_THAT(here_.Send(std::string(kPacketBytesMax + 1, 'x')),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("131073 bytes")));
  const std::vector<int> many(kPacketDescriptorsMax + 1, raw_);
  EXPECT_THAT(here_.Send("x", many),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("5 descriptors")));
  EXPECT_THAT(there_.Receive(absl::InfinitePast()), StatusIs(StatusCode::kDeadlineExceeded));
}

TEST_F(PacketSocketTest, WhatIsTooLargeIsNotTaken) {
  SendRaw(raw_, kPacketBytesMax + 1, 0);
  EXPECT_THAT(there_.Receive(absl::InfiniteFuture()), StatusIs(StatusCode::kDataLoss));
  const size_t before = OpenDescriptors();
  SendRaw(raw_, 1, 16);
  EXPECT_THAT(there_.Receive(absl::InfiniteFuture()), StatusIs(StatusCode::kDataLoss));
  EXPECT_EQ(OpenDescriptors(), before);  // those that did fit were closed
}

TEST_F(PacketSocketTest, DescriptorsThatNobodyTakesAreClosed) {
  const size_t before = OpenDescriptors();
  SendRaw(raw_, 1, kPacketDescriptorsMax);
  ASSERT_OK(there_.Receive(absl::InfiniteFuture()));
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST_F(PacketSocketTest, AWaitEndsWithItsDeadline) {
  EXPECT_THAT(there_.Receive(absl::InfinitePast()), StatusIs(StatusCode::kDeadlineExceeded));
  ASSERT_OK(here_.Send("there already"));
  EXPECT_OK(there_.Receive(absl::InfinitePast()));
}

TEST_F(PacketSocketTest, AWaitEndsWithTheOtherEnd) {
  ASSERT_OK(here_.Send("last words"));
  here_ = PacketSocket();
  EXPECT_EQ(there_.Receive(absl::InfiniteFuture())->bytes, "last words");
  EXPECT_THAT(there_.Receive(absl::InfiniteFuture()), StatusIs(StatusCode::kUnavailable));
  EXPECT_THAT(there_.Send("anybody?"), StatusIs(StatusCode::kUnavailable));
}

// A wait that looks first ends with all that others end with.
TEST_F(PacketSocketTest, EagerWaitsEndLikeOthers) {
  EagerWait waits;
  const auto look_next = [&] {
    ASSERT_OK(here_.Send("at once"));
    ASSERT_OK(there_.Receive(absl::InfiniteFuture(), &waits));
  };
  look_next();
  EXPECT_THAT(there_.Receive(absl::InfinitePast(), &waits),
              StatusIs(StatusCode::kDeadlineExceeded));
  look_next();
  EXPECT_THAT(there_.Receive(absl::Now() + absl::Milliseconds(1), &waits),
              StatusIs(StatusCode::kDeadlineExceeded));
  look_next();
  std::thread sends([&] { EXPECT_OK(here_.Send("later")); });
  EXPECT_EQ(there_.Receive(absl::InfiniteFuture(), &waits)->bytes, "later");
  sends.join();
  look_next();
  std::thread shuts([&] { there_.Shutdown(); });
  EXPECT_THAT(there_.Receive(absl::InfiniteFuture(), &waits), StatusIs(StatusCode::kUnavailable));
  shuts.join();
  EXPECT_THAT(there_.Receive(absl::InfiniteFuture(), &waits), StatusIs(StatusCode::kUnavailable));
}

TEST_F(PacketSocketTest, ShutdownWakesBothEnds) {
  std::thread waits([&] {
    EXPECT_THAT(there_.Receive(absl::InfiniteFuture()), StatusIs(StatusCode::kUnavailable));
  });
  there_.Shutdown();
  waits.join();
  EXPECT_THAT(here_.Receive(absl::InfiniteFuture()), StatusIs(StatusCode::kUnavailable));
}

TEST_F(PacketSocketTest, WhoDoesNotListenIsNotWaitedFor) {
  const std::string packet(64 << 10, 'x');
  absl::Status status;
  for (int i = 0; i < 1000 && status.ok(); ++i) status = here_.Send(packet);
  EXPECT_THAT(status, StatusIs(StatusCode::kUnavailable));
}

TEST_F(PacketSocketTest, SaysWhoIsThere) {
  EXPECT_EQ(here_.peer().pid, getpid());
  EXPECT_EQ(here_.peer().uid, geteuid());
}

// --- Whose socket a path is ---

class PacketListenerTest : public ::testing::Test {
 protected:
  absl::StatusOr<PacketListener> Listen() { return PacketListener::Listen(path_, 0600); }
  absl::StatusOr<PacketSocket> Connect() { return PacketSocket::Connect(path_, geteuid()); }

  // Binds a socket of another making.
  Descriptor BindRaw(int type) const {
    Descriptor made(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path_.data(), path_.size());
    EXPECT_EQ(bind(made.number(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    return made;
  }

  const ScopedFolder folder_;
  const std::string path_ = folder_.file("door");
};

TEST_F(PacketListenerTest, TakesConnectionsUntilStopped) {
  absl::StatusOr<PacketListener> listener = Listen();
  ASSERT_OK(listener);
  absl::StatusOr<PacketSocket> client = Connect();
  ASSERT_OK(client);
  absl::StatusOr<PacketSocket> server = listener->Accept();
  ASSERT_OK(server);
  ASSERT_OK(client->Send("hello"));
  EXPECT_EQ(server->Receive(absl::InfiniteFuture())->bytes, "hello");
  std::thread waits([&] { EXPECT_THAT(listener->Accept(), StatusIs(StatusCode::kCancelled)); });
  listener->Stop();
  waits.join();
}

TEST_F(PacketListenerTest, TheFileHasItsModeAndGoesWithTheListener) {
  const mode_t before = umask(0077);
  {
    absl::StatusOr<PacketListener> listener = PacketListener::Listen(path_, 0660);
    ASSERT_OK(listener);
    const PacketListener moved = *std::move(listener);
    struct stat found {};
    ASSERT_EQ(stat(path_.c_str(), &found), 0);
    EXPECT_EQ(found.st_mode & 0777, 0660u);
  }
  umask(before);
  EXPECT_NE(access(path_.c_str(), F_OK), 0);
}

TEST_F(PacketListenerTest, NobodyListensIsUnavailable) {
  EXPECT_THAT(Connect(), StatusIs(StatusCode::kUnavailable, HasSubstr(path_)));
  { ASSERT_OK(Listen()); }
  EXPECT_THAT(Connect(), StatusIs(StatusCode::kUnavailable, HasSubstr(path_)));
}

TEST_F(PacketListenerTest, ASocketThatWasLeftBehindIsReplaced) {
  BindRaw(SOCK_SEQPACKET);  // and closed: its file stays
  EXPECT_THAT(Connect(), StatusIs(StatusCode::kUnavailable));
  const absl::StatusOr<PacketListener> listener = Listen();
  ASSERT_OK(listener);
  EXPECT_OK(Connect());
}

TEST_F(PacketListenerTest, ASocketThatIsInUseIsNot) {
  const absl::StatusOr<PacketListener> first = Listen();
  ASSERT_OK(first);
  EXPECT_THAT(Listen(),
              StatusIs(StatusCode::kUnavailable, AllOf(HasSubstr(path_), HasSubstr("listens"))));
  EXPECT_OK(Connect());
}

TEST_F(PacketListenerTest, ASocketOfAnotherKindThatIsInUseIsNot) {
  const Descriptor other = BindRaw(SOCK_STREAM);
  ASSERT_EQ(listen(other.number(), 1), 0);
  EXPECT_THAT(Listen(), StatusIs(StatusCode::kUnavailable, HasSubstr(path_)));
  EXPECT_EQ(access(path_.c_str(), F_OK), 0);
}

TEST_F(PacketListenerTest, AFileThatIsNoSocketIsLeftAlone) {
  std::ofstream(path_) << "precious";
  EXPECT_THAT(Listen(), StatusIs(StatusCode::kPermissionDenied, HasSubstr("not a socket")));
  EXPECT_THAT(Connect(), StatusIs(StatusCode::kPermissionDenied, HasSubstr("not a socket")));
  std::string found;
  std::ifstream(path_) >> found;
  EXPECT_EQ(found, "precious");
}

TEST_F(PacketListenerTest, ALinkIsNotFollowed) {
  const absl::StatusOr<PacketListener> listener = Listen();
  ASSERT_OK(listener);
  const std::string link = folder_.file("link");
  ASSERT_EQ(symlink(path_.c_str(), link.c_str()), 0);
  EXPECT_THAT(PacketSocket::Connect(link, geteuid()), StatusIs(StatusCode::kPermissionDenied));
  EXPECT_THAT(PacketListener::Listen(link, 0600), StatusIs(StatusCode::kPermissionDenied));
}

TEST_F(PacketListenerTest, PathsThatNoSocketCanHaveAreRefused) {
  for (const std::string& path : {std::string(), std::string(108, 'p')}) {
    EXPECT_THAT(PacketListener::Listen(path, 0600), StatusIs(StatusCode::kInvalidArgument));
    EXPECT_THAT(PacketSocket::Connect(path, geteuid()), StatusIs(StatusCode::kInvalidArgument));
  }
}

TEST_F(PacketListenerTest, ASocketOfAnotherUserIsRefused) {
  if (!IsRoot()) GTEST_SKIP() << "only root can give a file away";
  const absl::StatusOr<PacketListener> listener = Listen();
  ASSERT_OK(listener);
  ASSERT_EQ(lchown(path_.c_str(), kNobody, kNobody), 0);
  EXPECT_THAT(Connect(), StatusIs(StatusCode::kPermissionDenied, HasSubstr("user 65534")));
  EXPECT_THAT(Listen(), StatusIs(StatusCode::kPermissionDenied, HasSubstr("user 65534")));
  EXPECT_EQ(access(path_.c_str(), F_OK), 0);
}

TEST_F(PacketListenerTest, AnotherUserBehindTheSocketIsRefused) {
  if (!IsRoot()) GTEST_SKIP() << "only root can act as another user";
  ASSERT_EQ(lchown(folder_.path().c_str(), kNobody, kNobody), 0);
  const absl::StatusOr<PacketListener> listener = [this] {
    const ActingAs nobody(kNobody);
    EXPECT_TRUE(nobody.done());
    return Listen();
  }();
  ASSERT_OK(listener);
  ASSERT_EQ(lchown(path_.c_str(), 0, 0), 0);  // as root's, by a trick
  EXPECT_THAT(Connect(),
              StatusIs(StatusCode::kPermissionDenied, HasSubstr("user 65534 listens behind")));
  // Who expects that user finds it.
  EXPECT_OK(PacketSocket::Connect(path_, kNobody));
}

}  // namespace
}  // namespace oscarkv::testing
