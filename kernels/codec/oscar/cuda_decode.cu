// Encoded pages to an engine's paged cache, in the model's basis: codes times T^-1 on the tensor
// cores. Two warp groups write: one for K and one for V of a block, or, when a thread block has one
// side only, one for each half of the columns (256) or every other 64 rows.
//
// Codes are small integers at known places of a byte, so masked bytes are fp16 numbers already:
// code * 4^field * 2^-24, denormal and exact. The powers of four are taken out of T^-1's rows.
#include <algorithm>

#include "kernels/base/status_macros.h"
#include "kernels/codec/oscar/cuda_decode.h"
#include "kernels/codec/oscar/cuda_decode_pages.cuh"
#include "kernels/codec/oscar/cuda_matrix.cuh"
#include "kernels/codec/oscar/cuda_primitives.cuh"
#include "kernels/device/launch.h"
#include "kernels/device/status.h"

namespace oscarkv::cuda {
namespace decode {
namespace {

constexpr uint32_t kGroupThreads = 128;
constexpr uint32_t kGroupWarps = 4;
constexpr uint32_t kBatchSteps = 8;  // products under way at once

// Rows of D elements of kBits bits, on kSides sides at once.
template <uint32_t D, uint32_t kBitsOf, uint32_t kSidesOf>
struct Shape {
  static constexpr uint32_t kDim = D;
  static constexpr uint32_t kBits = kBitsOf;
  static constexpr uint32_t kSides = kSidesOf;
  static constexpr uint32_t kRowBytes = D * kBits / 8;
  static constexpr uint32_t kWords = kRowBytes / 16;  // 32-bit words of a row that a lane reads
  static constexpr uint32_t kSteps = D / 16;          // of 16 codes
  static constexpr uint32_t kFirstSteps = kSteps < kBatchSteps ? kSteps : kBatchSteps;
  static constexpr bool kHalves = D == 256;  // of the columns, one a warp group
  static constexpr bool kTakeTurns = kSides == 1 && !kHalves;
  static constexpr uint32_t kTurnTiles = kGroupWarps * (kTakeTurns ? 2 : 1);
  static constexpr uint32_t kColumns = kHalves ? 128 : D;
  static constexpr uint32_t kTiles = kColumns / 8;
  static constexpr uint32_t kMatrixBytes = InverseBytes(D) / (kHalves ? 2 : 1);  // a warp group's
  static constexpr uint32_t kWriterRegisters = 216;  // a thread; verifiers give up the difference
  static constexpr uint32_t kVerifierRegisters = 72;
};

// Rows g and g + 8 of a warp's tile: what a lane reads of their codes, and where they go.
template <typename S>
struct TileRows {
  uint32_t words[2][S::kWords];
  int64_t place[2];  // or kNoRow
  uint32_t row[2];
  bool good;  // the block is to be read

  __device__ __forceinline__ TileRows(const std::byte* codes, const int64_t* offsets,
                                      uint32_t first, uint32_t rows, bool is_good, uint32_t lane)
      : good(is_good) {
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const uint32_t wanted = first + lane / 4 + 8 * r;
      row[r] = min(wanted, rows - 1);
      place[r] = good && wanted < rows ? offsets[wanted] : kNoRow;
      const auto* from = reinterpret_cast<const uint32_t*>(codes + row[r] * S::kRowBytes);
#pragma unroll
      for (uint32_t w = 0; w < S::kWords; ++w) words[r][w] = good ? from[w * 4 + (lane & 3)] : 0;
    }
  }
  // A step's codes as an operand.
  __device__ __forceinline__ void Operand(uint32_t step, uint32_t (&a)[4]) const {
    constexpr uint32_t kMask = ((1u << S::kBits) - 1) * 0x10001u;
    const uint32_t mask = kMask << (step / S::kWords * S::kBits);
    const uint32_t w = step % S::kWords;
    a[0] = words[0][w] & mask;
    a[1] = words[1][w] & mask;
    a[2] = words[0][w] >> 8 & mask;
    a[3] = words[1][w] >> 8 & mask;
  }
};

// A lane's columns: eight that follow each other in every 32.
template <typename S>
struct LaneColumns {
  const float* from;  // the first of them
  // Those of a tile and the next; `tile` is even.
  __device__ __forceinline__ float4 Of(uint32_t tile) const {
    return reinterpret_cast<const float4*>(from + tile / 4 * 32)[tile % 4 / 2];
  }
};

// result = start + scale (sums - zero of_zero); start(tile, r) is of row r, a tile and the next.
template <typename S, typename Start>
__device__ __forceinline__ void Close(const RowParams (&params)[2], LaneColumns<S> of_zero,
                                      const float (&sums)[S::kTiles][4], Start&& start,
                                      float (&result)[S::kTiles][4]) {
#pragma unroll
  for (uint32_t tile = 0; tile < S::kTiles; tile += 2) {
    const float4 zeros = of_zero.Of(tile);
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const float4 from = start(tile, r);
      const auto close = [&](float sum, float zero, float begin) {
        return fmaf(params[r].scale, fmaf(-params[r].zero, zero, sum), begin);
      };
      result[tile][2 * r] = close(sums[tile][2 * r], zeros.x, from.x);
      result[tile][2 * r + 1] = close(sums[tile][2 * r + 1], zeros.y, from.y);
      result[tile + 1][2 * r] = close(sums[tile + 1][2 * r], zeros.z, from.z);
      result[tile + 1][2 * r + 1] = close(sums[tile + 1][2 * r + 1], zeros.w, from.w);
    }
  }
}

// What a warp group works with while it stays with one head.
struct Head {
  DeviceSide side;
  std::byte* base;       // of the engine's rows, at this warp group's columns
  const float* columns;  // in shared memory: offsets, sums per group
  uint32_t matrix;       // T^-1 in shared memory
  float scale;
};

// All products of steps kFirst to kEnd - 1; begins with `add`.
template <typename S, uint32_t kFirst, uint32_t kEnd>
__device__ __forceinline__ void Multiply(float (&sums)[S::kTiles][4], const TileRows<S>& rows,
                                         uint32_t matrix, bool add) {
  uint32_t a[kEnd - kFirst][4];
#pragma unroll
  for (uint32_t step = kFirst; step < kEnd; ++step) rows.Operand(step, a[step - kFirst]);
  HoldSums(sums);
  FenceProducts();
#pragma unroll
  for (uint32_t step = kFirst; step < kEnd; ++step) {
    BeginProduct<0, S::kTiles, false>(
        sums, a[step - kFirst],
        MatrixOfWideColumns(matrix + step / 4 * S::kColumns * 128 + step % 4 * 32),
        step > kFirst || add ? 1 : 0);
  }
  CommitProducts();
  WaitForProducts();
  HoldSums(sums);
}

template <typename S>
__device__ __forceinline__ void LoadTileParams(const DecodeArguments& arguments, const Head& head,
                                               const std::byte* block, const TileRows<S>& rows,
                                               uint32_t groups, uint32_t group,
                                               RowParams (&params)[2], uint32_t& status) {
#pragma unroll
  for (uint32_t r = 0; r < 2; ++r) {
    params[r] = {0.0f, 0.0f};
    if (!rows.good) continue;
    params[r] = LoadParams(block + head.side.params_offset, rows.row[r] * groups + group,
                           arguments.fp32_params);
    if (!isfinite(params[r].scale)) status |= kNonFiniteRows;
    params[r].scale *= head.scale;
  }
}

template <typename S, bool kBf16>
__device__ __forceinline__ void StoreTile(const Head& head, const TileRows<S>& rows,
                                          const float (&result)[S::kTiles][4]) {
#pragma unroll
  for (uint32_t r = 0; r < 2; ++r) {
    if (rows.place[r] == kNoRow) continue;
    std::byte* to = head.base + rows.place[r];
#pragma unroll
    for (uint32_t tile = 0; tile < S::kTiles; tile += 4) {
      uint32_t packed[4];
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i)
        packed[i] = PackPair<kBf16>(result[tile + i][2 * r], result[tile + i][2 * r + 1]);
      StoreGlobal(to + tile * 16, make_uint4(packed[0], packed[1], packed[2], packed[3]));
    }
  }
}

// A warp group's 64 rows, 16 a warp, each warp's of a block of its own.
template <typename S, bool kBf16, bool kOneGroup>
__device__ __forceinline__ void WriteTile(const DecodeArguments& arguments, const Head& head,
                                          const std::byte* block, const TileRows<S>& rows,
                                          uint32_t lane, uint32_t& status) {
  const uint32_t column = (lane & 3) * 8;
  const LaneColumns<S> offset{head.columns + column};
  const auto from_offset = [&](uint32_t tile, uint32_t) { return offset.Of(tile); };
  float sums[S::kTiles][4];
  RowParams params[2];
  if constexpr (kOneGroup) {
    LoadTileParams(arguments, head, block, rows, 1, 0, params, status);
    Multiply<S, 0, S::kFirstSteps>(sums, rows, head.matrix, false);
    if constexpr (S::kSteps > kBatchSteps)
      Multiply<S, kBatchSteps, S::kSteps>(sums, rows, head.matrix, true);
    Close<S>(params, {head.columns + S::kColumns + column}, sums, from_offset, sums);
    StoreTile<S, kBf16>(head, rows, sums);
  } else {
    const uint32_t groups = S::kDim / head.side.group;
    const uint32_t group_steps = head.side.group / 16;
    float result[S::kTiles][4];
    uint32_t group = 0;
    uint32_t steps_left = group_steps;
#pragma unroll
    for (uint32_t step = 0; step < S::kSteps; ++step) {
      uint32_t a[4];
      rows.Operand(step, a);
      HoldSums(sums);
      FenceProducts();
      BeginProduct<0, S::kTiles, false>(
          sums, a, MatrixOfWideColumns(head.matrix + step / 4 * S::kColumns * 128 + step % 4 * 32),
          steps_left != group_steps ? 1 : 0);
      CommitProducts();
      WaitForProducts();
      HoldSums(sums);
      if (--steps_left != 0) continue;
      LoadTileParams(arguments, head, block, rows, groups, group, params, status);
      const LaneColumns<S> of_zero{head.columns + (1 + group) * S::kColumns + column};
      if (group == 0) {
        Close<S>(params, of_zero, sums, from_offset, result);
      } else {
        Close<S>(
            params, of_zero, sums,
            [&](uint32_t tile, uint32_t r) {
              return make_float4(result[tile][2 * r], result[tile][2 * r + 1],
                                 result[tile + 1][2 * r], result[tile + 1][2 * r + 1]);
            },
            result);
      }
      steps_left = group_steps;
      ++group;
    }
    StoreTile<S, kBf16>(head, rows, result);
  }
}

__device__ __forceinline__ void SyncGroup(uint32_t group) {
  asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(kGroupThreads) : "memory");
}

// Warp groups that take turns are never further apart: else one could wait for a stage's next block
// while the other's is still awaited there, and take that one's barrier phase for its own.
__device__ __forceinline__ void SyncGroups() {
  asm volatile("bar.sync 3, %0;" ::"n"(2 * kGroupThreads) : "memory");
}

// A warp group's part of shared memory.
template <typename S>
struct GroupMemory {
  std::byte* matrix;
  float* columns;
  Barrier* loaded;
};

// Brings a head's T^-1 and columns in; all threads of the group take part.
template <typename S>
__device__ __forceinline__ Head LoadHead(const DecodeArguments& arguments, const Walk& walk,
                                         const GroupMemory<S>& memory, uint32_t group,
                                         uint32_t parity) {
  const uint32_t side_of_layer = walk.task.first_side + (S::kSides == 2 ? group : 0);
  const uint32_t half = S::kHalves ? group : 0;
  const uint32_t thread = threadIdx.x % kGroupThreads;
  Head head;
  head.side = walk.layer->side[side_of_layer];
  head.base = arguments.side[side_of_layer].layer_base[walk.task.layer] +
              (half * S::kColumns + (threadIdx.x & 3) * 8) * 2;
  const uint32_t number = head.side.per_head * walk.head();
  head.scale = head.side.scales[number];
  head.matrix = SharedAddress(memory.matrix);
  head.columns = memory.columns;
  SyncGroup(group);  // nobody needs the one before
  if (thread == 0) {
    memory.loaded->ArriveExpecting(S::kMatrixBytes);
    BulkCopy(memory.matrix,
             head.side.matrices + uint64_t{number} * InverseBytes(S::kDim) + half * S::kMatrixBytes,
             S::kMatrixBytes, memory.loaded);
  }
  const uint32_t rows = 1 + S::kDim / head.side.group;
  const float* source = head.side.columns + uint64_t{number} * rows * S::kDim + half * S::kColumns;
  for (uint32_t i = thread; i < rows * S::kColumns; i += kGroupThreads)
    memory.columns[i] = source[i / S::kColumns * S::kDim + i % S::kColumns];
  memory.loaded->Wait(parity);
  SyncGroup(group);
  return head;
}

// One of the warp groups that write rows. Its tiles of 16 rows go through the blocks of a head,
// four at a time, one a warp.
template <typename S, bool kBf16, bool kOneGroup>
__device__ __forceinline__ void Write(const DecodeArguments& arguments, uint32_t turns,
                                      SharedFixed& shared, const std::byte* blocks,
                                      const int64_t* offsets, const GroupMemory<S>& memory,
                                      uint32_t group, uint32_t warp, uint32_t lane) {
  const uint32_t heads = gridDim.x % arguments.batch.heads.count;
  const uint32_t pages = gridDim.x / arguments.batch.heads.count;
  const uint32_t page_tiles = (arguments.page_tokens + kTileRows - 1) / kTileRows;
  Walk walk(arguments, blockIdx.x);
  uint32_t heads_met = 0;
  for (uint32_t first_turn = 0; first_turn < turns; ++heads_met) {
    const Head head = LoadHead<S>(arguments, walk, memory, group, heads_met & 1);
    const Walk start = walk;
    uint32_t end_turn = first_turn + 1;
    while (!walk.Advance(heads, pages) && end_turn < turns) ++end_turn;
    const uint32_t tiles = (end_turn - first_turn) * page_tiles;
    for (uint32_t first = 0; first < tiles; first += S::kTurnTiles) {
      if constexpr (S::kTakeTurns) SyncGroups();
      const uint32_t tile = first + (S::kTakeTurns ? group * kGroupWarps : 0) + warp;
      const bool there = tile < tiles;
      const uint32_t turn = first_turn + (there ? tile / page_tiles : 0);
      const Stage stage(turn, arguments.stages);
      if (there) shared.ready[stage.number].Wait(stage.parity);
      const bool good = there && shared.good[stage.number] != 0;
      const std::byte* block = blocks + stage.number * arguments.stage_bytes;
      const TileRows<S> rows(block + head.side.rows_offset,
                             offsets + (stage.number * S::kSides + (S::kSides == 2 ? group : 0)) *
                                           arguments.page_tokens,
                             tile % page_tiles * kTileRows, arguments.page_tokens, good, lane);
      uint32_t status = 0;
      WriteTile<S, kBf16, kOneGroup>(arguments, head, block, rows, lane, status);
      if (status != 0) {
        const DeviceDecodeBatch& batch = arguments.batch;
        const uint32_t page = start.page + (turn - first_turn) * pages;
        const uint64_t number = start.BlockNumber() + uint64_t{page - start.page} *
                                                          batch.layers.count * batch.heads.count;
        atomicOr(&batch.status[number], status);
      }
      if (there) shared.free[stage.number].Arrive();
    }
    first_turn = end_turn;
  }
}

template <typename S, bool kBf16, bool kOneGroup>
__global__ void __launch_bounds__(kThreads, 1)
    DecodeKernel(const __grid_constant__ DecodeArguments arguments) {
  extern __shared__ __align__(1024) std::byte memory[];
  __shared__ SharedFixed shared;
  __shared__ Barrier matrix_loaded[2];
  std::byte* blocks = memory + 2 * S::kMatrixBytes;
  auto* columns = reinterpret_cast<float*>(blocks + arguments.stages * arguments.stage_bytes);
  const DeviceLayer& layer = arguments.layers[arguments.tasks[0].layer];
  const uint32_t column_rows = 1 + S::kDim / layer.side[arguments.tasks[0].first_side].group;
  auto* offsets = reinterpret_cast<int64_t*>(columns + 2 * column_rows * S::kColumns);
  if (threadIdx.x == 0) {
    matrix_loaded[0].Init(1);
    matrix_loaded[1].Init(1);
  }
  const uint32_t page_tiles = (arguments.page_tokens + kTileRows - 1) / kTileRows;
  shared.Init(arguments.stages, page_tiles * 32 * (S::kTakeTurns ? 1 : 2));
  // The same in all lanes, and the compiler is to know: else it makes each product wait for the one
  // before.
  const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t turns = TurnsOf(arguments);
  if (warp >= kWriters) {
    LowerRegisters<S::kVerifierRegisters>();
    Verify<S::kSides>(arguments, turns, warp - kWriters, shared, blocks, offsets, lane);
  } else {
    RaiseRegisters<S::kWriterRegisters>();
    const uint32_t group = warp / kGroupWarps;
    const GroupMemory<S> of_group = {.matrix = memory + group * S::kMatrixBytes,
                                     .columns = columns + group * column_rows * S::kColumns,
                                     .loaded = &matrix_loaded[group]};
    Write<S, kBf16, kOneGroup>(arguments, turns, shared, blocks, offsets, of_group, group,
                               warp % kGroupWarps, lane);
  }
}

template <typename S>
absl::Status Launch(DecodeArguments arguments, uint32_t group, bool to_bf16, cudaStream_t stream) {
  const bool one = group == S::kDim;
  const auto kernel = to_bf16
                          ? (one ? &DecodeKernel<S, true, true> : &DecodeKernel<S, true, false>)
                          : (one ? &DecodeKernel<S, false, true> : &DecodeKernel<S, false, false>);
  const size_t columns = 2 * size_t{1 + S::kDim / group} * S::kColumns * sizeof(float);
  OSCARKV_ASSIGN_OR_RETURN(const uint32_t bytes,
                           FitStages(arguments, S::kSides, 2 * S::kMatrixBytes + columns, 1));
  OSCARKV_ASSIGN_OR_RETURN(const device::Places there,
                           device::PrepareKernel(reinterpret_cast<const void*>(kernel), kThreads,
                                                 bytes, "preparing to decode"));
  // Whole pages at a time, so that a thread block stays with one head's T^-1.
  const uint32_t heads = arguments.batch.heads.count;
  const uint32_t places = there.all() > heads ? there.all() / heads * heads : there.all();
  kernel<<<std::min(arguments.blocks, places), kThreads, bytes, stream>>>(arguments);
  return device::LastLaunch("decoding");
}

}  // namespace
}  // namespace decode

absl::Status LaunchDecode(const DecodeArguments& arguments, const RowShape& shape, bool to_bf16,
                          cudaStream_t stream) {
  return ForShape(shape, [&]<uint32_t kDim, uint32_t kBits, uint32_t kSides>() {
    return decode::Launch<decode::Shape<kDim, kBits, kSides>>(arguments, shape.group, to_bf16,
                                                              stream);
  });
}

}  // namespace oscarkv::cuda
