// Pages that a sink reads in a GPU's memory, which here is a fake in host memory: what goes by that
// path and what by another, and that nothing counts which did not stay where it was read.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"

#include "client/cpp/device_fetch.h"
#include "tests/client/device_fetch_test.h"

namespace oscarkv::client {
namespace {

using ::oscarkv::testing::DeviceFetchTest;
using ::oscarkv::testing::DeviceSink;
using ::oscarkv::testing::kLayerBytes;
using ::oscarkv::testing::kUnit;
using ::oscarkv::testing::StatusIs;
using ::testing::HasSubstr;

class IpcFetchTest : public DeviceFetchTest {};

TEST_F(IpcFetchTest, CopiesAreReadInPlaceAndTheRestIsSent) {
  Begin();
  Copy(0, 3);
  Copy(5, 7);
  Connect();
  DeviceSink sink = MakeSink();
  const FetchReport report = Fetch(sink);
  EXPECT_EQ(report.pages, 8u);
  EXPECT_OK(report.store);
  EXPECT_EQ(sink.placed(), 2 * 5);
  EXPECT_EQ(sink.received, 2 * 3);
  ExpectWhole(sink, 8);
  EXPECT_EQ(report.bytes_wire, 8 * 2 * kLayerBytes);
  EXPECT_EQ(context_->transfers().bytes(DataPath::kIpc, Direction::kFetch), 5 * 2 * kLayerBytes);
  EXPECT_EQ(client_->path(Direction::kFetch).fallbacks, 0u);
}

TEST_F(IpcFetchTest, OneCallIsForAllLayersAndItsEndIsWaitedFor) {
  Begin();
  Copy(0, 8);
  Connect();
  DeviceSink sink = MakeSink();
  EXPECT_EQ(Fetch(sink).pages, 8u);
  EXPECT_EQ(sink.placed(), 2 * 8);
  ExpectWhole(sink, 8);
  EXPECT_EQ(context_->calls().count(Method::kHoldPages, 0), 1u);
  EXPECT_EQ(context_->calls().count(Method::kEndHold, 0), 1u);
}

TEST_F(IpcFetchTest, AMissIsOne) {
  Begin();
  Copy(0, 8);
  Connect();
  keys_.push_back(std::string(32, 'x'));
  DeviceSink sink = MakeSink();
  const FetchReport report = Fetch(sink);
  EXPECT_EQ(report.pages, 8u);
  EXPECT_EQ(report.path, DataPath::kIpc);
  EXPECT_EQ(report.statuses[8], ItemStatus::kMiss);
  EXPECT_EQ(sink.received, 0);
  ExpectWhole(sink, 8);
}

TEST_F(IpcFetchTest, MemoryThatCannotBeOpenedHasGrpcTakeItsPlaceOnce) {
  Begin();
  Copy(0, 8);
  Connect();
  for (int fetch = 0; fetch < 2; ++fetch) {
    DeviceSink sink = MakeSink();
    sink.open_error = absl::UnavailableError("CUDA: invalid device context");
    const FetchReport report = Fetch(sink);
    EXPECT_EQ(report.pages, 8u);
    EXPECT_EQ(report.path, DataPath::kGrpc);
    EXPECT_EQ(sink.opens, fetch == 0 ? 1 : 0);
    ExpectWhole(sink, 8);
  }
  const PathUse use = client_->path(Direction::kFetch);
  EXPECT_EQ(use.fallbacks, 1u);
  EXPECT_THAT(use.reason, HasSubstr("ipc has failed in this session: CUDA: invalid device"));
}

TEST_F(IpcFetchTest, AServerThatSharesNothingSaysSoWhenTheSessionOpens) {
  Begin({.memory_handle = absl::UnavailableError("not supported"),
         .memory_bytes = 0,
         .host = HostId()});
  Copy(0, 8);
  Connect();
  DeviceSink sink = MakeSink();
  EXPECT_EQ(Fetch(sink).pages, 8u);
  DeviceSink again = MakeSink();
  EXPECT_EQ(Fetch(again).pages, 8u);
  EXPECT_EQ(sink.opens + again.opens, 0);
  EXPECT_EQ(context_->calls().count(Method::kShareDevice, 12), 0u);
  EXPECT_THAT(client_->path(Direction::kFetch).reason, HasSubstr("not supported"));
}

TEST_F(IpcFetchTest, EitherSideMayForbidIt) {
  Begin();
  Copy(0, 8);
  Connect({DataPath::kGrpc});
  DeviceSink sink = MakeSink();
  EXPECT_EQ(Fetch(sink).pages, 8u);
  EXPECT_EQ(sink.received, 16);
  EXPECT_EQ(context_->calls().count(Method::kShareDevice, 0), 0u);
}

TEST_F(IpcFetchTest, TheServerMayForbidIt) {
  Begin({.memory_handle = std::string("a handle"), .memory_bytes = kUnit, .host = HostId()},
        {DataPath::kGrpc});
  Copy(0, 8);
  Connect();
  DeviceSink sink = MakeSink();
  EXPECT_EQ(Fetch(sink).pages, 8u);
  EXPECT_EQ(sink.received, 16);
  EXPECT_THAT(client_->path(Direction::kFetch).reason, HasSubstr("configuration forbids"));
}

TEST_F(IpcFetchTest, PagesThatDidNotStayDoNotCount) {
  Begin();
  Copy(0, 8);
  Connect();
  DeviceSink sink = MakeSink();
  // The server thinks that the client has died, and gives the memory to others.
  sink.before_reading = [&] {
    clock_.Advance(absl::Minutes(2));
    holds_->Expire();
  };
  const FetchReport report = Fetch(sink);
  EXPECT_EQ(report.pages, 0u);
  EXPECT_EQ(report.statuses[0], ItemStatus::kFenced);
  EXPECT_EQ(client_->counters().corrupt_pages, 0u);
}

TEST_F(IpcFetchTest, WhatIsHeldTooMuchGoesByAnotherPath) {
  Begin();
  Copy(0, 8);
  HoldAtMost(1);
  context_->set_device_holds(holds_.get());
  Connect();
  DeviceSink sink = MakeSink();
  EXPECT_EQ(Fetch(sink).pages, 8u);
  EXPECT_EQ(sink.placed(), 0);
  ExpectWhole(sink, 8);
}

TEST_F(IpcFetchTest, SomeHeadsAndDecodedPagesAreSent) {
  Begin();
  Copy(0, 8);
  Connect();
  DeviceSink sink = MakeSink();
  EXPECT_EQ(Fetch(sink, {.heads = {0, 1}}).pages, 8u);
  EXPECT_EQ(sink.placed(), 0);
}

// A server that answers whatever the test says.
class LyingPeer final : public v1::Peer::Service {
 public:
  grpc::Status ShareDevice(grpc::ServerContext*, const v1::ShareDeviceRequest*,
                           v1::ShareDeviceReply* reply) override {
    reply->set_handle("a handle");
    reply->set_bytes(16 * kUnit);
    return grpc::Status::OK;
  }
  grpc::Status HoldPages(grpc::ServerContext*, const v1::HoldPagesRequest*,
                         v1::HoldPagesReply* reply) override {
    *reply = answer;
    return grpc::Status::OK;
  }
  grpc::Status EndHold(grpc::ServerContext*, const v1::EndHoldRequest*,
                       v1::EndHoldReply* reply) override {
    reply->set_held(true);
    return grpc::Status::OK;
  }
  v1::HoldPagesReply answer;
};

TEST_F(IpcFetchTest, AnswersThatMakeNoSenseAreRefusedBeforeAnythingIsRead) {
  Begin();
  LyingPeer liar;
  Stop();
  Listen(&liar);
  Connect();
  v1::HoldPagesReply good;
  good.set_hold_id(7);
  v1::HeldPage* page = good.add_pages();
  page->set_encoding(v1::WIDE);
  page->set_offset(64);
  page->set_bytes(kLayerBytes);
  page->add_block_crc32c(1);
  page->add_block_crc32c(2);
  std::vector<v1::HoldPagesReply> bad(9, good);
  bad[0].mutable_pages(0)->set_offset(16 * kUnit);         // beyond the memory
  bad[1].mutable_pages(0)->set_offset(~uint64_t{0} - 63);  // so that the end wraps around
  bad[2].mutable_pages(0)->set_offset(65);                 // no place for a block
  bad[3].mutable_pages(0)->set_bytes(kLayerBytes * 2);     // another size
  bad[4].mutable_pages(0)->add_block_crc32c(3);            // another number of blocks
  bad[5].mutable_pages(0)->set_encoding(v1::ENCODING_UNSPECIFIED);
  bad[6].set_elsewhere(1);                                  // both
  bad[7].set_hold_id(0);                                    // pages that nobody holds
  for (int i = 0; i < 8; ++i) *bad[8].add_pages() = *page;  // more than were asked for
  for (size_t i = 0; i < bad.size(); ++i) {
    liar.answer = bad[i];
    DeviceSink sink = MakeSink();
    const FetchReport report = Fetch(sink);
    EXPECT_EQ(report.pages, 0u) << i;
    EXPECT_EQ(sink.placed(), 0) << i;
    EXPECT_THAT(report.store, StatusIs(absl::StatusCode::kDataLoss)) << i;
  }
}

}  // namespace
}  // namespace oscarkv::client
