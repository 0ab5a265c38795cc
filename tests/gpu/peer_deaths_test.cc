// oscarkvd and a worker in two processes, of which one is killed at every step of what goes between
// their GPUs: nobody waits past its deadline, nothing that counts is wrong, all memory comes back,
// and the next one's transfers are whole.
#include <arpa/inet.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"

#include "kernels/base/fault_point.h"
#include "tests/gpu/peer_worker.h"

namespace oscarkv::testing {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kTimeout = absl::Seconds(3);  // of a fetch or push
constexpr absl::Duration kBeyond = absl::Seconds(1);   // that a busy machine adds
constexpr absl::Duration kSoon = absl::Seconds(20);

// Of a model that is soon there.
constexpr Geometry kFewLayers{.layers = 4,
                              .kv_heads = 8,
                              .k_head_dim = 128,
                              .v_head_dim = 128,
                              .page_tokens = 64,
                              .dtype = DType::kBf16};

std::string& DeadlyPlace() {
  static std::string place;
  return place;
}
// Has this process killed when it comes to `place`; empty: nowhere.
void DieAt(const std::string& place) {
  DeadlyPlace() = place;
  SetFaultHandler([](std::string_view point) {
    if (point == DeadlyPlace()) kill(getpid(), SIGKILL);
  });
}

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) { EXPECT_GE(fd, 0); }
  ~Socket() { close(fd_); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

// What /metrics says of the server's memory that transfers take.
uint64_t Held(const std::string& metrics_address) {
  const Socket line(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  const size_t colon = metrics_address.rfind(':');
  uint32_t port = 0;
  EXPECT_TRUE(absl::SimpleAtoi(metrics_address.substr(colon + 1), &port));
  to.sin_port = htons(static_cast<uint16_t>(port));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(line.get(), reinterpret_cast<const sockaddr*>(&to), sizeof(to)), 0);
  const std::string ask = "GET /metrics HTTP/1.0\r\n\r\n";
  EXPECT_EQ(send(line.get(), ask.data(), ask.size(), 0), static_cast<ssize_t>(ask.size()));
  std::string text;
  char part[4096];
  for (ssize_t got; (got = recv(line.get(), part, sizeof(part), 0)) > 0;)
    text.append(part, static_cast<size_t>(got));
  double held = 0;
  for (const char* name :
       {"\noscarkv_gpu_held_bytes ", "\noscarkv_gpu_staged_bytes ", "\noscarkv_nccl_peers "}) {
    const size_t at = text.find(name);
    EXPECT_NE(at, std::string::npos) << name;
    if (at == std::string::npos) continue;
    const size_t begin = at + std::string_view(name).size();
    double value = 0;
    EXPECT_TRUE(absl::SimpleAtod(text.substr(begin, text.find('\n', begin) - begin), &value));
    held += value;
  }
  return static_cast<uint64_t>(held);
}

ClientOptions Only(DataPath path) { return {.fetch_paths = {path}, .push_paths = {path}}; }

std::unique_ptr<Worker> MakeWorker(const std::string& endpoint, DataPath path) {
  auto worker =
      std::make_unique<Worker>(endpoint, Only(path), "qwen3-8b", kTimeout, kFewLayers, kPages);
  if (path == DataPath::kNccl) {
    worker->ReceiveOverNccl();
    worker->SendOverNccl();
  }
  return worker;
}

class PeerDeathsTest : public ::testing::TestWithParam<DataPath> {
 protected:
  // The places of one side, in the order in which a push and a fetch come to them.
  std::vector<std::string> Places(bool server) const {
    const bool ipc = GetParam() == DataPath::kIpc;
    if (server) {
      std::vector<std::string> places = {"device.server.push.placed", "device.server.push.brought",
                                         "device.server.push.copied", "device.server.push.stored"};
      if (ipc) {
        places.insert(places.end(), {"ipc.server.fetch.held", "ipc.server.fetch.taken"});
      } else {
        places.insert(places.begin(), "nccl.server.opened");
        places.push_back("nccl.server.fetch.issued");
      }
      return places;
    }
    std::vector<std::string> places = {"device.client.push.begun", "device.client.push.brought",
                                       "device.client.push.ended"};
    if (ipc) {
      places.insert(places.end(),
                    {"ipc.client.fetch.held", "ipc.client.fetch.taken", "ipc.client.fetch.ended"});
    } else {
      places.insert(places.begin(), {"nccl.client.opened", "nccl.client.met"});
      places.insert(places.end(), {"nccl.client.fetch.asked", "nccl.client.fetch.received"});
    }
    return places;
  }
};

TEST_P(PeerDeathsTest, AWorkerKilledAtAnyStepCostsNobodyElseAnything) {
  const std::string endpoint = Endpoint();
  const bool here = ProcessRunner::rank() == 0;
  const auto server = here ? Serve(endpoint, "1GiB", "127.0.0.1:0") : nullptr;
  const auto runner = MakeRunner();
  absl::Duration longest;
  for (const std::string& place : Places(/*server=*/false)) {
    runner->Run([&](PeerSide& side) {
      if (side.rank() == 1) {
        UseLastDevice();
        const auto worker = MakeWorker(side.Hear(), GetParam());
        worker->Clear();
        DieAt(place);
        worker->TryPush();
        worker->AwaitCopies();
        worker->Fetch();
        DieAt("");
        return side.Tell("lives");
      }
      side.Tell(endpoint);
      EXPECT_EQ(side.Hear(), "") << "never came to " << place;
      const absl::Time died = absl::Now();
      while (Held(server->metrics_address()) > 0) ASSERT_LT(absl::Now(), died + kSoon) << place;
      longest = std::max(longest, absl::Now() - died);
    });
  }
  ExpectTheNextWorkersPagesWhole(*runner, endpoint, GetParam(), kFewLayers);
  if (here) {
    std::printf("workers killed at %zu places over %s: longest until memory was back %.2f s\n",
                Places(false).size(), std::string(DataPathName(GetParam())).c_str(),
                absl::ToDoubleSeconds(longest));
  }
}

TEST_P(PeerDeathsTest, AServerKilledAtAnyStepIsAMissInTime) {
  const auto runner = MakeRunner();
  std::unique_ptr<Worker> worker;
  std::vector<std::byte> expected;
  absl::Duration longest;
  int wrong = 0;
  const auto in_time = [&](absl::Duration took) {
    EXPECT_LE(took, kTimeout + kBeyond);
    longest = std::max(longest, took);
  };
  // Whether all of it came to pass.
  const auto push_and_fetch = [&] {
    absl::Duration took;
    const client::PushReport pushed = worker->TryPush(&took);
    in_time(took);
    if (!pushed.store.ok()) return false;
    EXPECT_THAT(pushed.statuses, ::testing::Each(ItemStatus::kOk));
    worker->AwaitCopies();
    const FetchReport fetched = worker->Fetch(&took);
    in_time(took);
    if (!expected.empty() && !worker->SamePages(expected, fetched.pages)) ++wrong;
    return fetched.pages == kPages && fetched.path == GetParam();
  };
  const auto run = [&](const std::string& place) {
    if (ProcessRunner::rank() == 1) DieAt(place);
    BesideServer(*runner, [&](PeerSide& side) {
      if (worker == nullptr) worker = MakeWorker(Endpoint(), GetParam());
      const absl::Time deadline = absl::Now() + kSoon;
      while (!worker->client().Stats().ok()) ASSERT_LT(absl::Now(), deadline);
      const bool whole = push_and_fetch();
      EXPECT_EQ(whole, place.empty()) << place;
      if (place.empty()) {
        if (expected.empty()) expected = worker->Cache();
        EXPECT_TRUE(worker->SamePages(expected, kPages));
        return side.Tell("stop");
      }
      EXPECT_EQ(side.Hear(), "") << "never came to " << place;
    });
  };
  run("");
  for (const std::string& place : Places(/*server=*/true)) run(place);
  run("");
  if (ProcessRunner::rank() == 0) {
    std::printf(
        "servers killed at %zu places over %s: wrong: %d; longest wait %.2f s (deadline "
        "%.0f s)\n",
        Places(true).size(), std::string(DataPathName(GetParam())).c_str(), wrong,
        absl::ToDoubleSeconds(longest), absl::ToDoubleSeconds(kTimeout));
  }
}

INSTANTIATE_TEST_SUITE_P(BetweenGpus, PeerDeathsTest,
                         ::testing::Values(DataPath::kIpc, DataPath::kNccl),
                         [](const auto& path) { return std::string(DataPathName(path.param)); });

// NCCL's, but that rank 1 is sent to somebody who accepts, and never answers.
class StuckFabric final : public comm::PeerFabric {
 public:
  explicit StuckFabric(std::unique_ptr<comm::PeerFabric> nccl)
      : nccl_(std::move(nccl)), listener_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in any = {};
    any.sin_family = AF_INET;
    EXPECT_EQ(bind(listener_.get(), reinterpret_cast<const sockaddr*>(&any), sizeof(any)), 0);
    EXPECT_EQ(listen(listener_.get(), 64), 0);
    socklen_t bytes = sizeof(address_);
    EXPECT_EQ(getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address_), &bytes), 0);
  }
  uint32_t version() const override { return nccl_->version(); }
  absl::StatusOr<comm::PairId> NewPair() override { return nccl_->NewPair(); }
  absl::StatusOr<std::unique_ptr<comm::PeerComm>> Open(const comm::PairId& pair, int rank,
                                                       uint64_t epoch) override {
    // What a pair is found by: a number, and an address of sockets.
    comm::PairId elsewhere = pair;
    auto* address = reinterpret_cast<sockaddr_in*>(elsewhere.data() + sizeof(uint64_t));
    EXPECT_EQ(address->sin_family, AF_INET) << "NCCL's pairs have changed";
    address->sin_port = address_.sin_port;
    return nccl_->Open(elsewhere, rank, epoch);
  }

 private:
  const std::unique_ptr<comm::PeerFabric> nccl_;
  const Socket listener_;
  sockaddr_in address_ = {};
};

TEST(PeerStallTest, RanksThatNeverMeetAreGivenUpForGrpcInTime) {
  BesideServer(*MakeRunner(), [](PeerSide& side) {
    ClientOptions options = {.fetch_paths = {DataPath::kNccl, DataPath::kGrpc},
                             .push_paths = {DataPath::kGrpc}};
    options.peer_meet_timeout = absl::Seconds(2);
    auto worker = std::make_unique<Worker>(Endpoint(), options, "qwen3-8b", kTimeout);
    worker->ReceiveOver([](std::unique_ptr<comm::PeerFabric> nccl) {
      return std::make_unique<StuckFabric>(std::move(nccl));
    });
    worker->Push();
    worker->AwaitCopies();
    const absl::Time start = absl::Now();
    for (int i = 0; worker->client().path(Direction::kFetch).fallbacks == 0; ++i) {
      ASSERT_LT(absl::Now(), start + kSoon);
      absl::Duration took;
      const FetchReport report = worker->Fetch(&took);
      EXPECT_EQ(report.pages, kPages) << report.store;
      EXPECT_EQ(report.path, DataPath::kGrpc);
      EXPECT_LE(took, kTimeout + kBeyond);
      if (i < 3)
        std::printf("a fetch while nobody answers: %.0f ms\n", absl::ToDoubleMilliseconds(took));
    }
    const client::PathUse use = worker->client().path(Direction::kFetch);
    EXPECT_THAT(use.reason, HasSubstr("nccl has failed in this session"));
    const absl::Time given_up = absl::Now();
    worker.reset();
    std::printf("given up after %.1f s: %s; its end took %.0f ms\n",
                absl::ToDoubleSeconds(given_up - start), use.reason.c_str(),
                absl::ToDoubleMilliseconds(absl::Now() - given_up));
    // Another finds what it needs.
    Worker next(Endpoint(), {.fetch_paths = {DataPath::kNccl, DataPath::kGrpc}});
    next.ReceiveOverNccl();
    const FetchReport report = next.Fetch();
    EXPECT_EQ(report.pages, kPages);
    EXPECT_EQ(report.path, DataPath::kNccl) << next.client().path(Direction::kFetch).reason;
    side.Tell("stop");
  });
}

}  // namespace
}  // namespace oscarkv::testing
