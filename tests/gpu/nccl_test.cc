// NCCL keeps the contract of every fabric, between two processes: on a GPU each where there are
// two, else on one, over sockets.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"

#include "cuda_runtime_api.h"
#include "kernels/comm/nccl_fabric.h"
#include "kernels/comm/peer_channel.h"
#include "tests/comm/peer_comm_contract.h"
#include "tests/gpu/process_runner.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

using comm::Block;
using comm::PeerChannel;
using comm::Way;

int Devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return 0;
  return count;
}

std::unique_ptr<comm::PeerFabric> MakeFabric(int rank) {
  comm::NcclOptions options;
  const char* library = std::getenv("OSCARKV_NCCL_LIBRARY");
  if (library != nullptr) options.library = library;
  options.device = Devices() > 1 ? rank : 0;
  if (Devices() == 1) {
    // NCCL refuses two ranks on one GPU of one host: for a test these are two hosts.
    setenv("NCCL_HOSTID", rank == 0 ? "first" : "second", 1);
    setenv("NCCL_SOCKET_IFNAME", "lo", 1);
  }
  EXPECT_EQ(cudaSetDevice(options.device), cudaSuccess);
  auto fabric = comm::MakeNcclFabric(options);
  EXPECT_OK(fabric);
  if (!fabric.ok()) std::abort();
  std::printf("rank %d: NCCL %u on device %d of %d\n", rank, (*fabric)->version(), options.device,
              Devices());
  return *std::move(fabric);
}

std::unique_ptr<PeerRunner> MakeRunner() { return std::make_unique<ProcessRunner>(MakeFabric); }

[[maybe_unused]] const int kRegistered = RegisterPeerCommContract("nccl", MakeRunner);

TEST(NcclFabricTest, WithoutTheLibraryItIsUnavailable) {
  comm::NcclOptions options;
  options.library = "libnccl_that_is_not_there.so";
  EXPECT_THAT(comm::MakeNcclFabric(options),
              StatusIs(absl::StatusCode::kUnavailable, ::testing::HasSubstr("NCCL")));
  options = {};
  options.device = 99;
  EXPECT_THAT(comm::MakeNcclFabric(options),
              StatusIs(absl::StatusCode::kUnavailable, ::testing::HasSubstr("no device 99")));
}

// Groups of pages through a channel, as a store's transfers go.
TEST(NcclChannelTest, MovesPagesFast) {
  const auto runner = MakeRunner();
  runner->Run([](PeerSide& side) {
    PeerChannel channel;
    comm::PairId pair = {};
    if (side.rank() == 0) {
      pair = *side.fabric().NewPair();
      side.Tell({pair.begin(), pair.end()});
    } else {
      const std::string heard = side.Hear();
      std::copy_n(heard.begin(), pair.size(), pair.begin());
    }
    const absl::Time start = absl::Now();
    ASSERT_OK(channel.Open(*side.fabric().Open(pair, side.rank(), 1), start + absl::Seconds(20)));
    while (channel.state() == PeerChannel::State::kMeeting) channel.Step(absl::Now());
    ASSERT_OK(channel.broken());
    if (side.rank() == 0)
      std::printf("met after %.0f ms\n", absl::ToDoubleMilliseconds(absl::Now() - start));
    constexpr uint64_t kPages = 64;
    std::byte* memory = side.Allocate(kPages << 20);
    for (const uint64_t bytes : {64u << 10, 256u << 10, 704u << 10, 1u << 20}) {
      std::vector<Block> blocks;
      std::vector<std::string> keys;
      for (uint64_t i = 0; i < kPages; ++i) {
        blocks.push_back({memory + i * bytes, bytes});
        keys.push_back(std::to_string(i));
      }
      const int repeats = Devices() > 1 ? 50 : 5;
      absl::Duration best = absl::InfiniteDuration();
      for (int i = 0; i < repeats; ++i) {
        int done = 0;
        absl::Status status;
        comm::Transfer transfer{.way = side.rank() == 0 ? Way::kSend : Way::kReceive,
                                .keys = keys,
                                .blocks = blocks,
                                .deadline = absl::Now() + absl::Seconds(10)};
        transfer.done = [&](const absl::Status& ended) {
          ++done;
          status = ended;
        };
        // Both sides give the same tickets: nothing but the fabric is measured.
        side.Tell("go");
        side.Hear();
        const absl::Time begin = absl::Now();
        ASSERT_OK(channel.Issue(std::move(transfer)));
        while (done == 0) channel.Step(absl::Now());
        ASSERT_OK(status);
        best = std::min(best, absl::Now() - begin);
      }
      if (side.rank() == 1) {
        std::printf("%llu pages of %4llu KiB: %7.2f ms, %7.2f GB/s\n",
                    static_cast<unsigned long long>(kPages),
                    static_cast<unsigned long long>(bytes >> 10), absl::ToDoubleMilliseconds(best),
                    static_cast<double>(kPages * bytes) / absl::ToDoubleSeconds(best) * 1e-9);
      }
    }
    // A sender is done when the last bytes have left: its end may come before they have arrived.
    side.Tell("have all");
    side.Hear();
  });
}

// A worker that is killed while the store sends to it: the store has its memory back, and serves
// the next one.
TEST(NcclChannelTest, APeerThatIsKilledInMidTransfer) {
  const auto runner = MakeRunner();
  PeerChannel channel;  // the store's, for both workers
  const auto worker = [&](PeerSide& side, uint64_t epoch, bool dies) {
    comm::PairId pair = {};
    PeerChannel own;
    PeerChannel& mine = side.rank() == 0 ? channel : own;
    if (side.rank() == 0) {
      pair = *side.fabric().NewPair();
      side.Tell({pair.begin(), pair.end()});
    } else {
      const std::string heard = side.Hear();
      std::copy_n(heard.begin(), pair.size(), pair.begin());
    }
    ASSERT_OK(
        mine.Open(*side.fabric().Open(pair, side.rank(), epoch), absl::Now() + absl::Seconds(20)));
    while (mine.state() == PeerChannel::State::kMeeting) mine.Step(absl::Now());
    ASSERT_EQ(mine.state(), PeerChannel::State::kOpen) << mine.broken();
    constexpr uint64_t kBytes = 32 << 20;
    const auto memory = std::make_shared<int>();
    int done = 0;
    absl::Status status;
    comm::Transfer transfer{
        .way = side.rank() == 0 ? Way::kSend : Way::kReceive,
        .keys = {"a", "b"},
        .blocks = {{side.Allocate(kBytes), kBytes}, {side.Allocate(kBytes), kBytes}},
        .deadline = absl::Now() + absl::Seconds(2),
        .memory = memory};
    transfer.done = [&](const absl::Status& ended) {
      ++done;
      status = ended;
    };
    const absl::Time begin = absl::Now();
    ASSERT_OK(mine.Issue(std::move(transfer)));
    mine.Step(absl::Now());
    if (side.rank() == 1 && dies) side.Die();
    while (done == 0) mine.Step(absl::Now());
    const absl::Duration answered = absl::Now() - begin;
    EXPECT_EQ(status.ok(), !dies) << status;
    if (!dies) {
      side.Tell("have all");  // before either end goes, as above
      side.Hear();
      return;
    }
    while (mine.state() != PeerChannel::State::kClosed) mine.Step(absl::Now());
    EXPECT_EQ(memory.use_count(), 1);
    std::printf("killed in mid-transfer: \"%s\" after %.0f ms, memory back after %.0f ms\n",
                status.ToString().c_str(), absl::ToDoubleMilliseconds(answered),
                absl::ToDoubleMilliseconds(absl::Now() - begin));
    EXPECT_LE(answered, absl::Seconds(3));
  };
  runner->Run([&](PeerSide& side) { worker(side, 1, true); });
  runner->Run([&](PeerSide& side) { worker(side, 2, false); });
}

}  // namespace
}  // namespace oscarkv::testing
