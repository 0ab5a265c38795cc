// The reference engine's INT2 pool to pages and back on the device, beside plain loops on the CPU.
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/base/checksum.h"
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

constexpr uint32_t kPoolSlots = 300;
constexpr uint32_t kLayers = 3;
constexpr uint32_t kHeads = 2;

// Rows of one tensor of the pool: [layers][slots][heads] of `row_bytes`.
struct Tensor {
  size_t row_bytes;
  Bytes bytes;

  explicit Tensor(size_t row) : row_bytes(row), bytes(kLayers * kPoolSlots * kHeads * row) {}
  std::byte* Row(uint32_t layer, uint32_t head, int64_t slot) {
    return bytes.data() +
           ((layer * kPoolSlots + static_cast<size_t>(slot)) * kHeads + head) * row_bytes;
  }
};

// K codes, K params, V codes, V params, in the order of a block's parts.
struct Pool {
  std::vector<Tensor> tensors;

  explicit Pool(const PageLayout& layout) {
    for (const SideLayout& side : {layout.block(0).k, layout.block(0).v}) {
      tensors.emplace_back(side.row_bytes);
      tensors.emplace_back(side.params_row_bytes);
    }
  }
  void FillRandom() {
    std::mt19937 random(4);
    for (Tensor& tensor : tensors) {
      for (std::byte& byte : tensor.bytes) byte = static_cast<std::byte>(random());
    }
  }
};

// A pool mirrored in device memory.
struct GpuPool {
  std::vector<device::DeviceBuffer> tensors;
  std::vector<device::DeviceBuffer> bases;
  cuda::DevicePoolView view;

  GpuPool(const Pool& pool, ParamsDType params) {
    std::vector<cuda::DevicePoolTensor> places;
    for (const Tensor& tensor : pool.tensors) {
      tensors.push_back(OrDie(device::DeviceBuffer::CopyOf(std::span(tensor.bytes))));
      std::vector<std::byte*> layers;
      for (uint32_t layer = 0; layer < kLayers; ++layer)
        layers.push_back(tensors.back().data() + layer * kPoolSlots * kHeads * tensor.row_bytes);
      bases.push_back(OrDie(device::DeviceBuffer::CopyOf(std::span(layers))));
      places.push_back({.layer_base = bases.back().as<std::byte*>(),
                        .slot_stride = static_cast<int64_t>(kHeads * tensor.row_bytes),
                        .head_stride = static_cast<int64_t>(tensor.row_bytes)});
    }
    view = {.k_codes = places[0],
            .k_params = places[1],
            .v_codes = places[2],
            .v_params = places[3],
            .params = params,
            .slots = kPoolSlots};
  }
  void CopyTo(Pool& pool) const {
    for (size_t i = 0; i < tensors.size(); ++i) OrDie(tensors[i].CopyTo(pool.tensors[i].bytes));
  }
};

struct PoolCase {
  uint32_t k_dim;
  uint32_t v_dim;
  uint32_t group;
  ParamsDType params;
  uint32_t page_tokens;
};

struct PoolWorld {
  Geometry geometry;
  CodecSpec spec;
  std::unique_ptr<cuda::CudaPageCodec> gpu;
  std::vector<std::vector<int64_t>> slots;

  explicit PoolWorld(const PoolCase& c, LayerBits bits = {2, 2})
      : geometry{.layers = kLayers,
                 .kv_heads = kHeads,
                 .k_head_dim = c.k_dim,
                 .v_head_dim = c.v_dim,
                 .page_tokens = c.page_tokens,
                 .dtype = DType::kBf16} {
    spec.bits = {bits};
    spec.group = c.group;
    spec.params = c.params;
    spec.transform_hash = std::string(32, 't');
    gpu = OrDie(cuda::CudaPageCodec::Create(geometry, spec, IdentitySet(geometry, 1, 1).get()));
    std::vector<int64_t> free(kPoolSlots);
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin(), free.end(), std::mt19937(3));
    for (uint32_t page = 0; page < 2; ++page) {
      const auto first = free.begin() + page * c.page_tokens;
      slots.emplace_back(first, first + c.page_tokens);
    }
  }
  const PageLayout& layout() const { return gpu->layout(Encoding::kPacked); }

  // Calls visit(part, layer, head, slot, its row in the page).
  template <typename Visitor>
  void ForEachRow(const std::vector<int64_t>& of_page, std::byte* page, Visitor&& visit) const {
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      const BlockLayout& block = layout().block(layer);
      const uint64_t offsets[] = {block.k.rows_offset, block.k.params_offset, block.v.rows_offset,
                                  block.v.params_offset};
      const uint64_t bytes[] = {block.k.row_bytes, block.k.params_row_bytes, block.v.row_bytes,
                                block.v.params_row_bytes};
      for (uint32_t head = 0; head < kHeads; ++head) {
        std::byte* start = page + layout().block_offset(layer, head);
        for (size_t part = 0; part < 4; ++part) {
          for (size_t token = 0; token < of_page.size(); ++token)
            visit(part, layer, head, of_page[token], start + offsets[part] + token * bytes[part]);
        }
      }
    }
  }
  // The pages that the pool's slots make; a negative slot's rows are as FORMAT.md has rows that are
  // not finite.
  std::vector<EncodedPage> Pages(Pool& pool) const {
    std::vector<EncodedPage> pages;
    for (const auto& of_page : slots) {
      EncodedPage page{Bytes(layout().page_bytes()), std::vector<uint32_t>(), {}};
      ForEachRow(of_page, page.bytes.data(),
                 [&](size_t part, uint32_t layer, uint32_t head, int64_t slot, std::byte* row) {
                   Tensor& tensor = pool.tensors[part];
                   if (slot >= 0) {
                     std::memcpy(row, tensor.Row(layer, head, slot), tensor.row_bytes);
                     return;
                   }
                   std::memset(row, 0, tensor.row_bytes);
                   const uint32_t nan = spec.params == ParamsDType::kFp16 ? 0x7e00 : 0x7fc00000;
                   const size_t pair = spec.params == ParamsDType::kFp16 ? 4 : 8;
                   for (size_t at = 0; part % 2 == 1 && at < tensor.row_bytes; at += pair)
                     std::memcpy(row + at, &nan, pair / 2);
                 });
      for (uint32_t layer = 0; layer < kLayers; ++layer) {
        for (uint32_t head = 0; head < kHeads; ++head) {
          page.crcs.push_back(Crc32c({page.bytes.data() + layout().block_offset(layer, head),
                                      layout().block(layer).bytes}));
        }
      }
      pages.push_back(std::move(page));
    }
    return pages;
  }
  // What the pool holds once the pages have been written to it.
  void Write(std::vector<EncodedPage> pages, Pool& pool) const {
    for (size_t i = 0; i < pages.size(); ++i) {
      ForEachRow(slots[i], pages[i].bytes.data(),
                 [&](size_t part, uint32_t layer, uint32_t head, int64_t slot, std::byte* row) {
                   Tensor& tensor = pool.tensors[part];
                   if (slot >= 0) std::memcpy(tensor.Row(layer, head, slot), row, tensor.row_bytes);
                 });
    }
  }
};

void ExpectPages(const std::vector<EncodedPage>& found, const std::vector<EncodedPage>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t page = 0; page < found.size(); ++page) {
    EXPECT_TRUE(found[page].bytes == expected[page].bytes) << "page " << page;
    EXPECT_EQ(found[page].crcs, expected[page].crcs) << "page " << page;
  }
}

void ExpectSame(const Pool& found, const Pool& expected) {
  for (size_t part = 0; part < 4; ++part)
    EXPECT_TRUE(found.tensors[part].bytes == expected.tensors[part].bytes) << "part " << part;
}

std::vector<PoolCase> Cases() {
  std::vector<PoolCase> cases;
  for (ParamsDType params : {ParamsDType::kFp32, ParamsDType::kFp16}) {
    for (uint32_t tokens : {1u, 3u, 8u, 16u, 64u, 100u}) {
      for (uint32_t group : {0u, 32u}) cases.push_back({128, 128, group, params, tokens});
    }
    for (uint32_t group : {16u, 0u}) {
      cases.push_back({64, 64, group, params, 16});
      cases.push_back({256, 256, group, params, 33});
    }
    cases.push_back({128, 64, 0, params, 5});
  }
  return cases;
}

class GpuPoolTest : public ::testing::TestWithParam<PoolCase> {};

TEST_P(GpuPoolTest, IngestsAPoolsBytes) {
  const PoolWorld world(GetParam());
  Pool pool(world.layout());
  pool.FillRandom();
  const GpuPool device(pool, world.spec.params);
  const GpuEncodeBatch batch(world.layout(), world.slots);
  const auto stream = OrDie(device::Stream::Create());
  ASSERT_OK(world.gpu->Ingest(device.view, batch.batch(), stream.get()));
  ASSERT_OK(stream.Synchronize());
  ExpectPages(batch.Pages(), world.Pages(pool));
  EXPECT_THAT(batch.Status(), Each(0u));
}

TEST_P(GpuPoolTest, EmitsThemAgain) {
  const PoolWorld world(GetParam());
  Pool source(world.layout());
  source.FillRandom();
  Pool found(world.layout());
  Pool expected(world.layout());
  const auto pages = world.Pages(source);
  world.Write(pages, expected);
  const GpuPool device(found, world.spec.params);
  const GpuBatch batch(pages, world.slots, {0, kLayers}, {0, kHeads});
  const auto stream = OrDie(device::Stream::Create());
  ASSERT_OK(world.gpu->Emit(batch.batch(), device.view, stream.get()));
  ASSERT_OK(stream.Synchronize());
  device.CopyTo(found);
  ExpectSame(found, expected);
  EXPECT_THAT(batch.Status(), Each(0u));
}

INSTANTIATE_TEST_SUITE_P(Shapes, GpuPoolTest, ::testing::ValuesIn(Cases()),
                         [](const auto& instance) { return std::to_string(instance.index); });

const PoolCase kPlain = {128, 128, 0, ParamsDType::kFp32, 64};

TEST(GpuPoolTest, SlotsBeyondThePoolAreReportedAndReadBackAsNan) {
  for (ParamsDType params : {ParamsDType::kFp32, ParamsDType::kFp16}) {
    for (uint32_t tokens : {64u, 5u}) {
      PoolWorld world({128, 128, 64, params, tokens});
      Pool pool(world.layout());
      pool.FillRandom();
      const GpuPool device(pool, params);
      world.slots[1][3] = kPoolSlots;
      const GpuEncodeBatch batch(world.layout(), world.slots);
      const auto stream = OrDie(device::Stream::Create());
      ASSERT_OK(world.gpu->Ingest(device.view, batch.batch(), stream.get()));
      ASSERT_OK(stream.Synchronize());
      world.slots[1][3] = -1;
      ExpectPages(batch.Pages(), world.Pages(pool));
      const auto status = batch.Status();
      for (size_t i = 0; i < status.size(); ++i) {
        EXPECT_EQ(status[i],
                  i / world.geometry.blocks() == 1 ? cuda::kBadSlot | cuda::kNonFiniteRows : 0u);
      }
    }
  }
}

TEST(GpuPoolTest, NothingOfABlockWithAWrongByteIsEmitted) {
  const PoolWorld world(kPlain);
  Pool source(world.layout());
  source.FillRandom();
  Pool found(world.layout());
  Pool expected(world.layout());
  auto pages = world.Pages(source);
  world.Write(pages, expected);
  const uint64_t block = world.layout().block_offset(1, 0);
  pages[0].bytes[block + world.layout().block(1).bytes - 1] ^= std::byte{1};
  const GpuPool device(found, world.spec.params);
  const GpuBatch batch(pages, world.slots, {0, kLayers}, {0, kHeads});
  const auto stream = OrDie(device::Stream::Create());
  ASSERT_OK(world.gpu->Emit(batch.batch(), device.view, stream.get()));
  ASSERT_OK(stream.Synchronize());
  device.CopyTo(found);
  for (int64_t slot : world.slots[0]) {
    for (Tensor& tensor : expected.tensors)
      std::memset(tensor.Row(1, 0, slot), 0, tensor.row_bytes);
  }
  ExpectSame(found, expected);
  const auto status = batch.Status();
  for (size_t i = 0; i < status.size(); ++i) EXPECT_EQ(status[i], i == 2 ? cuda::kBadChecksum : 0u);
}

TEST(GpuPoolTest, CanBeCapturedAndReplayed) {
  const PoolWorld world(kPlain);
  Pool source(world.layout());
  source.FillRandom();
  Pool found(world.layout());
  Pool expected(world.layout());
  const auto pages = world.Pages(source);
  world.Write(pages, expected);
  const GpuPool from(source, world.spec.params);
  const GpuPool to(found, world.spec.params);
  const GpuEncodeBatch written(world.layout(), world.slots);
  const GpuBatch read(pages, world.slots, {0, kLayers}, {0, kHeads});
  Replay(3, [&](cudaStream_t stream) {
    EXPECT_OK(world.gpu->Ingest(from.view, written.batch(), stream));
    EXPECT_OK(world.gpu->Emit(read.batch(), to.view, stream));
  });
  ExpectPages(written.Pages(), pages);
  to.CopyTo(found);
  ExpectSame(found, expected);
}

TEST(GpuPoolTest, RefusesOtherPoolsThanTheNamespaces) {
  const PoolWorld world(kPlain);
  Pool pool(world.layout());
  const GpuPool device(pool, ParamsDType::kFp32);
  const GpuBatch batch(world.Pages(pool), world.slots, {0, kLayers}, {0, kHeads});
  cuda::DevicePoolView view = device.view;
  view.params = ParamsDType::kFp16;
  absl::Status status = world.gpu->Emit(batch.batch(), view, nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("scales and zeros are fp16"));
  view = device.view;
  view.v_codes.slot_stride += 2;
  status = world.gpu->Emit(batch.batch(), view, nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("pool, V codes"));
  const PoolWorld wider(kPlain, {4, 2});
  status = wider.gpu->Emit(batch.batch(), device.view, nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("a pool has 2 bits"));
}

}  // namespace
}  // namespace oscarkv::testing
