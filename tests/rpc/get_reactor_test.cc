// Gets that meet trouble on the way: cancelled, past their deadline, of pages that go or rot.
#include <chrono>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/rpc/rpc_test.h"

namespace oscarkv {
namespace {

using ::oscarkv::testing::Chain;
using ::oscarkv::testing::MakePage;
using ::oscarkv::testing::RpcTest;
using ::oscarkv::testing::TestItem;
using ::testing::HasSubstr;

class GetReactorTest : public RpcTest {
 protected:
  void Start(uint32_t pages, const RpcOptions& options = {}) {
    Open(2000);
    Serve(options);
    chain_ = Chain(space(), 1, pages);
    for (const TestItem& item : chain_) ASSERT_EQ(Put(item), ItemStatus::kOk);
  }

  std::vector<TestItem> chain_;
};

TEST_F(GetReactorTest, CancelledMidwayLetsGoOfEverything) {
  Start(1000);  // far more than the transport takes before it is read
  grpc::ClientContext call;
  const auto stream = cache_->Get(&call, GetRequestFor(chain_));
  v1::GetReply reply;
  ASSERT_TRUE(stream->Read(&reply));
  ASSERT_TRUE(stream->Read(&reply));
  EXPECT_EQ(reply.part_case(), v1::GetReply::kChunk);
  call.TryCancel();
  while (stream->Read(&reply)) {
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  Stop();
  ExpectNothingHeld();
  EXPECT_EQ(Prefix(chain_), 1000u);
}

TEST_F(GetReactorTest, PastItsDeadlineLetsGoOfEverything) {
  Start(1000);
  grpc::ClientContext call;
  call.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  const auto stream = cache_->Get(&call, GetRequestFor(chain_));
  v1::GetReply reply;
  ASSERT_TRUE(stream->Read(&reply));
  while (context_->calls_in_flight() > 0) {  // a reader that has stopped reading
  }
  while (stream->Read(&reply)) {
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  Stop();
  ExpectNothingHeld();
}

TEST_F(GetReactorTest, PageDeletedWhileItIsSentArrivesWhole) {
  Start(1000, {.max_chunk_bytes = 4096});
  grpc::ClientContext call;
  const auto stream = cache_->Get(&call, GetRequestFor(chain_));
  v1::GetReply reply;
  ASSERT_TRUE(stream->Read(&reply));  // the first page is under way
  store().Delete(space(), testing::KeysOf({chain_[0]}));
  ASSERT_TRUE(stream->Read(&reply));
  const auto page = MakePage(space(), Encoding::kWide, chain_[0].seed);
  EXPECT_TRUE(reply.chunk().data() == AsText(ByteView(page.bytes)));
  uint32_t gone = 0;
  uint64_t delivered = 0;
  while (stream->Read(&reply)) {
    if (reply.has_item() && reply.item().result().status() == v1::MISS) ++gone;
    if (reply.has_end()) delivered = reply.end().items_delivered();
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_GT(gone, 0u);  // the server was not ahead by all the rest
  EXPECT_EQ(delivered + gone, 1000u);
  Stop();
  ExpectNothingHeld();
  EXPECT_EQ(UsedBytes(), 0u);
}

TEST_F(GetReactorTest, StalledReaderGetsItsBytesHoweverMemoryIsUsedAnew) {
  Start(1000, {.max_chunk_bytes = 4096});
  grpc::ClientContext call;
  const auto stream = cache_->Get(&call, GetRequestFor(chain_));
  v1::GetReply reply;
  ASSERT_TRUE(stream->Read(&reply));
  // It reads nothing for a minute, while its pages are deleted and memory is full of others.
  clock_.Advance(absl::Seconds(60));
  store().ExpireLeases();
  store().Delete(space(), testing::KeysOf({chain_[0]}));
  for (uint64_t key = 0; key < 3000; ++key)
    PutPage(store(), space(), Chain(space(), 100'000 + key, 1)[0]);
  uint32_t whole = 0;
  for (std::string bytes; stream->Read(&reply);) {
    if (!reply.has_chunk()) continue;
    bytes = reply.chunk().offset() == 0 ? reply.chunk().data() : bytes + reply.chunk().data();
    const auto page = MakePage(space(), Encoding::kWide, chain_[reply.chunk().item()].seed);
    if (bytes.size() < page.bytes.size()) continue;
    EXPECT_TRUE(bytes == AsText(ByteView(page.bytes))) << reply.chunk().item();
    ++whole;
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_GT(whole, 0u);     // what was under way
  EXPECT_LT(whole, 1000u);  // and not what was to come
  Stop();
  ExpectNothingHeld();
}

TEST_F(GetReactorTest, PageThatRottedIsCorruptAndNoByteOfItLeaves) {
  Start(3);
  ASSERT_TRUE(tier_->FlipBit(1, 300));  // a byte of the second page
  grpc::Status status;
  const auto replies = GetAll(GetRequestFor(chain_), &status);
  EXPECT_TRUE(status.ok());
  ASSERT_EQ(replies.size(), 5u);  // item and chunk, corrupt, miss, end
  EXPECT_EQ(replies[0].item().result().status(), v1::OK);
  EXPECT_EQ(replies[2].item().result().status(), v1::CORRUPT);
  EXPECT_THAT(replies[2].item().result().message(), HasSubstr("layer"));
  EXPECT_EQ(replies[3].item().result().status(), v1::EVICTED);  // it extended the corrupt page
  EXPECT_EQ(replies[4].end().items_delivered(), 1u);
  Stop();
  ExpectNothingHeld();
}

TEST_F(GetReactorTest, RangeWithoutTheBadBlockIsServed) {
  Start(1);
  ASSERT_TRUE(tier_->FlipBit(0, 256 * 3));  // layer 1, head 1
  v1::GetRequest request = GetRequestFor(chain_);
  request.set_layers(1);
  EXPECT_EQ(GetAll(request)[0].item().result().status(), v1::OK);
  request.set_layers(2);
  EXPECT_EQ(GetAll(request)[0].item().result().status(), v1::CORRUPT);
}

TEST_F(GetReactorTest, BusyWhenTheBudgetIsTaken) {
  Start(2, {.max_inflight_bytes = 1500});
  ItemResult why_not;
  InflightBytes taken = context_->TakeInflight(space(), 1000, &why_not);
  const auto busy = GetAll(GetRequestFor(chain_));
  ASSERT_EQ(busy.size(), 3u);
  EXPECT_EQ(busy[0].item().result().status(), v1::BUSY);
  EXPECT_EQ(busy[1].item().result().status(), v1::BUSY);
  taken.Release();
  EXPECT_EQ(GetAll(GetRequestFor(chain_)).back().end().items_delivered(), 2u);
  Stop();
  ExpectNothingHeld();
}

TEST_F(GetReactorTest, RefusedWhileTheServerDrains) {
  Start(1);
  context_->StartDrain();
  grpc::Status status;
  EXPECT_TRUE(GetAll(GetRequestFor(chain_), &status).empty());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("draining"));
}

TEST_F(GetReactorTest, FirstBytesOfAnItemComeInItIfTheClientSaysSo) {
  Start(2, {.max_chunk_bytes = 4096});
  v1::GetRequest request = GetRequestFor(chain_);
  request.set_data_in_items(true);
  const std::vector<v1::GetReply> replies = GetAll(request);
  ASSERT_EQ(replies.size(), 3u);  // a page has 1024 bytes
  for (size_t page = 0; page < 2; ++page) {
    const auto content = MakePage(space(), Encoding::kWide, chain_[page].seed);
    EXPECT_EQ(replies[page].item().item(), page);
    EXPECT_EQ(replies[page].item().bytes(), content.bytes.size());
    EXPECT_TRUE(replies[page].item().data() == AsText(ByteView(content.bytes)));
  }
  EXPECT_EQ(replies[2].end().bytes(), 2 * 1024u);
  EXPECT_TRUE(GetAll(GetRequestFor(chain_))[0].item().data().empty());
  Stop();
  ExpectNothingHeld();
}

TEST_F(GetReactorTest, EndsWithItsLastItemIfTheClientSaysSo) {
  Start(2);
  for (const bool data_in_items : {true, false}) {
    v1::GetRequest request = GetRequestFor(chain_);
    request.set_no_end(true);
    request.set_data_in_items(data_in_items);
    grpc::Status status;
    auto replies = GetAll(request, &status);
    EXPECT_TRUE(status.ok());
    ASSERT_EQ(replies.size(), data_in_items ? 2u : 4u);
    const std::string& last =
        data_in_items ? replies.back().item().data() : replies.back().chunk().data();
    const auto content = MakePage(space(), Encoding::kWide, chain_[1].seed);
    EXPECT_TRUE(last == AsText(ByteView(content.bytes)));
    request.add_keys(std::string(32, 'x'));  // not there
    replies = GetAll(request, &status);
    EXPECT_TRUE(status.ok());
    EXPECT_EQ(replies.back().item().item(), 2u);
    EXPECT_EQ(replies.back().item().result().status(), v1::MISS);
    request.clear_keys();
    EXPECT_TRUE(GetAll(request, &status).empty());
    EXPECT_TRUE(status.ok());
  }
  Stop();
  ExpectNothingHeld();
}

TEST_F(GetReactorTest, PageThatRottedIsTakenBackOnceItHasBegunIfTheClientSaysSo) {
  Start(3, {.max_chunk_bytes = 512});  // a layer
  ASSERT_TRUE(tier_->FlipBit(1, 512 + 3));
  v1::GetRequest request = GetRequestFor(chain_);
  request.set_data_in_items(true);
  EXPECT_EQ(GetAll(request)[2].item().result().status(), v1::CORRUPT);  // before it begins
  for (const TestItem& item : chain_) Put(item);
  ASSERT_TRUE(tier_->FlipBit(1, 512 + 3));
  request.set_may_take_back(true);
  grpc::Status status;
  const auto replies = GetAll(request, &status);
  EXPECT_TRUE(status.ok());
  ASSERT_EQ(replies.size(), 6u);  // item and chunk, item, the same again, evicted, end
  const auto bytes = MakePage(space(), Encoding::kWide, chain_[1].seed).bytes;
  EXPECT_EQ(replies[2].item().result().status(), v1::OK);
  EXPECT_EQ(replies[2].item().bytes(), 1024u);
  EXPECT_TRUE(replies[2].item().data() == AsText(ByteView(bytes).first(512)));
  EXPECT_EQ(replies[3].item().item(), 1u);
  EXPECT_EQ(replies[3].item().result().status(), v1::CORRUPT);
  EXPECT_THAT(replies[3].item().result().message(), HasSubstr("layer 1"));
  EXPECT_EQ(replies[4].item().result().status(), v1::EVICTED);
  EXPECT_EQ(replies[5].end().items_delivered(), 1u);
  EXPECT_EQ(replies[5].end().bytes(), 1024u);
  Stop();
  ExpectNothingHeld();
}

}  // namespace
}  // namespace oscarkv
