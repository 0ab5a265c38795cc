// Pages that a server's GPU sends to a worker's, over a fake of NCCL: what goes by that path, and
// what becomes of a fetch when the peer breaks.
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"

#include "client/cpp/device_fetch.h"
#include "tests/client/device_fetch_test.h"

namespace oscarkv::client {
namespace {

using ::oscarkv::testing::DeviceFetchTest;
using ::oscarkv::testing::DeviceSink;
using ::oscarkv::testing::FakeFabric;
using ::oscarkv::testing::FakeFabricOptions;
using ::oscarkv::testing::kLayerBytes;
using ::oscarkv::testing::SharedFabric;
using ::testing::HasSubstr;

// Two pages' layers go into a slot.
constexpr comm::SlotShape kSlots{.slots = 32, .slot_bytes = 2 * kLayerBytes};

class NcclFetchTest : public DeviceFetchTest {
 protected:
  void BeginOver(const FakeFabricOptions& options) {
    fabric_ = std::make_shared<FakeFabric>(options);
    Begin({}, {DataPath::kNccl, DataPath::kGrpc});
  }
  DeviceSink Receiving() {
    DeviceSink sink = MakeSink();
    sink.ReceiveOver(std::make_unique<SharedFabric>(fabric_), kSlots);
    return sink;
  }
};

TEST_F(NcclFetchTest, CopiesAreSentAndTheRestGoesByGrpc) {
  BeginOver({.seed = 1, .delay_polls_max = 5, .eager_percent = 50});
  Copy(0, 3);
  Copy(5, 8);
  Connect();
  DeviceSink sink = Receiving();
  const FetchReport report = Fetch(sink);
  EXPECT_EQ(report.pages, 8u);
  EXPECT_EQ(report.path, DataPath::kNccl);
  EXPECT_EQ(sink.sent(), 2 * 6);
  EXPECT_EQ(sink.received, 2 * 2);
  ExpectWhole(sink, 8);
  EXPECT_EQ(report.bytes_wire, 8 * 2 * kLayerBytes);
  EXPECT_EQ(hub_->Stats().peers, 1u);
  // The worker has the pages before the server knows that they have left.
  while (hub_->Stats().moving > 0) std::this_thread::yield();
  // The session ends, and with it the peer.
  remote_.reset();
  client_.reset();
  Stop();
  EXPECT_EQ(hub_->Stats().broken, 1u);
  hub_.reset();
  EXPECT_EQ(context_->transfers().bytes(DataPath::kNccl, Direction::kFetch), 6 * 2 * kLayerBytes);
}

TEST_F(NcclFetchTest, AllLayersComeAtOnceWhereTheSinkKeepsThem) {
  BeginOver({.seed = 2, .delay_polls_max = 3});
  Copy(0, 8);
  Connect();
  for (const bool keeps : {true, false}) {
    DeviceSink sink = Receiving();
    sink.keeps_slots = keeps;
    const uint64_t before = context_->calls().count(Method::kSendPages, 0);
    EXPECT_EQ(Fetch(sink).pages, 8u);
    EXPECT_EQ(sink.sent(), 2 * 8);
    EXPECT_EQ(sink.received, 0);
    ExpectWhole(sink, 8);
    EXPECT_EQ(sink.slots_kept, keeps ? 8 : 0);
    // A slot takes a page of two layers, or a layer of two pages.
    EXPECT_EQ(context_->calls().count(Method::kSendPages, 0) - before, 8u);
  }
}

TEST_F(NcclFetchTest, PagesInHostMemoryAreStagedAndSent) {
  OpenStaging(64 * testing::kUnit);
  BeginOver({.seed = 7, .delay_polls_max = 3});
  Copy(2, 4);
  Connect();
  DeviceSink sink = Receiving();
  const FetchReport report = Fetch(sink);
  EXPECT_EQ(report.pages, 8u) << report.store;
  EXPECT_EQ(sink.sent(), 2 * 8);
  EXPECT_EQ(sink.received, 0);
  ExpectWhole(sink, 8);
  while (staging_->used_bytes() > 0) std::this_thread::yield();
}

TEST_F(NcclFetchTest, WhatFindsNoRoomInStagingGoesByGrpc) {
  OpenStaging(testing::kUnit);
  BeginOver({});
  Connect();
  const auto taken = staging_->Reserve(kLayerBytes);
  ASSERT_OK(taken);
  const auto more = staging_->Reserve(kLayerBytes);
  DeviceSink sink = Receiving();
  EXPECT_EQ(Fetch(sink).pages, 8u);
  EXPECT_EQ(sink.sent(), 0);
  EXPECT_EQ(sink.received, 2 * 8);
  ExpectWhole(sink, 8);
}

TEST_F(NcclFetchTest, IpcComesBeforeIt) {
  fabric_ = std::make_shared<FakeFabric>();
  Begin({.memory_handle = std::string("a handle"),
         .memory_bytes = 16 * testing::kUnit,
         .host = HostId()},
        {DataPath::kIpc, DataPath::kNccl, DataPath::kGrpc});
  Copy(0, 8);
  Connect();
  DeviceSink sink = Receiving();
  EXPECT_EQ(Fetch(sink).path, DataPath::kIpc);
  DeviceSink other = Receiving();
  other.open_error = absl::UnavailableError("not here");
  EXPECT_EQ(Fetch(other).path, DataPath::kNccl) << client_->path(Direction::kFetch).reason;
  ExpectWhole(other, 8);
}

TEST_F(NcclFetchTest, APeerThatBreaksIsAMissAndTheNextFetchOpensAnother) {
  fetch_timeout_ = absl::Milliseconds(300);
  BeginOver({.seed = 2, .closing_polls_max = 20, .drop_from = 2});
  Copy(0, 8);
  Connect({DataPath::kNccl});
  DeviceSink sink = Receiving();
  const FetchReport lost = Fetch(sink);
  EXPECT_EQ(lost.pages, 0u);  // not all layers of any page have come
  EXPECT_EQ(lost.statuses[0], ItemStatus::kMiss);
  EXPECT_FALSE(lost.store.ok());
  fabric_->set_options({});
  DeviceSink again = Receiving();
  const FetchReport whole = Fetch(again);
  EXPECT_EQ(whole.pages, 8u) << whole.store;
  EXPECT_EQ(whole.path, DataPath::kNccl);
  ExpectWhole(again, 8);
}

TEST_F(NcclFetchTest, WhileTheRanksMeetPagesComeByAnotherPath) {
  fetch_timeout_ = absl::Milliseconds(300);
  BeginOver({.never_meets = true});
  Copy(0, 8);
  Connect();
  DeviceSink sink = Receiving();
  for (int i = 0; i < 2; ++i) {
    const FetchReport report = Fetch(sink);
    EXPECT_OK(report.store);
    EXPECT_EQ(report.pages, 8u);
    EXPECT_EQ(report.path, DataPath::kGrpc);
    ExpectWhole(sink, 8);
  }
  EXPECT_EQ(client_->path(Direction::kFetch).device_path, DataPath::kNccl) << "not given up";
  EXPECT_EQ(hub_->Stats().peers, 1u);
}

TEST_F(NcclFetchTest, RanksThatDoNotMeetAreGivenUpOnceInASession) {
  peer_meet_timeout_ = absl::Milliseconds(50);
  BeginOver({.never_meets = true});
  Copy(0, 8);
  Connect();
  for (int i = 0; i < 2; ++i) {
    DeviceSink sink = Receiving();
    const FetchReport report = Fetch(sink);
    EXPECT_OK(report.store);
    EXPECT_EQ(report.pages, 8u);
    EXPECT_EQ(report.path, DataPath::kGrpc);
    ExpectWhole(sink, 8);
  }
  const PathUse use = client_->path(Direction::kFetch);
  EXPECT_THAT(use.reason,
              HasSubstr("nccl has failed in this session: the peer of epoch 1 did not come"));
  EXPECT_EQ(use.fallbacks, 1u);
}

TEST_F(NcclFetchTest, AMeetingThatEndsInVainBetweenCallsIsToldToTheNext) {
  fetch_timeout_ = absl::Milliseconds(100);
  peer_meet_timeout_ = absl::Milliseconds(80);
  BeginOver({.never_meets = true});
  Copy(0, 8);
  Connect();
  DeviceSink sink = Receiving();
  Fetch(sink);
  EXPECT_EQ(client_->path(Direction::kFetch).fallbacks, 0u);
  while (client_->path(Direction::kFetch).fallbacks == 0) Fetch(sink);
  EXPECT_EQ(hub_->Stats().peers, 1u) << "the same meeting";
}

TEST_F(NcclFetchTest, OfTooManyPeersTheOneIdleForLongestGoes) {
  hub_options_.peers_max = 2;
  BeginOver({});
  Copy(0, 8);
  Connect({DataPath::kNccl});
  std::vector<DeviceSink> sinks;
  for (int i = 0; i < 3; ++i) sinks.push_back(Receiving());
  for (const size_t sink : {0u, 1u, 0u, 2u}) EXPECT_EQ(Fetch(sinks[sink]).pages, 8u) << sink;
  while (hub_->Stats().peers > 2) std::this_thread::yield();
  EXPECT_EQ(hub_->Stats().broken, 1u);  // that of sink 1
  EXPECT_EQ(Fetch(sinks[0]).pages, 8u);
  EXPECT_EQ(hub_->Stats().broken, 1u);
  EXPECT_EQ(Fetch(sinks[1]).pages, 8u) << "it learns that its peer has gone, and opens another";
}

TEST_F(NcclFetchTest, TheSameSinkOpensALaterEpoch) {
  BeginOver({.seed = 3, .fail_from = 0});
  Copy(0, 8);
  Connect({DataPath::kNccl});
  DeviceSink sink = Receiving();
  EXPECT_EQ(Fetch(sink).pages, 0u);
  fabric_->set_options({});
  const FetchReport whole = Fetch(sink);
  EXPECT_EQ(whole.pages, 8u) << whole.store;
  ExpectWhole(sink, 8);
}

TEST_F(NcclFetchTest, OtherVersionsDoNotMeet) {
  BeginOver({});
  Copy(0, 8);
  Connect();
  DeviceSink sink = MakeSink();
  sink.ReceiveOver(std::make_unique<SharedFabric>(fabric_, 2), kSlots);
  const FetchReport report = Fetch(sink);
  EXPECT_EQ(report.pages, 8u);
  EXPECT_EQ(report.path, DataPath::kGrpc);
  EXPECT_THAT(client_->path(Direction::kFetch).reason,
              HasSubstr("the server's is 1, the worker's 2"));
}

TEST_F(NcclFetchTest, AServerWithoutItSaysSo) {
  PeerOptions options;
  options.no_peers = "NCCL: libnccl.so.2: cannot open shared object file";
  Begin(options, {DataPath::kNccl, DataPath::kGrpc});
  Copy(0, 8);
  Connect();
  DeviceSink sink = MakeSink();
  sink.ReceiveOver(std::make_unique<SharedFabric>(std::make_shared<FakeFabric>()), kSlots);
  EXPECT_EQ(Fetch(sink).path, DataPath::kGrpc);
  EXPECT_THAT(client_->path(Direction::kFetch).reason, HasSubstr("cannot open shared object"));
}

TEST_F(NcclFetchTest, AbsurdSlotsAndForeignPeersAreRefused) {
  BeginOver({});
  Copy(0, 2);
  Connect();
  const auto stub =
      v1::Peer::NewStub(grpc::CreateChannel(endpoint_, grpc::InsecureChannelCredentials()));
  const auto open = [&](uint64_t session, uint32_t slots, uint64_t bytes) {
    v1::OpenPeerRequest request;
    request.set_session_id(session);
    request.set_nccl_version(1);
    request.set_slots(slots);
    request.set_slot_bytes(bytes);
    v1::OpenPeerReply reply;
    grpc::ClientContext call;
    return stub->OpenPeer(&call, request, &reply).error_code();
  };
  DeviceSink sink = Receiving();
  EXPECT_EQ(Fetch(sink).pages, 8u);  // opens a session, and a peer
  for (const auto& [slots, bytes] :
       std::vector<std::pair<uint32_t, uint64_t>>{{~0u, 64}, {0, 64}, {1, ~uint64_t{0}}, {4, 0}}) {
    EXPECT_EQ(open(1, slots, bytes), grpc::StatusCode::INVALID_ARGUMENT) << slots << ", " << bytes;
  }
  EXPECT_EQ(open(~uint64_t{0}, 4, 64), grpc::StatusCode::UNAVAILABLE);
  v1::SendPagesRequest send;
  FillScope(send.mutable_scope());
  send.set_peer_id(12345);
  send.add_keys(keys_[0]);
  v1::SendPagesReply reply;
  grpc::ClientContext call;
  EXPECT_EQ(stub->SendPages(&call, send, &reply).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(hub_->Stats().peers, 1u);
}

}  // namespace
}  // namespace oscarkv::client
