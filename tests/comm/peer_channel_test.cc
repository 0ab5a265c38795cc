// Transfers in order, and what becomes of them when anything goes wrong.
#include "kernels/comm/peer_channel.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/comm/slots.h"
#include "tests/comm/fake_fabric.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

using comm::Block;
using comm::PairId;
using comm::PeerChannel;
using comm::Ticket;
using comm::Transfer;
using comm::Way;
using ::testing::HasSubstr;

using State = PeerChannel::State;
constexpr uint64_t kPageBytes = 256;

// One transfer as a side sees it.
struct Outcome {
  std::vector<std::byte> memory;
  int calls = 0;
  absl::Status status;
};
using Outcomes = std::vector<std::shared_ptr<Outcome>>;

class PeerChannelTest : public ::testing::Test {
 protected:
  static absl::Time At(double seconds) { return absl::UnixEpoch() + absl::Seconds(seconds); }

  void Open(uint64_t epoch) {
    const PairId pair = *fabric_.NewPair();
    ASSERT_OK(server_.Open(*fabric_.Open(pair, 0, epoch), At(30)));
    ASSERT_OK(client_.Open(*fabric_.Open(pair, 1, epoch), At(30)));
    Run(At(0));
  }
  // Until nothing comes of it any more.
  void Run(absl::Time now) {
    for (int idle = 0; idle < 200;) {
      const bool server = server_.Step(now);
      const bool client = client_.Step(now);
      idle = server || client ? 0 : idle + 1;
    }
  }
  static std::vector<std::string> Keys(int transfer, uint64_t pages) {
    std::vector<std::string> keys;
    for (uint64_t page = 0; page < pages; ++page)
      keys.push_back("transfer " + std::to_string(transfer) + " page " + std::to_string(page));
    return keys;
  }
  static Transfer MakeTransfer(Outcomes* outcomes, int number, Way way, absl::Time deadline,
                               uint64_t pages = 2) {
    auto outcome = std::make_shared<Outcome>();
    outcome->memory.assign(pages * kPageBytes,
                           way == Way::kSend ? static_cast<std::byte>(number + 1) : std::byte{0});
    Transfer transfer{.way = way, .keys = Keys(number, pages), .deadline = deadline};
    for (uint64_t page = 0; page < pages; ++page)
      transfer.blocks.push_back({outcome->memory.data() + page * kPageBytes, kPageBytes});
    transfer.memory = outcome;
    transfer.done = [outcome](const absl::Status& status) {
      ++outcome->calls;
      outcome->status = status;
    };
    outcomes->push_back(std::move(outcome));
    return transfer;
  }
  Transfer Sent(int number, double deadline = 10) {
    return MakeTransfer(&sent_, number, Way::kSend, At(deadline));
  }
  Transfer Received(int number, double deadline = 10) {
    return MakeTransfer(&received_, number, Way::kReceive, At(deadline));
  }
  static void ExpectEnded(const Outcome& outcome, absl::StatusCode code) {
    EXPECT_EQ(outcome.calls, 1);
    EXPECT_EQ(outcome.status.code(), code) << outcome.status;
  }
  static bool Holds(const Outcome& outcome, int number) {
    return outcome.memory ==
           std::vector<std::byte>(outcome.memory.size(), static_cast<std::byte>(number + 1));
  }

  FakeFabric fabric_;
  Outcomes sent_;
  Outcomes received_;
  PeerChannel server_;
  PeerChannel client_;
};

TEST_F(PeerChannelTest, TicketsThatOvertakeEachOtherAreStartedInOrder) {
  Open(1);
  ASSERT_EQ(server_.state(), State::kOpen);
  ASSERT_EQ(client_.state(), State::kOpen);
  std::vector<Ticket> tickets;
  for (int i = 0; i < 5; ++i) tickets.push_back(*server_.Issue(Sent(i)));
  Run(At(1));
  const std::vector<int> order = {3, 1, 4, 0, 2};
  for (const int i : order) ASSERT_OK(client_.Accept(tickets[static_cast<size_t>(i)], Received(i)));
  Run(At(2));
  for (size_t i = 0; i < 5; ++i) {
    ExpectEnded(*sent_[i], absl::StatusCode::kOk);
    ExpectEnded(*received_[i], absl::StatusCode::kOk);
    EXPECT_TRUE(Holds(*received_[i], order[i]));
    EXPECT_EQ(received_[i].use_count(), 1) << "the channel lets go of memory";
  }
}

TEST_F(PeerChannelTest, TicketsThatDoNotFit) {
  Open(1);
  const Ticket ticket = *server_.Issue(Sent(0));
  Ticket wrong = ticket;
  wrong.epoch = 9;
  EXPECT_THAT(client_.Accept(wrong, Received(0)), StatusIs(absl::StatusCode::kAborted));
  wrong = ticket;
  wrong.sequence = 64;
  EXPECT_THAT(client_.Accept(wrong, Received(0)), StatusIs(absl::StatusCode::kOutOfRange));
  ASSERT_OK(client_.Accept(ticket, Received(0)));
  EXPECT_THAT(client_.Accept(ticket, Received(0)), StatusIs(absl::StatusCode::kAlreadyExists));
  Run(At(1));
  EXPECT_THAT(client_.Accept(ticket, Received(0)), StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_EQ(client_.state(), State::kOpen);
  // Nothing that was refused was called back.
  int calls = 0;
  for (const auto& outcome : received_) calls += outcome->calls;
  EXPECT_EQ(calls, 1);
}

TEST_F(PeerChannelTest, ATicketForOtherPagesBreaksTheChannel) {
  Open(1);
  ASSERT_OK(client_.Accept(*server_.Issue(Sent(0)), Received(0)));
  const Ticket ticket = *server_.Issue(Sent(1));
  EXPECT_THAT(client_.Accept(ticket, Received(2)),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("other pages")));
  EXPECT_EQ(client_.state(), State::kClosing);
  ExpectEnded(*received_[0], absl::StatusCode::kDataLoss);
  EXPECT_EQ(received_[1]->calls, 0) << "an error was returned";
  EXPECT_THAT(client_.Issue(Sent(3)),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("other pages")));
}

TEST_F(PeerChannelTest, SizesAreChecked) {
  Open(1);
  Transfer none{.way = Way::kSend};
  EXPECT_THAT(server_.Issue(std::move(none)), StatusIs(absl::StatusCode::kInvalidArgument));
  Transfer fewer = Sent(0);
  fewer.blocks.pop_back();
  EXPECT_THAT(server_.Issue(std::move(fewer)), StatusIs(absl::StatusCode::kInvalidArgument));
  Transfer empty = Sent(0);
  empty.blocks[1].bytes = 0;
  EXPECT_THAT(server_.Issue(std::move(empty)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("page 1")));
  for (int i = 0; i < 64; ++i) ASSERT_OK(server_.Issue(Sent(i)));
  EXPECT_THAT(server_.Issue(Sent(64)), StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(PeerChannelTest, ADeadlineBreaksTheChannelAndTheNextEpochWorks) {
  fabric_.set_options({.closing_polls_max = 20});
  Open(1);
  ASSERT_OK(client_.Accept(*server_.Issue(Sent(0, 5)), Received(0, 3)));
  const Ticket lost = *server_.Issue(Sent(1, 5));  // nobody hears of it
  ASSERT_OK(client_.Accept(*server_.Issue(Sent(2, 5)), Received(2, 4)));
  Run(At(2));
  ExpectEnded(*received_[0], absl::StatusCode::kOk);
  EXPECT_EQ(received_[1]->calls, 0);
  // The client's has waited for the one that was lost.
  EXPECT_TRUE(client_.Step(At(4)));
  ExpectEnded(*received_[1], absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(received_[1]->status,
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("in vain for ticket 1")));
  Run(At(5));
  EXPECT_EQ(client_.state(), State::kClosed);
  EXPECT_EQ(server_.state(), State::kClosed);
  ExpectEnded(*sent_[1], absl::StatusCode::kDeadlineExceeded);
  ExpectEnded(*sent_[2], absl::StatusCode::kDeadlineExceeded);
  Open(2);
  // The ticket comes after all.
  EXPECT_THAT(client_.Accept(lost, Received(1, 20)), StatusIs(absl::StatusCode::kAborted));
  ASSERT_OK(client_.Accept(*server_.Issue(Sent(7, 20)), Received(7, 20)));
  Run(At(6));
  ExpectEnded(*received_.back(), absl::StatusCode::kOk);
  EXPECT_TRUE(Holds(*received_.back(), 7));
}

TEST_F(PeerChannelTest, MemoryIsHeldUntilNothingMoves) {
  fabric_.set_options({.seed = 3, .closing_polls_max = 1000});
  Open(1);
  ASSERT_OK(server_.Issue(Sent(0, 2)));
  Run(At(1));
  EXPECT_TRUE(server_.Step(At(2)));
  ExpectEnded(*sent_[0], absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(sent_[0].use_count(), 2) << "the answer is there at once, the memory later";
  EXPECT_THAT(server_.Open(*fabric_.Open(*fabric_.NewPair(), 0, 2), At(9)),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  while (server_.state() == State::kClosing) server_.Step(At(2));
  EXPECT_EQ(sent_[0].use_count(), 1);
}

TEST_F(PeerChannelTest, APeerThatDoesNotComeAndEpochsThatGoBack) {
  const PairId pair = *fabric_.NewPair();
  ASSERT_OK(server_.Open(*fabric_.Open(pair, 0, 5), At(3)));
  ASSERT_OK(server_.Issue(Sent(0)));
  server_.Step(At(2));
  EXPECT_EQ(server_.state(), State::kMeeting);
  server_.Step(At(3));
  EXPECT_THAT(server_.broken(),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("did not come")));
  ExpectEnded(*sent_[0], absl::StatusCode::kDeadlineExceeded);
  Run(At(4));
  EXPECT_THAT(server_.Issue(Sent(0)), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(server_.Open(*fabric_.Open(*fabric_.NewPair(), 0, 5), At(9)),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("later epoch than 5")));
}

TEST_F(PeerChannelTest, TransfersGivenWhileTheRanksMeetStartWhenTheyHave) {
  const PairId pair = *fabric_.NewPair();
  ASSERT_OK(server_.Open(*fabric_.Open(pair, 0, 1), At(30)));
  const Ticket ticket = *server_.Issue(Sent(0));
  ASSERT_OK(client_.Open(*fabric_.Open(pair, 1, 1), At(30)));
  ASSERT_OK(client_.Accept(ticket, Received(0)));
  Run(At(1));
  ExpectEnded(*received_[0], absl::StatusCode::kOk);
  EXPECT_TRUE(Holds(*received_[0], 0));
}

TEST_F(PeerChannelTest, ATransfersDeadlineCountsWhileTheRanksMeet) {
  ASSERT_OK(server_.Open(*fabric_.Open(*fabric_.NewPair(), 0, 1), At(30)));
  ASSERT_OK(server_.Issue(Sent(0, 5)));
  EXPECT_FALSE(server_.Step(At(4)));
  EXPECT_TRUE(server_.Step(At(5)));
  ExpectEnded(*sent_[0], absl::StatusCode::kDeadlineExceeded);
}

TEST(SlotsTest, AbsurdOnesAreRefusedAndTooManyAreFewer) {
  using comm::AgreeOnSlots;
  const auto asked = [](uint32_t slots, uint64_t bytes) {
    return AgreeOnSlots({.slots = slots, .slot_bytes = bytes}, 1 << 20);
  };
  for (const auto& [slots, bytes] : std::vector<std::pair<uint32_t, uint64_t>>{
           {0, 64}, {4, 0}, {1025, 64}, {~0u, 64}, {1, ~uint64_t{0}}, {~0u, ~uint64_t{0}}}) {
    EXPECT_THAT(asked(slots, bytes), StatusIs(absl::StatusCode::kInvalidArgument))
        << slots << " of " << bytes;
  }
  EXPECT_THAT(asked(1, (1 << 20) + 1), StatusIs(absl::StatusCode::kResourceExhausted));
  const auto few = asked(1024, 300 << 10);
  ASSERT_OK(few);
  EXPECT_EQ(few->slots, 3u);
  EXPECT_EQ(few->bytes(), 900u << 10);

  comm::FreeSlots slots(*few);
  std::vector<uint64_t> taken;
  while (slots.free() > 0) taken.push_back(*slots.Take());
  EXPECT_THAT(taken, ::testing::ElementsAre(0, 300 << 10, 600 << 10));
  EXPECT_THAT(slots.Take(), StatusIs(absl::StatusCode::kResourceExhausted));
  slots.Return(300 << 10);
  EXPECT_THAT(slots.Take(), IsOkAndHolds(300u << 10));
}

}  // namespace
}  // namespace oscarkv::testing
