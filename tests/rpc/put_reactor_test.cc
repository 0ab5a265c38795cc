// Puts that break off: the page in the making leaves nothing behind, those before it stay.
#include <chrono>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/rpc/rpc_test.h"

namespace oscarkv {
namespace {

using ::oscarkv::testing::Chain;
using ::oscarkv::testing::kWideSlotBytes;
using ::oscarkv::testing::RpcTest;
using ::oscarkv::testing::TestItem;
using ::testing::HasSubstr;

constexpr uint64_t kPageBytes = 4 * 256;

class PutReactorTest : public RpcTest {
 protected:
  void SetUp() override {
    Open();
    Serve();
    chain_ = Chain(space(), 1, 3);
  }

  // A put of the chain of which the first page and half of the second are sent.
  std::unique_ptr<grpc::ClientWriter<v1::PutRequest>> StartPut(grpc::ClientContext* call) {
    auto stream = cache_->Put(call, &reply_);
    EXPECT_TRUE(stream->Write(PutHeaderFor(chain_)));
    EXPECT_TRUE(stream->Write(ChunkOf(0, chain_[0], 0, kPageBytes)));
    EXPECT_TRUE(stream->Write(ChunkOf(1, chain_[1], 0, kPageBytes / 2)));
    return stream;
  }

  std::vector<TestItem> chain_;
  v1::PutReply reply_;
};

TEST_F(PutReactorTest, CancelledMidwayKeepsWhatWasWhole) {
  grpc::ClientContext call;
  const auto stream = StartPut(&call);
  // The transport keeps order, so what was sent is there once the server has been asked: wait for
  // it.
  while (context_->inflight_bytes() == 0 || store().Stats().open_puts == 0 || Prefix(chain_) == 0) {
  }
  EXPECT_EQ(Prefix(chain_), 1u);  // half a page is not visible
  call.TryCancel();
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  Stop();
  ExpectNothingHeld();
  EXPECT_EQ(UsedBytes(), kWideSlotBytes);
  EXPECT_EQ(Prefix(chain_), 1u);
  EXPECT_EQ(store().Stats().counters.puts_abandoned, 1u);
}

TEST_F(PutReactorTest, PastItsDeadlineKeepsNothingHalf) {
  grpc::ClientContext call;
  call.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  const auto stream = cache_->Put(&call, &reply_);
  stream->Write(PutHeaderFor(chain_));
  stream->Write(ChunkOf(0, chain_[0], 0, kPageBytes / 2));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  Stop();
  ExpectNothingHeld();
  EXPECT_EQ(UsedBytes(), 0u);
}

TEST_F(PutReactorTest, EndedEarlyNamesWhatIsMissing) {
  grpc::ClientContext call;
  const auto stream = StartPut(&call);
  stream->WritesDone();
  ASSERT_TRUE(stream->Finish().ok());
  ASSERT_EQ(reply_.results_size(), 3);
  EXPECT_EQ(reply_.results(0).status(), v1::OK);
  EXPECT_EQ(reply_.results(1).status(), v1::INVALID);
  EXPECT_THAT(reply_.results(1).message(), HasSubstr("expected 1024 bytes, 512 came"));
  EXPECT_EQ(reply_.results(2).status(), v1::INVALID);
  EXPECT_THAT(reply_.results(2).message(), HasSubstr("expected 1024 bytes, 0 came"));
  Stop();
  ExpectNothingHeld();
}

TEST_F(PutReactorTest, ItemsWithoutBytesCostNoPageThatIsThere) {
  const std::vector<TestItem> items = Chain(space(), 500, 20);
  TestItem last = items.back();
  last.parent.clear();
  last.first_position = 0;
  for (const TestItem& item : Chain(space(), 100, 64)) ASSERT_EQ(Put(item), ItemStatus::kOk);
  ASSERT_EQ(UsedBytes(), 64 * kWideSlotBytes);  // all there is
  grpc::ClientContext call;
  const auto stream = cache_->Put(&call, &reply_);
  std::vector<TestItem> put(items.begin(), items.end() - 1);
  put.insert(put.begin() + 10, last);  // the only one whose bytes come
  ASSERT_TRUE(stream->Write(PutHeaderFor(put)));
  ASSERT_TRUE(stream->Write(ChunkOf(10, last, 0, kPageBytes)));
  stream->WritesDone();
  ASSERT_TRUE(stream->Finish().ok());
  for (int i = 0; i < reply_.results_size(); ++i)
    EXPECT_EQ(reply_.results(i).status(), i == 10 ? v1::OK : v1::INVALID) << i;
  EXPECT_EQ(UsedBytes(), 64 * kWideSlotBytes);
  EXPECT_EQ(store().Stats().counters.evicted_bytes, kPageBytes);
}

TEST_F(PutReactorTest, ChunksOfRefusedItemsAreLetGoBy) {
  chain_[1].parent = testing::KeyOf(999);
  grpc::ClientContext call;
  const auto stream = cache_->Put(&call, &reply_);
  ASSERT_TRUE(stream->Write(PutHeaderFor({chain_[1], chain_[0]})));
  for (const uint64_t offset : {uint64_t{0}, kPageBytes / 2})
    ASSERT_TRUE(stream->Write(ChunkOf(0, chain_[1], offset, kPageBytes / 2)));
  ASSERT_TRUE(stream->Write(ChunkOf(1, chain_[0], 0, kPageBytes)));
  stream->WritesDone();
  ASSERT_TRUE(stream->Finish().ok());
  EXPECT_EQ(reply_.results(0).status(), v1::SKIPPED);
  EXPECT_EQ(reply_.results(1).status(), v1::OK);
  Stop();
  ExpectNothingHeld();
}

TEST_F(PutReactorTest, TierThatFailsIsNoSpaceAndTheServerGoesOn) {
  tier_->FailReservations(1, absl::InternalError("broken"));
  grpc::ClientContext call;
  const auto stream = cache_->Put(&call, &reply_);
  ASSERT_TRUE(stream->Write(PutHeaderFor({chain_[0]})));
  ASSERT_TRUE(stream->Write(ChunkOf(0, chain_[0], 0, kPageBytes)));
  stream->WritesDone();
  ASSERT_TRUE(stream->Finish().ok());
  EXPECT_EQ(reply_.results(0).status(), v1::NO_SPACE);
  EXPECT_EQ(Put(chain_[0]), ItemStatus::kOk);
  Stop();
  ExpectNothingHeld();
}

}  // namespace
}  // namespace oscarkv
