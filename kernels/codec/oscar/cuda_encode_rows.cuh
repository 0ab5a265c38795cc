// Encoding, first half: tiles of rows from an engine's memory into registers, and times T. Device
// code only; used by cuda_encode.cu.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_ENCODE_ROWS_CUH_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_ENCODE_ROWS_CUH_

#include "kernels/codec/oscar/cuda_encode.h"
#include "kernels/codec/oscar/cuda_matrix.cuh"
#include "kernels/codec/oscar/cuda_primitives.cuh"
#include "kernels/codec/oscar/cuda_quantise.cuh"

namespace oscarkv::cuda::encode {

constexpr uint32_t kTileRows = 64;
constexpr uint32_t kWarpRows = 16;
constexpr uint32_t kGroupThreads = 128;

// Rows of D elements of kBits bits. kOneGroup: params are those of a whole row.
template <uint32_t D, uint32_t kBitsOf, bool kOneGroupOf>
struct Shape {
  static constexpr uint32_t kDim = D;
  static constexpr uint32_t kBits = kBitsOf;
  static constexpr bool kOneGroup = kOneGroupOf;
  static constexpr uint32_t kTiles = D / 8;  // of 8 columns
  static constexpr uint32_t kRowBytes = D * kBits / 8;
  static constexpr uint32_t kFields = 8 / kBits;
  static constexpr uint32_t kFieldTiles = kTiles / kFields;
  static constexpr uint32_t kLaneBytes = kRowBytes / 4;  // of a row's codes; as many dims a field
  // Dims that follow each other, that a lane has, and that lie in one group.
  static constexpr uint32_t kRun = kLaneBytes < 16 ? kLaneBytes : 16;
  static constexpr uint32_t kRunTiles = kRun / 2;  // a tile has two of them
  static constexpr uint32_t kRuns = D / kRun;
  // Warp groups that quantise; one more stores what they made.
  static constexpr uint32_t kWarpGroups = D == 64 ? 4 : D == 128 ? 3 : 2;
  static constexpr uint32_t kThreads = (kWarpGroups + 1) * kGroupThreads;
  // Of a thread when the kernel starts; storing ones leave some of theirs to the others.
  static constexpr uint32_t kLaunchRegisters = 65536 / kThreads / 8 * 8;
  static constexpr uint32_t kStoringRegisters = D == 256 ? 40 : 56;
  static constexpr uint32_t kRegisters =
      (kLaunchRegisters + (kLaunchRegisters - kStoringRegisters) / kWarpGroups) / 8 * 8;
  static constexpr uint32_t kStagings = D == 128 ? 2 : 1;
  // Rows of the engine come to shared memory in chunks. Eight of them, 16 bytes each, do not meet
  // in a bank.
  static constexpr uint32_t kChunks = D == 256 ? 2 : 1;
  static constexpr uint32_t kChunkBytes = D * 2 / kChunks;
  static constexpr uint32_t kChunkPitch = kChunkBytes + 16;
  // Of 16 dims, that a warp has in registers at once.
  static constexpr uint32_t kOperandSteps = D == 64 ? 4 : 8;
  static constexpr uint32_t kMatrixBytes = ForwardBytes(D);
};

// A warp's.
template <typename S>
union Scratch {
  float4 rows[S::kDim / 2];  // see OrderStatistic
  // Then least and greatest of runs, then scale and zero of groups.
  float2 runs[kWarpRows][S::kOneGroup ? 1 : S::kRuns];
};

// What is in shared memory after T and before each warp group's staged bytes.
template <typename S>
struct SharedFixed {
  static constexpr uint32_t kWarps = S::kWarpGroups * 4;
  Barrier matrix;
  alignas(16) CrcTables crc;
  alignas(16) std::byte source[kWarps][kWarpRows * S::kChunkPitch];
  Scratch<S> scratch[kWarps];
};

// Where tiles lie in pages.
struct Tiling {
  uint32_t page_tokens;
  uint32_t segment_rows;  // of a page in a tile
  uint32_t tile_pages;    // in a tile
  uint32_t page_tiles;    // of a page; 1 where tile_pages passes 1
  uint32_t tiles;

  __host__ __device__ Tiling(uint32_t tokens, uint32_t pages)
      : page_tokens(tokens),
        segment_rows(tokens < kTileRows ? tokens : kTileRows),
        tile_pages(kTileRows / segment_rows),
        page_tiles((tokens + kTileRows - 1) / kTileRows),
        tiles(tokens <= kTileRows ? (pages + tile_pages - 1) / tile_pages : pages * page_tiles) {}
  __device__ __forceinline__ uint32_t FirstPage(uint32_t tile) const {
    return page_tiles > 1 ? tile / page_tiles : tile * tile_pages;
  }
  __device__ __forceinline__ uint32_t FirstToken(uint32_t tile) const {
    return page_tiles > 1 ? tile % page_tiles * kTileRows : 0;
  }
};

enum RowState : uint32_t { kRowGood, kRowBad, kRowAbsent };

// Which slot of the engine holds row `row` of a tile; `present`: a page has that row.
struct RowSlot {
  int64_t slot = 0;
  bool present = false;

  __device__ __forceinline__ RowState State(uint32_t slots) const {
    return !present ? kRowAbsent : slot >= 0 && slot < slots ? kRowGood : kRowBad;
  }
};

__device__ __forceinline__ RowSlot SlotOfRow(const DeviceEncodeBatch& batch, const Tiling& tiling,
                                             uint32_t tile, uint32_t row) {
  const uint32_t token = tiling.FirstToken(tile) + row;  // of all tokens of pages, at first
  const bool in_page = tiling.page_tiles > 1 ? token < tiling.page_tokens
                                             : row < tiling.tile_pages * tiling.segment_rows;
  const uint64_t index = uint64_t{tiling.FirstPage(tile)} * tiling.page_tokens + token;
  if (!in_page || index >= uint64_t{batch.pages} * tiling.page_tokens) return {};
  return {batch.slots[index], true};
}

// Where rows of one head lie in an engine's memory.
struct EngineRows {
  const std::byte* base;
  DeviceEngineSide engine;
  uint32_t block_tokens;
  uint32_t slots;

  // A place to read from even for a row that is not good.
  __device__ __forceinline__ auto Row(const RowSlot& row) const -> const std::byte* {
    const uint32_t index = row.State(slots) == kRowGood ? static_cast<uint32_t>(row.slot) : 0;
    if (block_tokens == 1) return base + index * engine.block_stride;
    return base + index / block_tokens * engine.block_stride +
           index % block_tokens * engine.token_stride;
  }
};

// Begins to copy chunk `chunk` of a warp's 16 rows to its shared memory. `row`: where lane l's and
// l
// + 16's row is. A lane copies for two rows, 64 bytes of them with the three beside it.
template <typename S>
__device__ __forceinline__ void BeginRows(const std::byte* row, uint32_t chunk, uint32_t lane,
                                          std::byte* to) {
  const uint32_t at = lane % 4 * 16;
#pragma unroll
  for (uint32_t r = 0; r < 2; ++r) {
    const uint32_t number = lane / 4 + 8 * r;
    const auto* from = reinterpret_cast<const std::byte*>(
                           __shfl_sync(kAllLanes, reinterpret_cast<uint64_t>(row), number)) +
                       chunk * S::kChunkBytes + at;
    const uint32_t target = SharedAddress(to) + number * S::kChunkPitch + at;
#pragma unroll
    for (uint32_t piece = 0; piece < S::kChunkBytes; piece += 64)
      CopyPiece(target + piece, from + piece);
  }
}

// Steps of 16 dims of a warp's chunk of rows, from `first` on, as left-hand operands of products.
template <typename S>
__device__ __forceinline__ void TakeOperands(const std::byte* from, uint32_t first, uint32_t lane,
                                             uint32_t (&operands)[S::kOperandSteps][4]) {
  const uint32_t address =
      SharedAddress(from) + lane % kWarpRows * S::kChunkPitch + lane / kWarpRows * 16;
#pragma unroll
  for (uint32_t step = 0; step < S::kOperandSteps; ++step)
    LoadMatrices(address + (first + step) * 32, operands[step]);
}

// The elements of a warp's chunk of rows as sums lie: y of rows in the transformed basis.
template <typename S>
__device__ __forceinline__ void TakeSums(const std::byte* from, uint32_t chunk, bool bf16,
                                         uint32_t lane, float (&y)[S::kTiles][4]) {
  constexpr uint32_t kChunkTiles = S::kChunkBytes / 16;
#pragma unroll
  for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
    const uint32_t dim =
        tile / S::kFieldTiles * S::kRowBytes + lane % 4 * S::kLaneBytes + tile % S::kFieldTiles * 2;
    if (dim / (kChunkTiles * 8) != chunk) continue;
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const uint32_t pair = *reinterpret_cast<const uint32_t*>(
          from + (lane / 4 + 8 * r) * S::kChunkPitch + dim % (kChunkTiles * 8) * 2);
      const float2 halves = __half22float2(Halves(pair));
      y[tile][2 * r] = bf16 ? __uint_as_float(pair << 16) : halves.x;
      y[tile][2 * r + 1] = bf16 ? __uint_as_float(pair & 0xffff0000u) : halves.y;
    }
  }
}

// Begins sums = -m T, which is there as three rows to be multiplied by `head.one`.
template <typename S, bool kBf16>
__device__ __forceinline__ void BeginOffset(const std::byte* matrix, const ForwardHead& head,
                                            uint32_t lane, float (&sums)[S::kTiles][4]) {
  const uint32_t quad = lane % 4;
  const uint32_t one = quad == 0 ? head.one * 0x10001u : quad == 1 ? head.one : 0;
  const uint32_t ones[4] = {one, one, 0, 0};
  const uint64_t b = MatrixOfNarrowColumns(SharedAddress(matrix) +
                                           ForwardParts(S::kDim) * ForwardPartBytes(S::kDim));
  if constexpr (S::kTiles <= 16) {
    BeginProduct<0, S::kTiles, kBf16>(sums, ones, b, 0);
  } else {
    BeginProduct<0, 16, kBf16>(sums, ones, b, 0);
    BeginProduct<16, 16, kBf16>(sums, ones, b + 128 * 32 / 16, 0);
  }
}

// Begins sums += operands T, the operands being of dims from 16 `first` on.
template <typename S, bool kBf16>
__device__ __forceinline__ void BeginSteps(const std::byte* matrix, uint32_t first,
                                           const uint32_t (&operands)[S::kOperandSteps][4],
                                           float (&sums)[S::kTiles][4]) {
  const uint64_t at = MatrixOfWideColumns(SharedAddress(matrix));
#pragma unroll
  for (uint32_t part = 0; part < ForwardParts(S::kDim); ++part) {
#pragma unroll
    for (uint32_t i = 0; i < S::kOperandSteps; ++i) {
      const uint32_t step = first + i;
      const uint64_t b = at + (part * ForwardPartBytes(S::kDim) +
                               step / 4 * ForwardPanelBytes(S::kDim) + step % 4 * 32) /
                                  16;
      if constexpr (S::kTiles <= 16) {
        BeginProduct<0, S::kTiles, kBf16>(sums, operands[i], b, 1);
      } else {
        BeginProduct<0, 16, kBf16>(sums, operands[i], b, 1);
        BeginProduct<16, 16, kBf16>(sums, operands[i], b + 128 * 128 / 16, 1);
      }
    }
  }
}

// y of a warp's rows, x T - m T, and what `next(chunk)` does when a chunk has been read, while it
// is multiplied.
template <typename S, bool kBf16, typename Next>
__device__ __forceinline__ void Transform(const std::byte* source, const std::byte* matrix,
                                          const ForwardHead& head, uint32_t lane,
                                          float (&y)[S::kTiles][4], const Next& next) {
  constexpr uint32_t kSteps = S::kDim / 16;
  constexpr uint32_t kChunkSteps = kSteps / S::kChunks;
  HoldSums(y);
#pragma unroll
  for (uint32_t first = 0; first < kSteps; first += S::kOperandSteps) {
    uint32_t operands[S::kOperandSteps][4];
    if (first % kChunkSteps == 0) {
      WaitForPieces();
      __syncwarp();
    }
    TakeOperands<S>(source, first % kChunkSteps, lane, operands);
    const bool read = (first + S::kOperandSteps) % kChunkSteps == 0;
    if (read) __syncwarp();
    FenceProducts();
    if (first == 0) BeginOffset<S, kBf16>(matrix, head, lane, y);
    BeginSteps<S, kBf16>(matrix, first, operands, y);
    CommitProducts();
    if (read) next(first / kChunkSteps);
    WaitForProducts();
    HoldSums(y);
  }
  if constexpr (!kBf16) {
#pragma unroll
    for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
      for (float& sum : y[tile]) sum *= head.scale;
    }
  }
}

}  // namespace oscarkv::cuda::encode

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_ENCODE_ROWS_CUH_
