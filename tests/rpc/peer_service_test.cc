// Copies that clients read where they lie: which are held, until when, and what a client learns
// that reads for too long.
#include "server/rpc/peer_service.h"

#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/core/copy_mover.h"
#include "server/tier/gpu_tier.h"
#include "tests/rpc/device_rpc_test.h"
#include "tests/support/fake_device_memory.h"

#include "oscarkv/v1/peer.grpc.pb.h"

namespace oscarkv::testing {
namespace {

using ::testing::HasSubstr;

class PeerServiceTest : public DeviceRpcTest {
 protected:
  // With room for `copies` copies.
  void Begin(uint64_t copies,
             PeerOptions options = {
                 .memory_handle = std::string("fake handle"), .memory_bytes = 1, .host = "here"}) {
    OpenWithCopies(copies, /*held=*/4);
    RpcOptions rpc;
    rpc.paths[0] = {DataPath::kIpc, DataPath::kGrpc};
    Serve(rpc);
    context_->set_device_holds(holds_.get());
    peer_service_ = std::make_unique<PeerService>(*context_, std::move(options));
    grpc::ServerBuilder builder;
    builder.RegisterService(peer_service_.get());
    peer_server_ = builder.BuildAndStart();
    peer_ = v1::Peer::NewStub(peer_server_->InProcessChannel({}));
  }
  void TearDown() override {
    peer_server_->Shutdown(std::chrono::system_clock::now());
    peer_server_->Wait();
    Stop();
    ExpectNothingHeld();
    EXPECT_EQ(holds_->Stats().holds, 0u);
    store().Clear(space());
    EXPECT_EQ(gpu_->Stats().reserved_slots, 0u);
  }

  std::vector<TestItem> Stored(uint64_t first_key, uint32_t pages) {
    auto chain = Chain(space(), first_key, pages);
    EXPECT_EQ(PutChain(store(), space(), chain), ItemStatus::kOk);
    return chain;
  }
  void Copy(const std::vector<TestItem>& chain) {
    for (int i = 0; i < 2; ++i) store().Touch(space(), testing::KeysOf(chain));
    CopyMover mover(store(), {});
    while (mover.Step()) {
    }
  }

  // A session, until Leave.
  void Join() {
    session_call_ = std::make_unique<grpc::ClientContext>();
    session_ = cache_->Session(session_call_.get());
    ASSERT_TRUE(session_->Write({}));
    v1::SessionReply reply;
    ASSERT_TRUE(session_->Read(&reply));
    session_id_ = reply.session_id();
  }
  // As a client that dies.
  void Leave() {
    session_call_->TryCancel();
    session_->Finish();
    context_->StartDrain();
    context_->WaitForCalls(absl::InfiniteFuture());
  }
  v1::HoldPagesReply Hold(const std::vector<TestItem>& items, grpc::Status* status = nullptr,
                          uint32_t first_layer = 0, uint32_t layers = 0) {
    v1::HoldPagesRequest request;
    request.set_first_layer(first_layer);
    request.set_layers(layers);
    FillScope(request.mutable_scope());
    request.set_session_id(session_id_);
    for (const TestItem& item : items) request.add_keys(item.key);
    v1::HoldPagesReply reply;
    grpc::ClientContext call;
    const grpc::Status end = peer_->HoldPages(&call, request, &reply);
    if (status != nullptr) {
      *status = end;
    } else {
      EXPECT_TRUE(end.ok()) << end.error_message();
    }
    return reply;
  }
  bool EndHold(uint64_t hold) {
    v1::EndHoldRequest request;
    request.set_hold_id(hold);
    v1::EndHoldReply reply;
    grpc::ClientContext call;
    EXPECT_TRUE(peer_->EndHold(&call, request, &reply).ok());
    return reply.held();
  }
  // What lies there is the page.
  void ExpectPlaced(const v1::HeldPage& held, const TestItem& item, size_t first_layer = 0) {
    const TestPage page = MakePage(space(), item.encoding, item.seed);
    const size_t layer_bytes = page.bytes.size() / 2;  // of SmallSpec's two
    const ByteView expected = ByteView(page.bytes).subspan(first_layer * layer_bytes);
    ASSERT_EQ(held.bytes(), expected.size());
    EXPECT_TRUE(
        std::ranges::equal(held.block_crc32c(), std::span(page.crcs).subspan(first_layer * 2)));
    EXPECT_EQ(held.first_position(), item.first_position);
    std::vector<std::byte> bytes(held.bytes());
    const auto out = gpu_->CopyOut({held.offset(), bytes.size()}, bytes);
    ASSERT_OK(out);
    ASSERT_OK((*out)->Wait());
    EXPECT_TRUE(std::ranges::equal(expected, bytes));
  }

  std::unique_ptr<PeerService> peer_service_;
  std::unique_ptr<grpc::Server> peer_server_;
  std::unique_ptr<v1::Peer::Stub> peer_;
  std::unique_ptr<grpc::ClientContext> session_call_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionReply>> session_;
  uint64_t session_id_ = 0;
};

TEST_F(PeerServiceTest, LeadingPagesOfOneKindAreHeldOrElsewhere) {
  Begin(8);
  Join();
  auto chain = Stored(1, 3);
  Copy(chain);
  const auto more = Chain(space(), 1, 5);
  for (size_t i = 3; i < 5; ++i) ASSERT_EQ(Put(more[i]), ItemStatus::kOk);
  const v1::HoldPagesReply held = Hold(more);
  ASSERT_EQ(held.pages_size(), 3);
  EXPECT_EQ(held.elsewhere(), 0u);
  for (int i = 0; i < 3; ++i) ExpectPlaced(held.pages(i), more[static_cast<size_t>(i)]);
  const v1::HoldPagesReply part = Hold(more, nullptr, 1, 1);
  ASSERT_EQ(part.pages_size(), 3);
  ExpectPlaced(part.pages(2), more[2], 1);
  EXPECT_EQ(holds_->Stats().holds, 2u);
  EXPECT_EQ(holds_->Stats().bytes, 3 * 1040u) << "a copy counts once, however many hold it";
  EXPECT_TRUE(EndHold(part.hold_id()));
  EXPECT_EQ(holds_->Stats().bytes, 3 * 1040u);
  EXPECT_TRUE(EndHold(held.hold_id()));
  EXPECT_FALSE(EndHold(held.hold_id()));
  EXPECT_EQ(context_->transfers().bytes(DataPath::kIpc, Direction::kFetch), 3 * 1024u + 3 * 512u);
  const v1::HoldPagesReply rest = Hold({more.begin() + 3, more.end()});
  EXPECT_EQ(rest.elsewhere(), 2u);
  EXPECT_EQ(rest.hold_id(), 0u);
  const v1::HoldPagesReply none = Hold(Chain(space(), 100, 2));
  EXPECT_EQ(none.stop().status(), v1::MISS);
  EXPECT_EQ(none.pages_size() + static_cast<int>(none.elsewhere()), 0);
}

TEST_F(PeerServiceTest, HeldCopiesStayWhateverBecomesOfTheirPages) {
  Begin(2);
  Join();
  const auto chain = Stored(1, 2);
  Copy(chain);
  const v1::HoldPagesReply held = Hold(chain);
  ASSERT_EQ(held.pages_size(), 2);
  store().Delete(space(), testing::KeysOf(chain));
  const auto others = Stored(50, 2);
  Copy(others);  // wants their room, and does not get it
  EXPECT_EQ(Hold(others).elsewhere(), 2u);
  for (int i = 0; i < 2; ++i) ExpectPlaced(held.pages(i), chain[static_cast<size_t>(i)]);
  EXPECT_TRUE(EndHold(held.hold_id()));
  Copy(others);
  const v1::HoldPagesReply now = Hold(others);
  EXPECT_EQ(now.pages_size(), 2);
  EXPECT_TRUE(EndHold(now.hold_id()));
}

TEST_F(PeerServiceTest, ADeadClientsHoldsEndWithItsSession) {
  Begin(4);
  Join();
  const auto chain = Stored(1, 2);
  Copy(chain);
  const v1::HoldPagesReply held = Hold(chain);
  ASSERT_NE(held.hold_id(), 0u);
  Leave();
  EXPECT_EQ(holds_->Stats().holds, 0u);
  EXPECT_EQ(holds_->Stats().expired, 1u);
  EXPECT_EQ(holds_->Stats().bytes, 0u);
  EXPECT_FALSE(holds_->End(held.hold_id()).has_value())
      << "a client that is not dead after all learns it";
}

TEST_F(PeerServiceTest, AReaderThatStallsLearnsThatItsHoldHasEnded) {
  Begin(4);
  Join();
  const auto chain = Stored(1, 2);
  Copy(chain);
  const v1::HoldPagesReply held = Hold(chain);
  clock_.Advance(absl::Seconds(59));
  holds_->Expire();
  EXPECT_EQ(holds_->Stats().holds, 1u);
  clock_.Advance(absl::Seconds(1));
  holds_->Expire();
  EXPECT_FALSE(EndHold(held.hold_id()));
}

TEST_F(PeerServiceTest, WhatIsAskedForTooMuchOrFromNowhereIsRefused) {
  Begin(8);
  Join();
  const auto chain = Stored(1, 6);
  Copy(chain);
  grpc::Status status;
  Hold(chain, &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
  const v1::HoldPagesReply half = Hold({chain.begin(), chain.begin() + 3});
  EXPECT_EQ(half.pages_size(), 3);
  Hold({chain.begin() + 3, chain.begin() + 5}, &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(EndHold(half.hold_id()));
  EXPECT_FALSE(EndHold(~uint64_t{0}));
  session_id_ ^= 1;
  Hold({chain.begin(), chain.begin() + 2}, &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  Hold(chain, &status, 1, 2);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
  Hold(Chain(space(), 1, 5000), &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(PeerServiceTest, OnlyTheSameHostMayShare) {
  Begin(2);
  const auto share = [&](const std::string& host, v1::ShareDeviceReply* reply) {
    v1::ShareDeviceRequest request;
    request.set_host(host);
    grpc::ClientContext call;
    return peer_->ShareDevice(&call, request, reply);
  };
  v1::ShareDeviceReply reply;
  ASSERT_TRUE(share("here", &reply).ok());
  EXPECT_EQ(reply.handle(), "fake handle");
  EXPECT_EQ(reply.server_epoch(), context_->epoch());
  const grpc::Status other = share("there", &reply);
  EXPECT_EQ(other.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(other.error_message(), HasSubstr("'here', the client is on 'there'"));
}

TEST_F(PeerServiceTest, AReasonIsGivenWhereNothingIsShared) {
  Begin(2, {.memory_handle = absl::UnavailableError("CUDA, sharing: not supported"),
            .memory_bytes = 0,
            .host = "here"});
  v1::ShareDeviceRequest request;
  request.set_host("here");
  v1::ShareDeviceReply reply;
  grpc::ClientContext call;
  const grpc::Status status = peer_->ShareDevice(&call, request, &reply);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(status.error_message(), HasSubstr("not supported"));
}

}  // namespace
}  // namespace oscarkv::testing
