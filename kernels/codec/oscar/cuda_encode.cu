// An engine's token slots to encoded pages. A thread block takes one side of one (layer, head)
// through a run of tiles of 64 rows, with T in shared memory; each of its warp groups has tiles of
// its own. Rows go from the engine's memory into the registers of those lanes that multiply them;
// sums stay in registers through clip and quantiser (cuda_quantise.cuh); bytes meet in shared
// memory, from where one warp stores a page's part and takes its checksum.
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

__device__ __forceinline__ void SyncWarpGroup(uint32_t group) {
  asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(kGroupThreads) : "memory");
}

__device__ __forceinline__ void AddCount(uint64_t* to, uint32_t count, uint32_t lane) {
  count = __reduce_add_sync(kAllLanes, count);
  if (lane == 0 && count != 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(count));
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
  const uint32_t head_number = batch.heads.first + blockIdx.y;
  const ForwardHead head = side.heads[side.per_head * head_number];
  const DeviceEngineSide engine = arguments.side[task.first_side];
  const uint32_t groups = S::kOneGroup ? 1 : S::kDim / side.group;
  const Work work = {
      .layer = &layer,
      .side = &side,
      .side_of_layer = task.first_side,
      .layer_in_range = task.layer - batch.layers.first,
      .head_in_range = blockIdx.y,
      .block_offset = (layer.strides_before - arguments.strides_before_range) * batch.heads.count +
                      uint64_t{blockIdx.y} * layer.stride,
      .params_row_bytes = groups * (arguments.fp32_params ? 8 : 4)};
  const Tiling tiling(arguments.page_tokens, batch.pages);
  const uint32_t first_tile =
      static_cast<uint32_t>(uint64_t{tiling.tiles} * blockIdx.x / gridDim.x);
  const uint32_t end_tile =
      static_cast<uint32_t>(uint64_t{tiling.tiles} * (blockIdx.x + 1) / gridDim.x);
  const uint32_t turns = (end_tile - first_tile + S::kWarpGroups - 1) / S::kWarpGroups;
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t warp_group = threadIdx.x / kGroupThreads;
  const std::byte* source =
      side.matrices + uint64_t{side.per_head * head_number} * ForwardBytes(S::kDim);
  PanelStream<S> stream = {
      .shared = &shared,
      .source = source + S::kHighBytes + ForwardOffsetBytes(S::kDim),
      .panel = matrix + S::kHighBytes + ForwardOffsetBytes(S::kDim),
      .total = S::kStreams && arguments.transform ? turns * (S::kDim / 64) : 0};
  if (threadIdx.x == 0) {
    shared.matrix.Init(1);
    shared.panel_full.Init(1);
    shared.panel_free.Init(S::kThreads / 32);
    FenceBarrierInit();
    if (arguments.transform) {
      constexpr uint32_t kBytes =
          S::kStreams ? S::kHighBytes + ForwardOffsetBytes(S::kDim) : ForwardBytes(S::kDim);
      shared.matrix.ArriveExpecting(kBytes);
      BulkCopy(matrix, source, kBytes, &shared.matrix);
    }
  }
  for (uint32_t i = threadIdx.x; i < sizeof(CrcTables) / 4; i += S::kThreads) {
    reinterpret_cast<uint32_t*>(&shared.crc)[i] =
        reinterpret_cast<const uint32_t*>(arguments.crc)[i];
  }
  __syncthreads();
  if (arguments.transform) shared.matrix.Wait(0);
  stream.Load(0);

  // Lane l and l + 16 know where row 16 warp + l of a tile is.
  const uint32_t my_row = warp % 4 * 16 + lane % 16;
  const uint32_t my_segment = my_row / tiling.segment_rows;
  const uint32_t my_row_of_segment = my_row % tiling.segment_rows;
  const uint32_t staged_row = S::kRowBytes + work.params_row_bytes;
  std::byte* const staged_all = memory + S::kMatrixBytes + sizeof(SharedFixed<S>) +
                                warp_group * S::kStagings * kTileRows * staged_row;
  Staged at;
#pragma unroll
  for (uint32_t r = 0; r < 2; ++r) {
    const uint32_t row = warp % 4 * 16 + lane / 4 + 8 * r;
    const uint32_t segment = row / tiling.segment_rows;
    const uint32_t of_segment = row % tiling.segment_rows;
    // Rows that no page has go where none are read.
    const uint32_t start = segment * tiling.segment_rows * staged_row;
    const bool has = segment < tiling.tile_pages;
    at.codes[r] = has ? start + of_segment * S::kRowBytes : row * staged_row;
    at.params[r] =
        has ? start + tiling.segment_rows * S::kRowBytes + of_segment * work.params_row_bytes
            : row * staged_row + S::kRowBytes;
  }
  const std::byte* base = engine.layer_base[task.layer];
  const auto place_of = [&](uint32_t turn) {
    const uint32_t tile = first_tile + turn * S::kWarpGroups + warp_group;
    return PlaceOfRow(arguments, engine, head_number, tiling, tile < end_tile ? tile : tiling.tiles,
                      my_segment, my_row_of_segment);
  };
  RowCounts counts;
  uint32_t elements[2][S::kTiles];
  RowPlace place = place_of(0);
  RowPlace next = place_of(1);
  if (S::kPrefetches && turns > 0) LoadRows<S>(base, place, arguments.transform, lane, elements);
  for (uint32_t turn = 0; turn < turns; ++turn) {
    const uint32_t tile = first_tile + turn * S::kWarpGroups + warp_group;
    float y[S::kTiles][4];
    if constexpr (!S::kPrefetches) LoadRows<S>(base, place, arguments.transform, lane, elements);
    if (!arguments.transform) {
      Widen<S>(elements, arguments.bf16, y);
    } else if (arguments.bf16) {
      Transform<S, true>(elements, matrix, head, stream, lane, y);
    } else {
      Transform<S, false>(elements, matrix, head, stream, lane, y);
    }
    if (S::kPrefetches) LoadRows<S>(base, next, arguments.transform, lane, elements);
    const uint32_t state = place.state;
    place = next;
    next = place_of(turn + 2);
    std::byte* staged = staged_all + turn % S::kStagings * kTileRows * staged_row;
    bool good[2];
    bool counted[2];
    bool finite[2];
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const uint32_t row_state = __shfl_sync(kAllLanes, state, lane / 4 + 8 * r);
      good[r] = row_state == kRowGood;
      counted[r] = row_state != kRowAbsent;
    }
    if (S::kStagings == 1) SyncWarpGroup(warp_group);
    QuantiseRows<S>(y, head, good, counted, groups, arguments.fp32_params, lane,
                    shared.scratch[S::kOneGroup ? 0 : warp], staged, at, finite, counts);
    SyncWarpGroup(warp_group);
    if (tile >= end_tile) continue;
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      if (!counted[r] || finite[r] || (lane & 3) != 0) continue;
      const uint32_t row = warp % 4 * 16 + lane / 4 + 8 * r;
      const uint32_t page = tiling.FirstPage(tile) + row / tiling.segment_rows;
      atomicOr(&batch.status[(uint64_t{page} * batch.layers.count + work.layer_in_range) *
                                 batch.heads.count +
                             work.head_in_range],
               kNonFiniteRows | (good[r] ? 0 : kBadSlot));
    }
    const uint32_t segments = min(tiling.tile_pages, batch.pages - tiling.FirstPage(tile));
    for (uint32_t segment = (warp + turn) % 4; segment < segments; segment += 4)
      EmitSegment<S>(arguments, work, tiling, shared.crc, tile, segment, staged, lane);
  }
  AddCount(&batch.counts->constant_rows, counts.constant, lane);
  AddCount(&batch.counts->nonfinite_rows, counts.nonfinite, lane);
  AddCount(&batch.counts->overflow_rows, counts.overflow, lane);
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
