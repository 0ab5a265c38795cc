// Pages that are encoded and decoded elsewhere: what sinks and sources are called with, and what
// becomes of what they answer.
#include "client/cpp/stored_pages.h"

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"

#include "tests/client/fake_store.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::client {
namespace {

using ::oscarkv::testing::Fixture;
using ::oscarkv::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Fetches one layer after another, and keeps what comes.
class LayerSink final : public PageSink {
 public:
  uint64_t pages() const override { return pages_; }
  std::vector<BlockRange> LayerGroups(BlockRange) const override { return {{0, 1}, {1, 1}}; }
  absl::Status Begin(BlockRange, BlockRange) override { return absl::OkStatus(); }
  absl::StatusOr<MutableByteView> Room(uint32_t page, Encoding, BlockRange layers,
                                       uint64_t bytes) override {
    if (!room_error.ok()) return room_error;
    open_ = {page, layers.first};
    rooms[open_].resize(bytes);
    return MutableByteView(rooms[open_]);
  }
  absl::Status Take(std::span<const uint32_t> block_crc32c) override {
    crcs[open_].assign(block_crc32c.begin(), block_crc32c.end());
    return take(open_);
  }
  absl::Status EndLayers(BlockRange layers, uint32_t) override {
    ended.push_back(layers.first);
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<absl::Status>> Finish() override {
    ++finishes;
    return results;
  }
  void Abandon(const absl::Status& reason) override { abandoned.push_back(reason); }

  uint64_t pages_ = 3;
  absl::Status room_error;
  std::function<absl::Status(std::pair<uint32_t, uint32_t>)> take = [](auto) {
    return absl::OkStatus();
  };
  std::vector<absl::Status> results;
  // By page and layer.
  std::map<std::pair<uint32_t, uint32_t>, std::vector<std::byte>> rooms;
  std::map<std::pair<uint32_t, uint32_t>, std::vector<uint32_t>> crcs;
  std::vector<uint32_t> ended;
  int finishes = 0;
  std::vector<absl::Status> abandoned;

 private:
  std::pair<uint32_t, uint32_t> open_;
};

TEST(FetchTo, BringsOneGroupOfLayersAfterAnother) {
  Fixture f;
  ASSERT_OK(f.Push());
  LayerSink sink;
  const auto report = f.space->FetchTo(sink, {.keys = f.keys});
  ASSERT_OK(report);
  EXPECT_EQ(report->pages, 3u);
  EXPECT_EQ(report->bytes_wire, 3u * 1024);
  EXPECT_EQ(f.store.calls("Get"), 2);
  EXPECT_THAT(sink.ended, ElementsAre(0, 1));
  EXPECT_EQ(sink.finishes, 1);
  EXPECT_TRUE(sink.abandoned.empty());
  for (uint32_t page = 0; page < 3; ++page) {
    for (uint32_t layer = 0; layer < 2; ++layer) {
      DecodeItem item{.encoding = Encoding::kWide,
                      .layers = {layer, 1},
                      .heads = {0, 2},
                      .slots = std::span(f.slots).subspan(size_t{page} * 4, 4),
                      .bytes = sink.rooms.at({page, layer}),
                      .block_crc32c = sink.crcs.at({page, layer}),
                      .result = {}};
      ASSERT_OK(f.space->codec().Decode({&item, 1}, DecodeBasis::kModel, f.destination.view()));
      EXPECT_OK(item.result);
    }
  }
  EXPECT_TRUE(f.destination.SameRows(f.source, 0, 12));
}

TEST(FetchTo, PageThatIsGoneByTheSecondGroupDoesNotCount) {
  Fixture f;
  ASSERT_OK(f.Push());
  int gets = 0;
  f.store.edit_get = [&gets](std::vector<v1::GetReply>* replies) {
    if (++gets == 1) return;
    (*replies)[2].mutable_item()->mutable_result()->set_status(v1::EVICTED);
    replies->resize(3);
  };
  LayerSink sink;
  const auto report = f.space->FetchTo(sink, {.keys = f.keys});
  ASSERT_OK(report);
  EXPECT_EQ(report->pages, 1u);
  EXPECT_THAT(report->statuses,
              ElementsAre(ItemStatus::kOk, ItemStatus::kEvicted, ItemStatus::kSkipped));
  EXPECT_THAT(sink.ended, ElementsAre(0, 1));
}

TEST(FetchTo, OnlyPagesThatCameAreAskedForAgain) {
  Fixture f;
  ASSERT_OK(f.Push());
  LayerSink sink;
  std::vector<size_t> answered;
  f.store.edit_get = [&answered](std::vector<v1::GetReply>* replies) {
    answered.push_back(replies->size());
    if (answered.size() > 1) return;
    (*replies)[4].mutable_item()->mutable_result()->set_status(v1::MISS);
    replies->resize(5);
  };
  EXPECT_EQ(f.space->FetchTo(sink, {.keys = f.keys})->pages, 2u);
  EXPECT_THAT(answered, ElementsAre(7, 5));  // item and chunk of each page, and the end
}

TEST(FetchTo, PageThatTheSinkFindsCorruptInTheEnd) {
  Fixture f;
  ASSERT_OK(f.Push());
  LayerSink sink;
  sink.results = {absl::OkStatus(), absl::DataLossError("crc"), absl::DataLossError("crc")};
  const auto report = f.space->FetchTo(sink, {.keys = f.keys});
  ASSERT_OK(report);
  EXPECT_EQ(report->pages, 1u);
  EXPECT_EQ(report->tokens, 4u);
  EXPECT_THAT(report->statuses,
              ElementsAre(ItemStatus::kOk, ItemStatus::kCorrupt, ItemStatus::kSkipped));
  EXPECT_EQ(f.client->counters().corrupt_pages, 2u);
}

TEST(FetchTo, PageThatTheSinkFindsCorruptAtOnceEndsItsGroup) {
  Fixture f;
  ASSERT_OK(f.Push());
  LayerSink sink;
  sink.take = [](std::pair<uint32_t, uint32_t> place) {
    return place == std::make_pair(1u, 1u) ? absl::DataLossError("crc") : absl::OkStatus();
  };
  const auto report = f.space->FetchTo(sink, {.keys = f.keys});
  ASSERT_OK(report);
  EXPECT_THAT(report->statuses,
              ElementsAre(ItemStatus::kOk, ItemStatus::kCorrupt, ItemStatus::kSkipped));
  EXPECT_FALSE(sink.rooms.contains({2, 1}));
}

TEST(FetchTo, ErrorsOfTheSinkAreTheFetchs) {
  Fixture f;
  ASSERT_OK(f.Push());
  LayerSink sink;
  sink.room_error = absl::UnavailableError("the device is lost");
  EXPECT_THAT(f.space->FetchTo(sink, {.keys = f.keys}),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("lost")));
  LayerSink taking;
  taking.take = [](auto) { return absl::UnavailableError("the device is lost"); };
  EXPECT_THAT(f.space->FetchTo(taking, {.keys = f.keys}), StatusIs(absl::StatusCode::kUnavailable));
  for (const LayerSink* ended : {&sink, &taking}) {
    EXPECT_EQ(ended->finishes, 0);
    EXPECT_THAT(ended->abandoned, ElementsAre(StatusIs(absl::StatusCode::kUnavailable)));
  }
}

TEST(FetchTo, SinkForOtherPagesIsMisuse) {
  Fixture f;
  LayerSink sink;
  sink.pages_ = 2;
  EXPECT_THAT(f.space->FetchTo(sink, {.keys = f.keys}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("3 keys")));
  EXPECT_EQ(sink.abandoned.size(), 1u);
}

TEST(FetchTo, StoreThatFailsIsAMiss) {
  Fixture f;
  ASSERT_OK(f.Push());
  f.store.fail = [](const std::string& method) {
    return method == "Get" ? grpc::Status(grpc::StatusCode::INTERNAL, "broken") : grpc::Status::OK;
  };
  LayerSink sink;
  const auto report = f.space->FetchTo(sink, {.keys = f.keys});
  ASSERT_OK(report);
  EXPECT_THAT(report->store, StatusIs(absl::StatusCode::kInternal));
  EXPECT_THAT(report->statuses,
              ElementsAre(ItemStatus::kMiss, ItemStatus::kSkipped, ItemStatus::kSkipped));
  EXPECT_THAT(sink.ended, ElementsAre(0));  // nothing is left to ask for
  EXPECT_EQ(sink.finishes, 1);
}

// Encodes one page at a time.
class OnePageSource final : public PageSource {
 public:
  explicit OnePageSource(Fixture& f) : f_(f) {}
  uint64_t pages() const override { return 3; }
  absl::StatusOr<std::span<const EncodedPage>> Encode(uint32_t first,
                                                      std::span<const Encoding> encodings,
                                                      EncodeReport* report) override {
    asked.emplace_back(first, encodings.size());
    if (first == fail_at) return absl::UnavailableError("the device is lost");
    bytes_.resize(f_.space->codec().layout(encodings[0]).page_bytes());
    crcs_.resize(4);
    const EncodeItem item{.encoding = encodings[0],
                          .slots = std::span(f_.slots).subspan(size_t{first} * 4, 4),
                          .page = bytes_,
                          .block_crc32c = crcs_};
    const absl::Status status = f_.space->codec().Encode(f_.source.view(), {&item, 1}, report);
    if (!status.ok()) return status;
    page_ = {encodings[0], bytes_, crcs_};
    return std::span<const EncodedPage>(&page_, 1);
  }

  std::vector<std::pair<uint32_t, size_t>> asked;
  uint32_t fail_at = 3;

 private:
  Fixture& f_;
  std::vector<std::byte> bytes_;
  std::vector<uint32_t> crcs_;
  EncodedPage page_;
};

TEST(PushFrom, StoresWhatTheSourceCanHoldAtOnce) {
  Fixture f;
  OnePageSource source(f);
  const auto report = f.space->PushFrom(source, {.keys = f.keys});
  ASSERT_OK(report);
  EXPECT_THAT(report->statuses, ElementsAre(ItemStatus::kOk, ItemStatus::kOk, ItemStatus::kOk));
  EXPECT_THAT(source.asked,
              ElementsAre(std::make_pair(0u, 3u), std::make_pair(1u, 2u), std::make_pair(2u, 1u)));
  EXPECT_EQ(f.store.calls("Put"), 3);
  EXPECT_EQ(report->wide_pages, 3u);
  EXPECT_EQ(report->encode.rows, 3u * 4 * 4 * 2);
  EXPECT_EQ(f.Fetch()->pages, 3u);
  EXPECT_TRUE(f.destination.SameRows(f.source, 0, 12));
}

TEST(PushFrom, ErrorsOfTheSourceAreThePushs) {
  Fixture f;
  OnePageSource source(f);
  source.fail_at = 1;
  EXPECT_THAT(f.space->PushFrom(source, {.keys = f.keys}),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("lost")));
  EXPECT_EQ(f.Fetch()->pages, 1u);
}

}  // namespace
}  // namespace oscarkv::client
