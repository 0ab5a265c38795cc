// Encoded pages to an engine's paged cache, rows as stored.
#include <algorithm>

#include "kernels/base/status_macros.h"
#include "kernels/codec/oscar/cuda_decode.h"
#include "kernels/codec/oscar/cuda_decode_pages.cuh"
#include "kernels/codec/oscar/cuda_primitives.cuh"
#include "kernels/device/launch.h"
#include "kernels/device/status.h"

namespace oscarkv::cuda {
namespace decode {
namespace {

constexpr uint32_t kResident = 3;

// Eight elements of a row as stored, of codes at the same place of bytes.
template <uint32_t kBits, bool kBf16>
__device__ __forceinline__ uint4 ElementsOf(uint2 codes, RowParams pair) {
  // As format.h computes it, without contraction.
  const auto element = [&](uint32_t code) {
    return __fmul_rn(__fsub_rn(static_cast<float>(code), pair.zero), pair.scale);
  };
  if constexpr (kBits == 2) {
    // All four that there are; two codes are the bytes to be taken from them.
    const uint32_t low = PackPair<kBf16>(element(0), element(1));
    const uint32_t high = PackPair<kBf16>(element(2), element(3));
    const auto pick = [&](uint32_t two) { return __byte_perm(low, high, two * 0x22 + 0x1010); };
    return make_uint4(pick(codes.x & 0xffff), pick(codes.x >> 16), pick(codes.y & 0xffff),
                      pick(codes.y >> 16));
  } else {
    const auto pair_of = [&](uint32_t two) {
      return PackPair<kBf16>(element(two & 0xff), element(two >> 8 & 0xff));
    };
    return make_uint4(pair_of(codes.x), pair_of(codes.x >> 16), pair_of(codes.y),
                      pair_of(codes.y >> 16));
  }
}

// Rows as stored: each lane takes eight elements of a row, those beside it the row's others.
template <uint32_t kDim, uint32_t kBits, uint32_t kSides, bool kBf16>
__device__ __forceinline__ void Dequantize(const DeviceSide& side, const std::byte* block,
                                           uint32_t rows, const int64_t* offsets, std::byte* base,
                                           bool fp32, uint32_t warp, uint32_t lane,
                                           uint32_t& status) {
  constexpr uint32_t kRowBytes = kDim * kBits / 8;
  constexpr uint32_t kSideWriters = kWriters / kSides;
  constexpr uint32_t kRowLanes = kDim / 8;
  constexpr uint32_t kWarpRows = 32 / kRowLanes;
  constexpr uint32_t kUnrolled = 4;
  constexpr uint32_t kMask = (1u << kBits) - 1;
  const uint32_t dim = lane % kRowLanes * 8;
  const uint32_t shift = dim / kRowBytes * kBits;
  const uint32_t groups = kDim / side.group;
  const uint32_t group = dim / side.group;
  const std::byte* codes_of_lane = block + side.rows_offset + dim % kRowBytes;
  for (uint32_t first = warp * kWarpRows; first < rows;
       first += kSideWriters * kWarpRows * kUnrolled) {
#pragma unroll
    for (uint32_t i = 0; i < kUnrolled; ++i) {
      const uint32_t row = first + i * kSideWriters * kWarpRows + lane / kRowLanes;
      const int64_t offset = row < rows ? offsets[row] : kNoRow;
      if (offset == kNoRow) continue;
      const auto* from = reinterpret_cast<const uint32_t*>(codes_of_lane + row * kRowBytes);
      uint2 codes = make_uint2(from[0], from[1]);  // only words are aligned
      codes.x = codes.x >> shift & kMask * 0x01010101u;
      codes.y = codes.y >> shift & kMask * 0x01010101u;
      const RowParams pair = LoadParams(block + side.params_offset, row * groups + group, fp32);
      if (!isfinite(pair.scale)) status |= kNonFiniteRows;
      StoreStreaming(base + offset + dim * 2, ElementsOf<kBits, kBf16>(codes, pair));
    }
  }
}

// One of the warps that write rows.
template <uint32_t kDim, uint32_t kBits, uint32_t kSides, bool kBf16>
__device__ __forceinline__ void Write(const DecodeArguments& arguments, uint32_t turns,
                                      SharedFixed& shared, const std::byte* blocks,
                                      const int64_t* offsets, uint32_t warp, uint32_t lane) {
  constexpr uint32_t kSideWriters = kWriters / kSides;
  const uint32_t side_of_task = warp / kSideWriters;
  const uint32_t heads = gridDim.x % arguments.batch.heads.count;
  const uint32_t pages = gridDim.x / arguments.batch.heads.count;
  Walk walk(arguments, blockIdx.x);
  bool arrived = true;  // at another head or task
  DeviceSide side;
  std::byte* base = nullptr;
  for (uint32_t turn = 0; turn < turns; ++turn) {
    if (arrived) {
      side = walk.layer->side[walk.task.first_side + side_of_task];
      base = arguments.side[walk.task.first_side + side_of_task].layer_base[walk.task.layer];
    }
    const Stage stage(turn, arguments.stages);
    shared.ready[stage.number].Wait(stage.parity);
    uint32_t status = 0;
    if (shared.good[stage.number] != 0) {
      Dequantize<kDim, kBits, kSides, kBf16>(
          side, blocks + stage.number * arguments.stage_bytes, arguments.page_tokens,
          offsets + (stage.number * kSides + side_of_task) * arguments.page_tokens, base,
          arguments.fp32_params, warp % kSideWriters, lane, status);
    }
    if (status != 0) atomicOr(&arguments.batch.status[walk.BlockNumber()], status);
    shared.free[stage.number].Arrive();
    arrived = walk.Advance(heads, pages);
  }
}

template <uint32_t kDim, uint32_t kBits, uint32_t kSides, bool kBf16>
__global__ void __launch_bounds__(kThreads, kResident)
    DequantiseKernel(const __grid_constant__ DecodeArguments arguments) {
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ SharedFixed shared;
  auto* offsets = reinterpret_cast<int64_t*>(memory + arguments.stages * arguments.stage_bytes);
  shared.Init(arguments.stages, kWriters * 32);
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t turns = TurnsOf(arguments);
  if (warp >= kWriters) {
    Verify<kSides>(arguments, turns, warp - kWriters, shared, memory, offsets, lane);
  } else {
    Write<kDim, kBits, kSides, kBf16>(arguments, turns, shared, memory, offsets, warp, lane);
  }
}

template <uint32_t kDim, uint32_t kBits, uint32_t kSides>
absl::Status Launch(DecodeArguments arguments, bool to_bf16, cudaStream_t stream) {
  void (*const kernel)(DecodeArguments) = to_bf16 ? &DequantiseKernel<kDim, kBits, kSides, true>
                                                  : &DequantiseKernel<kDim, kBits, kSides, false>;
  OSCARKV_ASSIGN_OR_RETURN(const uint32_t bytes, FitStages(arguments, kSides, 0, kResident));
  OSCARKV_ASSIGN_OR_RETURN(const device::Places there,
                           device::PrepareKernel(reinterpret_cast<const void*>(kernel), kThreads,
                                                 bytes, "preparing to decode"));
  kernel<<<std::min(arguments.blocks, there.all()), kThreads, bytes, stream>>>(arguments);
  return device::LastLaunch("decoding");
}

}  // namespace
}  // namespace decode

absl::Status LaunchDequantise(const DecodeArguments& arguments, const RowShape& shape, bool to_bf16,
                              cudaStream_t stream) {
  return ForShape(shape, [&]<uint32_t kDim, uint32_t kBits, uint32_t kSides>() {
    return decode::Launch<kDim, kBits, kSides>(arguments, to_bf16, stream);
  });
}

}  // namespace oscarkv::cuda
