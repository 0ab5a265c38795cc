// oscarkvd and a worker in two processes on one GPU: the worker reads the copies in the server's
// GPU memory where they are, and what becomes of it when either dies.
#include <poll.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include <grpcpp/grpcpp.h>

#include "client/cpp/sink_around.h"
#include "tests/gpu/peer_worker.h"

#include "oscarkv/v1/kv_cache.grpc.pb.h"
#include "oscarkv/v1/peer.grpc.pb.h"

namespace oscarkv::testing {
namespace {

using ::testing::HasSubstr;

// A sink that lets the test act when everything has been taken, and nobody was asked yet whether it
// stayed.
class PausedSink final : public client::SinkAround {
 public:
  PausedSink(client::PageSink& sink, std::function<void()> pause)
      : SinkAround(sink), pause_(std::move(pause)) {}
  absl::StatusOr<std::vector<absl::Status>> Finish() override {
    pause_();
    return sink().Finish();
  }

 private:
  const std::function<void()> pause_;
};

TEST(IpcTest, FetchesInPlaceTheSameBytesAsByGrpc) {
  BesideServer(*MakeRunner(), [](PeerSide& side) {
    Worker worker(Endpoint());
    Worker by_grpc(Endpoint(), {.fetch_paths = {DataPath::kGrpc}});
    worker.Push();
    worker.AwaitCopies();
    for (Worker* who : {&by_grpc, &worker}) {
      absl::Duration best = absl::InfiniteDuration();
      FetchReport report;
      for (int i = 0; i < 6; ++i) {
        absl::Duration took;
        report = who->Fetch(&took);
        best = std::min(best, took);
        ASSERT_EQ(report.pages, kPages) << report.store;
      }
      EXPECT_EQ(report.path, who == &worker ? DataPath::kIpc : DataPath::kGrpc)
          << worker.client().path(Direction::kFetch).reason;
      std::printf("%u pages, %.0f MB encoded, by %s: %.2f ms, %.2f GB/s, %.1f GB/s of bf16\n",
                  kPages, static_cast<double>(report.bytes_wire) * 1e-6,
                  std::string(DataPathName(report.path)).c_str(), absl::ToDoubleMilliseconds(best),
                  GbPerSecond(report.bytes_wire, best),
                  GbPerSecond(2ull * kModel.layers * kTokens * kTokenBytes, best));
    }
    const auto expected = by_grpc.Cache();
    EXPECT_TRUE(worker.Cache() == expected);
    EXPECT_GT(std::count_if(expected.begin(), expected.end(),
                            [](std::byte byte) { return byte != std::byte{0}; }),
              static_cast<ptrdiff_t>(expected.size() / 2));
    side.Tell("stop");
  });
}

// Another server. The pages went with the last one; the connection comes back by itself.
void ExpectTheNextServes(PeerRunner& runner, Worker* worker, DataPath path) {
  BesideServer(runner, [=](PeerSide& side) {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (!worker->client().Stats().ok()) ASSERT_LT(absl::Now(), deadline);
    worker->Push();
    worker->AwaitCopies();
    const FetchReport report = worker->Fetch();
    EXPECT_EQ(report.pages, kPages) << report.store;
    EXPECT_EQ(report.path, path) << worker->client().path(Direction::kFetch).reason;
    side.Tell("stop");
  });
}

TEST(IpcTest, AServerThatDiesInMidFetchAndTheNextOne) {
  const auto runner = MakeRunner();
  std::unique_ptr<Worker> worker;
  BesideServer(*runner, [&](PeerSide& side) {
    worker = std::make_unique<Worker>(Endpoint());
    worker->Push();
    worker->AwaitCopies();
    ASSERT_EQ(worker->Fetch().path, DataPath::kIpc);
    std::unique_ptr<PausedSink> paused;
    absl::Duration took;
    const FetchReport report = worker->Fetch(
        &took, kPages, [&](GpuPageSink & sink) -> auto& {
          paused = std::make_unique<PausedSink>(sink, [&] {
            side.Tell("die");
            EXPECT_EQ(side.Hear(), "");  // its end
          });
          return *paused;
        });
    EXPECT_EQ(report.pages, 0u);
    EXPECT_EQ(report.statuses[0], ItemStatus::kFenced);
    std::printf("the server died in mid-fetch: %u pages count, answered after %.0f ms\n",
                report.pages, absl::ToDoubleMilliseconds(took));
  });
  ExpectTheNextServes(*runner, worker.get(), DataPath::kIpc);
}

TEST(NcclTest, FetchesTheSameBytesAsByGrpc) {
  BesideServer(*MakeRunner(), [](PeerSide& side) {
    Worker worker(Endpoint(), {.fetch_paths = {DataPath::kNccl, DataPath::kGrpc}});
    worker.ReceiveOverNccl();
    Worker by_grpc(Endpoint(), {.fetch_paths = {DataPath::kGrpc}});
    worker.Push();
    worker.AwaitCopies();
    ASSERT_EQ(by_grpc.Fetch().pages, kPages);
    absl::Duration best = absl::InfiniteDuration();
    FetchReport report;
    for (int i = 0; i < 4; ++i) {
      absl::Duration took;
      report = worker.Fetch(&took);
      best = std::min(best, took);
      ASSERT_EQ(report.pages, kPages) << report.store;
    }
    EXPECT_EQ(report.path, DataPath::kNccl) << worker.client().path(Direction::kFetch).reason;
    std::printf("%u pages, %.0f MB encoded, by nccl: %.2f ms, %.2f GB/s\n", kPages,
                static_cast<double>(report.bytes_wire) * 1e-6, absl::ToDoubleMilliseconds(best),
                GbPerSecond(report.bytes_wire, best));
    EXPECT_TRUE(worker.Cache() == by_grpc.Cache());
    Say("compared");
    side.Tell("stop");
  });
  Say("the server has stopped");
}

TEST(NcclTest, AServerThatDiesInMidFetchIsAMissAndTheNextOneIsNot) {
  const auto runner = MakeRunner();
  std::unique_ptr<Worker> worker;
  BesideServer(*runner, [&](PeerSide& side) {
    worker = std::make_unique<Worker>(
        Endpoint(), ClientOptions{.fetch_paths = {DataPath::kNccl, DataPath::kGrpc}});
    worker->ReceiveOverNccl();
    worker->Push();
    worker->AwaitCopies();
    ASSERT_EQ(worker->Fetch().path, DataPath::kNccl);
    // Not at a point that anybody chose.
    std::thread killer([&] {
      side.Tell("die");
      side.Hear();
    });
    absl::Duration took;
    FetchReport report;
    do {
      report = worker->Fetch(&took);
    } while (report.pages == kPages);
    killer.join();
    EXPECT_FALSE(report.store.ok());
    std::printf("the server died: %u pages count, \"%s\" after %.0f ms\n", report.pages,
                report.store.ToString().c_str(), absl::ToDoubleMilliseconds(took));
    EXPECT_LE(took, absl::Seconds(7));  // its deadline, and what ending takes
  });
  ExpectTheNextServes(*runner, worker.get(), DataPath::kNccl);
}

// Layer by layer: told by a call, waited for, and by a descriptor; what a stream that waited for a
// layer finds is the layer.
void ExpectLayersOneAfterTheOther(PeerSide& side, DataPath path) {
  Worker worker(Endpoint(), {.fetch_paths = {path}, .push_paths = {DataPath::kGrpc}});
  if (path == DataPath::kNccl) worker.ReceiveOverNccl();
  worker.Push();
  worker.AwaitCopies();
  ASSERT_EQ(worker.Fetch().pages, kPages);
  const auto expected = worker.Cache();
  std::vector<uint32_t> layers;  // by the fetch's own thread, until it has ended
  int ends = 0;
  const absl::Time start = absl::Now();
  absl::Duration first;
  const auto pending =
      worker.StartFetch({.layers_at_once = 4,
                         .on_layers =
                             [&](BlockRange group, uint32_t pages) {
                               if (layers.empty()) first = absl::Now() - start;
                               EXPECT_EQ(pages, kPages);
                               for (uint32_t i = 0; i < group.count; ++i)
                                 layers.push_back(group.first + i);
                             },
                         .done = [&](const absl::StatusOr<FetchReport>&) { ++ends; }});
  pollfd readable = {.fd = pending->event_fd(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(poll(&readable, 1, 10'000), 1);
  for (uint32_t layer = 0; layer < kModel.layers; ++layer) {
    EXPECT_THAT(pending->AwaitLayer(layer, absl::Seconds(10)), IsOkAndHolds(kPages)) << layer;
    worker.WaitLayer(layer);
  }
  const auto report = pending->Await(absl::Seconds(10));
  ASSERT_OK(report);
  EXPECT_EQ(report->pages, kPages) << report->store;
  EXPECT_EQ(report->path, path);
  EXPECT_EQ(ends, 1);
  ASSERT_EQ(layers.size(), kModel.layers);
  EXPECT_TRUE(std::is_sorted(layers.begin(), layers.end()));
  EXPECT_TRUE(worker.Cache() == expected);
  std::printf("by %s, four layers at once: the first after %.2f ms\n",
              std::string(DataPathName(path)).c_str(), absl::ToDoubleMilliseconds(first));
  // One that is cancelled on its way says so, and the next is whole.
  auto cancelled = worker.StartFetch({.layers_at_once = 1});
  cancelled->Cancel();
  cancelled.reset();
  EXPECT_EQ(worker.Fetch().pages, kPages);
  EXPECT_TRUE(worker.Cache() == expected);
  side.Tell("stop");
}

TEST(IpcTest, LayersComeOneAfterTheOther) {
  BesideServer(*MakeRunner(),
               [](PeerSide& side) { ExpectLayersOneAfterTheOther(side, DataPath::kIpc); });
}

TEST(NcclTest, LayersComeOneAfterTheOther) {
  BesideServer(*MakeRunner(),
               [](PeerSide& side) { ExpectLayersOneAfterTheOther(side, DataPath::kNccl); });
}

// Asks the server for a hold on pages, as another client.
class Prober {
 public:
  Prober(const std::string& endpoint, const NamespaceSpec& spec) : fingerprint_(Fingerprint(spec)) {
    const auto channel = grpc::CreateChannel(endpoint, grpc::InsecureChannelCredentials());
    cache_ = v1::KvCache::NewStub(channel);
    peer_ = v1::Peer::NewStub(channel);
    session_ = cache_->Session(&call_);
    v1::SessionReply reply;
    EXPECT_TRUE(session_->Write({}) && session_->Read(&reply));
    session_id_ = reply.session_id();
  }
  ~Prober() {
    session_->WritesDone();
    session_->Finish();
  }
  grpc::StatusCode Hold(std::span<const std::string> keys) {
    v1::HoldPagesRequest request;
    request.mutable_scope()->set_fingerprint(fingerprint_);
    request.set_session_id(session_id_);
    for (const std::string& key : keys) request.add_keys(key);
    v1::HoldPagesReply reply;
    grpc::ClientContext call;
    return peer_->HoldPages(&call, request, &reply).error_code();
  }

 private:
  const std::string fingerprint_;
  std::unique_ptr<v1::KvCache::Stub> cache_;
  std::unique_ptr<v1::Peer::Stub> peer_;
  grpc::ClientContext call_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionReply>> session_;
  uint64_t session_id_ = 0;
};

TEST(IpcTest, AWorkerThatDiesInMidFetchGivesItsMemoryBack) {
  MakeRunner()->Run([](PeerSide& side) {
    if (side.rank() == 1) {
      Worker worker(side.Hear());
      worker.Push();
      worker.AwaitCopies();
      std::unique_ptr<PausedSink> paused;
      worker.Fetch(
          nullptr, 96, [&](GpuPageSink & sink) -> auto& {
            paused = std::make_unique<PausedSink>(sink, [&] {
              side.Tell("reads");
              side.Hear();
              side.Die();
            });
            return *paused;
          });
      return;
    }
    const std::string endpoint = Endpoint();
    // Readers may hold half of it: 120 MB are too little for 128 pages.
    const auto server = Serve(endpoint, "260MiB");
    side.Tell(endpoint);
    ASSERT_EQ(side.Hear(), "reads");
    const Worker other(endpoint);  // for its keys
    Prober prober(endpoint, other.spec());
    const auto rest = std::span(other.keys()).subspan(96);
    EXPECT_EQ(prober.Hold(rest), grpc::StatusCode::RESOURCE_EXHAUSTED);
    side.Tell("die");
    const absl::Time died = absl::Now();
    while (prober.Hold(rest) != grpc::StatusCode::OK)
      ASSERT_LT(absl::Now(), died + absl::Seconds(20));
    std::printf("a worker died in mid-fetch: what it held was free after %.0f ms\n",
                absl::ToDoubleMilliseconds(absl::Now() - died));
  });
}

// In other namespaces than the worker's CUDA shares no memory, or it does: pages come either way.
TEST(IpcTest, AServerInAContainerOfItsOwnIsReachedByWhatPathThereIs) {
  if (geteuid() != 0) GTEST_SKIP() << "only root may make namespaces";
  BesideServer(*MakeRunner({"unshare", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child"}),
               [](PeerSide& side) {
                 Worker worker(Endpoint());
                 worker.Push();
                 worker.AwaitCopies();
                 const FetchReport report = worker.Fetch();
                 EXPECT_EQ(report.pages, kPages) << report.store;
                 const client::PathUse use = worker.client().path(Direction::kFetch);
                 EXPECT_TRUE(report.path == DataPath::kIpc || use.fallbacks == 1);
                 std::printf("a server in a container: by %s %s\n",
                             std::string(DataPathName(report.path)).c_str(), use.reason.c_str());
                 Worker by_grpc(Endpoint(), {.fetch_paths = {DataPath::kGrpc}});
                 EXPECT_EQ(by_grpc.Fetch().pages, kPages);
                 EXPECT_TRUE(worker.Cache() == by_grpc.Cache());
                 side.Tell("stop");
               });
}

TEST(IpcTest, MemoryThatCannotBeOpenedIsAReasonToTakeAnotherPath) {
  // A process cannot open its own memory.
  const auto server = Serve(Endpoint(), "1GiB");
  Worker worker(Endpoint());
  worker.Push();
  worker.AwaitCopies();
  const FetchReport report = worker.Fetch();
  EXPECT_EQ(report.pages, kPages);
  EXPECT_NE(report.path, DataPath::kIpc);
  const client::PathUse use = worker.client().path(Direction::kFetch);
  EXPECT_THAT(use.reason, HasSubstr("ipc has failed in this session: CUDA, opening"));
  std::printf("%s\n", use.reason.c_str());
}

}  // namespace
}  // namespace oscarkv::testing
