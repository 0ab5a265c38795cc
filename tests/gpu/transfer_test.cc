// Transfers between host memory and a cache on the GPU: the same bytes as the codec's in one
// launch, whatever the stages, the layout and the part; and what goes wrong is named.
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"

#include "tests/gpu/gpu_cache.h"
#include "tests/gpu/transfer_world.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

using absl::StatusCode;
using client::FetchTarget;
using client::GpuFetcher;
using client::GpuPusher;
using client::GpuTransferOptions;
using client::HostPage;
using client::TransferPart;
using ::testing::Each;
using ::testing::HasSubstr;

constexpr Case kCase{64, 64, {2, 2}, 0, ParamsDType::kFp16, DType::kBf16, EngineLayout::kNhd, 16};

constexpr Case kCases[] = {
    kCase,
    {128, 128, {2, 2}, 32, ParamsDType::kFp16, DType::kBf16, EngineLayout::kTokenMajor, 64},
    {128, 64, {4, 2}, 0, ParamsDType::kFp32, DType::kFp16, EngineLayout::kHnd, 48},
};

class Transfers : public ::testing::TestWithParam<Case> {};

// Fetches with these options into an empty cache, which comes back.
std::vector<absl::Status> Fetch(const TransferWorld& world, const GpuTransferOptions& options,
                                const TransferPart& part, std::span<const HostPage> pages,
                                EngineCache& into, std::span<const int64_t> slots) {
  const EngineOnGpu engine(into, world.geometry);
  const auto fetcher = OrDie(GpuFetcher::Create(world.codec, options));
  OrDie(
      fetcher->Begin({.cache = engine.cache(), .part = part, .slots = slots}, world.stream.get()));
  OrDie(fetcher->AddAll(pages));
  auto results = OrDie(fetcher->Finish());
  engine.CopyTo(into);
  return results;
}

TEST_P(Transfers, FetchWritesWhatDecodingDoes) {
  const TransferWorld world(GetParam());
  const PinnedPages pages(*world.codec, world.encodings, world.pages);
  EngineCache expected = world.Empty(GetParam());
  world.Decode(world.pages, world.whole(), expected);
  for (const GpuTransferOptions& options : {world.Small(), GpuTransferOptions{}}) {
    EngineCache found = world.Empty(GetParam());
    EXPECT_THAT(Fetch(world, options, world.whole(), pages.Held(), found, world.all_slots),
                Each(IsOk()));
    EXPECT_EQ(found.memory(), expected.memory());
  }
}

TEST_P(Transfers, PushWritesWhatEncodingDoes) {
  TransferWorld world(GetParam());
  const EngineOnGpu engine(world.source, world.geometry);
  for (const GpuTransferOptions& options : {world.Small(), GpuTransferOptions{}}) {
    const PinnedPages pages(*world.codec, world.encodings);
    const auto pusher = OrDie(GpuPusher::Create(world.codec, options));
    ASSERT_OK(
        pusher->Begin({.cache = engine.cache(), .slots = world.all_slots}, world.stream.get()));
    ASSERT_OK(pusher->Add(0, pages.Rooms()));
    const auto report = pusher->Finish();
    ASSERT_OK(report);
    EXPECT_EQ(report->rows,
              world.pages.size() * world.geometry.blocks() * world.geometry.page_tokens * 2);
    EXPECT_EQ(report->nonfinite_rows, 0u);
    for (size_t page = 0; page < world.pages.size(); ++page) {
      EXPECT_TRUE(std::ranges::equal(pages.bytes(page), world.pages[page].bytes)) << page;
      EXPECT_EQ(pages.crcs(page), world.pages[page].crcs) << page;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, Transfers, ::testing::ValuesIn(kCases),
                         [](const auto& of) { return LayoutName(of.param.layout); });

TEST(GpuFetch, PartOfThePages) {
  const TransferWorld world(kCase);
  const TransferPart part{{1, 2}, {1, 1}};
  std::vector<EncodedPage> cut;
  std::vector<HostPage> pages;
  for (size_t page = 0; page < world.pages.size(); ++page) {
    cut.push_back(CutPart(world.codec->layout(world.encodings[page]), world.pages[page],
                          part.layers, part.heads));
  }
  for (size_t page = 0; page < cut.size(); ++page)  // memory that is not pinned is right, too
    pages.push_back({world.encodings[page], cut[page].bytes.data(), cut[page].crcs.data()});
  EngineCache expected = world.Empty(kCase);
  world.Decode(cut, part, expected);
  EngineCache found = world.Empty(kCase);
  EXPECT_THAT(Fetch(world, world.Small(), part, pages, found, world.all_slots), Each(IsOk()));
  EXPECT_EQ(found.memory(), expected.memory());
}

TEST(GpuFetch, TokensLeftOutAreNotWritten) {
  TransferWorld world(kCase);
  const PinnedPages pages(*world.codec, world.encodings, world.pages);
  world.slots[1][3] = world.slots[2][0] = -1;
  std::vector<int64_t> slots;
  for (const auto& page : world.slots) slots.insert(slots.end(), page.begin(), page.end());
  EngineCache expected = world.Empty(kCase);
  world.Decode(world.pages, world.whole(), expected);
  EngineCache found = world.Empty(kCase);
  EXPECT_THAT(Fetch(world, world.Small(), world.whole(), pages.Held(), found, slots), Each(IsOk()));
  EXPECT_EQ(found.memory(), expected.memory());
}

TEST(GpuFetch, CorruptPageIsNamedAndTheOthersAreWhole) {
  const TransferWorld world(kCase);
  const PinnedPages pages(*world.codec, world.encodings, world.pages);
  std::vector<EncodedPage> damaged = world.pages;
  const uint64_t block = world.codec->layout(Encoding::kPacked).block_offset(2, 1);
  damaged[3].bytes[block + 7] ^= std::byte{1};
  pages.bytes(3)[block + 7] ^= std::byte{1};
  EngineCache expected = world.Empty(kCase);
  world.Decode(damaged, world.whole(), expected);  // which does not write that block
  EngineCache found = world.Empty(kCase);
  const auto results =
      Fetch(world, world.Small(), world.whole(), pages.Held(), found, world.all_slots);
  ASSERT_EQ(results.size(), 5u);
  for (size_t page : {0u, 1u, 2u, 4u}) EXPECT_OK(results[page]);
  EXPECT_THAT(results[3], StatusIs(StatusCode::kDataLoss,
                                   HasSubstr("page 3: the checksum of layer 2, head 1 is wrong")));
  EXPECT_EQ(found.memory(), expected.memory());
}

// What Finish says of one fetch does not linger in the next.
TEST(GpuFetch, FetcherIsUsedAgain) {
  const TransferWorld world(kCase);
  const PinnedPages pages(*world.codec, world.encodings, world.pages);
  EngineCache empty = world.Empty(kCase);
  const EngineOnGpu engine(empty, world.geometry);
  const auto fetcher = OrDie(GpuFetcher::Create(world.codec, world.Small()));
  const FetchTarget target{
      .cache = engine.cache(), .part = world.whole(), .slots = world.all_slots};
  for (const std::byte flip : {std::byte{1}, std::byte{1}, std::byte{0}}) {
    pages.bytes(0)[0] ^= flip;  // wrong, right, right
    const bool wrong = pages.bytes(0)[0] != world.pages[0].bytes[0];
    ASSERT_OK(fetcher->Begin(target, world.stream.get()));
    ASSERT_OK(fetcher->AddAll(pages.Held()));
    const auto results = fetcher->Finish();
    ASSERT_OK(results);
    EXPECT_EQ((*results)[0].ok(), !wrong);
  }
}

TEST(GpuFetch, StreamThatWaitedForALayerFindsIt) {
  const TransferWorld world(kCase);
  const PinnedPages pages(*world.codec, world.encodings, world.pages);
  EngineCache expected = world.Empty(kCase);
  world.Decode(world.pages, world.whole(), expected);
  EngineCache empty = world.Empty(kCase);
  const EngineOnGpu engine(empty, world.geometry);
  const auto fetcher = OrDie(GpuFetcher::Create(world.codec, world.Small()));
  ASSERT_OK(
      fetcher->Begin({.cache = engine.cache(), .part = world.whole(), .slots = world.all_slots},
                     world.stream.get()));
  // An engine's thread, which may be there before anything is enqueued.
  std::vector<absl::Status> waited;
  std::thread waiter([&] {
    const auto stream = OrDie(device::Stream::Create());
    for (uint32_t layer = 0; layer < world.geometry.layers; ++layer)
      waited.push_back(fetcher->WaitLayer(layer, stream.get()));
    OrDie(stream.Synchronize());
    engine.CopyTo(empty);
  });
  ASSERT_OK(fetcher->AddAll(pages.Held()));
  waiter.join();
  EXPECT_THAT(waited, Each(IsOk()));
  EXPECT_EQ(empty.memory(), expected.memory());  // without Finish
  EXPECT_OK(fetcher->Finish());
}

TEST(GpuFetch, WhoWaitsForALayerThatDoesNotComeIsToldWhy) {
  const TransferWorld world(kCase);
  EngineCache empty = world.Empty(kCase);
  const EngineOnGpu engine(empty, world.geometry);
  const auto fetcher = OrDie(GpuFetcher::Create(world.codec, world.Small()));
  EXPECT_THAT(fetcher->WaitLayer(0, world.stream.get()), StatusIs(StatusCode::kFailedPrecondition));
  ASSERT_OK(
      fetcher->Begin({.cache = engine.cache(), .part = {{1, 2}, {0, 2}}, .slots = world.all_slots},
                     world.stream.get()));
  EXPECT_THAT(fetcher->WaitLayer(0, world.stream.get()),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("1..2")));
  absl::Status waited;
  std::thread waiter([&] { waited = fetcher->WaitLayer(1, world.stream.get()); });
  fetcher->Abandon(absl::UnavailableError("the store went away"));
  waiter.join();
  EXPECT_THAT(waited, StatusIs(StatusCode::kUnavailable, HasSubstr("the store went away")));
}

// A codec whose calls fail from the one numbered `fail_at` on: a device that is lost on the way.
class LostDevice final : public cuda::CudaPageCodec {
 public:
  LostDevice(std::shared_ptr<const cuda::CudaPageCodec> codec, int fail_at)
      : CudaPageCodec(codec->layout(Encoding::kWide), codec->layout(Encoding::kPacked),
                      codec->can_pack()),
        codec_(std::move(codec)),
        calls_left_(fail_at) {}
  absl::Status Decode(const cuda::DeviceDecodeBatch& batch, DecodeBasis basis,
                      const cuda::DeviceEngineView& destination,
                      cudaStream_t stream) const override {
    if (calls_left_-- <= 0) return absl::UnavailableError("the device is lost");
    return codec_->Decode(batch, basis, destination, stream);
  }
  absl::Status Encode(const cuda::DeviceEngineView& source, const cuda::DeviceEncodeBatch& batch,
                      cudaStream_t stream) const override {
    if (calls_left_-- <= 0) return absl::UnavailableError("the device is lost");
    return codec_->Encode(source, batch, stream);
  }
  absl::Status Ingest(const cuda::DevicePoolView& source, const cuda::DeviceEncodeBatch& batch,
                      cudaStream_t stream) const override {
    return codec_->Ingest(source, batch, stream);
  }
  absl::Status Emit(const cuda::DeviceDecodeBatch& batch, const cuda::DevicePoolView& destination,
                    cudaStream_t stream) const override {
    return codec_->Emit(batch, destination, stream);
  }

 private:
  const std::shared_ptr<const cuda::CudaPageCodec> codec_;
  mutable int calls_left_;
};

TEST(LostDeviceTest, EndsAFetchWithItsError) {
  const TransferWorld world(kCase);
  const PinnedPages pages(*world.codec, world.encodings, world.pages);
  EngineCache empty = world.Empty(kCase);
  const EngineOnGpu engine(empty, world.geometry);
  const auto fetcher =
      OrDie(GpuFetcher::Create(std::make_shared<LostDevice>(world.codec, 4), world.Small()));
  ASSERT_OK(
      fetcher->Begin({.cache = engine.cache(), .part = world.whole(), .slots = world.all_slots},
                     world.stream.get()));
  EXPECT_THAT(fetcher->AddAll(pages.Held()), StatusIs(StatusCode::kUnavailable));
  EXPECT_THAT(fetcher->WaitLayer(2, world.stream.get()), StatusIs(StatusCode::kUnavailable));
  EXPECT_THAT(fetcher->Finish(), StatusIs(StatusCode::kFailedPrecondition));
}

TEST(LostDeviceTest, EndsAPushWithItsError) {
  TransferWorld world(kCase);
  const PinnedPages pages(*world.codec, world.encodings);
  const EngineOnGpu engine(world.source, world.geometry);
  const auto pusher =
      OrDie(GpuPusher::Create(std::make_shared<LostDevice>(world.codec, 1), world.Small()));
  ASSERT_OK(pusher->Begin({.cache = engine.cache(), .slots = world.all_slots}, world.stream.get()));
  EXPECT_THAT(pusher->Add(0, pages.Rooms()), StatusIs(StatusCode::kUnavailable));
  EXPECT_OK(pusher->Finish());
}

TEST(GpuTransferMisuse, IsNamed) {
  const TransferWorld world(kCase);
  EngineCache empty = world.Empty(kCase);
  const EngineOnGpu engine(empty, world.geometry);
  const auto fetcher = OrDie(GpuFetcher::Create(world.codec, world.Small()));
  const auto begin = [&](const TransferPart& part, std::vector<int64_t> slots) {
    return fetcher->Begin({.cache = engine.cache(), .part = part, .slots = slots},
                          world.stream.get());
  };
  const auto is = [](const char* text) {
    return StatusIs(StatusCode::kInvalidArgument, HasSubstr(text));
  };
  std::vector<int64_t> slots = world.all_slots;
  slots[5] = kSlots;
  EXPECT_THAT(begin(world.whole(), slots), is("token 5 must be -1..511, found 512"));
  slots.resize(17);
  EXPECT_THAT(begin(world.whole(), slots), is("need 16 slots, found 17"));
  slots.assign(6 * 16, 0);
  EXPECT_THAT(begin(world.whole(), slots), is("6 pages, options.pages_max is 5"));
  EXPECT_THAT(begin({{0, 4}, {0, 2}}, world.all_slots), is("layers 0 + 4"));
  EXPECT_THAT(fetcher->Finish(), StatusIs(StatusCode::kFailedPrecondition));
  ASSERT_OK(begin(world.whole(), world.all_slots));
  EXPECT_THAT(begin(world.whole(), world.all_slots), StatusIs(StatusCode::kFailedPrecondition));
  EXPECT_THAT(fetcher->AddAll({}), StatusIs(StatusCode::kInvalidArgument));
}

TEST(GpuTransferMisuse, CacheMustBeOnTheDevice) {
  const TransferWorld world(kCase);
  EngineCache host = world.Empty(kCase);
  EXPECT_THAT(
      client::GpuCache::Create(host.View(), world.geometry,
                               {.k = host.memory()[0].size(), .v = host.memory()[0].size()}),
      StatusIs(StatusCode::kInvalidArgument,
               HasSubstr("cache, K, layer 0: expected memory of device 0, found host")));
}

TEST(GpuTransferMisuse, OptionsThatNoDeviceHasRoomFor) {
  const TransferWorld world(kCase);
  GpuTransferOptions options;
  options.stage_bytes = uint64_t{1} << 42;
  EXPECT_THAT(GpuFetcher::Create(world.codec, options), StatusIs(StatusCode::kResourceExhausted));
  EXPECT_THAT(GpuPusher::Create(world.codec, options), StatusIs(StatusCode::kResourceExhausted));
  options.stage_bytes = 100;
  EXPECT_THAT(GpuFetcher::Create(world.codec, options),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("one layer of a page")));
  EXPECT_THAT(GpuFetcher::Create(world.codec, {.stages = 1}),
              StatusIs(StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace oscarkv::testing
