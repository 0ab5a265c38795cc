// Encoded pages to an engine's paged cache. A thread block takes one side of one (layer, head)
// through a run of pages: its last warp has the copy engine bring blocks into shared memory,
// verifies their checksums and works out where rows go; the others multiply codes by T^-1 on the
// tensor cores and write rows, 16 bytes a thread.
//
// Codes are small integers at known places of a byte, so masked bytes are fp16 numbers already:
// code * 4^field * 2^-24, denormal and exact. The powers of four are taken out of T^-1's rows.
#include <algorithm>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "kernels/codec/oscar/cuda_decode.h"
#include "kernels/codec/oscar/cuda_primitives.cuh"
#include "kernels/device/launch.h"
#include "kernels/device/status.h"

namespace oscarkv::cuda {
namespace {

constexpr uint32_t kStages = 8;
constexpr uint32_t kVerifiers =
    4;  // warps; each has every fourth page, and the next one's load under way
constexpr uint32_t kTileRows = 16;
constexpr uint32_t kWarpColumns = 32;
constexpr int64_t kNoRow = -1;

// Rows of D elements of kBits bits, on kSides sides at once, and how warps cut them up.
template <uint32_t D, uint32_t kBitsOf, uint32_t kSidesOf>
struct Shape {
  static constexpr uint32_t kDim = D;
  static constexpr uint32_t kBits = kBitsOf;
  static constexpr uint32_t kSides = kSidesOf;
  static constexpr uint32_t kRowBytes = D * kBits / 8;
  static constexpr uint32_t kFields = 8 / kBits;      // codes a byte
  static constexpr uint32_t kWords = kRowBytes / 16;  // 32-bit words of a row that a lane reads
  static constexpr uint32_t kSteps = D / 16;          // of 16 codes
  static constexpr uint32_t kColumnWarps = D / kWarpColumns;            // side by side
  static constexpr uint32_t kSideWriters = D < 128 ? 4 : kColumnWarps;  // warps that write rows
  static constexpr uint32_t kRowTurns = kSideWriters / kColumnWarps;    // of them below each other
  static constexpr uint32_t kWriters = kSideWriters * kSides;
  static constexpr uint32_t kThreads = (kWriters + kVerifiers) * 32;
  // Registers a thread: verifiers give up what writers need for T^-1.
  static constexpr uint32_t kBlocksResident = kWriters == 4 ? 2 : 1;
  static constexpr uint32_t kVerifierRegisters = 56;
  static constexpr uint32_t kWriterRegisters = kWriters == 4 ? 200 : 216;
};

// What is in shared memory before the dynamic part: kStages blocks, then kStages * page_tokens
// offsets.
struct SharedFixed {
  Barrier loaded[kStages];
  Barrier ready[kStages];
  Barrier free[kStages];
  uint32_t good[kStages];  // the stage's block may be written
  CrcTables crc;
};

__device__ __forceinline__ uint32_t CrcOfBlock(const CrcTables& tables, const uint32_t* words,
                                               uint32_t count, uint32_t start, uint32_t lane) {
  uint32_t remainder = 0;
  uint32_t i = lane;
  if (i < count) remainder = words[i];
  for (i += kCrcLanes; i < count; i += kCrcLanes) {
    remainder = tables.step[0][remainder & 0xff] ^ tables.step[1][(remainder >> 8) & 0xff] ^
                tables.step[2][(remainder >> 16) & 0xff] ^ tables.step[3][remainder >> 24] ^
                words[i];
  }
  // The lane's last word is `behind` words before the end.
  if (lane < count) {
    const uint32_t behind = (count - 1 - lane) % kCrcLanes;
    remainder = CrcMultiply(tables.power[behind], remainder);
  }
  return ~(__reduce_xor_sync(0xffffffffu, remainder) ^ start);
}

struct Place {
  uint32_t layer_in_range;
  uint32_t head_in_range;
  uint32_t first_page;
  uint32_t end_page;
  uint64_t block_offset;  // in a page of the batch
};

__device__ __forceinline__ Place PlaceOf(const DecodeArguments& arguments, const DeviceLayer& layer,
                                         uint32_t layer_id) {
  const DeviceDecodeBatch& batch = arguments.batch;
  Place place;
  place.layer_in_range = layer_id - batch.layers.first;
  place.head_in_range = blockIdx.y;
  place.first_page = static_cast<uint32_t>(uint64_t{batch.pages} * blockIdx.x / gridDim.x);
  place.end_page = static_cast<uint32_t>(uint64_t{batch.pages} * (blockIdx.x + 1) / gridDim.x);
  place.block_offset = (layer.strides_before - arguments.strides_before_range) * batch.heads.count +
                       uint64_t{place.head_in_range} * layer.stride;
  return place;
}

// Index of a page's block in block_crc32c and status.
__device__ __forceinline__ uint64_t BlockNumber(const DeviceDecodeBatch& batch, const Place& place,
                                                uint32_t page) {
  return (uint64_t{page} * batch.layers.count + place.layer_in_range) * batch.heads.count +
         place.head_in_range;
}

// One of the warps that bring blocks in and judge them.
template <uint32_t kSides>
__device__ __forceinline__ void Verify(const DecodeArguments& arguments, const DeviceLayer& layer,
                                       const Place& place, uint32_t first_side, uint32_t verifier,
                                       SharedFixed& shared, std::byte* blocks, int64_t* offsets,
                                       uint32_t lane) {
  const DeviceDecodeBatch& batch = arguments.batch;
  const uint32_t turns = place.end_page - place.first_page;
  const auto load = [&](uint32_t turn) {
    if (turn >= turns) return;
    const uint32_t stage = turn % kStages;
    if (turn >= kStages) shared.free[stage].Wait((turn / kStages & 1) ^ 1);
    if (lane == 0) {
      shared.loaded[stage].ArriveExpecting(layer.stride);
      BulkCopy(blocks + stage * layer.stride,
               batch.page_bytes[place.first_page + turn] + place.block_offset, layer.stride,
               &shared.loaded[stage]);
    }
  };
  const uint32_t head = batch.heads.first + place.head_in_range;
  load(verifier);
  for (uint32_t turn = verifier; turn < turns; turn += kVerifiers) {
    const uint32_t page = place.first_page + turn;
    const uint32_t stage = turn % kStages;
    const uint64_t number = BlockNumber(batch, place, page);
    const uint32_t expected = batch.block_crc32c[number];
    const int64_t* slots = batch.slots + uint64_t{page} * arguments.page_tokens;
    load(turn + kVerifiers);
    uint32_t bad_slot = 0;
    for (uint32_t token = lane; token < arguments.page_tokens; token += 32) {
      const int64_t slot = slots[token];
      if (slot >= arguments.slots) bad_slot = kBadSlot;
      const bool wanted = slot >= 0 && slot < arguments.slots;
      const uint32_t index = wanted ? static_cast<uint32_t>(slot) : 0;
      const uint32_t engine_block = index / arguments.block_tokens;
      const uint32_t in_block = index % arguments.block_tokens;
#pragma unroll
      for (uint32_t side = 0; side < kSides; ++side) {
        const DeviceEngineSide& engine = arguments.side[first_side + side];
        offsets[(stage * kSides + side) * arguments.page_tokens + token] =
            wanted ? head * engine.head_stride + engine_block * engine.block_stride +
                         in_block * engine.token_stride
                   : kNoRow;
      }
    }
    shared.loaded[stage].Wait(turn / kStages & 1);
    const uint32_t found =
        CrcOfBlock(shared.crc, reinterpret_cast<const uint32_t*>(blocks + stage * layer.stride),
                   layer.content_words, layer.crc_start, lane);
    const uint32_t bits =
        (found == expected ? 0 : kBadChecksum) | __reduce_or_sync(0xffffffffu, bad_slot);
    if (lane == 0) {
      shared.good[stage] = found == expected ? 1 : 0;
      if (bits != 0) atomicOr(&batch.status[number], bits);
    }
    shared.ready[stage].Arrive();
  }
}

struct RowParams {
  float scale;
  float zero;
};

__device__ __forceinline__ RowParams LoadParams(const std::byte* params, uint32_t pair, bool fp32) {
  if (fp32) {
    const float2 both = reinterpret_cast<const float2*>(params)[pair];
    return {both.x, both.y};
  }
  const float2 both = __half22float2(reinterpret_cast<const __half2*>(params)[pair]);
  return {both.x, both.y};
}

// Eight floats that follow each other, of the columns that a lane has.
struct Columns {
  float4 half[2];
  __device__ __forceinline__ explicit Columns(const float* from)
      : half{reinterpret_cast<const float4*>(from)[0], reinterpret_cast<const float4*>(from)[1]} {}
  // Those of tile 0 to 3; constant once the loop around it is unrolled.
  __device__ __forceinline__ float2 of(uint32_t tile) const {
    const float4& both = half[tile / 2];
    return tile % 2 == 0 ? make_float2(both.x, both.y) : make_float2(both.z, both.w);
  }
};

// result += scale (sums - zero of_zero) for a group, and sums begin again.
__device__ __forceinline__ void CloseGroup(RowParams first, RowParams second,
                                           const Columns& sums_of_group, float (&sums)[4][4],
                                           float (&result)[4][4]) {
#pragma unroll
  for (uint32_t tile = 0; tile < 4; ++tile) {
    const float2 of_zero = sums_of_group.of(tile);
    result[tile][0] =
        fmaf(first.scale, fmaf(-first.zero, of_zero.x, sums[tile][0]), result[tile][0]);
    result[tile][1] =
        fmaf(first.scale, fmaf(-first.zero, of_zero.y, sums[tile][1]), result[tile][1]);
    result[tile][2] =
        fmaf(second.scale, fmaf(-second.zero, of_zero.x, sums[tile][2]), result[tile][2]);
    result[tile][3] =
        fmaf(second.scale, fmaf(-second.zero, of_zero.y, sums[tile][3]), result[tile][3]);
#pragma unroll
    for (float& sum : sums[tile]) sum = 0.0f;
  }
}

// A warp's 32 columns of kParts times 16 rows. `fragments` is this lane's share of T^-1.
template <typename S, bool kBf16, bool kOneGroup, uint32_t kParts>
__device__ __forceinline__ void MultiplyRows(const DeviceSide& side,
                                             const uint2 (&fragments)[S::kSteps][4],
                                             const float* __restrict__ columns, float matrix_scale,
                                             const std::byte* block, uint32_t row0, uint32_t rows,
                                             const int64_t* offsets, std::byte* base, bool fp32,
                                             uint32_t warp, uint32_t lane, uint32_t& status) {
  const uint32_t quad = lane & 3;
  uint32_t words[kParts][2][S::kWords];
  uint32_t row[kParts][2];
  int64_t place[kParts][2];  // where the row goes, or kNoRow
#pragma unroll
  for (uint32_t part = 0; part < kParts; ++part) {
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const uint32_t wanted = row0 + part * kTileRows + lane / 4 + 8 * r;
      row[part][r] = min(wanted, rows - 1);
      place[part][r] = wanted < rows ? offsets[wanted] : kNoRow;
      const std::byte* codes = block + side.rows_offset + row[part][r] * S::kRowBytes;
#pragma unroll
      for (uint32_t w = 0; w < S::kWords; ++w)
        words[part][r][w] = reinterpret_cast<const uint32_t*>(codes)[w * 4 + quad];
    }
  }
  const uint32_t groups = kOneGroup ? 1 : S::kDim / side.group;
  const uint32_t steps_of_group = kOneGroup ? S::kSteps : side.group / 16;
  const std::byte* params = block + side.params_offset;
  const uint32_t column = warp * kWarpColumns + quad * 8;
  std::byte* const columns_base = base + column * 2;
  // Results begin with the offset.
  float result[kParts][4][4];
  {
    const Columns offset(columns + column);
#pragma unroll
    for (uint32_t tile = 0; tile < 4; ++tile) {
#pragma unroll
      for (uint32_t part = 0; part < kParts; ++part) {
        result[part][tile][0] = result[part][tile][2] = offset.of(tile).x;
        result[part][tile][1] = result[part][tile][3] = offset.of(tile).y;
      }
    }
  }
  float sums[kParts][4][4] = {};
  uint32_t group = 0;
  uint32_t steps_left = steps_of_group;
#pragma unroll
  for (uint32_t step = 0; step < S::kSteps; ++step) {
    constexpr uint32_t kMask = (S::kBits == 2 ? 0x3u : 0xfu) * 0x10001u;
    const uint32_t mask = kMask << (step / S::kWords * S::kBits);
    const uint32_t w = step % S::kWords;
#pragma unroll
    for (uint32_t part = 0; part < kParts; ++part) {
      const uint32_t a[4] = {words[part][0][w] & mask, words[part][1][w] & mask,
                             words[part][0][w] >> 8 & mask, words[part][1][w] >> 8 & mask};
#pragma unroll
      for (uint32_t tile = 0; tile < 4; ++tile)
        MultiplyAdd(sums[part][tile], a, fragments[step][tile]);
    }
    if (kOneGroup ? step + 1 == S::kSteps : --steps_left == 0) {
      const Columns sums_of_group(columns + (1 + group) * S::kDim + column);
#pragma unroll
      for (uint32_t part = 0; part < kParts; ++part) {
        RowParams first = LoadParams(params, row[part][0] * groups + group, fp32);
        RowParams second = LoadParams(params, row[part][1] * groups + group, fp32);
        if (!isfinite(first.scale) || !isfinite(second.scale)) status |= kNonFiniteRows;
        first.scale *= matrix_scale;
        second.scale *= matrix_scale;
        CloseGroup(first, second, sums_of_group, sums[part], result[part]);
      }
      steps_left = steps_of_group;
      ++group;
    }
  }
#pragma unroll
  for (uint32_t part = 0; part < kParts; ++part) {
    uint32_t packed[2][4];
#pragma unroll
    for (uint32_t tile = 0; tile < 4; ++tile) {
#pragma unroll
      for (uint32_t r = 0; r < 2; ++r)
        packed[r][tile] = PackPair<kBf16>(result[part][tile][2 * r], result[part][tile][2 * r + 1]);
    }
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      if (place[part][r] >= 0) {
        StoreGlobal(columns_base + place[part][r],
                    make_uint4(packed[r][0], packed[r][1], packed[r][2], packed[r][3]));
      }
    }
  }
}

// Rows as stored: each thread takes words of codes, wherever they are in the block.
template <typename S, bool kBf16>
__device__ __forceinline__ void Dequantize(const DeviceSide& side, const std::byte* block,
                                           uint32_t rows, const int64_t* offsets, std::byte* base,
                                           bool fp32, uint32_t thread, uint32_t& status) {
  constexpr uint32_t kRowWords = S::kRowBytes / 4;
  const uint32_t groups = S::kDim / side.group;
  for (uint32_t i = thread; i < rows * kRowWords; i += S::kSideWriters * 32) {
    const uint32_t row = i / kRowWords;
    const uint32_t word = i % kRowWords;
    const int64_t offset = offsets[row];
    if (offset == kNoRow) continue;
    const uint32_t codes = reinterpret_cast<const uint32_t*>(block + side.rows_offset)[i];
#pragma unroll
    for (uint32_t field = 0; field < S::kFields; ++field) {
      const uint32_t dim = field * (S::kDim / S::kFields) + word * 4;
      const RowParams pair =
          LoadParams(block + side.params_offset, row * groups + dim / side.group, fp32);
      if (!isfinite(pair.scale)) status |= kNonFiniteRows;
      float values[4];
#pragma unroll
      for (uint32_t b = 0; b < 4; ++b) {
        const uint32_t code = codes >> (8 * b + field * S::kBits) & ((1u << S::kBits) - 1);
        // As format.h computes it, without contraction.
        values[b] = __fmul_rn(__fsub_rn(static_cast<float>(code), pair.zero), pair.scale);
      }
      StoreGlobal(base + offset + dim * 2, make_uint2(PackPair<kBf16>(values[0], values[1]),
                                                      PackPair<kBf16>(values[2], values[3])));
    }
  }
}

// One of the warps that write rows. `columns` is its side's.
template <typename S, bool kBf16, bool kTransform, bool kOneGroup>
__device__ __forceinline__ void Write(const DecodeArguments& arguments, const DeviceLayer& layer,
                                      const Place& place, DecodeTask task, uint32_t head,
                                      SharedFixed& shared, const std::byte* blocks,
                                      const int64_t* offsets, const float* columns, uint32_t warp,
                                      uint32_t lane) {
  const uint32_t side_of_task = warp / S::kSideWriters;
  const uint32_t side_warp = warp % S::kSideWriters;
  const uint32_t column_warp = side_warp % S::kColumnWarps;
  const DeviceSide side = layer.side[task.first_side + side_of_task];
  uint2 fragments[kTransform ? S::kSteps : 1][4];
  float matrix_scale = 1.0f;
  if constexpr (kTransform) {
    matrix_scale = side.scales[side.per_head * head];
    const uint2* source =
        side.fragments +
        (uint64_t{side.per_head * head} * S::kColumnWarps + column_warp) * S::kSteps * 4 * 32;
#pragma unroll
    for (uint32_t step = 0; step < S::kSteps; ++step) {
#pragma unroll
      for (uint32_t tile = 0; tile < 4; ++tile)
        fragments[step][tile] = source[(step * 4 + tile) * 32 + lane];
    }
  }
  std::byte* base = arguments.side[task.first_side + side_of_task].layer_base[task.layer];
  for (uint32_t page = place.first_page; page < place.end_page; ++page) {
    const uint32_t turn = page - place.first_page;
    const uint32_t stage = turn % kStages;
    shared.ready[stage].Wait(turn / kStages & 1);
    uint32_t status = 0;
    if (shared.good[stage] != 0) {
      const std::byte* block = blocks + stage * layer.stride;
      const int64_t* of_stage =
          offsets + (stage * S::kSides + side_of_task) * arguments.page_tokens;
      if constexpr (kTransform) {
        // Two tiles at once have their products overlap; groups need the registers for sums of
        // their own.
        constexpr uint32_t kParts = kOneGroup || S::kDim < 256 ? 2 : 1;
        constexpr uint32_t kRows = kParts * kTileRows;
        for (uint32_t row = side_warp / S::kColumnWarps * kRows; row < arguments.page_tokens;
             row += S::kRowTurns * kRows) {
          MultiplyRows<S, kBf16, kOneGroup, kParts>(
              side, fragments, columns, matrix_scale, block, row, arguments.page_tokens, of_stage,
              base, arguments.fp32_params, column_warp, lane, status);
        }
      } else {
        Dequantize<S, kBf16>(side, block, arguments.page_tokens, of_stage, base,
                             arguments.fp32_params, side_warp * 32 + lane, status);
      }
    }
    if (status != 0)
      atomicOr(&arguments.batch.status[BlockNumber(arguments.batch, place, page)], status);
    shared.free[stage].Arrive();
  }
}

template <typename S, bool kBf16, bool kTransform, bool kOneGroup>
__global__ void __launch_bounds__(S::kThreads, kTransform ? S::kBlocksResident : 2)
    DecodeKernel(const __grid_constant__ DecodeArguments arguments) {
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ SharedFixed shared;
  const DecodeTask task = arguments.tasks[blockIdx.z];
  const DeviceLayer& layer = arguments.layers[task.layer];
  const Place place = PlaceOf(arguments, layer, task.layer);
  const uint32_t head = arguments.batch.heads.first + place.head_in_range;
  const uint32_t column_rows =
      1 + S::kDim / layer.side[task.first_side].group;  // of all sides of a task
  std::byte* blocks = memory;
  auto* columns = reinterpret_cast<float*>(memory + kStages * layer.stride);
  auto* offsets =
      reinterpret_cast<int64_t*>(columns + (kTransform ? S::kSides * column_rows * S::kDim : 0));
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (uint32_t stage = 0; stage < kStages; ++stage) {
      shared.loaded[stage].Init(1);
      shared.ready[stage].Init(32);
      shared.free[stage].Init(S::kWriters * 32);
    }
    FenceBarrierInit();
  }
  for (uint32_t i = threadIdx.x; i < sizeof(CrcTables) / 4; i += S::kThreads) {
    reinterpret_cast<uint32_t*>(&shared.crc)[i] =
        reinterpret_cast<const uint32_t*>(arguments.crc)[i];
  }
  if constexpr (kTransform) {
    for (uint32_t side_of_task = 0; side_of_task < S::kSides; ++side_of_task) {
      const DeviceSide& side = layer.side[task.first_side + side_of_task];
      const uint32_t count = column_rows * S::kDim;
      const float* source = side.columns + uint64_t{side.per_head * head} * count;
      for (uint32_t i = threadIdx.x; i < count; i += S::kThreads)
        columns[side_of_task * count + i] = source[i];
    }
  }
  __syncthreads();
  if (warp >= S::kWriters) {
    if constexpr (kTransform) LowerRegisters<S::kVerifierRegisters>();
    Verify<S::kSides>(arguments, layer, place, task.first_side, warp - S::kWriters, shared, blocks,
                      offsets, lane);
  } else {
    if constexpr (kTransform) RaiseRegisters<S::kWriterRegisters>();
    Write<S, kBf16, kTransform, kOneGroup>(
        arguments, layer, place, task, head, shared, blocks, offsets,
        columns + warp / S::kSideWriters * column_rows * S::kDim, warp, lane);
  }
}

template <typename S, bool kBf16, bool kTransform, bool kOneGroup>
absl::Status Launch(const DecodeArguments& arguments, uint32_t group, uint32_t tasks,
                    uint32_t block_bytes, cudaStream_t stream) {
  const auto kernel = &DecodeKernel<S, kBf16, kTransform, kOneGroup>;
  const size_t columns = size_t{1 + S::kDim / group} * S::kDim * sizeof(float);
  const size_t bytes =
      kStages * (block_bytes + S::kSides * arguments.page_tokens * sizeof(int64_t)) +
      (kTransform ? S::kSides * columns : 0);
  OSCARKV_ASSIGN_OR_RETURN(const device::Places there,
                           device::PrepareKernel(reinterpret_cast<const void*>(kernel), S::kThreads,
                                                 bytes, "preparing to decode"));
  const uint32_t places = there.all();
  if (places == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "decoding needs ", bytes, " bytes of a multiprocessor's shared memory: blocks of ",
        block_bytes, " bytes are too large for this device"));
  }
  // One wave of persistent blocks, or several when there are more heads than places for them.
  const uint32_t each = arguments.batch.heads.count * tasks;
  const uint32_t wanted = each <= places ? places / each : (4 * places + each - 1) / each;
  const uint32_t chunks = std::clamp(wanted, 1u, arguments.batch.pages);
  kernel<<<dim3(chunks, arguments.batch.heads.count, tasks), S::kThreads, bytes, stream>>>(
      arguments);
  return device::LastLaunch("decoding");
}

template <typename S, bool kBf16>
absl::Status LaunchShape(const DecodeArguments& arguments, uint32_t group, uint32_t tasks,
                         uint32_t block_bytes, cudaStream_t stream) {
  if (!arguments.transform)
    return Launch<S, kBf16, false, false>(arguments, group, tasks, block_bytes, stream);
  return group == S::kDim
             ? Launch<S, kBf16, true, true>(arguments, group, tasks, block_bytes, stream)
             : Launch<S, kBf16, true, false>(arguments, group, tasks, block_bytes, stream);
}

}  // namespace

bool HasDecodeKernel(uint32_t dim, uint32_t bits) {
  return (dim == 64 || dim == 128 || dim == 256) && (bits == 2 || bits == 4);
}

bool TakesBothSides(uint32_t dim) { return dim < 256; }

absl::Status LaunchDecode(const DecodeArguments& arguments, const RowShape& shape, bool to_bf16,
                          uint32_t tasks, uint32_t block_bytes, cudaStream_t stream) {
  const auto launch = [&]<typename S>(S) {
    return to_bf16 ? LaunchShape<S, true>(arguments, shape.group, tasks, block_bytes, stream)
                   : LaunchShape<S, false>(arguments, shape.group, tasks, block_bytes, stream);
  };
  switch ((shape.dim * 8 + shape.bits) * 4 + shape.sides) {
    case (64 * 8 + 2) * 4 + 1:
      return launch(Shape<64, 2, 1>());
    case (64 * 8 + 4) * 4 + 1:
      return launch(Shape<64, 4, 1>());
    case (64 * 8 + 2) * 4 + 2:
      return launch(Shape<64, 2, 2>());
    case (64 * 8 + 4) * 4 + 2:
      return launch(Shape<64, 4, 2>());
    case (128 * 8 + 2) * 4 + 1:
      return launch(Shape<128, 2, 1>());
    case (128 * 8 + 4) * 4 + 1:
      return launch(Shape<128, 4, 1>());
    case (128 * 8 + 2) * 4 + 2:
      return launch(Shape<128, 2, 2>());
    case (128 * 8 + 4) * 4 + 2:
      return launch(Shape<128, 4, 2>());
    case (256 * 8 + 2) * 4 + 1:
      return launch(Shape<256, 2, 1>());
    case (256 * 8 + 4) * 4 + 1:
      return launch(Shape<256, 4, 1>());
    default:
      return absl::InvalidArgumentError(absl::StrCat("no decode kernel for rows of ", shape.dim,
                                                     " elements of ", shape.bits, " bits, ",
                                                     shape.sides, " sides at once"));
  }
}

}  // namespace oscarkv::cuda
