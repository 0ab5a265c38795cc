// WIDE pages on the device beside the page codec on the CPU: the same bytes and checksums, and
// back.
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/codec/oscar/cuda_page_codec.h"
#include "kernels/device/stream.h"
#include "tests/codec/page_testing.h"
#include "tests/gpu/gpu_cache.h"
#include "tests/gpu/gpu_graph.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

constexpr uint32_t kWideSlots = 600;
constexpr uint32_t kLayers = 3;
constexpr uint32_t kHeads = 2;

struct WideCase {
  uint32_t k_dim;
  uint32_t v_dim;
  DType dtype;
  EngineLayout layout;
  uint32_t page_tokens;
};

// Codecs without a transform set, a cache of random bits, and the slots of two pages in it.
struct WideWorld {
  Geometry geometry;
  CodecSpec spec;
  std::unique_ptr<PageCodec> cpu;
  std::unique_ptr<cuda::CudaPageCodec> gpu;
  EngineCache source;
  std::vector<std::vector<int64_t>> slots;
  EngineLayout engine;

  explicit WideWorld(const WideCase& c, WideBasis basis = WideBasis::kModel)
      : geometry{.layers = kLayers,
                 .kv_heads = kHeads,
                 .k_head_dim = c.k_dim,
                 .v_head_dim = c.v_dim,
                 .page_tokens = c.page_tokens,
                 .dtype = c.dtype},
        source(c.layout, geometry, c.dtype, kWideSlots),
        engine(c.layout) {
    spec.wide_basis = basis;
    cpu = OrDie(MakePageCodec(CodecBackend::kReference, geometry, spec, nullptr));
    gpu = OrDie(cuda::CudaPageCodec::Create(geometry, spec, nullptr));
    std::mt19937 random(c.page_tokens);
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      for (uint32_t head = 0; head < kHeads; ++head) {
        for (int64_t slot = 0; slot < kWideSlots; ++slot) {
          for (KvSide side : {KvSide::kK, KvSide::kV}) {
            for (std::byte& byte : source.Row(side, layer, head, slot))
              byte = static_cast<std::byte>(random());
          }
        }
      }
    }
    std::vector<int64_t> free(kWideSlots);
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin(), free.end(), random);
    for (uint32_t page = 0; page < 2; ++page) {
      const auto first = free.begin() + page * c.page_tokens;
      slots.emplace_back(first, first + c.page_tokens);
    }
  }
  BlockRange all_layers() const { return {0, kLayers}; }
  BlockRange all_heads() const { return {0, kHeads}; }
  EngineCache EmptyCache() const { return {engine, geometry, geometry.dtype, kWideSlots}; }
  std::vector<EncodedPage> CpuPages() {
    std::vector<EncodedPage> pages;
    for (const auto& of_page : slots)
      pages.push_back(EncodePage(*cpu, Encoding::kWide, source, of_page));
    return pages;
  }
};

struct Written {
  std::vector<EncodedPage> pages;
  std::vector<uint32_t> status;
};

Written GpuPages(WideWorld& world, BlockRange layers, BlockRange heads) {
  const GpuCache cache(world.source);
  const GpuEncodeBatch batch(world.gpu->layout(Encoding::kWide), world.slots, layers, heads);
  cuda::DeviceEncodeBatch without_counts = batch.batch();
  without_counts.counts = nullptr;
  const auto stream = OrDie(device::Stream::Create());
  EXPECT_OK(world.gpu->Encode(cache.View(), without_counts, stream.get()));
  EXPECT_OK(stream.Synchronize());
  return {batch.Pages(), batch.Status()};
}

std::vector<uint32_t> GpuDecode(const WideWorld& world, const std::vector<EncodedPage>& pages,
                                BlockRange layers, BlockRange heads, EngineCache& into) {
  const GpuCache cache(into);
  const GpuBatch batch(pages, world.slots, layers, heads, Encoding::kWide);
  const auto stream = OrDie(device::Stream::Create());
  EXPECT_OK(
      world.gpu->Decode(batch.batch(), world.gpu->engine_basis(), cache.View(), stream.get()));
  EXPECT_OK(stream.Synchronize());
  cache.CopyTo(into);
  return batch.Status();
}

void CpuDecode(const WideWorld& world, const std::vector<EncodedPage>& pages, BlockRange layers,
               BlockRange heads, EngineCache& into) {
  for (size_t i = 0; i < pages.size(); ++i) {
    DecodeItem item{.encoding = Encoding::kWide,
                    .layers = layers,
                    .heads = heads,
                    .slots = world.slots[i],
                    .bytes = pages[i].bytes,
                    .block_crc32c = pages[i].crcs,
                    .result = {}};
    ASSERT_OK(world.cpu->Decode({&item, 1}, world.cpu->engine_basis(), into.View()));
    ASSERT_OK(item.result);
  }
}

void ExpectPages(const std::vector<EncodedPage>& found, const std::vector<EncodedPage>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t page = 0; page < found.size(); ++page) {
    EXPECT_TRUE(found[page].bytes == expected[page].bytes) << "page " << page;
    EXPECT_EQ(found[page].crcs, expected[page].crcs) << "page " << page;
  }
}

std::vector<WideCase> Cases() {
  std::vector<WideCase> cases;
  for (DType dtype : {DType::kBf16, DType::kFp16}) {
    for (EngineLayout layout :
         {EngineLayout::kTokenMajor, EngineLayout::kNhd, EngineLayout::kHnd}) {
      for (uint32_t tokens : {1u, 5u, 16u, 64u, 100u})
        cases.push_back({128, 128, dtype, layout, tokens});
    }
  }
  for (uint32_t dim : {16u, 64u, 80u, 96u, 256u})
    cases.push_back({dim, dim, DType::kBf16, EngineLayout::kNhd, 33});
  cases.push_back({128, 64, DType::kBf16, EngineLayout::kHnd, 7});
  cases.push_back({192, 128, DType::kFp16, EngineLayout::kTokenMajor, 64});
  cases.push_back(
      {256, 256, DType::kBf16, EngineLayout::kTokenMajor, 300});  // nine and a half tiles
  return cases;
}

class GpuWideTest : public ::testing::TestWithParam<WideCase> {};

TEST_P(GpuWideTest, WritesTheReferencesPages) {
  WideWorld world(GetParam());
  const Written found = GpuPages(world, world.all_layers(), world.all_heads());
  ExpectPages(found.pages, world.CpuPages());
  EXPECT_THAT(found.status, Each(0u));
}

TEST_P(GpuWideTest, WritesRowsBackBitForBit) {
  WideWorld world(GetParam());
  EngineCache found = world.EmptyCache();
  EngineCache expected = world.EmptyCache();
  const auto pages = world.CpuPages();
  const auto status = GpuDecode(world, pages, world.all_layers(), world.all_heads(), found);
  CpuDecode(world, pages, world.all_layers(), world.all_heads(), expected);
  EXPECT_THAT(status, Each(0u));
  EXPECT_TRUE(found.memory() == expected.memory());
}

INSTANTIATE_TEST_SUITE_P(Shapes, GpuWideTest, ::testing::ValuesIn(Cases()),
                         [](const auto& instance) { return std::to_string(instance.index); });

const WideCase kPlain = {128, 128, DType::kBf16, EngineLayout::kNhd, 64};
const WideCase kLarge = {256, 256, DType::kBf16, EngineLayout::kNhd, 100};  // several tiles a block

TEST(GpuWideTest, TakesARangeOfLayersAndHeads) {
  WideWorld world(kPlain);
  const BlockRange layers{1, 2};
  const BlockRange heads{1, 1};
  std::vector<EncodedPage> parts;
  for (const EncodedPage& page : world.CpuPages())
    parts.push_back(CutPart(world.cpu->layout(Encoding::kWide), page, layers, heads));
  ExpectPages(GpuPages(world, layers, heads).pages, parts);
  EngineCache found = world.EmptyCache();
  EngineCache expected = world.EmptyCache();
  GpuDecode(world, parts, layers, heads, found);
  CpuDecode(world, parts, layers, heads, expected);
  EXPECT_TRUE(found.memory() == expected.memory());
}

TEST(GpuWideTest, TokensWithoutASlotAreLeftAlone) {
  WideWorld world(kPlain);
  const auto pages = world.CpuPages();
  for (auto& slots : world.slots) {
    for (size_t i = 0; i < slots.size(); i += 3) slots[i] = -1;
  }
  EngineCache found = world.EmptyCache();
  EngineCache expected = world.EmptyCache();
  EXPECT_THAT(GpuDecode(world, pages, world.all_layers(), world.all_heads(), found), Each(0u));
  CpuDecode(world, pages, world.all_layers(), world.all_heads(), expected);
  EXPECT_TRUE(found.memory() == expected.memory());
}

TEST(GpuWideTest, ASlotBeyondTheCacheIsReportedAndNotWritten) {
  WideWorld world(kPlain);
  const auto pages = world.CpuPages();
  EngineCache found = world.EmptyCache();
  EngineCache expected = world.EmptyCache();
  world.slots[1][7] = -1;
  CpuDecode(world, pages, world.all_layers(), world.all_heads(), expected);
  world.slots[1][7] = int64_t{1} << 40;
  const auto status = GpuDecode(world, pages, world.all_layers(), world.all_heads(), found);
  EXPECT_TRUE(found.memory() == expected.memory());
  for (size_t i = 0; i < status.size(); ++i)
    EXPECT_EQ(status[i], i / world.geometry.blocks() == 1 ? cuda::kBadSlot : 0u);
}

TEST(GpuWideTest, RowsOfASlotOutsideTheCacheAreEncodedAsNan) {
  for (int64_t slot : {int64_t{-1}, int64_t{kWideSlots}, int64_t{1} << 40}) {
    WideWorld world(kPlain);
    const int64_t before = world.slots[1][7];
    world.slots[1][7] = slot;
    const Written found = GpuPages(world, world.all_layers(), world.all_heads());
    world.slots[1][7] = before;
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      for (uint32_t head = 0; head < kHeads; ++head) {
        for (KvSide side : {KvSide::kK, KvSide::kV}) {
          const std::vector<float> nan(128, std::numeric_limits<float>::quiet_NaN());
          world.source.Write(side, layer, head, before, nan);
        }
      }
    }
    ExpectPages(found.pages, world.CpuPages());
    for (size_t i = 0; i < found.status.size(); ++i)
      EXPECT_EQ(found.status[i], i / world.geometry.blocks() == 1 ? cuda::kBadSlot : 0u);
  }
}

TEST(GpuWideTest, NothingOfABlockWithAWrongByteIsWritten) {
  for (const WideCase& c : {kPlain, kLarge}) {
    WideWorld world(c);
    const PageLayout& layout = world.cpu->layout(Encoding::kWide);
    const uint64_t bytes = layout.block(1).bytes;
    for (uint64_t at : {uint64_t{0}, bytes / 2 + 5, bytes - 1}) {
      auto pages = world.CpuPages();
      pages[1].bytes[layout.block_offset(1, 0) + at] ^= std::byte{0x10};
      EngineCache before = world.EmptyCache();
      EngineCache found = world.EmptyCache();
      const auto status = GpuDecode(world, pages, world.all_layers(), world.all_heads(), found);
      for (size_t i = 0; i < status.size(); ++i)
        EXPECT_EQ(status[i], i == world.geometry.blocks() + 2 ? cuda::kBadChecksum : 0u);
      const auto same = [](std::span<const std::byte> a, std::span<const std::byte> b) {
        return std::equal(a.begin(), a.end(), b.begin(), b.end());
      };
      for (int64_t slot : world.slots[1]) {
        for (KvSide side : {KvSide::kK, KvSide::kV}) {
          EXPECT_TRUE(same(found.Row(side, 1, 0, slot), before.Row(side, 1, 0, slot)));
          EXPECT_TRUE(same(found.Row(side, 1, 1, slot), world.source.Row(side, 1, 1, slot)));
        }
      }
    }
  }
}

TEST(GpuWideTest, PointersThatAreMisalignedOrNullAreReportedAndNotFollowed) {
  WideWorld world(kPlain);
  const auto pages = world.CpuPages();
  for (const uintptr_t wrong : {uintptr_t{0x1008}, uintptr_t{0}}) {
    EngineCache found = world.EmptyCache();
    EngineCache expected = world.EmptyCache();
    const GpuCache cache(found);
    const GpuBatch batch(pages, world.slots, world.all_layers(), world.all_heads(),
                         Encoding::kWide);
    cuda::DeviceEngineView view = cache.View();
    const auto changed = WithPointer(view.v.layer_base, kLayers, 1, wrong);
    view.v.layer_base = changed.as<std::byte*>();
    const auto stream = OrDie(device::Stream::Create());
    ASSERT_OK(world.gpu->Decode(batch.batch(), DecodeBasis::kModel, view, stream.get()));
    ASSERT_OK(stream.Synchronize());
    cache.CopyTo(found);
    const auto status = batch.Status();
    for (size_t i = 0; i < status.size(); ++i)
      EXPECT_EQ(status[i], i % world.geometry.blocks() / kHeads == 1 ? cuda::kBadPointer : 0u);
    EXPECT_TRUE(found.memory()[1] == expected.memory()[1]);
    EXPECT_FALSE(found.memory()[2] == expected.memory()[2]);
  }
}

TEST(GpuWideTest, CanBeCapturedAndReplayed) {
  WideWorld world(kPlain);
  const GpuCache from(world.source);
  const GpuEncodeBatch written(world.gpu->layout(Encoding::kWide), world.slots);
  EngineCache found = world.EmptyCache();
  EngineCache expected = world.EmptyCache();
  const GpuCache to(found);
  const auto pages = world.CpuPages();
  const GpuBatch read(pages, world.slots, world.all_layers(), world.all_heads(), Encoding::kWide);
  Replay(3, [&](cudaStream_t stream) {
    EXPECT_OK(world.gpu->Encode(from.View(), written.batch(), stream));
    EXPECT_OK(world.gpu->Decode(read.batch(), DecodeBasis::kModel, to.View(), stream));
  });
  ExpectPages(written.Pages(), pages);
  to.CopyTo(found);
  CpuDecode(world, pages, world.all_layers(), world.all_heads(), expected);
  EXPECT_TRUE(found.memory() == expected.memory());
}

TEST(GpuWideTest, ARotatedEnginesPagesAreInItsBasis) {
  WideWorld world(kPlain, WideBasis::kTransformed);
  ExpectPages(GpuPages(world, world.all_layers(), world.all_heads()).pages, world.CpuPages());
  const GpuCache cache(world.source);
  const GpuBatch batch(world.CpuPages(), world.slots, world.all_layers(), world.all_heads(),
                       Encoding::kWide);
  EXPECT_OK(world.gpu->Decode(batch.batch(), DecodeBasis::kTransformed, cache.View(), nullptr));
  const absl::Status status =
      world.gpu->Decode(batch.batch(), DecodeBasis::kModel, cache.View(), nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("as they are stored"));
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

TEST(GpuWideTest, RefusesWhatTheDeviceHasNot) {
  WideWorld world(kPlain);
  const GpuCache cache(world.source);
  const GpuBatch batch(world.CpuPages(), world.slots, world.all_layers(), world.all_heads(),
                       Encoding::kWide);
  cuda::DeviceEngineView view = cache.View();
  view.k.dtype = view.v.dtype = DType::kFp16;
  absl::Status status = world.gpu->Decode(batch.batch(), DecodeBasis::kModel, view, nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("bf16 to bf16"));
  cuda::DeviceDecodeBatch packed = batch.batch();
  packed.encoding = Encoding::kPacked;
  status = world.gpu->Decode(packed, DecodeBasis::kModel, cache.View(), nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("transform set"));
}

}  // namespace
}  // namespace oscarkv::testing
