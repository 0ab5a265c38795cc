// Pages that a client hands over in memory that it can write to all the while: what is published is
// what was verified.
#include <fcntl.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/transport/door_testing.h"

namespace oscarkv::testing {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using absl::StatusCode;

constexpr uint64_t kStaging = 64 << 10;

class CommitTest : public DoorTest {
 protected:
  void SetUp() override { OpenDoor(); }
  void TearDown() override {
    client_ = DoorClient();
    session_.reset();
    DoorTest::TearDown();
  }
  void Begin() {
    session_ = Join();
    client_ = Enter(session_->id(), kStaging);
    ASSERT_EQ(client_.staging().size(), kStaging);
  }
  void Scribble() { std::ranges::fill(client_.staging(), std::byte{0xee}); }

  // The one result of a commit.
  v1::ItemResult ResultOf(const v1::DoorRequest& request) {
    const absl::StatusOr<v1::DoorReply> reply = client_.Ask(request);
    EXPECT_OK(reply);
    if (!reply.ok() || reply->committed().results_size() != 1) {
      ADD_FAILURE() << (reply.ok() ? reply->ShortDebugString() : "");
      return {};
    }
    return reply->committed().results(0);
  }

  std::unique_ptr<OpenSession> session_;
  DoorClient client_;
};

TEST_F(CommitTest, PagesAreStored) {
  Begin();
  const auto chain = Chain(space(), 1, 3);
  EXPECT_THAT(Commit(client_, CommitRequest(client_, chain)),
              AllOf(::testing::SizeIs(3), Each(v1::OK)));
  for (const TestItem& item : chain) EXPECT_EQ(Read(item), ItemStatus::kOk);
  EXPECT_EQ(context_->transfers().bytes(DataPath::kShm, Direction::kPush), 3 * kPageBytes);
  EXPECT_EQ(context_->transfers().duration(DataPath::kShm, Direction::kPush).count, 1u);
  ExpectNothingMapped();
}

TEST_F(CommitTest, TheStagingMemoryIsFreeAfterTheAnswer) {
  Begin();
  const auto chain = Chain(space(), 1, 4);
  for (const TestItem& item : chain) {
    EXPECT_THAT(Commit(client_, CommitRequest(client_, {item})), ElementsAre(v1::OK));
    Scribble();
  }
  for (const TestItem& item : chain) EXPECT_EQ(Read(item), ItemStatus::kOk);
}

TEST_F(CommitTest, WhatIsThereAlreadyIsSaidToBe) {
  Begin();
  const auto chain = Stored(1, 1);
  EXPECT_THAT(Commit(client_, CommitRequest(client_, chain)), ElementsAre(v1::EXISTS));
  TestItem other = chain[0];
  other.seed = 77;
  EXPECT_THAT(Commit(client_, CommitRequest(client_, {other})), ElementsAre(v1::CONFLICT));
  EXPECT_EQ(Read(chain[0]), ItemStatus::kOk);
  EXPECT_EQ(context_->transfers().bytes(DataPath::kShm, Direction::kPush), 0u);
}

TEST_F(CommitTest, ItemsAreTakenOneByOne) {
  Begin();
  const auto chain = Chain(space(), 1, 3);
  v1::DoorRequest request = CommitRequest(client_, chain);
  client_.staging()[kPageBytes] ^= std::byte{1};  // the second page's first byte
  EXPECT_THAT(Commit(client_, request), ElementsAre(v1::OK, v1::CORRUPT, v1::SKIPPED));
  EXPECT_EQ(Prefix(chain), 1u);
  ExpectNothingMapped();
}

// --- Memory that changes under the server's hands ---

TEST_F(CommitTest, BytesThatChangeAfterTheCopyChangeNothing) {
  Begin();
  const auto chain = Chain(space(), 1, 1);
  const AtFaultPoint copied("shm.server.copied", [this] { Scribble(); });
  EXPECT_THAT(Commit(client_, CommitRequest(client_, chain)), ElementsAre(v1::OK));
  EXPECT_EQ(client_.staging()[0], std::byte{0xee});
  EXPECT_EQ(Read(chain[0]), ItemStatus::kOk);
}

TEST_F(CommitTest, BytesThatChangeBeforeTheCopyAreNotPublished) {
  Begin();
  const auto chain = Chain(space(), 1, 2);
  // The first page's copy is made; then the client writes over the second.
  const AtFaultPoint copied("shm.server.copied", [this] { Scribble(); });
  EXPECT_THAT(Commit(client_, CommitRequest(client_, chain)), ElementsAre(v1::OK, v1::CORRUPT));
  EXPECT_EQ(Prefix(chain), 1u);
  EXPECT_EQ(Read(chain[0]), ItemStatus::kOk);
}

TEST_F(CommitTest, HolesPunchedIntoStagingMemoryAreWrongBytes) {
  Begin();
  const auto chain = Chain(space(), 1, 1);
  const v1::DoorRequest request = CommitRequest(client_, chain);
  ASSERT_EQ(fallocate(client_.staging_descriptor(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                      kStaging),
            0);
  EXPECT_THAT(Commit(client_, request), ElementsAre(v1::CORRUPT));
  EXPECT_EQ(Prefix(chain), 0u);
}

// --- Places that are none ---

TEST_F(CommitTest, OffsetsOutsideOfTheStagingMemoryAreRefused) {
  Begin();
  const auto chain = Chain(space(), 1, 1);
  for (const uint64_t offset : {kStaging - kPageBytes + 1, kStaging, kStaging + 1,
                                uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - kPageBytes + 1}) {
    v1::DoorRequest request = CommitRequest(client_, chain);
    request.mutable_commit()->set_offsets(0, offset);
    const v1::ItemResult result = ResultOf(request);
    EXPECT_EQ(result.status(), v1::INVALID) << offset;
    EXPECT_THAT(result.message(),
                AllOf(HasSubstr(absl::StrCat("at ", offset)), HasSubstr("65536")));
  }
  EXPECT_EQ(Prefix(chain), 0u);
  // The last place that there is.
  v1::DoorRequest request = CommitRequest(client_, chain);
  const std::vector<std::byte> bytes = BytesOf(chain[0]);
  std::memcpy(&client_.staging()[kStaging - kPageBytes], bytes.data(), kPageBytes);
  request.mutable_commit()->set_offsets(0, kStaging - kPageBytes);
  EXPECT_EQ(ResultOf(request).status(), v1::OK);
}

TEST_F(CommitTest, AbsurdLengthsAreRefused) {
  Begin();
  const auto chain = Chain(space(), 1, 1);
  for (const uint64_t bytes : {uint64_t{0}, kPageBytes - 1, kPageBytes + 1, kStaging, kStaging + 1,
                               uint64_t{1} << 40, ~uint64_t{0}}) {
    v1::DoorRequest request = CommitRequest(client_, chain);
    request.mutable_commit()->mutable_header()->mutable_items(0)->set_bytes(bytes);
    EXPECT_EQ(ResultOf(request).status(), v1::INVALID) << bytes;
  }
  v1::DoorRequest request = CommitRequest(client_, chain);
  request.mutable_commit()->mutable_header()->mutable_items(0)->add_block_crc32c(1);
  EXPECT_EQ(ResultOf(request).status(), v1::INVALID);
  EXPECT_EQ(Prefix(chain), 0u);
  ExpectNothingMapped();
}

TEST_F(CommitTest, WithoutStagingMemoryThereIsNoPlace) {
  Begin();
  const auto chain = Chain(space(), 1, 1);
  const v1::DoorRequest request = CommitRequest(client_, chain);
  client_ = Enter(session_->id());
  const v1::ItemResult result = ResultOf(request);
  EXPECT_EQ(result.status(), v1::INVALID);
  EXPECT_THAT(result.message(), HasSubstr("of 0 that were staged"));
}

TEST_F(CommitTest, WrongRequestsSayWhatIsWrongAndChangeNothing) {
  Begin();
  const auto chain = Chain(space(), 1, 2);

  v1::DoorRequest request = CommitRequest(client_, chain);
  request.mutable_commit()->mutable_offsets()->RemoveLast();
  EXPECT_THAT(client_.Ask(request),
              Refuses(StatusCode::kInvalidArgument, HasSubstr("2 items and 1 places")));

  request = CommitRequest(client_, chain);
  request.mutable_commit()->mutable_header()->mutable_items(1)->set_key(chain[0].key);
  EXPECT_THAT(client_.Ask(request), Refuses(StatusCode::kInvalidArgument, HasSubstr("twice")));

  request = CommitRequest(client_, chain);
  request.mutable_commit()->mutable_header()->mutable_scope()->set_server_epoch(1);
  EXPECT_THAT(client_.Ask(request), Refuses(StatusCode::kAborted, HasSubstr("epoch")));

  request = CommitRequest(client_, chain);
  request.mutable_commit()->mutable_header()->mutable_scope()->set_fingerprint("none");
  EXPECT_THAT(client_.Ask(request),
              Refuses(StatusCode::kFailedPrecondition, HasSubstr("fingerprint")));

  request = v1::DoorRequest();
  FillScope(request.mutable_commit()->mutable_header()->mutable_scope());
  for (uint64_t key = 0; key <= context_->options().max_items; ++key) {
    request.mutable_commit()->mutable_header()->add_items()->set_key(KeyOf(key));
    request.mutable_commit()->add_offsets(0);
  }
  EXPECT_THAT(client_.Ask(request), Refuses(StatusCode::kInvalidArgument, HasSubstr("1025")));

  EXPECT_EQ(Prefix(chain), 0u);
  ExpectNothingMapped();
  EXPECT_THAT(Commit(client_, CommitRequest(client_, chain)), ElementsAre(v1::OK, v1::OK));
}

// As many items as may be, each of which has something wrong that takes many words: the answer fits
// its packet all the same.
TEST_F(CommitTest, ManyItemsThatFailAreAnswered) {
  Begin();
  v1::DoorRequest request;
  v1::DoorCommit* commit = request.mutable_commit();
  FillScope(commit->mutable_header()->mutable_scope());
  for (uint64_t key = 0; key < context_->options().max_items; ++key) {
    v1::PutItem* item = commit->mutable_header()->add_items();
    item->set_key(KeyOf(key) + KeyOf(key));
    item->set_encoding(v1::WIDE);
    item->set_bytes(kStaging);
    commit->add_offsets(0);
  }
  EXPECT_THAT(Commit(client_, request), AllOf(::testing::SizeIs(1024), Each(v1::INVALID)));
  ExpectNothingMapped();
}

TEST_F(CommitTest, ADrainingServerTakesNoNewCalls) {
  Begin();
  const auto chain = Chain(space(), 1, 1);
  context_->StartDrain();
  EXPECT_THAT(client_.Ask(CommitRequest(client_, chain)),
              Refuses(StatusCode::kUnavailable, HasSubstr("draining")));
  EXPECT_EQ(Prefix(chain), 0u);
}

}  // namespace
}  // namespace oscarkv::testing
