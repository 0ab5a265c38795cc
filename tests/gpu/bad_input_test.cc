// What the device's codec refuses before it enqueues anything, each with a message that says what
// was expected and found.
#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/codec/oscar/cuda_page_codec.h"
#include "kernels/device/status.h"
#include "kernels/device/stream.h"
#include "tests/codec/page_testing.h"
#include "tests/gpu/gpu_cache.h"
#include "tests/gpu/gpu_world.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

const Case kPlain = {128, 128, {2, 2}, 0, ParamsDType::kFp16, DType::kBf16, EngineLayout::kNhd, 16};

// Half-way into an element.
template <typename T>
T* Misaligned(T* pointer) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(pointer) + sizeof(T) / 2);
}

template <typename Batch>
struct Mistake {
  std::function<void(Batch&, cuda::DeviceEngineView&)> make;
  const char* message;
};

template <typename Batch>
std::vector<Mistake<Batch>> Mistakes() {
  using View = cuda::DeviceEngineView;
  return {
      {[](Batch& batch, View&) { batch.layers.count = 4; }, "layers from 0, 4 of them"},
      {[](Batch& batch, View&) {
         batch.layers = {3, 1};
       },
       "do not lie within 0..2"},
      {[](Batch& batch, View&) {
         batch.heads = {1, 0xffffffffu};
       },
       "heads from 1"},
      {[](Batch& batch, View&) { batch.heads.count = 0; }, "heads from 0, 0 of them"},
      {[](Batch& batch, View&) { batch.pages = 0xffffffffu; }, "a batch has at most"},
      {[](Batch& batch, View&) { batch.encoding = static_cast<Encoding>(7); },
       "unknown encoding 7"},
      {[](Batch& batch, View&) { batch.page_bytes = nullptr; }, "page_bytes: null"},
      {[](Batch& batch, View&) { batch.page_bytes = Misaligned(batch.page_bytes); },
       "page_bytes: must be aligned to 8 bytes"},
      {[](Batch& batch, View&) { batch.slots = nullptr; }, "slots: null"},
      {[](Batch& batch, View&) { batch.slots = Misaligned(batch.slots); },
       "slots: must be aligned to 8 bytes"},
      {[](Batch& batch, View&) { batch.block_crc32c = nullptr; }, "block_crc32c: null"},
      {[](Batch& batch, View&) { batch.block_crc32c = Misaligned(batch.block_crc32c); },
       "block_crc32c: must be aligned to 4 bytes"},
      {[](Batch& batch, View&) { batch.status = nullptr; }, "status: null"},
      {[](Batch& batch, View&) { batch.status = Misaligned(batch.status); },
       "status: must be aligned to 4 bytes"},
      {[](Batch&, View& view) { view.k.layer_base = nullptr; },
       "engine view, K: layer base pointers: null"},
      {[](Batch&, View& view) { view.v.layer_base = Misaligned(view.v.layer_base); },
       "engine view, V: layer base pointers: must be aligned to 8 bytes"},
      {[](Batch&, View& view) { view.v.dtype = DType::kFp16; }, "must have one dtype"},
      {[](Batch&, View& view) { view.k.dtype = view.v.dtype = DType::kFp32; },
       "dtype must be bf16 or fp16, found fp32"},
      {[](Batch&, View& view) { view.block_tokens = 0; }, "block_tokens must be positive"},
      {[](Batch&, View& view) { view.k.block_stride += 8; },
       "blocks: strides must be multiples of 16 bytes"},
      {[](Batch&, View& view) { view.v.token_stride += 2; },
       "tokens: strides must be multiples of 16 bytes"},
      {[](Batch&, View& view) { view.v.head_stride -= 4; },
       "heads: strides must be multiples of 16 bytes"},
  };
}

void ExpectRefused(const absl::Status& status, const char* message) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << message;
  EXPECT_THAT(std::string(status.message()), HasSubstr(message));
}

TEST(GpuBadInputTest, DecodeSaysWhatDoesNotFitAndWritesNothing) {
  World world(kPlain, WideBasis::kModel);
  EngineCache found(kPlain.layout, world.geometry, kPlain.dtype, kSlots);
  const EngineCache before(kPlain.layout, world.geometry, kPlain.dtype, kSlots);
  const GpuCache cache(found);
  const GpuBatch good(world.CpuPages(), world.slots, {0, 3}, {0, 2});
  for (const auto& mistake : Mistakes<cuda::DeviceDecodeBatch>()) {
    cuda::DeviceDecodeBatch batch = good.batch();
    cuda::DeviceEngineView view = cache.View();
    mistake.make(batch, view);
    ExpectRefused(world.gpu->Decode(batch, DecodeBasis::kModel, view, nullptr), mistake.message);
  }
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  cache.CopyTo(found);
  EXPECT_TRUE(found.memory() == before.memory());
  EXPECT_THAT(good.Status(), Each(0u));
}

TEST(GpuBadInputTest, EncodeSaysWhatDoesNotFitAndWritesNothing) {
  World world(kPlain, WideBasis::kModel);
  const GpuCache cache(world.source);
  const GpuEncodeBatch good(world.cpu->layout(Encoding::kPacked), world.slots);
  const auto before = good.Pages();
  auto mistakes = Mistakes<cuda::DeviceEncodeBatch>();
  using Batch = cuda::DeviceEncodeBatch;
  using View = cuda::DeviceEngineView;
  mistakes.push_back({[](Batch& batch, View&) { batch.counts = nullptr; }, "counts: null"});
  mistakes.push_back({[](Batch&, View& view) { view.slots = 0; }, "an engine without slots"});
  mistakes.push_back({[](Batch&, View& view) { view.k.dtype = view.v.dtype = DType::kFp16; },
                      "prepared for rows of bf16, found fp16"});
  for (const auto& mistake : mistakes) {
    Batch batch = good.batch();
    View view = cache.View();
    mistake.make(batch, view);
    ExpectRefused(world.gpu->Encode(view, batch, nullptr), mistake.message);
  }
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const auto after = good.Pages();
  for (size_t page = 0; page < after.size(); ++page)
    EXPECT_TRUE(after[page].bytes == before[page].bytes);
  EXPECT_THAT(good.Status(), Each(0u));
}

TEST(GpuBadInputTest, EncodeReportsPointersThatAreMisalignedOrNullAndDoesNotFollowThem) {
  World world(kPlain, WideBasis::kModel);
  const GpuCache cache(world.source);
  const PageLayout& layout = world.cpu->layout(Encoding::kPacked);
  const auto expected = [&] {
    const GpuEncodeBatch batch(layout, world.slots);
    EXPECT_OK(world.gpu->Encode(cache.View(), batch.batch(), nullptr));
    return batch.Pages();
  }();
  for (const bool page_is_bad : {true, false}) {
    for (const uintptr_t wrong : {uintptr_t{0}, uintptr_t{0x1008}}) {
      const GpuEncodeBatch batch(layout, world.slots);
      const auto before = batch.Pages();
      cuda::DeviceEncodeBatch changed = batch.batch();
      cuda::DeviceEngineView view = cache.View();
      device::DeviceBuffer pointers;
      if (page_is_bad) {
        pointers = WithPointer(changed.page_bytes, world.slots.size(), 1, wrong);
        changed.page_bytes = pointers.as<std::byte*>();
      } else {
        pointers = WithPointer(view.v.layer_base, world.geometry.layers, 1, wrong);
        view.v.layer_base = pointers.as<std::byte*>();
      }
      ASSERT_OK(world.gpu->Encode(view, changed, nullptr));
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      const auto found = batch.Pages();
      const auto status = batch.Status();
      for (size_t i = 0; i < status.size(); ++i) {
        const size_t page = i / world.geometry.blocks();
        const size_t in_page = i % world.geometry.blocks();
        const auto layer = static_cast<uint32_t>(in_page / world.geometry.kv_heads);
        const bool bad = page_is_bad ? page == 1 : layer == 1;
        EXPECT_EQ(status[i], bad ? cuda::kBadPointer : 0u);
        const Bytes& wanted = bad ? before[page].bytes : expected[page].bytes;
        const auto at = static_cast<std::ptrdiff_t>(
            layout.block_offset(layer, static_cast<uint32_t>(in_page % world.geometry.kv_heads)));
        const auto stride = static_cast<std::ptrdiff_t>(layout.block(layer).stride);
        EXPECT_TRUE(std::equal(wanted.begin() + at, wanted.begin() + at + stride,
                               found[page].bytes.begin() + at));
      }
    }
  }
}

TEST(GpuBadInputTest, NoPagesAreNoWork) {
  World world(kPlain, WideBasis::kModel);
  const GpuCache cache(world.source);
  const GpuBatch read(world.CpuPages(), world.slots, {0, 3}, {0, 2});
  cuda::DeviceDecodeBatch decode = read.batch();
  decode.pages = 0;
  EXPECT_OK(world.gpu->Decode(decode, DecodeBasis::kModel, cache.View(), nullptr));
  const GpuEncodeBatch written(world.cpu->layout(Encoding::kPacked), world.slots);
  const auto before = written.Pages();
  cuda::DeviceEncodeBatch encode = written.batch();
  for (Encoding encoding : {Encoding::kPacked, Encoding::kWide}) {
    encode.encoding = encoding;
    encode.pages = 0;
    EXPECT_OK(world.gpu->Encode(cache.View(), encode, nullptr));
  }
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const auto after = written.Pages();
  for (size_t page = 0; page < after.size(); ++page)
    EXPECT_TRUE(after[page].bytes == before[page].bytes);
}

TEST(GpuBadInputTest, ShapesWithoutKernelsAreNamedWithThoseThatExist) {
  Geometry geometry{
      .layers = 2, .kv_heads = 1, .k_head_dim = 128, .v_head_dim = 96, .page_tokens = 16};
  CodecSpec spec;
  spec.transform_hash = std::string(32, 't');
  const auto refused = [&](const char* message) {
    ExpectRefused(
        cuda::CudaPageCodec::Create(geometry, spec, RotationSet(geometry, 0.9f).get()).status(),
        message);
    EXPECT_OK(cuda::CudaPageCodec::Create(geometry, spec, nullptr).status());
  };
  refused("rows of 96 elements of 2 bits; there are 64, 128 and 256 elements of 2 and 4 bits");
  geometry.v_head_dim = 128;
  geometry.page_tokens = 1024;
  refused("device kernels take 24576 at most");
}

// Where there is a second device.
TEST(GpuBadInputTest, AStreamOfAnotherDeviceIsRefused) {
  int devices = 0;
  ASSERT_EQ(cudaGetDeviceCount(&devices), cudaSuccess);
  if (devices < 2) GTEST_SKIP() << "one device";
  World world(kPlain, WideBasis::kModel);
  const GpuCache cache(world.source);
  const GpuBatch batch(world.CpuPages(), world.slots, {0, 3}, {0, 2});
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  const auto stream = OrDie(device::Stream::Create());
  ExpectRefused(world.gpu->Decode(batch.batch(), DecodeBasis::kModel, cache.View(), stream.get()),
                "device 1 is the calling thread's current one");
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  ExpectRefused(world.gpu->Decode(batch.batch(), DecodeBasis::kModel, cache.View(), stream.get()),
                "the stream is one of device 1");
}

}  // namespace
}  // namespace oscarkv::testing
