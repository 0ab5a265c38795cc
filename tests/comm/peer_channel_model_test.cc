// Two channels under seeds: tickets that are late, lost, repeated or overtaken, a fabric that is
// slow, loses bytes or fails, and a peer that dies at any step. Whatever happens, an answer comes
// once and in time, bytes are right or the answer is an error, nobody writes to memory that was
// given back, and the next epoch works.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/comm/peer_channel.h"
#include "tests/comm/fake_fabric.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

using comm::PeerChannel;
using comm::Ticket;
using comm::Transfer;
using comm::Way;

constexpr int kSeeds = 3000;
constexpr uint32_t kSteps = 400;         // of 10 ms each
constexpr uint32_t kDeadlineSteps = 60;  // of a transfer
constexpr std::byte kUnwritten{0xee};

struct Totals {
  uint64_t transfers = 0, moved = 0, failed = 0, kills = 0, broken_epochs = 0, longest_steps = 0;
};

class World {
 public:
  World(uint64_t seed, Totals& totals) : random_(seed), totals_(totals) {
    FakeFabricOptions options{.seed = seed,
                              .delay_polls_max = Below(8),
                              .closing_polls_max = Below(30),
                              .eager_percent = Below(2) * 50,
                              .tells_of_aborts = Below(2) == 0};
    const uint32_t fault = Below(4);
    if (fault == 1) options.drop_from = Below(12);
    if (fault == 2) options.fail_from = Below(12);
    fabric_.set_options(options);
    ticket_faults_ = Below(3) == 0;
    if (Below(3) == 0) kill_at_ = Below(kSteps);
  }

  void Run() {
    Open();
    for (step_ = 0; step_ < kSteps; ++step_) {
      if (step_ == kill_at_) Kill();
      if (step_ < kSteps / 2 && Below(10) == 0) Begin();
      Deliver();
      StepBoth();
      if (::testing::Test::HasFailure()) return;
    }
    CheckEnded();
    // A sound epoch after all that.
    fabric_.set_options({});
    ticket_faults_ = false;
    messages_.clear();
    Reopen();
    const size_t first = moves_.size();
    for (int i = 0; i < 3; ++i) Begin();
    for (uint32_t i = 0; i < kDeadlineSteps; ++i, ++step_) {
      Deliver();
      StepBoth();
    }
    int sound = 0;
    for (size_t i = first; i < moves_.size(); ++i) {
      for (const End& end : moves_[i]->ends) {
        if (!end.begun) continue;
        EXPECT_OK(end.status);
        ++sound;
      }
    }
    EXPECT_EQ(sound, 6);
    CheckEnded();
  }

 private:
  // What a side has of a transfer. Its memory stays, so that late writes are seen.
  struct End {
    std::vector<std::byte> memory;
    bool begun = false;
    int calls = 0;
    uint32_t since = 0;
    bool given_back = false;
    absl::Status status = absl::UnknownError("no answer");
    std::vector<std::byte> as_given_back;
  };
  struct Move {
    std::vector<std::string> keys;
    std::vector<uint64_t> sizes;
    std::vector<std::byte> content;
    Way client_way = Way::kReceive;
    bool taken = false;  // by the client
    End ends[2];         // the server's, the client's
  };
  struct Message {
    uint32_t at_step = 0;
    Ticket ticket;
    std::shared_ptr<Move> move;
  };

  uint32_t Below(uint32_t count) { return static_cast<uint32_t>(random_() % count); }
  absl::Time Now() const { return absl::UnixEpoch() + absl::Milliseconds(10) * step_; }

  void Open() {
    const comm::PairId pair = *fabric_.NewPair();
    ++epoch_;
    const absl::Time deadline = Now() + absl::Milliseconds(10) * kDeadlineSteps;
    ASSERT_OK(sides_[0]->Open(*fabric_.Open(pair, 0, epoch_), deadline));
    ASSERT_OK(sides_[1]->Open(*fabric_.Open(pair, 1, epoch_), deadline));
    for (int i = 0; i < 200; ++i) StepBoth();
  }
  void Reopen() {
    for (auto& side : sides_) side->Break(absl::CancelledError("a new epoch"));
    for (int i = 0; i < 200; ++i) StepBoth();
    Open();
  }
  // One process dies; its memory goes with it. The other notices, or only its deadlines do. A new
  // process takes its place.
  void Kill() {
    ++totals_.kills;
    const size_t dead = Below(2);
    sides_[dead] = std::make_unique<PeerChannel>();
    for (const auto& move : moves_) {
      End& end = move->ends[dead];
      if (end.begun && end.calls == 0) ADD_FAILURE() << "a channel that ended gave no answer";
    }
  }

  void StepBoth() {
    for (size_t i = 0; i < 2; ++i) {
      const size_t side = (step_ + i) % 2;
      if (Below(4) != 0) sides_[side]->Step(Now());
    }
  }

  Transfer MakeTransfer(const std::shared_ptr<Move>& move, size_t side) {
    End& end = move->ends[side];
    const Way way = (side == 1) == (move->client_way == Way::kSend) ? Way::kSend : Way::kReceive;
    end.memory.assign(move->content.size(), kUnwritten);
    if (way == Way::kSend) end.memory = move->content;
    end.since = step_;
    Transfer transfer{.way = way,
                      .keys = move->keys,
                      .deadline = Now() + absl::Milliseconds(10) * kDeadlineSteps};
    std::byte* next = end.memory.data();
    for (const uint64_t bytes : move->sizes) {
      transfer.blocks.push_back({next, bytes});
      next += bytes;
    }
    transfer.memory = std::shared_ptr<const void>(&end, [move, &end](const void*) {
      end.given_back = true;
      end.as_given_back = end.memory;
    });
    transfer.done = [this, move, &end](const absl::Status& status) {
      ++end.calls;
      end.status = status;
      totals_.longest_steps = std::max<uint64_t>(totals_.longest_steps, step_ - end.since);
      EXPECT_TRUE(!status.ok() || end.memory == move->content) << "wrong bytes";
    };
    return transfer;
  }

  // The server has accepted a call: its ticket travels to the client.
  void Begin() {
    auto move = std::make_shared<Move>();
    const uint32_t pages = 1 + Below(4);
    for (uint32_t page = 0; page < pages; ++page) {
      move->keys.push_back(std::to_string(moves_.size()) + "/" + std::to_string(page));
      move->sizes.push_back(1 + Below(200));
      for (uint64_t i = 0; i < move->sizes.back(); ++i)
        move->content.push_back(static_cast<std::byte>(Below(200)));
    }
    if (Below(2) == 0) move->client_way = Way::kSend;
    Transfer transfer = MakeTransfer(move, 0);
    const absl::StatusOr<Ticket> ticket = sides_[0]->Issue(std::move(transfer));
    if (!ticket.ok()) return;  // no channel: the caller takes another path
    move->ends[0].begun = true;
    moves_.push_back(move);
    ++totals_.transfers;
    uint32_t travels = Below(4);
    if (ticket_faults_ && Below(8) == 0) return;  // lost
    if (ticket_faults_ && Below(8) == 0) travels = kDeadlineSteps + Below(60);
    messages_.push_back({step_ + travels, *ticket, move});
    if (ticket_faults_ && Below(8) == 0) messages_.push_back({step_ + Below(90), *ticket, move});
  }
  void Deliver() {
    std::vector<Message> due;
    std::erase_if(messages_, [&](const Message& message) {
      if (message.at_step > step_) return false;
      due.push_back(message);
      return true;
    });
    std::ranges::shuffle(due, random_);
    for (const Message& message : due) {
      // A ticket that comes twice must not touch what the first one is about.
      const auto copy = std::make_shared<Move>();
      copy->keys = message.move->keys;
      copy->sizes = message.move->sizes;
      copy->content = message.move->content;
      copy->client_way = message.move->client_way;
      if (!sides_[1]->Accept(message.ticket, MakeTransfer(copy, 1)).ok()) continue;
      EXPECT_FALSE(message.move->taken) << "a ticket was taken twice";
      message.move->taken = copy->ends[1].begun = true;
      moves_.push_back(copy);
    }
  }

  // Every answer has come, nothing was written since the memory was given back.
  void CheckEnded() {
    for (auto& side : sides_) {
      if (side->state() == PeerChannel::State::kClosed) ++totals_.broken_epochs;
    }
    for (const auto& move : moves_) {
      for (const End& end : move->ends) {
        if (!end.begun) continue;
        ASSERT_EQ(end.calls, 1);
        ASSERT_TRUE(end.given_back);
        EXPECT_TRUE(end.memory == end.as_given_back) << "written after it was given back";
        ++(end.status.ok() ? totals_.moved : totals_.failed);
      }
    }
    moves_.clear();
  }

  std::mt19937_64 random_;
  Totals& totals_;
  FakeFabric fabric_;
  std::unique_ptr<PeerChannel> sides_[2] = {std::make_unique<PeerChannel>(),
                                            std::make_unique<PeerChannel>()};
  uint64_t epoch_ = 0;
  uint32_t step_ = 0;
  bool ticket_faults_ = false;
  std::optional<uint32_t> kill_at_;
  std::vector<std::shared_ptr<Move>> moves_;
  std::vector<Message> messages_;
};

TEST(PeerChannelModel, NeverWrongNeverLateNeverTwice) {
  Totals totals;
  for (uint64_t seed = 0; seed < kSeeds && !HasFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    World(seed, totals).Run();
  }
  std::printf(
      "%d seeds: %llu transfers, of their ends %llu moved, %llu failed; %llu kills, %llu channels "
      "broken; longest answer after %llu of %u steps\n",
      kSeeds, static_cast<unsigned long long>(totals.transfers),
      static_cast<unsigned long long>(totals.moved), static_cast<unsigned long long>(totals.failed),
      static_cast<unsigned long long>(totals.kills),
      static_cast<unsigned long long>(totals.broken_epochs),
      static_cast<unsigned long long>(totals.longest_steps), kDeadlineSteps);
  EXPECT_GT(totals.moved, totals.failed);
  EXPECT_GT(totals.failed, 1000u);
  EXPECT_GT(totals.kills, 500u);
  // A step may be left out: a late one follows soon.
  EXPECT_LE(totals.longest_steps, kDeadlineSteps + 30);
}

}  // namespace
}  // namespace oscarkv::testing
