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
  static constexpr uint32_t kWarpGroups = D == 64 ? 4 : D == 128 ? 3 : 2;
  static constexpr uint32_t kThreads = kWarpGroups * kGroupThreads;
  // What rounding left of T does not fit beside T: panels of it come by turns.
  static constexpr bool kStreams = D == 256;
  static constexpr bool kPrefetches = D < 256;
  static constexpr uint32_t kStagings = D == 256 ? 1 : 2;
  static constexpr uint32_t kHighBytes = D / 64 * ForwardPanelBytes(D);
  static constexpr uint32_t kMatrixBytes =
      kHighBytes + ForwardOffsetBytes(D) + (kStreams ? ForwardPanelBytes(D) : kHighBytes);
};

// What is in shared memory after T and before each warp group's staged bytes.
template <typename S>
struct SharedFixed {
  Barrier matrix;
  Barrier panel_full;
  Barrier panel_free;
  CrcTables crc;
  // Least and greatest of runs, then scale and zero of groups; [warps][16 rows][runs or groups].
  float2 scratch[S::kOneGroup ? 1 : S::kThreads / 32][16][S::kOneGroup ? 1 : S::kRuns];
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

// Where a row of the engine is, in bytes from the layer's start; a good place even for a bad row.
struct RowPlace {
  int64_t offset = 0;
  uint32_t state = kRowAbsent;
};

__device__ __forceinline__ RowPlace PlaceOfRow(const EncodeArguments& arguments,
                                               const DeviceEngineSide& engine, uint32_t head,
                                               const Tiling& tiling, uint32_t tile,
                                               uint32_t segment, uint32_t row_of_segment) {
  RowPlace place;
  uint32_t index = 0;
  const uint32_t token = tiling.FirstToken(tile) + row_of_segment;
  const uint32_t page = tiling.FirstPage(tile) + segment;
  if (tile < tiling.tiles && segment < tiling.tile_pages && page < arguments.batch.pages &&
      token < tiling.page_tokens) {
    const int64_t slot = arguments.batch.slots[uint64_t{page} * tiling.page_tokens + token];
    const bool good = slot >= 0 && slot < arguments.slots;
    place.state = good ? kRowGood : kRowBad;
    if (good) index = static_cast<uint32_t>(slot);
  }
  uint32_t block = index;
  uint32_t in_block = 0;
  if (arguments.block_tokens != 1) {
    block = index / arguments.block_tokens;
    in_block = index % arguments.block_tokens;
  }
  place.offset =
      head * engine.head_stride + block * engine.block_stride + in_block * engine.token_stride;
  return place;
}

__device__ __forceinline__ uint4 LoadGlobal(const std::byte* from) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}

// This lane's quarters of its two rows, as products want them, or as sums lie.
template <typename S>
__device__ __forceinline__ void LoadRows(const std::byte* base, const RowPlace& place,
                                         bool transform, uint32_t lane,
                                         uint32_t (&elements)[2][S::kTiles]) {
  const uint32_t quad = lane & 3;
#pragma unroll
  for (uint32_t r = 0; r < 2; ++r) {
    const std::byte* row = base + __shfl_sync(kAllLanes, place.offset, lane / 4 + 8 * r);
#pragma unroll
    for (uint32_t piece = 0; piece < S::kDim / 32; ++piece) {
      uint32_t(&to)[S::kTiles] = elements[r];
      if (S::kLaneBytes < 8 && !transform) {
        const std::byte* half = row + piece * 4 * S::kRowBytes + quad * 2 * S::kLaneBytes;
        const uint2 first = *reinterpret_cast<const uint2*>(half);
        const uint2 second = *reinterpret_cast<const uint2*>(half + 2 * S::kRowBytes);
        to[piece * 4] = first.x;
        to[piece * 4 + 1] = first.y;
        to[piece * 4 + 2] = second.x;
        to[piece * 4 + 3] = second.y;
        continue;
      }
      constexpr uint32_t kPieces = S::kLaneBytes < 8 ? 1 : S::kLaneBytes / 8;  // a field
      const uint32_t at = transform ? piece * 64 + quad * 16
                                    : piece / kPieces * 2 * S::kRowBytes +
                                          quad * 2 * S::kLaneBytes + piece % kPieces * 16;
      const uint4 loaded = LoadGlobal(row + at);
      to[piece * 4] = loaded.x;
      to[piece * 4 + 1] = loaded.y;
      to[piece * 4 + 2] = loaded.z;
      to[piece * 4 + 3] = loaded.w;
    }
  }
}

// y of rows that are in the transformed basis already.
template <typename S>
__device__ __forceinline__ void Widen(const uint32_t (&elements)[2][S::kTiles], bool bf16,
                                      float (&y)[S::kTiles][4]) {
#pragma unroll
  for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const uint32_t pair = elements[r][tile];
      const float2 halves = __half22float2(Halves(pair));
      y[tile][2 * r] = bf16 ? __uint_as_float(pair << 16) : halves.x;
      y[tile][2 * r + 1] = bf16 ? __uint_as_float(pair & 0xffff0000u) : halves.y;
    }
  }
}

// sums = or += 16 dims of the rows times a matrix; `half_bytes`: to its columns 128 and up.
template <typename S, bool kBf16>
__device__ __forceinline__ void Begin(float (&sums)[S::kTiles][4], const uint32_t (&a)[4],
                                      uint64_t b, uint32_t half_bytes, uint32_t add) {
  if constexpr (S::kTiles <= 16) {
    BeginProduct<0, S::kTiles, kBf16>(sums, a, b, add);
  } else {
    BeginProduct<0, 16, kBf16>(sums, a, b, add);
    BeginProduct<16, 16, kBf16>(sums, a, b + (half_bytes >> 4), add);
  }
}

template <typename S, bool kBf16>
__device__ __forceinline__ void BeginPanel(float (&sums)[S::kTiles][4],
                                           const uint32_t (&elements)[2][S::kTiles], uint32_t panel,
                                           uint32_t address) {
#pragma unroll
  for (uint32_t step = 0; step < 4; ++step) {
    const uint32_t at = (panel * 4 + step) * 2;
    const uint32_t a[4] = {elements[0][at], elements[1][at], elements[0][at + 1],
                           elements[1][at + 1]};
    Begin<S, kBf16>(sums, a, MatrixOfWideColumns(address + step * 32), 128 * 128, 1);
  }
}

// Panels of what rounding left of T, where they come by turns; all threads of the block take part.
template <typename S>
struct PanelStream {
  SharedFixed<S>* shared;
  const std::byte* source;
  std::byte* panel;
  uint32_t total;     // that will be asked for
  uint32_t next = 0;  // to be used

  __device__ __forceinline__ void Load(uint32_t number) {
    if (threadIdx.x != 0 || number >= total) return;
    if (number > 0) shared->panel_free.Wait((number - 1) & 1);
    shared->panel_full.ArriveExpecting(ForwardPanelBytes(S::kDim));
    BulkCopy(panel, source + number % (S::kDim / 64) * ForwardPanelBytes(S::kDim),
             ForwardPanelBytes(S::kDim), &shared->panel_full);
  }
};

// y = x T - m T.
template <typename S, bool kBf16>
__device__ __forceinline__ void Transform(const uint32_t (&elements)[2][S::kTiles],
                                          const std::byte* matrix, const ForwardHead& head,
                                          PanelStream<S>& stream, uint32_t lane,
                                          float (&y)[S::kTiles][4]) {
  constexpr uint32_t kPanels = S::kDim / 64;
  constexpr uint32_t kPanelBytes = ForwardPanelBytes(S::kDim);
  const uint32_t address = SharedAddress(matrix);
  const uint32_t quad = lane & 3;
  const uint32_t one = quad == 0 ? head.one * 0x10001u : quad == 1 ? head.one : 0;
  const uint32_t ones[4] = {one, one, 0, 0};
  HoldSums(y);
  FenceProducts();
  Begin<S, kBf16>(y, ones, MatrixOfNarrowColumns(address + S::kHighBytes), 128 * 32, 0);
#pragma unroll
  for (uint32_t panel = 0; panel < kPanels; ++panel)
    BeginPanel<S, kBf16>(y, elements, panel, address + panel * kPanelBytes);
  const uint32_t lower = address + S::kHighBytes + ForwardOffsetBytes(S::kDim);
  if constexpr (!S::kStreams) {
#pragma unroll
    for (uint32_t panel = 0; panel < kPanels; ++panel)
      BeginPanel<S, kBf16>(y, elements, panel, lower + panel * kPanelBytes);
    CommitProducts();
    WaitForProducts();
  } else {
    CommitProducts();
#pragma unroll
    for (uint32_t panel = 0; panel < kPanels; ++panel) {
      stream.shared->panel_full.Wait(stream.next & 1);
      BeginPanel<S, kBf16>(y, elements, panel, lower);
      CommitProducts();
      WaitForProducts();
      if (lane == 0) stream.shared->panel_free.Arrive();
      __syncwarp();
      ++stream.next;
      stream.Load(stream.next);
      __syncwarp();
    }
  }
  HoldSums(y);
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
