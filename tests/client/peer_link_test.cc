// A worker's end of a channel: how it meets the server's, waits, and is told to wait no longer.
#include "client/cpp/peer_link.h"

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"

#include "tests/comm/fake_fabric.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::client {
namespace {

using ::oscarkv::testing::FakeFabric;
using ::oscarkv::testing::FakeFabricOptions;
using ::oscarkv::testing::IsOkAndHolds;
using ::oscarkv::testing::SharedFabric;
using ::oscarkv::testing::StatusIs;

constexpr comm::SlotShape kSlots{.slots = 2, .slot_bytes = 64};
constexpr absl::Duration kSoon = absl::Seconds(60);
bool Never() { return false; }

// Rank 0 of one pair: sends what it is given.
class ServersEnd {
 public:
  ServersEnd(FakeFabric& fabric, const comm::PairId& pair, uint64_t epoch) {
    auto comm = fabric.Open(pair, 0, epoch);
    EXPECT_OK(comm);
    EXPECT_OK(channel_.Open(*std::move(comm), absl::InfiniteFuture()));
  }
  ~ServersEnd() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }
  comm::Ticket Send(const std::string& key, std::vector<std::byte>& page) {
    auto ticket = channel_.Issue({.way = comm::Way::kSend,
                                  .keys = {key},
                                  .blocks = {{page.data(), page.size()}},
                                  .done = [](const absl::Status&) {}});
    EXPECT_OK(ticket);
    return *ticket;
  }
  // Drives the channel from now on.
  void Run() {
    thread_ = std::thread([this] {
      while (!stop_) {
        channel_.Step(absl::Now());
        std::this_thread::yield();
      }
    });
  }

 private:
  comm::PeerChannel channel_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

class PeerLinkTest : public ::testing::Test {
 protected:
  void Make(const FakeFabricOptions& options) {
    fabric_ = std::make_shared<FakeFabric>(options);
    link_ =
        std::make_unique<PeerLink>(std::make_unique<SharedFabric>(fabric_), slots_.data(), kSlots);
  }
  // Begins an epoch whose other end is there, or nobody drives it.
  std::unique_ptr<ServersEnd> Begin(uint64_t epoch, absl::Time meet_by = absl::Now() + kSoon) {
    const auto pair = fabric_->NewPair();
    EXPECT_OK(pair);
    auto server = std::make_unique<ServersEnd>(*fabric_, *pair, epoch);
    EXPECT_OK(link_->Open(/*session=*/5, /*peer_id=*/7, *pair, epoch, meet_by));
    return server;
  }

  std::vector<std::byte> slots_ = std::vector<std::byte>(kSlots.bytes());
  std::shared_ptr<FakeFabric> fabric_;
  std::unique_ptr<PeerLink> link_;
};

TEST_F(PeerLinkTest, MeetsBesideItsCallerAndReceives) {
  Make({.seed = 1, .delay_polls_max = 50});
  EXPECT_EQ(link_->epoch(), 0u);
  const auto server = Begin(3);
  EXPECT_TRUE(link_->meeting());
  server->Run();
  EXPECT_THAT(link_->AwaitOpen(absl::Now() + kSoon, Never), IsOkAndHolds(true));
  EXPECT_FALSE(link_->meeting());
  EXPECT_EQ(link_->epoch(), 3u);
  EXPECT_EQ(link_->peer_id(), 7u);
  EXPECT_EQ(link_->session(), 5u);
}

TEST_F(PeerLinkTest, ATicketsPagesComeIntoTheirPlace) {
  Make({.seed = 2, .delay_polls_max = 5});
  const auto server = Begin(1);
  std::vector<std::byte> page(64, std::byte{42});
  const std::vector<std::string> keys = {"key"};
  const std::vector<uint64_t> sizes = {64};
  const comm::Ticket ticket = server->Send(keys[0], page);
  server->Run();
  ASSERT_THAT(link_->AwaitOpen(absl::Now() + kSoon, Never), IsOkAndHolds(true));
  ASSERT_OK(link_->Receive(ticket, keys, sizes, /*offset=*/64, absl::Now() + kSoon, Never));
  EXPECT_EQ(std::vector(slots_.begin() + 64, slots_.end()), page);
  // Places beyond the slots end the epoch.
  EXPECT_THAT(link_->Receive(ticket, keys, sizes, 65, absl::Now() + kSoon, Never),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(link_->epoch(), 0u);
}

TEST_F(PeerLinkTest, AMeetingGoesOnWhenNobodyWaits) {
  Make({.never_meets = true});
  auto server = Begin(1);
  EXPECT_THAT(link_->AwaitOpen(absl::InfinitePast(), Never), IsOkAndHolds(false));
  EXPECT_THAT(link_->AwaitOpen(absl::InfiniteFuture(), [] { return true; }), IsOkAndHolds(false));
  EXPECT_TRUE(link_->meeting());
  // Until it is ended; then another may begin.
  link_->Break(absl::CancelledError("enough"));
  EXPECT_FALSE(link_->meeting());
  EXPECT_TRUE(link_->AwaitClosed(absl::Now() + kSoon, Never));
  fabric_->set_options({});
  server = Begin(2);
  EXPECT_THAT(link_->AwaitOpen(absl::Now() + kSoon, Never), IsOkAndHolds(true));
}

TEST_F(PeerLinkTest, AMeetingInVainIsToldOnce) {
  Make({.never_meets = true});
  const auto server = Begin(1, absl::InfinitePast());
  EXPECT_THAT(link_->AwaitOpen(absl::Now() + kSoon, Never),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_FALSE(link_->meeting());
  EXPECT_EQ(link_->epoch(), 0u);
}

TEST_F(PeerLinkTest, GoesWhileItMeets) {
  Make({.never_meets = true});
  const auto server = Begin(1);
  link_.reset();
}

TEST_F(PeerLinkTest, ATransferThatIsCancelledEndsTheEpochSoon) {
  Make({.drop_from = 0});
  const auto server = Begin(1);
  std::vector<std::byte> page(64);
  const std::vector<std::string> keys = {"key"};
  const std::vector<uint64_t> sizes = {64};
  const comm::Ticket ticket = server->Send(keys[0], page);
  server->Run();
  ASSERT_THAT(link_->AwaitOpen(absl::Now() + kSoon, Never), IsOkAndHolds(true));
  EXPECT_THAT(link_->Receive(ticket, keys, sizes, 0, absl::InfiniteFuture(), [] { return true; }),
              StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(link_->epoch(), 0u);
}

}  // namespace
}  // namespace oscarkv::client
