#include "tests/comm/peer_comm_contract.h"

#include <algorithm>
#include <cstdio>
#include <random>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

using comm::Block;
using comm::PairId;
using comm::PeerComm;
using comm::Way;
using ::testing::HasSubstr;

// How long what has to come may take, and what cannot come is waited for.
constexpr absl::Duration kSoon = absl::Seconds(20);
constexpr absl::Duration kInVain = absl::Milliseconds(300);

absl::Status Await(absl::Duration wait, const std::function<absl::StatusOr<bool>()>& reached) {
  const absl::Time deadline = absl::Now() + wait;
  while (true) {
    const absl::StatusOr<bool> now = reached();
    if (!now.ok()) return now.status();
    if (*now) return absl::OkStatus();
    if (absl::Now() > deadline) return absl::DeadlineExceededError("not reached");
    std::this_thread::yield();
  }
}
absl::Status AwaitReady(PeerComm& peer, absl::Duration wait = kSoon) {
  return Await(wait, [&] { return peer.Ready(); });
}
absl::Status AwaitDone(PeerComm& peer, uint64_t operation, absl::Duration wait = kSoon) {
  return Await(wait, [&] { return peer.Done(operation); });
}
void ExpectCloses(PeerComm& peer) {
  const absl::Time start = absl::Now();
  EXPECT_OK(Await(kSoon, [&]() -> absl::StatusOr<bool> { return peer.Closed(); }));
  std::printf("closed after %.1f ms\n", absl::ToDoubleMilliseconds(absl::Now() - start));
}

// Both sides call it: the pair is made by rank 0.
PairId SharedPair(PeerSide& side) {
  PairId pair = {};
  if (side.rank() == 0) {
    const absl::StatusOr<PairId> made = side.fabric().NewPair();
    EXPECT_OK(made);
    if (made.ok()) pair = *made;
    side.Tell({pair.begin(), pair.end()});
  } else {
    const std::string heard = side.Hear();
    std::copy_n(heard.begin(), std::min(heard.size(), pair.size()), pair.begin());
  }
  return pair;
}
std::unique_ptr<PeerComm> Opened(PeerSide& side, const PairId& pair, uint64_t epoch) {
  auto peer = side.fabric().Open(pair, side.rank(), epoch);
  EXPECT_OK(peer);
  return peer.ok() ? *std::move(peer) : nullptr;
}
std::unique_ptr<PeerComm> Met(PeerSide& side, uint64_t epoch) {
  std::unique_ptr<PeerComm> peer = Opened(side, SharedPair(side), epoch);
  EXPECT_OK(AwaitReady(*peer));
  return peer;
}

std::vector<std::byte> Pattern(uint64_t seed, uint64_t bytes) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> pattern(bytes);
  for (std::byte& byte : pattern) byte = static_cast<std::byte>(random());
  return pattern;
}

// Blocks of these sizes; `seed` 0: not filled.
std::vector<Block> MakeBlocks(PeerSide& side, std::span<const uint64_t> sizes, uint64_t seed) {
  std::vector<Block> blocks;
  for (const uint64_t bytes : sizes) {
    blocks.push_back({side.Allocate(bytes), bytes});
    if (seed != 0) side.Write(blocks.back().data, Pattern(seed + blocks.size(), bytes));
  }
  return blocks;
}
void ExpectPattern(PeerSide& side, std::span<const Block> blocks, uint64_t seed) {
  uint64_t number = 0;
  for (const Block& block : blocks) {
    EXPECT_TRUE(side.Read(block.data, block.bytes) == Pattern(seed + ++number, block.bytes))
        << "block " << number << " of " << block.bytes << " bytes";
  }
}

// Rank 0 sends what rank 1 receives.
void ExpectMoves(PeerSide& side, PeerComm& peer, uint64_t seed) {
  const std::vector<uint64_t> sizes(4, 64 << 10);
  const auto blocks = MakeBlocks(side, sizes, side.rank() == 0 ? seed : 0);
  const auto operation = peer.Start(side.rank() == 0 ? Way::kSend : Way::kReceive, blocks);
  ASSERT_OK(operation);
  ASSERT_OK(AwaitDone(peer, *operation));
  if (side.rank() == 1) ExpectPattern(side, blocks, seed);
}

void BytesArriveBothWays(PeerRunner& runner) {
  runner.Run([](PeerSide& side) {
    const auto peer = Met(side, 1);
    const std::vector<std::vector<uint64_t>> groups = {
        {1}, {64, 4, 4096}, {720'896, 720'896, 720'896, 37}, std::vector<uint64_t>(200, 4608)};
    uint64_t seed = 100;
    for (const auto& sizes : groups) {
      for (const int sender : {0, 1}) {
        const bool sends = side.rank() == sender;
        const auto blocks = MakeBlocks(side, sizes, sends ? ++seed * 1000 : 0);
        if (!sends) ++seed;
        const auto operation = peer->Start(sends ? Way::kSend : Way::kReceive, blocks);
        ASSERT_OK(operation);
        ASSERT_OK(AwaitDone(*peer, *operation));
        if (!sends) ExpectPattern(side, blocks, seed * 1000);
      }
    }
  });
}

void OperationsKeepTheirOrder(PeerRunner& runner) {
  runner.Run([](PeerSide& side) {
    const auto peer = Met(side, 7);
    EXPECT_EQ(peer->epoch(), 7u);
    const std::vector<uint64_t> sizes = {32 << 10, 512};
    std::vector<std::vector<Block>> all;
    for (uint64_t i = 0; i < 20; ++i) {
      // Each third goes the other way.
      const bool sends = (i % 3 == 2) == (side.rank() == 1);
      all.push_back(MakeBlocks(side, sizes, sends ? 1 + i * 10 : 0));
      EXPECT_THAT(peer->Start(sends ? Way::kSend : Way::kReceive, all.back()), IsOkAndHolds(i));
    }
    for (uint64_t i = 20; i-- > 0;) {
      ASSERT_OK(AwaitDone(*peer, i)) << i;  // the last first: it implies the others
      const bool sends = (i % 3 == 2) == (side.rank() == 1);
      if (!sends) ExpectPattern(side, all[i], 1 + i * 10);
    }
  });
}

void RanksOfOtherEpochsDoNotMeet(PeerRunner& runner) {
  runner.Run([](PeerSide& side) {
    const auto peer = Opened(side, SharedPair(side), side.rank() == 0 ? 5 : 6);
    EXPECT_THAT(AwaitReady(*peer), StatusIs(absl::StatusCode::kAborted, HasSubstr("epoch")));
    // Until both have seen it.
    side.Tell("seen");
    side.Hear();
    ExpectCloses(*peer);
  });
}

void APeerThatNeverComes(PeerRunner& runner) {
  runner.Run([](PeerSide& side) {
    const PairId pair = SharedPair(side);
    if (side.rank() == 0) {
      const auto peer = Opened(side, pair, 1);
      EXPECT_THAT(AwaitReady(*peer, kInVain), StatusIs(absl::StatusCode::kDeadlineExceeded));
      peer->Abort(absl::DeadlineExceededError("too late"));
      EXPECT_THAT(peer->Ready(), StatusIs(absl::StatusCode::kDeadlineExceeded));
      ExpectCloses(*peer);
    }
    ExpectMoves(side, *Met(side, 2), 500);
  });
}

void AbortInMidTransfer(PeerRunner& runner) {
  runner.Run([](PeerSide& side) {
    {
      const auto peer = Met(side, 1);
      ExpectMoves(side, *peer, 600);
      const std::vector<uint64_t> sizes = {8 << 20, 8 << 20};
      const auto blocks = MakeBlocks(side, sizes, 0);
      if (side.rank() == 0) {
        const auto operation = peer->Start(Way::kReceive, blocks);
        ASSERT_OK(operation);
        EXPECT_THAT(AwaitDone(*peer, *operation, kInVain),
                    StatusIs(absl::StatusCode::kDeadlineExceeded));
        peer->Abort(absl::DeadlineExceededError("too late"));
        EXPECT_THAT(peer->Done(*operation), StatusIs(absl::StatusCode::kDeadlineExceeded));
        EXPECT_THAT(peer->Start(Way::kReceive, blocks),
                    StatusIs(absl::StatusCode::kDeadlineExceeded));
        ExpectCloses(*peer);
        side.Tell("aborted");
      } else {
        side.Hear();
        peer->Abort(absl::CancelledError("told so"));
        ExpectCloses(*peer);
      }
    }
    ExpectMoves(side, *Met(side, 2), 700);
  });
}

void APeerThatDies(PeerRunner& runner) {
  runner.Run([](PeerSide& side) {
    const auto peer = Met(side, 1);
    ExpectMoves(side, *peer, 800);
    const std::vector<uint64_t> sizes(8, 4 << 20);
    const auto blocks = MakeBlocks(side, sizes, 0);
    if (side.rank() == 1) {
      side.Die();
      return;
    }
    const auto operation = peer->Start(Way::kReceive, blocks);
    absl::Status status = operation.status();
    if (status.ok()) status = AwaitDone(*peer, *operation, kInVain);
    EXPECT_FALSE(status.ok());
    std::printf("a dead peer: %s\n", status.ToString().c_str());
    peer->Abort(status);
    ExpectCloses(*peer);
  });
  runner.Run([](PeerSide& side) { ExpectMoves(side, *Met(side, 2), 900); });
}

void MisuseIsRefused(PeerRunner& runner) {
  runner.Run([](PeerSide& side) {
    const PairId pair = SharedPair(side);
    EXPECT_THAT(side.fabric().Open(pair, 2, 1), StatusIs(absl::StatusCode::kInvalidArgument));
    const auto peer = Opened(side, pair, 1);
    const std::vector<uint64_t> sizes = {64};
    const auto blocks = MakeBlocks(side, sizes, 1);
    EXPECT_THAT(peer->Start(Way::kSend, blocks), StatusIs(absl::StatusCode::kFailedPrecondition));
    EXPECT_FALSE(peer->Closed());
    ASSERT_OK(AwaitReady(*peer));
    EXPECT_THAT(peer->Start(Way::kSend, {}), StatusIs(absl::StatusCode::kInvalidArgument));
    const std::vector<Block> empty = {blocks[0], {blocks[0].data, 0}};
    EXPECT_THAT(peer->Start(Way::kSend, empty),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("block 1")));
    EXPECT_THAT(peer->Done(0), StatusIs(absl::StatusCode::kInvalidArgument));
    // None of it did any harm.
    ExpectMoves(side, *peer, 950);
  });
}

using Body = void (*)(PeerRunner&);

class ContractTest : public ::testing::Test {
 public:
  ContractTest(std::unique_ptr<PeerRunner> runner, Body body)
      : runner_(std::move(runner)), body_(body) {}
  void TestBody() override { body_(*runner_); }

 private:
  const std::unique_ptr<PeerRunner> runner_;
  const Body body_;
};

}  // namespace

int RegisterPeerCommContract(const std::string& name,
                             const std::function<std::unique_ptr<PeerRunner>()>& make) {
  const std::vector<std::pair<const char*, Body>> bodies = {
      {"BytesArriveBothWays", BytesArriveBothWays},
      {"OperationsKeepTheirOrder", OperationsKeepTheirOrder},
      {"RanksOfOtherEpochsDoNotMeet", RanksOfOtherEpochsDoNotMeet},
      {"APeerThatNeverComes", APeerThatNeverComes},
      {"AbortInMidTransfer", AbortInMidTransfer},
      {"APeerThatDies", APeerThatDies},
      {"MisuseIsRefused", MisuseIsRefused}};
  for (const auto& [body_name, body] : bodies) {
    ::testing::RegisterTest(
        ("PeerCommContract/" + name).c_str(), body_name, nullptr, nullptr, __FILE__, __LINE__,
        [make, body = body]() -> ContractTest* { return new ContractTest(make(), body); });
  }
  return 0;
}

}  // namespace oscarkv::testing
