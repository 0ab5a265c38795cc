// WIDE pages: an engine's rows as they are, block by block, and back. A thread block takes one
// block of a page, 16 bytes a thread at a time, all of which are on their way at once. Decoding
// writes nothing before the checksum is known: what the registers hold by then is written from
// there, what came before is read once more.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "kernels/base/status_macros.h"
#include "kernels/codec/oscar/cuda_crc_fold.cuh"
#include "kernels/codec/oscar/cuda_primitives.cuh"
#include "kernels/codec/oscar/cuda_wide.h"
#include "kernels/device/status.h"

namespace oscarkv::cuda {
namespace wide {
namespace {

constexpr uint32_t kHeld = 8;  // vectors that a thread holds
constexpr uint32_t kTileVectors = kHeld * kFoldThreads;

// Which block of which page a thread block has, and the vectors in it: tiles of kTileVectors, the
// last one full; the first begins with `missing` vectors that are not there.
template <typename Batch>
struct Work {
  uint64_t number;  // of the block, in status words and checksums
  uint32_t page;
  const std::byte* base[2];  // of the engine's rows of this layer and head
  std::remove_cvref_t<decltype(*Batch::page_bytes)> block;
  bool usable;  // the pointers are
  uint32_t vectors;
  uint32_t tiles;
  uint32_t missing;

  __device__ __forceinline__ Work(const WideArguments& arguments, const Batch& batch,
                                  uint64_t block_number)
      : number(block_number) {
    const WideShape& shape = arguments.shape;
    const uint32_t blocks = batch.layers.count * batch.heads.count;
    page = static_cast<uint32_t>(number / blocks);
    const auto in_page = static_cast<uint32_t>(number % blocks);
    const uint32_t layer = batch.layers.first + in_page / batch.heads.count;
    const uint32_t head = batch.heads.first + in_page % batch.heads.count;
    block = batch.page_bytes[page];
    usable = IsUsable(block);
    block += uint64_t{in_page} * shape.stride_vectors * sizeof(uint4);
#pragma unroll
    for (uint32_t side = 0; side < 2; ++side) {
      const DeviceEngineSide& engine = arguments.side[side];
      base[side] = engine.layer_base[layer];
      usable = usable && IsUsable(base[side]);
      base[side] += int64_t{head} * engine.head_stride;
    }
    vectors = shape.side_vectors[0] + shape.side_vectors[1];
    tiles = (vectors + kTileVectors - 1) / kTileVectors;
    missing = tiles * kTileVectors - vectors;
  }

  // Is any of a step's vectors there?
  __device__ __forceinline__ bool HasStep(uint32_t tile, uint32_t step) const {
    return tile * kTileVectors + (step + 1) * kFoldThreads > missing;
  }
  // This thread's vector of a step; not below `vectors` where there is none.
  __device__ __forceinline__ uint32_t Vector(uint32_t tile, uint32_t step) const {
    return tile * kTileVectors + step * kFoldThreads + threadIdx.x - missing;
  }
};

// Where the engine keeps a vector of a block.
struct EnginePlace {
  std::byte* at = nullptr;  // null: nowhere
  bool bad_slot = false;

  template <typename Batch>
  __device__ __forceinline__ EnginePlace(const WideArguments& arguments, const Work<Batch>& work,
                                         const int64_t* slots, uint32_t vector) {
    const WideShape& shape = arguments.shape;
    const uint32_t side = vector >= shape.side_vectors[0] ? 1 : 0;
    if (side == 1) vector -= shape.side_vectors[0];
    const uint32_t row_vectors = side == 0 ? shape.row_vectors[0] : shape.row_vectors[1];
    const int64_t slot = slots[vector / row_vectors];
    bad_slot = slot >= arguments.slots;
    if (bad_slot || slot < 0) return;
    const DeviceEngineSide& engine = arguments.side[side];
    const auto index = static_cast<uint32_t>(slot);
    const std::byte* row = (side == 0 ? work.base[0] : work.base[1]) +
                           int64_t{index / arguments.block_tokens} * engine.block_stride +
                           int64_t{index % arguments.block_tokens} * engine.token_stride;
    at = const_cast<std::byte*>(row) + vector % row_vectors * sizeof(uint4);
  }
};

__device__ __forceinline__ void ReportOf(uint32_t* status, uint32_t bits) {
  if (threadIdx.x == 0 && bits != 0) atomicOr(status, bits);
}

__device__ __forceinline__ void EncodeBlock(const WideArguments& arguments,
                                            const DeviceEncodeBatch& batch, FoldedCrc crc,
                                            const Work<DeviceEncodeBatch>& work,
                                            uint32_t (&scratch)[kFoldThreads / 32]) {
  const int64_t* slots = batch.slots + uint64_t{work.page} * arguments.shape.page_tokens;
  auto* block = reinterpret_cast<uint4*>(work.block);
  const uint32_t nan = arguments.side[0].dtype == DType::kBf16 ? 0x7fc07fc0u : 0x7e007e00u;
  bool bad_slot = false;
  for (uint32_t tile = 0; tile < work.tiles; ++tile) {
    uint4 held[kHeld];
#pragma unroll
    for (uint32_t step = 0; step < kHeld; ++step) {
      held[step] = make_uint4(0, 0, 0, 0);
      const uint32_t vector = work.Vector(tile, step);
      if (vector >= work.vectors) continue;
      const EnginePlace place(arguments, work, slots, vector);
      bad_slot = bad_slot || place.at == nullptr;
      held[step] = place.at != nullptr ? __ldcs(reinterpret_cast<const uint4*>(place.at))
                                       : make_uint4(nan, nan, nan, nan);
    }
#pragma unroll
    for (uint32_t step = 0; step < kHeld; ++step) {
      if (!work.HasStep(tile, step)) continue;
      const uint32_t vector = work.Vector(tile, step);
      if (vector < work.vectors) StoreGlobal(block + vector, held[step]);
      crc.Add(held[step]);
    }
  }
  const uint32_t padding = arguments.shape.stride_vectors - work.vectors;
  if (threadIdx.x < padding)
    StoreGlobal(block + work.vectors + threadIdx.x, make_uint4(0, 0, 0, 0));
  const bool any_bad = __syncthreads_or(bad_slot) != 0;
  const uint32_t sum = crc.Sum(scratch);
  if (threadIdx.x == 0) batch.block_crc32c[work.number] = ~(sum ^ arguments.shape.crc_start);
  ReportOf(&batch.status[work.number], any_bad ? kBadSlot : 0);
}

__device__ __forceinline__ void DecodeBlock(const WideArguments& arguments,
                                            const DeviceDecodeBatch& batch, FoldedCrc crc,
                                            const Work<DeviceDecodeBatch>& work,
                                            uint32_t (&scratch)[kFoldThreads / 32]) {
  const int64_t* slots = batch.slots + uint64_t{work.page} * arguments.shape.page_tokens;
  const auto* block = reinterpret_cast<const uint4*>(work.block);
  const uint32_t expected = batch.block_crc32c[work.number];
  uint4 held[kHeld];
  const auto load = [&](uint32_t tile) {
#pragma unroll
    for (uint32_t step = 0; step < kHeld; ++step) {
      const uint32_t vector = work.Vector(tile, step);
      held[step] = vector < work.vectors ? __ldcs(block + vector) : make_uint4(0, 0, 0, 0);
    }
  };
  for (uint32_t tile = 0; tile < work.tiles; ++tile) {
    load(tile);
#pragma unroll
    for (uint32_t step = 0; step < kHeld; ++step) {
      if (work.HasStep(tile, step)) crc.Add(held[step]);
    }
  }
  const bool good = ~(crc.Sum(scratch) ^ arguments.shape.crc_start) == expected;
  bool bad_slot = false;
  for (uint32_t tile = good ? work.tiles : 0; tile-- > 0;) {
    if (tile + 1 != work.tiles) load(tile);
#pragma unroll
    for (uint32_t step = 0; step < kHeld; ++step) {
      const uint32_t vector = work.Vector(tile, step);
      if (vector >= work.vectors) continue;
      const EnginePlace place(arguments, work, slots, vector);
      bad_slot = bad_slot || place.bad_slot;
      if (place.at != nullptr) StoreGlobal(place.at, held[step]);
    }
  }
  const bool any_bad = __syncthreads_or(bad_slot) != 0;
  ReportOf(&batch.status[work.number], (good ? 0 : kBadChecksum) | (any_bad ? kBadSlot : 0));
}

template <typename Batch, bool kEncode>
__global__ void __launch_bounds__(kFoldThreads, 3)
    WideKernel(const __grid_constant__ WideArguments arguments,
               const __grid_constant__ Batch batch) {
  __shared__ uint32_t scratch[kFoldThreads / 32];
  const FoldedCrc crc(*arguments.fold);
  const uint64_t blocks = uint64_t{batch.pages} * batch.layers.count * batch.heads.count;
  for (uint64_t number = blockIdx.x; number < blocks; number += gridDim.x) {
    const Work<Batch> work(arguments, batch, number);
    if (!work.usable) {
      ReportOf(&batch.status[number], kBadPointer);
    } else if constexpr (kEncode) {
      EncodeBlock(arguments, batch, crc, work, scratch);
    } else {
      DecodeBlock(arguments, batch, crc, work, scratch);
    }
    __syncthreads();
  }
}

template <typename Batch, bool kEncode>
absl::Status Launch(const WideArguments& arguments, const Batch& batch, cudaStream_t stream) {
  const uint64_t blocks = uint64_t{batch.pages} * batch.layers.count * batch.heads.count;
  const auto grid =
      static_cast<uint32_t>(std::min(blocks, uint64_t{std::numeric_limits<int32_t>::max()}));
  WideKernel<Batch, kEncode><<<grid, kFoldThreads, 0, stream>>>(arguments, batch);
  return device::LastLaunch(kEncode ? "encoding WIDE pages" : "decoding WIDE pages");
}

}  // namespace
}  // namespace wide

absl::Status LaunchWideEncode(const WideArguments& arguments, const DeviceEncodeBatch& batch,
                              cudaStream_t stream) {
  return wide::Launch<DeviceEncodeBatch, true>(arguments, batch, stream);
}

absl::Status LaunchWideDecode(const WideArguments& arguments, const DeviceDecodeBatch& batch,
                              cudaStream_t stream) {
  return wide::Launch<DeviceDecodeBatch, false>(arguments, batch, stream);
}

}  // namespace oscarkv::cuda
