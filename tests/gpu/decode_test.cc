// The device's decode kernels beside the page codec on the CPU, on the same page bytes.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/codec/oscar/cuda_page_codec.h"
#include "kernels/device/status.h"
#include "kernels/device/stream.h"
#include "tests/codec/page_testing.h"
#include "tests/gpu/gpu_cache.h"
#include "tests/gpu/gpu_graph.h"
#include "tests/gpu/gpu_world.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

using ::testing::Each;

// The same, with the pages that the CPU makes of it.
struct DecodeWorld : World {
  std::vector<EncodedPage> pages;

  explicit DecodeWorld(const Case& c) : World(c, WideBasis::kModel) { Encode(); }
  void Encode() { pages = CpuPages(); }
  BlockRange all_layers() const { return {0, geometry.layers}; }
  BlockRange all_heads() const { return {0, geometry.kv_heads}; }
};

// Decodes on the device into a fresh cache, which comes back; status words too.
std::vector<uint32_t> GpuDecode(const DecodeWorld& world, const std::vector<EncodedPage>& pages,
                                BlockRange layers, BlockRange heads, DecodeBasis basis,
                                EngineCache& into) {
  const GpuCache cache(into);
  const GpuBatch batch(pages, world.slots, layers, heads);
  const auto stream = OrDie(device::Stream::Create());
  EXPECT_OK(world.gpu->Decode(batch.batch(), basis, cache.View(), stream.get()));
  EXPECT_OK(stream.Synchronize());
  cache.CopyTo(into);
  return batch.Status();
}

void CpuDecode(const DecodeWorld& world, const std::vector<EncodedPage>& pages, BlockRange layers,
               BlockRange heads, DecodeBasis basis, EngineCache& into) {
  for (size_t i = 0; i < pages.size(); ++i) {
    DecodeItem item{.encoding = Encoding::kPacked,
                    .layers = layers,
                    .heads = heads,
                    .slots = world.slots[i],
                    .bytes = pages[i].bytes,
                    .block_crc32c = pages[i].crcs,
                    .result = {}};
    ASSERT_OK(world.cpu->Decode({&item, 1}, basis, into.View()));
    ASSERT_OK(item.result);
  }
}

// The greatest difference of a row, in parts of its greatest magnitude.
double WorstDifference(const DecodeWorld& world, EngineCache& one, EngineCache& other) {
  double worst = 0.0;
  for (uint32_t layer = 0; layer < world.geometry.layers; ++layer) {
    for (uint32_t head = 0; head < world.geometry.kv_heads; ++head) {
      for (int64_t slot = 0; slot < kSlots; ++slot) {
        for (KvSide side : {KvSide::kK, KvSide::kV}) {
          const auto left = one.Read(side, layer, head, slot);
          const auto right = other.Read(side, layer, head, slot);
          double most = 0.0;
          double difference = 0.0;
          for (size_t i = 0; i < left.size(); ++i) {
            if (std::isnan(left[i]) != std::isnan(right[i])) return HUGE_VAL;
            if (std::isnan(left[i])) continue;
            most = std::max(most, std::fabs(double{right[i]}));
            difference = std::max(difference, std::fabs(double{left[i]} - double{right[i]}));
          }
          if (most > 0.0) worst = std::max(worst, difference / most);
        }
      }
    }
  }
  return worst;
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (uint32_t dim : {64u, 128u, 256u}) {
    for (LayerBits bits : {LayerBits{2, 2}, LayerBits{4, 2}, LayerBits{2, 4}, LayerBits{4, 4}}) {
      for (uint32_t group : {16u, 32u, 64u, 0u}) {
        for (ParamsDType params : {ParamsDType::kFp16, ParamsDType::kFp32}) {
          cases.push_back({dim, dim, bits, group, params, DType::kBf16, EngineLayout::kTokenMajor,
                           dim < 256 ? 64u : 32u});
        }
      }
    }
  }
  for (DType dtype : {DType::kBf16, DType::kFp16}) {
    for (EngineLayout layout :
         {EngineLayout::kTokenMajor, EngineLayout::kNhd, EngineLayout::kHnd}) {
      for (uint32_t tokens : {1u, 5u, 16u, 24u, 100u}) {
        cases.push_back({128, 128, {2, 2}, 0, ParamsDType::kFp16, dtype, layout, tokens});
      }
    }
  }
  cases.push_back({128, 64, {2, 2}, 0, ParamsDType::kFp16, DType::kBf16, EngineLayout::kHnd, 32});
  cases.push_back({64, 256, {4, 2}, 32, ParamsDType::kFp32, DType::kFp16, EngineLayout::kNhd, 32});
  return cases;
}

class GpuDecodeTest : public ::testing::TestWithParam<Case> {};

TEST_P(GpuDecodeTest, WritesTheBytesThatTheReferenceWritesInTheTransformedBasis) {
  const DecodeWorld world(GetParam());
  EngineCache found(GetParam().layout, world.geometry, GetParam().dtype, kSlots);
  EngineCache expected(GetParam().layout, world.geometry, GetParam().dtype, kSlots);
  const auto status = GpuDecode(world, world.pages, world.all_layers(), world.all_heads(),
                                DecodeBasis::kTransformed, found);
  CpuDecode(world, world.pages, world.all_layers(), world.all_heads(), DecodeBasis::kTransformed,
            expected);
  EXPECT_THAT(status, Each(0u)) << Describe(GetParam());
  EXPECT_TRUE(found.memory() == expected.memory()) << Describe(GetParam());
}

TEST_P(GpuDecodeTest, GoesBackToTheModelsBasisWithinTheBound) {
  const DecodeWorld world(GetParam());
  EngineCache found(GetParam().layout, world.geometry, GetParam().dtype, kSlots);
  EngineCache expected(GetParam().layout, world.geometry, GetParam().dtype, kSlots);
  const auto status = GpuDecode(world, world.pages, world.all_layers(), world.all_heads(),
                                DecodeBasis::kModel, found);
  CpuDecode(world, world.pages, world.all_layers(), world.all_heads(), DecodeBasis::kModel,
            expected);
  EXPECT_THAT(status, Each(0u)) << Describe(GetParam());
  // One rounding to bf16 each way, and the fp16 operands.
  EXPECT_LE(WorstDifference(world, found, expected),
            GetParam().dtype == DType::kBf16 ? 0x1p-7 : 0x1p-9)
      << Describe(GetParam());
}

INSTANTIATE_TEST_SUITE_P(Shapes, GpuDecodeTest, ::testing::ValuesIn(Cases()),
                         [](const auto& instance) { return std::to_string(instance.index); });

const Case kPlain = {128, 128, {2, 2}, 0, ParamsDType::kFp16, DType::kBf16, EngineLayout::kNhd, 64};

// More blocks than a device has places for: thread blocks go through many, from layer to layer.
TEST(GpuDecodeTest, TakesManyPages) {
  for (const Case& c :
       {kPlain,
        Case{128, 128, {2, 2}, 32, ParamsDType::kFp16, DType::kBf16, EngineLayout::kTokenMajor, 16},
        Case{128, 64, {2, 4}, 0, ParamsDType::kFp16, DType::kBf16, EngineLayout::kHnd, 24},
        Case{256, 256, {4, 4}, 0, ParamsDType::kFp32, DType::kBf16, EngineLayout::kNhd, 48}}) {
    DecodeWorld world(c);
    EngineCache expected(c.layout, world.geometry, c.dtype, kSlots);
    for (DecodeBasis basis : {DecodeBasis::kModel, DecodeBasis::kTransformed}) {
      CpuDecode(world, world.pages, world.all_layers(), world.all_heads(), basis, expected);
      const auto slots = world.slots;
      std::vector<EncodedPage> pages;
      world.slots.clear();
      for (int i = 0; i < 40; ++i) {  // the same ones, again and again
        pages.insert(pages.end(), world.pages.begin(), world.pages.end());
        world.slots.insert(world.slots.end(), slots.begin(), slots.end());
      }
      EngineCache found(c.layout, world.geometry, c.dtype, kSlots);
      EXPECT_THAT(GpuDecode(world, pages, world.all_layers(), world.all_heads(), basis, found),
                  Each(0u));
      world.slots = slots;
      EXPECT_LE(WorstDifference(world, found, expected),
                basis == DecodeBasis::kModel ? 0x1p-7 : 0.0)
          << Describe(c);
    }
  }
}

TEST(GpuDecodeTest, TakesARangeOfLayersAndHeads) {
  const DecodeWorld world(kPlain);
  const BlockRange layers{1, 2};
  const BlockRange heads{1, 1};
  std::vector<EncodedPage> parts;
  for (const EncodedPage& page : world.pages)
    parts.push_back(CutPart(world.cpu->layout(Encoding::kPacked), page, layers, heads));
  EngineCache found(kPlain.layout, world.geometry, kPlain.dtype, kSlots);
  EngineCache expected(kPlain.layout, world.geometry, kPlain.dtype, kSlots);
  GpuDecode(world, parts, layers, heads, DecodeBasis::kTransformed, found);
  CpuDecode(world, parts, layers, heads, DecodeBasis::kTransformed, expected);
  EXPECT_TRUE(found.memory() == expected.memory());
}

TEST(GpuDecodeTest, LeavesTokensWithoutASlotAlone) {
  DecodeWorld world(kPlain);
  for (auto& slots : world.slots) {
    for (size_t i = 0; i < slots.size(); i += 3) slots[i] = -1;
  }
  EngineCache found(kPlain.layout, world.geometry, kPlain.dtype, kSlots);
  EngineCache expected(kPlain.layout, world.geometry, kPlain.dtype, kSlots);
  GpuDecode(world, world.pages, world.all_layers(), world.all_heads(), DecodeBasis::kTransformed,
            found);
  CpuDecode(world, world.pages, world.all_layers(), world.all_heads(), DecodeBasis::kTransformed,
            expected);
  EXPECT_TRUE(found.memory() == expected.memory());
}

TEST(GpuDecodeTest, ASlotBeyondTheCacheIsReportedAndNotWritten) {
  DecodeWorld world(kPlain);
  EngineCache expected(kPlain.layout, world.geometry, kPlain.dtype, kSlots);
  world.slots[2][7] = -1;
  CpuDecode(world, world.pages, world.all_layers(), world.all_heads(), DecodeBasis::kTransformed,
            expected);
  world.slots[2][7] = int64_t{1} << 40;
  EngineCache found(kPlain.layout, world.geometry, kPlain.dtype, kSlots);
  const auto status = GpuDecode(world, world.pages, world.all_layers(), world.all_heads(),
                                DecodeBasis::kTransformed, found);
  EXPECT_TRUE(found.memory() == expected.memory());
  for (size_t i = 0; i < status.size(); ++i)
    EXPECT_EQ(status[i], i / world.geometry.blocks() == 2 ? cuda::kBadSlot : 0u);
}

TEST(GpuDecodeTest, ABlockWithAWrongByteIsReportedAndNotWritten) {
  for (DecodeBasis basis : {DecodeBasis::kModel, DecodeBasis::kTransformed}) {
    DecodeWorld world(kPlain);
    EngineCache before(kPlain.layout, world.geometry, kPlain.dtype, kSlots);
    EngineCache found(kPlain.layout, world.geometry, kPlain.dtype, kSlots);
    const PageLayout& layout = world.cpu->layout(Encoding::kPacked);
    // One bit in block (layer 1, head 0) of page 3, the last byte that the checksum covers.
    world.pages[3].bytes[layout.block_offset(1, 0) + layout.block(1).bytes - 1] ^= std::byte{0x10};
    const auto status =
        GpuDecode(world, world.pages, world.all_layers(), world.all_heads(), basis, found);
    for (size_t i = 0; i < status.size(); ++i)
      EXPECT_EQ(status[i], i == 3 * world.geometry.blocks() + 2 ? cuda::kBadChecksum : 0u);
    for (int64_t slot : world.slots[3]) {
      for (KvSide side : {KvSide::kK, KvSide::kV}) {
        EXPECT_EQ(found.Read(side, 1, 0, slot), before.Read(side, 1, 0, slot));
        EXPECT_NE(found.Read(side, 1, 1, slot), before.Read(side, 1, 1, slot));
      }
    }
  }
}

TEST(GpuDecodeTest, PointersThatAreMisalignedOrNullAreReportedAndNotFollowed) {
  const DecodeWorld world(kPlain);
  for (const bool page_is_bad : {true, false}) {
    for (const uintptr_t wrong : {uintptr_t{0}, uintptr_t{0x1008}}) {
      EngineCache found(kPlain.layout, world.geometry, kPlain.dtype, kSlots);
      EngineCache expected(kPlain.layout, world.geometry, kPlain.dtype, kSlots);
      const GpuCache cache(found);
      const GpuBatch batch(world.pages, world.slots, world.all_layers(), world.all_heads());
      cuda::DeviceEngineView view = cache.View();
      cuda::DeviceDecodeBatch changed = batch.batch();
      device::DeviceBuffer pointers;
      if (page_is_bad) {
        pointers = WithPointer(changed.page_bytes, world.pages.size(), 1, wrong);
        changed.page_bytes = pointers.as<const std::byte*>();
      } else {
        pointers = WithPointer(view.k.layer_base, world.geometry.layers, 1, wrong);
        view.k.layer_base = pointers.as<std::byte*>();
      }
      const auto stream = OrDie(device::Stream::Create());
      ASSERT_OK(world.gpu->Decode(changed, DecodeBasis::kTransformed, view, stream.get()));
      ASSERT_OK(stream.Synchronize());
      cache.CopyTo(found);
      const auto status = batch.Status();
      for (size_t i = 0; i < status.size(); ++i) {
        const size_t number = page_is_bad ? i / world.geometry.blocks()
                                          : i % world.geometry.blocks() / world.geometry.kv_heads;
        EXPECT_EQ(status[i], number == 1 ? cuda::kBadPointer : 0u);
      }
      for (int64_t slot : world.slots[1]) {
        EXPECT_EQ(found.Read(KvSide::kV, 1, 0, slot), expected.Read(KvSide::kV, 1, 0, slot));
        EXPECT_EQ(found.Read(KvSide::kV, 2, 0, slot) == expected.Read(KvSide::kV, 2, 0, slot),
                  page_is_bad);
      }
    }
  }
}

TEST(GpuDecodeTest, RowsThatCouldNotBeEncodedReadBackAsNanAndAreReported) {
  DecodeWorld world(kPlain);
  std::vector<float> row = world.source.Read(KvSide::kV, 2, 1, world.slots[1][9]);
  row[5] = std::numeric_limits<float>::quiet_NaN();
  world.source.Write(KvSide::kV, 2, 1, world.slots[1][9], row);
  world.Encode();
  EngineCache found(kPlain.layout, world.geometry, kPlain.dtype, kSlots);
  EngineCache expected(kPlain.layout, world.geometry, kPlain.dtype, kSlots);
  const auto status = GpuDecode(world, world.pages, world.all_layers(), world.all_heads(),
                                DecodeBasis::kModel, found);
  CpuDecode(world, world.pages, world.all_layers(), world.all_heads(), DecodeBasis::kModel,
            expected);
  EXPECT_LE(WorstDifference(world, found, expected), 0x1p-7);
  EXPECT_TRUE(std::isnan(found.Read(KvSide::kV, 2, 1, world.slots[1][9])[64]));
  for (size_t i = 0; i < status.size(); ++i)
    EXPECT_EQ(status[i], i == 2 * world.geometry.blocks() - 1 ? cuda::kNonFiniteRows : 0u);
}

TEST(GpuDecodeTest, CanBeCapturedAndReplayed) {
  const DecodeWorld world(kPlain);
  EngineCache found(kPlain.layout, world.geometry, kPlain.dtype, kSlots);
  EngineCache expected(kPlain.layout, world.geometry, kPlain.dtype, kSlots);
  const GpuCache cache(found);
  const GpuBatch batch(world.pages, world.slots, world.all_layers(), world.all_heads());
  Replay(3, [&](cudaStream_t stream) {
    EXPECT_OK(world.gpu->Decode(batch.batch(), DecodeBasis::kTransformed, cache.View(), stream));
  });
  cache.CopyTo(found);
  CpuDecode(world, world.pages, world.all_layers(), world.all_heads(), DecodeBasis::kTransformed,
            expected);
  EXPECT_TRUE(found.memory() == expected.memory());
}

}  // namespace
}  // namespace oscarkv::testing
