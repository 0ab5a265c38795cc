// oscarkvd and a worker in two processes on one GPU, or two: what the worker pushes goes into the
// server's GPU memory, and what becomes of it when the worker dies.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>

#include "gmock/gmock.h"

#include "tests/gpu/peer_worker.h"

namespace oscarkv::testing {
namespace {

// Pushes by `path` and by gRPC, into two namespaces: what is stored is the same.
void ExpectPushesTheSameBytes(PeerSide& side, DataPath path) {
  Worker worker(Endpoint(),
                {.fetch_paths = {DataPath::kGrpc}, .push_paths = {path, DataPath::kGrpc}});
  if (path == DataPath::kNccl) worker.SendOverNccl();
  Worker by_grpc(Endpoint(), {.fetch_paths = {DataPath::kGrpc}, .push_paths = {DataPath::kGrpc}},
                 "other");
  for (Worker* who : {&by_grpc, &worker}) {
    absl::Duration best = absl::InfiniteDuration();
    client::PushReport report;
    for (int i = 0; i < 4; ++i) {
      who->Clear();
      absl::Duration took;
      report = who->TryPush(&took);
      best = std::min(best, took);
      ASSERT_OK(report.store);
      ASSERT_THAT(report.statuses, ::testing::Each(ItemStatus::kOk));
    }
    EXPECT_EQ(report.path, who == &worker ? path : DataPath::kGrpc)
        << worker.client().path(Direction::kPush).reason;
    std::printf("%u pages pushed, %.0f MB encoded, by %s: %.2f ms, %.2f GB/s\n", kPages,
                static_cast<double>(report.bytes_wire) * 1e-6,
                std::string(DataPathName(report.path)).c_str(), absl::ToDoubleMilliseconds(best),
                GbPerSecond(report.bytes_wire, best));
  }
  ASSERT_EQ(worker.Fetch().pages, kPages);
  ASSERT_EQ(by_grpc.Fetch().pages, kPages);
  EXPECT_TRUE(worker.Cache() == by_grpc.Cache());
  side.Tell("stop");
}

TEST(IpcPushTest, PushesTheSameBytesAsByGrpc) {
  BesideServer(*MakeRunner(),
               [](PeerSide& side) { ExpectPushesTheSameBytes(side, DataPath::kIpc); });
}

TEST(NcclPushTest, PushesTheSameBytesAsByGrpc) {
  BesideServer(*MakeRunner(),
               [](PeerSide& side) { ExpectPushesTheSameBytes(side, DataPath::kNccl); });
}

// A worker that dies while its pages are on their way: the server gives back what it held, and the
// next worker's peer, of a later epoch, moves pages.
TEST(NcclPushTest, AWorkerThatDiesInMidPushCostsNobodyElseAnything) {
  const std::string endpoint = Endpoint();
  const auto server = ProcessRunner::rank() == 0 ? Serve(endpoint, "1GiB") : nullptr;
  const auto runner = MakeRunner();
  runner->Run([&](PeerSide& side) {
    if (side.rank() == 1) {
      UseLastDevice();
      Worker worker(side.Hear(), {.push_paths = {DataPath::kNccl}});
      worker.SendOverNccl();
      worker.Push();
      side.Tell("pushes");
      std::thread killer([&] {
        side.Hear();
        side.Die();
      });
      for (;;) {
        worker.Clear();
        worker.TryPush();
      }
    }
    side.Tell(endpoint);
    ASSERT_EQ(side.Hear(), "pushes");
    side.Tell("die");  // not at a point that anybody chose
    side.Hear();
  });
  ExpectTheNextWorkersPagesWhole(*runner, endpoint, DataPath::kNccl);
}

}  // namespace
}  // namespace oscarkv::testing
