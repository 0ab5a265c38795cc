// Host memory for clients of the same host, from a configuration: where it is offered, and where
// not, and why.
#include "server/shared_memory.h"

#include <sys/stat.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/base/host_id.h"
#include "proto/local/packet_socket.h"
#include "server/config/load.h"
#include "tests/core/store_test.h"
#include "tests/support/scoped_folder.h"

#include "oscarkv/v1/server_config.pb.h"

namespace oscarkv::testing {
namespace {

using ::testing::HasSubstr;

class SharedMemoryTest : public StoreTest {
 protected:
  SharedMemoryTest() {
    StoreTest::Open();
    config_.mutable_host()->set_capacity("64MiB");
    config_.add_listen("unix:" + folder_.file("grpc"));
  }

  // The memory, and the door to it if there is one.
  absl::Status OpenAll() {
    config_ = WithDefaults(config_, uint64_t{1} << 30);
    EXPECT_OK(CheckConfig(config_));
    absl::StatusOr<SharedHostTier> host = OpenHostTier(config_);
    if (!host.ok()) return host.status();
    host_ = *std::move(host);
    absl::StatusOr<std::unique_ptr<Door>> door = OpenDoor(config_, host_, context_);
    if (!door.ok()) return door.status();
    door_ = *std::move(door);
    return absl::OkStatus();
  }
  v1::SessionReply Agree() const {
    v1::PathOffer offer;
    offer.add_fetch(v1::SHM);
    offer.set_host(HostId());
    v1::SessionReply reply;
    context_.paths().Agree(offer, &reply);
    return reply;
  }
  void ExpectNoDoor(const std::string& why) {
    EXPECT_EQ(door_, nullptr);
    EXPECT_EQ(host_.arena.size(), 64u << 20);  // the memory is there all the same
    EXPECT_EQ(host_.descriptor, -1);
    EXPECT_THAT(Agree().fetch().reason(), HasSubstr(why));
  }

  const ScopedFolder folder_;
  const Logger logger_{LogLevel::kError, LogFormat::kText};
  mutable RpcContext context_{
      RpcOptions{.paths = {std::vector{DataPath::kShm}, std::vector{DataPath::kShm}}}, *store_,
      logger_};
  v1::ServerConfig config_;
  SharedHostTier host_;
  std::unique_ptr<Door> door_;
};

TEST_F(SharedMemoryTest, IsOfferedBesideAUnixSocket) {
  config_.mutable_shared_memory()->set_mode("0660");
  config_.mutable_shared_memory()->set_staging("2MiB");
  ASSERT_OK(OpenAll());
  ASSERT_NE(door_, nullptr);
  EXPECT_GE(host_.descriptor, 0);
  const v1::SessionReply reply = Agree();
  EXPECT_EQ(reply.fetch().path(), v1::SHM);
  EXPECT_EQ(reply.shm().socket(), folder_.file("grpc.shm"));
  EXPECT_EQ(reply.shm().staging_bytes(), 2u << 20);
  struct stat found {};
  ASSERT_EQ(stat(reply.shm().socket().c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777, 0660u);
}

TEST_F(SharedMemoryTest, IsNotOfferedWhereItIsOff) {
  config_.mutable_shared_memory()->set_socket("off");
  ASSERT_OK(OpenAll());
  ExpectNoDoor("shared_memory.socket is off");
}

TEST_F(SharedMemoryTest, IsNotOfferedWhereNoDirectionMayTakeIt) {
  config_.mutable_paths()->add_fetch("grpc");
  config_.mutable_paths()->add_push("grpc");
  ASSERT_OK(OpenAll());
  ExpectNoDoor("neither paths.fetch nor paths.push has shm");
}

TEST_F(SharedMemoryTest, IsNotOfferedWithoutAUnixSocket) {
  config_.set_listen(0, "127.0.0.1:0");
  ASSERT_OK(OpenAll());
  ExpectNoDoor("auto without a Unix socket");
}

TEST_F(SharedMemoryTest, ASocketThatCannotBeHadIsAnError) {
  const auto other = PacketListener::Listen(folder_.file("taken"), 0600);
  ASSERT_OK(other);
  config_.mutable_shared_memory()->set_socket(folder_.file("taken"));
  EXPECT_THAT(OpenAll(),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr(folder_.file("taken"))));
}

}  // namespace
}  // namespace oscarkv::testing
