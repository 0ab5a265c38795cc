// A server's door over a store in shared memory, and clients that speak to it packet by packet, so
// that they can say what no client of ours would.
#ifndef OSCARKV_TESTS_TRANSPORT_DOOR_TESTING_H_
#define OSCARKV_TESTS_TRANSPORT_DOOR_TESTING_H_

#include <unistd.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/base/bytes.h"
#include "proto/local/packet_socket.h"
#include "proto/local/read_fence.h"
#include "proto/local/shared_region.h"
#include "server/tier/host_tier.h"
#include "server/transport/door.h"
#include "tests/rpc/rpc_test.h"
#include "tests/support/scoped_folder.h"

#include "oscarkv/v1/shared_memory.pb.h"

namespace oscarkv::testing {

inline constexpr uint64_t kPageBytes = 4 * 256;  // of a WIDE page of SmallSpec
inline constexpr uint64_t kCrcBytes = 4 * 4;     // behind it

// Has something happen at a fault point, on whatever thread comes there, while it lives. One at a
// time.
class AtFaultPoint {
 public:
  AtFaultPoint(std::string_view point, std::function<void()> happens);
  ~AtFaultPoint();
  AtFaultPoint(const AtFaultPoint&) = delete;
  AtFaultPoint& operator=(const AtFaultPoint&) = delete;
};

// A session, opened and ended as by its stream.
class OpenSession {
 public:
  explicit OpenSession(RpcContext& context)
      : context_(context), id_(context.store().OpenSession("test")) {}
  ~OpenSession() {
    context_.store().CloseSession(id_);
    context_.ForgetSession(id_);
  }
  OpenSession(const OpenSession&) = delete;
  OpenSession& operator=(const OpenSession&) = delete;

  SessionId id() const { return id_; }

 private:
  RpcContext& context_;
  const SessionId id_;
};

// One connection. What it does wrong is for the test to say; an answer that does not come is an
// error, for every wait here ends with the connection.
class DoorClient {
 public:
  DoorClient() = default;
  explicit DoorClient(PacketSocket socket) : socket_(std::move(socket)) {}

  absl::Status Send(const v1::DoorRequest& request) {
    return socket_.Send(request.SerializeAsString());
  }
  // The answer, whatever it says. kUnavailable: the server has ended the connection.
  absl::StatusOr<v1::DoorReply> Ask(const v1::DoorRequest& request);
  // Maps what the welcome brings.
  absl::StatusOr<v1::DoorReply> Hello(const v1::DoorHello& hello);
  void Release(const std::vector<uint32_t>& corrupt = {});
  // Until the server has ended the connection.
  void AwaitEnd();

  PacketSocket& socket() { return socket_; }
  ByteView arena() const { return arena_.bytes(); }
  int arena_descriptor() const { return arena_.descriptor(); }
  MutableByteView staging() const { return staging_.writable(); }
  int staging_descriptor() const { return staging_.descriptor(); }
  bool fenced() const { return ReadFenceRaised(fence_.bytes()); }
  ByteView BytesOf(const v1::MappedPage& page) const {
    return arena().subspan(page.offset(), page.bytes());
  }

 private:
  PacketSocket socket_;
  SharedRegion arena_;
  SharedRegion fence_;
  SharedRegion staging_;
};

// gRPC has no part in it, so that ThreadSanitizer can watch.
class DoorTest : public RpcTest {
 protected:
  // With room for `wide_pages` pages; at a socket of its own.
  void OpenDoor(DoorOptions options = {}, RpcOptions rpc = {}, uint64_t wide_pages = 64);
  void TearDown() override;

  std::unique_ptr<OpenSession> Join() { return std::make_unique<OpenSession>(*context_); }

  PacketSocket Connect();
  v1::DoorHello HelloOf(SessionId session, uint64_t staging_bytes = 0) const;
  // A connection of the session that has been welcomed.
  DoorClient Enter(SessionId session, uint64_t staging_bytes = 0);

  v1::DoorRequest MapRequest(const std::vector<TestItem>& items) const;
  v1::DoorMapped Map(DoorClient& client, const std::vector<TestItem>& items);
  // A commit of the items, which are put into the staging memory one behind the other.
  v1::DoorRequest CommitRequest(const DoorClient& client, const std::vector<TestItem>& items) const;
  std::vector<v1::ItemStatus> Commit(DoorClient& client, const v1::DoorRequest& request);

  // Puts a chain of pages, as another client would.
  std::vector<TestItem> Stored(uint64_t first_key, uint32_t pages);
  // Uses all of the memory that nobody holds for other pages.
  void Overwrite();
  std::vector<std::byte> BytesOf(const TestItem& item) const {
    return MakePage(space(), item.encoding, item.seed).bytes;
  }
  // What the server says of the page is so, and it lies there.
  void ExpectMapped(const DoorClient& client, const v1::MappedPage& mapped, const TestItem& item);

  // Until no connection is left: then no client holds anything.
  void AwaitNoLinks() const;
  void ExpectNothingMapped();

  const ScopedFolder folder_;
  HostTier* host_ = nullptr;
  std::unique_ptr<Door> door_;
};

MATCHER_P2(Refuses, code, message, "") {
  *result_listener << arg.status() << " " << (arg.ok() ? arg->ShortDebugString() : "");
  return arg.ok() && arg->code() == static_cast<uint32_t>(code) &&
         arg->kind_case() == v1::DoorReply::KIND_NOT_SET &&
         ::testing::ExplainMatchResult(message, arg->message(), result_listener);
}

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_TRANSPORT_DOOR_TESTING_H_
