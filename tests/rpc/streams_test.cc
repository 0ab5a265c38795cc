// Streams that live long: sessions, and verifying with pauses.
#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/rpc/rpc_test.h"

namespace oscarkv {
namespace {

using ::oscarkv::testing::Chain;
using ::oscarkv::testing::RpcTest;
using ::oscarkv::testing::TestItem;
using ::testing::HasSubstr;

class StreamsTest : public RpcTest {
 protected:
  void SetUp() override {
    Open();
    Serve();
    chain_ = Chain(space(), 1, 3);
    for (const TestItem& item : chain_) ASSERT_EQ(Put(item), ItemStatus::kOk);
  }

  std::vector<TestItem> chain_;
};

TEST_F(StreamsTest, SessionEndsWithItsLeasesWhenTheServerDrains) {
  grpc::ClientContext call;
  const auto stream = cache_->Session(&call);
  ASSERT_TRUE(stream->Write({}));
  v1::SessionReply session;
  ASSERT_TRUE(stream->Read(&session));
  EXPECT_EQ(session.server_epoch(), context_->epoch());
  v1::LookupRequest lookup;
  FillScope(lookup.mutable_scope());
  for (const TestItem& item : chain_) lookup.add_keys(item.key);
  lookup.set_lease(true);
  lookup.set_session_id(session.session_id());
  v1::LookupReply hit;
  grpc::ClientContext lookup_call;
  ASSERT_TRUE(cache_->Lookup(&lookup_call, lookup, &hit).ok());
  EXPECT_NE(hit.lease_id(), 0u);
  EXPECT_EQ(store().Stats().holds, 3u);
  context_->StartDrain();
  EXPECT_FALSE(stream->Read(&session));
  const grpc::Status end = stream->Finish();
  EXPECT_EQ(end.error_code(), grpc::StatusCode::UNAVAILABLE);
  context_->WaitForCalls(absl::InfiniteFuture());
  Stop();
  ExpectNothingHeld();
}

TEST_F(StreamsTest, ManySessionsEndWithADrain) {
  std::vector<std::unique_ptr<grpc::ClientContext>> calls;
  std::vector<std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionReply>>>
      streams;
  for (int i = 0; i < 50; ++i) {
    calls.push_back(std::make_unique<grpc::ClientContext>());
    streams.push_back(cache_->Session(calls.back().get()));
    ASSERT_TRUE(streams.back()->Write({}));
  }
  context_->StartDrain();  // while some of them have only begun
  for (const auto& stream : streams) {
    v1::SessionReply session;
    while (stream->Read(&session)) {
    }
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  }
  context_->WaitForCalls(absl::InfiniteFuture());
  Stop();
  ExpectNothingHeld();
}

TEST_F(StreamsTest, VerifyFindsAndDropsWhatRotted) {
  ASSERT_TRUE(tier_->FlipBit(1, 5));
  grpc::ClientContext call;
  const auto stream = admin_->Verify(&call, {});
  v1::VerifyReply last;
  v1::VerifyReply reply;
  while (stream->Read(&reply)) last = reply;
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(last.pages_corrupt(), 1u);
  EXPECT_EQ(Prefix(chain_), 1u);
  Stop();
  ExpectNothingHeld();
}

TEST_F(StreamsTest, VerifyInItsPauseEndsWithADrain) {
  v1::VerifyRequest request;
  request.set_bytes_per_second(1);
  grpc::ClientContext call;
  const auto stream = admin_->Verify(&call, request);
  v1::VerifyReply reply;
  ASSERT_TRUE(stream->Read(&reply));
  context_->StartDrain();
  while (stream->Read(&reply)) {
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  context_->WaitForCalls(absl::InfiniteFuture());
  Stop();
  ExpectNothingHeld();
}

TEST_F(StreamsTest, VerifyInItsPauseEndsWhenItIsCancelled) {
  v1::VerifyRequest request;
  request.set_bytes_per_second(1);  // a quarter of an hour until the next page
  grpc::ClientContext call;
  const auto stream = admin_->Verify(&call, request);
  v1::VerifyReply reply;
  ASSERT_TRUE(stream->Read(&reply));
  EXPECT_EQ(reply.pages_checked(), 1u);
  EXPECT_EQ(reply.pages_total(), 3u);
  call.TryCancel();
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  Stop();  // returns
  ExpectNothingHeld();
}

}  // namespace
}  // namespace oscarkv
