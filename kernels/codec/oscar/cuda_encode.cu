// An engine's token slots to encoded pages. A thread block takes one side of one (layer, head)
// through a run of tiles of 64 rows, with T in shared memory. All but one of its warp groups have
// tiles of their own, and each warp 16 rows of them: the copy engine brings the next ones to shared
// memory while sums of these stay in registers through clip and quantiser (cuda_quantise.cuh).
// Bytes meet in shared memory, from where warps of the last group store a page's part each and take
// its checksum.
//
// A tile has as many whole pages as fit 64 rows, or 64 rows of one page. A checksum is the
// exclusive-or of what parts of a block add to it, in any order.
#include <algorithm>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "kernels/codec/oscar/cuda_encode.h"
#include "kernels/codec/oscar/cuda_encode_rows.cuh"
#include "kernels/codec/oscar/cuda_encode_stage.cuh"
#include "kernels/device/launch.h"
#include "kernels/device/status.h"

namespace oscarkv::cuda {
namespace encode {
namespace {

__device__ __forceinline__ void AddCount(uint64_t* to, uint32_t count, uint32_t lane) {
  count = __reduce_add_sync(kAllLanes, count);
  if (lane == 0 && count != 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(count));
}

// A quantising warp group and the warp that stores meet twice for each tile.
template <typename S>
__device__ __forceinline__ uint32_t StagedBarrier(uint32_t warp_group, uint32_t staging) {
  static_assert(1 + 2 * S::kWarpGroups * S::kStagings <= 16);
  return 1 + 2 * (warp_group * S::kStagings + staging);
}
template <typename S>
__device__ __forceinline__ uint32_t StoredBarrier(uint32_t warp_group, uint32_t staging) {
  return StagedBarrier<S>(warp_group, staging) + 1;
}
__device__ __forceinline__ void Sync(uint32_t barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kGroupThreads + 32) : "memory");
}
__device__ __forceinline__ void Arrive(uint32_t barrier) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "n"(kGroupThreads + 32) : "memory");
}

// Where this lane's rows lie in a warp group's staged bytes: a page's codes, then its params.
template <typename S>
__device__ __forceinline__ Staged PlacesOfStaged(const Tiling& tiling, uint32_t params_row_bytes,
                                                 uint32_t warp, uint32_t lane) {
  const uint32_t staged_row = S::kRowBytes + params_row_bytes;
  Staged at;
#pragma unroll
  for (uint32_t r = 0; r < 2; ++r) {
    const uint32_t row = warp % 4 * kWarpRows + lane / 4 + 8 * r;
    const uint32_t segment = row / tiling.segment_rows;
    const uint32_t of_segment = row % tiling.segment_rows;
    // Rows that no page has go where none are read.
    const uint32_t start = segment * tiling.segment_rows * staged_row;
    const bool has = segment < tiling.tile_pages;
    at.codes[r] = has ? start + of_segment * S::kRowBytes : row * staged_row;
    at.params[r] = has ? start + tiling.segment_rows * S::kRowBytes + of_segment * params_row_bytes
                       : row * staged_row + S::kRowBytes;
  }
  return at;
}

// A quantising warp: 16 rows of each of its group's tiles.
template <typename S>
__device__ __forceinline__ void QuantiseTiles(const EncodeArguments& arguments, const Work& work,
                                              const Tiling& tiling, const std::byte* matrix,
                                              SharedFixed<S>& shared, std::byte* staged_group) {
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t warp_group = warp / 4;
  const uint32_t head_number = arguments.batch.heads.first + work.head_in_range;
  const ForwardHead head = work.side->heads[work.side->per_head * head_number];
  const DeviceEngineSide& engine = arguments.side[work.side_of_layer];
  const EngineRows rows = {
      .base = engine.layer_base[work.layer_in_range + arguments.batch.layers.first] +
              head_number * engine.head_stride,
      .engine = engine,
      .block_tokens = arguments.block_tokens,
      .slots = arguments.slots};
  const Staged at = PlacesOfStaged<S>(tiling, work.params_row_bytes, warp, lane);
  const uint32_t groups = S::kOneGroup ? 1 : S::kDim / work.side->group;
  std::byte* const source = shared.source[warp];
  // Lane l and l + 16 know row 16 warp + l of a tile.
  const uint32_t my_row = warp % 4 * kWarpRows + lane % kWarpRows;
  const auto slot_of = [&](uint32_t turn) {
    const uint32_t tile = work.Tile<S>(turn, warp_group);
    return SlotOfRow(arguments.batch, tiling, tile < work.end_tile ? tile : tiling.tiles, my_row);
  };
  RowCounts counts;
  RowSlot slot = slot_of(0);
  RowSlot next = slot_of(1);
  BeginRows<S>(rows.Row(slot), 0, lane, source);
  if (arguments.transform) shared.matrix.Wait(0);
  for (uint32_t turn = 0; turn < work.turns; ++turn) {
    uint32_t state = kRowAbsent;
    const auto begin_next = [&](uint32_t chunk) {
      if (chunk + 1 < S::kChunks) {
        BeginRows<S>(rows.Row(slot), chunk + 1, lane, source);
        return;
      }
      BeginRows<S>(rows.Row(next), 0, lane, source);
      state = __shfl_sync(kAllLanes, slot.State(arguments.slots), lane / 4 + 8 * (lane & 1));
      slot = next;
      next = slot_of(turn + 2);
    };
    float y[S::kTiles][4];
    if (!arguments.transform) {
#pragma unroll
      for (uint32_t chunk = 0; chunk < S::kChunks; ++chunk) {
        WaitForPieces();
        __syncwarp();
        TakeSums<S>(source, chunk, arguments.bf16, lane, y);
        __syncwarp();
        begin_next(chunk);
      }
    } else if (arguments.bf16) {
      Transform<S, true>(source, matrix, head, lane, y, begin_next);
    } else {
      Transform<S, false>(source, matrix, head, lane, y, begin_next);
    }
    const uint32_t staging = turn % S::kStagings;
    if (turn >= S::kStagings) Sync(StoredBarrier<S>(warp_group, staging));
    std::byte* staged = staged_group + staging * work.StagedBytes<S>();
    const bool finite =
        QuantiseRows<S>(y, head, state == kRowGood, state != kRowAbsent, groups,
                        arguments.fp32_params, lane, shared.scratch[warp], staged, at, counts);
    Arrive(StagedBarrier<S>(warp_group, staging));
    if (state == kRowAbsent || finite || (lane & 2) != 0) continue;
    const uint32_t row = warp % 4 * kWarpRows + lane / 4 + 8 * (lane & 1);
    const uint32_t page =
        tiling.FirstPage(work.Tile<S>(turn, warp_group)) + row / tiling.segment_rows;
    atomicOr(&arguments.batch.status[work.BlockNumber(arguments, page)],
             kNonFiniteRows | (state == kRowGood ? 0 : kBadSlot));
  }
  WaitForPieces();  // of rows that nobody asked for
  AddCount(&arguments.batch.counts->constant_rows, counts.constant, lane);
  AddCount(&arguments.batch.counts->nonfinite_rows, counts.nonfinite, lane);
  AddCount(&arguments.batch.counts->overflow_rows, counts.overflow, lane);
}

// A storing warp: all tiles of the quantising warp group of its number.
template <typename S>
__device__ __forceinline__ void StoreTiles(const EncodeArguments& arguments, const Work& work,
                                           const Tiling& tiling, SharedFixed<S>& shared,
                                           const std::byte* staged_all) {
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t warp_group = threadIdx.x / 32 % 4;
  if (warp_group >= S::kWarpGroups) return;
  CrcColumn columns[2];
  for (uint32_t turn = 0; turn < work.turns; ++turn) {
    const uint32_t staging = turn % S::kStagings;
    Sync(StagedBarrier<S>(warp_group, staging));
    const uint32_t tile = work.Tile<S>(turn, warp_group);
    if (tile < work.end_tile) {
      const std::byte* staged =
          staged_all + (warp_group * S::kStagings + staging) * work.StagedBytes<S>();
      const uint32_t segments =
          min(tiling.tile_pages, arguments.batch.pages - tiling.FirstPage(tile));
      for (uint32_t segment = 0; segment < segments; ++segment)
        EmitSegment<S>(arguments, work, tiling, shared.crc, tile, segment, staged, lane, columns);
    }
    if (turn + S::kStagings < work.turns) Arrive(StoredBarrier<S>(warp_group, staging));
  }
}

template <typename S>
__global__ void __launch_bounds__(S::kThreads, 1)
    EncodeKernel(const __grid_constant__ EncodeArguments arguments) {
  extern __shared__ __align__(1024) std::byte memory[];
  std::byte* matrix = memory;
  auto& shared = *reinterpret_cast<SharedFixed<S>*>(memory + S::kMatrixBytes);
  const DecodeTask task = arguments.tasks[blockIdx.z];
  const EncodeLayer& layer = arguments.layers[task.layer];
  const EncodeSide& side = layer.side[task.first_side];
  const DeviceEncodeBatch& batch = arguments.batch;
  const uint32_t groups = S::kOneGroup ? 1 : S::kDim / side.group;
  const Tiling tiling(arguments.page_tokens, batch.pages);
  const auto bound = [&](uint32_t block) {
    return static_cast<uint32_t>(uint64_t{tiling.tiles} * block / gridDim.x);
  };
  const uint32_t first_tile = bound(blockIdx.x);
  const uint32_t end_tile = bound(blockIdx.x + 1);
  const Work work = {
      .layer = &layer,
      .side = &side,
      .side_of_layer = task.first_side,
      .layer_in_range = task.layer - batch.layers.first,
      .head_in_range = blockIdx.y,
      .block_offset = (layer.strides_before - arguments.strides_before_range) * batch.heads.count +
                      uint64_t{blockIdx.y} * layer.stride,
      .params_row_bytes = groups * (arguments.fp32_params ? 8 : 4),
      .first_tile = first_tile,
      .end_tile = end_tile,
      .turns = (end_tile - first_tile + S::kWarpGroups - 1) / S::kWarpGroups};
  if (!IsUsable(arguments.side[0].layer_base[task.layer]) ||
      !IsUsable(arguments.side[1].layer_base[task.layer])) {
    for (uint32_t tile = first_tile + threadIdx.x; tile < end_tile; tile += S::kThreads) {
      const uint32_t page = tiling.FirstPage(tile);
      const uint32_t end = min(page + tiling.tile_pages, batch.pages);
      for (uint32_t i = page; i < end; ++i)
        atomicOr(&batch.status[work.BlockNumber(arguments, i)], kBadPointer);
    }
    return;
  }
  if (threadIdx.x == 0) {
    shared.matrix.Init(1);
    FenceBarrierInit();
    if (arguments.transform) {
      const uint32_t number = side.per_head * (batch.heads.first + blockIdx.y);
      shared.matrix.ArriveExpecting(S::kMatrixBytes);
      BulkCopy(matrix, side.matrices + uint64_t{number} * S::kMatrixBytes, S::kMatrixBytes,
               &shared.matrix);
    }
  }
  for (uint32_t i = threadIdx.x; i < sizeof(CrcTables) / 4; i += S::kThreads) {
    reinterpret_cast<uint32_t*>(&shared.crc)[i] =
        reinterpret_cast<const uint32_t*>(arguments.crc)[i];
  }
  __syncthreads();
  std::byte* staged = memory + S::kMatrixBytes + sizeof(SharedFixed<S>);
  const uint32_t warp_group = threadIdx.x / kGroupThreads;
  if (warp_group == S::kWarpGroups) {
    LowerRegisters<S::kStoringRegisters>();
    StoreTiles<S>(arguments, work, tiling, shared, staged);
  } else {
    RaiseRegisters<S::kRegisters>();
    QuantiseTiles<S>(arguments, work, tiling, matrix, shared,
                     staged + warp_group * S::kStagings * work.StagedBytes<S>());
  }
}

template <typename S>
absl::Status Launch(const EncodeArguments& arguments, uint32_t group, uint32_t tasks,
                    cudaStream_t stream) {
  const auto kernel = &EncodeKernel<S>;
  const size_t staged_row = S::kRowBytes + S::kDim / group * (arguments.fp32_params ? 8 : 4);
  const size_t bytes = S::kMatrixBytes + sizeof(SharedFixed<S>) +
                       S::kWarpGroups * S::kStagings * kTileRows * staged_row;
  OSCARKV_ASSIGN_OR_RETURN(const device::Places there,
                           device::PrepareKernel(reinterpret_cast<const void*>(kernel), S::kThreads,
                                                 bytes, "preparing to encode"));
  // One wave of persistent blocks, or several when there are more heads than places for them.
  const Tiling tiling(arguments.page_tokens, arguments.batch.pages);
  const uint32_t places = there.processors;
  const uint32_t each = arguments.batch.heads.count * tasks;
  const uint32_t wanted = each <= places ? places / each : (4 * places + each - 1) / each;
  const uint32_t most = (tiling.tiles + S::kWarpGroups - 1) / S::kWarpGroups;
  kernel<<<dim3(std::clamp(wanted, 1u, most), arguments.batch.heads.count, tasks), S::kThreads,
           bytes, stream>>>(arguments);
  return device::LastLaunch("encoding");
}

}  // namespace
}  // namespace encode

absl::Status LaunchEncode(const EncodeArguments& arguments, const RowShape& shape, uint32_t tasks,
                          cudaStream_t stream) {
  const auto launch = [&]<uint32_t D, uint32_t kBits>() {
    return shape.group == D ? encode::Launch<encode::Shape<D, kBits, true>>(arguments, shape.group,
                                                                            tasks, stream)
                            : encode::Launch<encode::Shape<D, kBits, false>>(arguments, shape.group,
                                                                             tasks, stream);
  };
  switch (shape.dim * 8 + shape.bits) {
    case 128 * 8 + 2:
      return launch.template operator()<128, 2>();
    case 64 * 8 + 2:
      return launch.template operator()<64, 2>();
    case 64 * 8 + 4:
      return launch.template operator()<64, 4>();
    case 128 * 8 + 4:
      return launch.template operator()<128, 4>();
    case 256 * 8 + 2:
      return launch.template operator()<256, 2>();
    case 256 * 8 + 4:
      return launch.template operator()<256, 4>();
    default:
      return absl::InvalidArgumentError(absl::StrCat("no encode kernel for rows of ", shape.dim,
                                                     " elements of ", shape.bits, " bits"));
  }
}

}  // namespace oscarkv::cuda
