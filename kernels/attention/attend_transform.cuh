// Rows times a D x D matrix on the tensor cores, and what is made of the results: queries of PACKED
// keys; for attend.cuh. Matrices and rows are in two bf16 parts, so that products are good to
// 2^-15.
#ifndef OSCARKV_KERNELS_ATTENTION_ATTEND_TRANSFORM_CUH_
#define OSCARKV_KERNELS_ATTENTION_ATTEND_TRANSFORM_CUH_

#include <algorithm>

#include "kernels/attention/attend_tiles.cuh"
#include "kernels/attention/attend_wide.cuh"

namespace oscarkv::cuda {

constexpr uint32_t kComputing = 1;  // the barrier of the warps that compute

// Which products of a matrix each warp takes: tiles of outputs, each over a slice of the inputs.
template <typename S>
struct MatrixShare {
  static constexpr uint32_t kTiles = S::kSteps;
  static constexpr uint32_t kSlices = S::kWarps > kTiles ? S::kWarps / kTiles : 1;
  static constexpr uint32_t kTilesOfWarp = kTiles * kSlices / S::kWarps;
  static constexpr uint32_t kDepth = kTiles / kSlices;
};

// One matrix at a time, on its way into shared memory or there; larger ones are read where they
// are.
template <typename S>
struct Matrix {
  static constexpr uint32_t kBytes = S::kDim * S::kDim * 4;
  static constexpr bool kStaged = S::kDim <= 128;

  uint4 fragments[kStaged ? kBytes / sizeof(uint4) : 1];
  Barrier loaded;

  // By one thread, when nobody reads the one before.
  __device__ __forceinline__ void Bring(const uint4* from) {
    if constexpr (kStaged) {
      loaded.ArriveExpecting(kBytes);
      constexpr uint32_t kPart = 16384;
#pragma unroll
      for (uint32_t at = 0; at < kBytes; at += kPart) {
        BulkCopy(reinterpret_cast<std::byte*>(fragments) + at,
                 reinterpret_cast<const std::byte*>(from) + at, kPart, &loaded);
      }
    }
  }
  __device__ __forceinline__ void Wait(uint32_t parity) {
    if constexpr (kStaged) loaded.Wait(parity);
  }
  const __device__ __forceinline__ uint4* Place(const uint4* from) const {
    if constexpr (kStaged) return fragments;
    return from;
  }
};

// Rows in shared memory.
template <typename S>
struct Rows {
  alignas(16) __nv_bfloat16 operand[2][S::kRows][S::kStride];  // their sum is what is multiplied
  union {
    alignas(16) float results[MatrixShare<S>::kSlices][S::kRows][S::kStride];  // to be added up
    alignas(16) float outputs[S::kWarps][S::kRows][S::kStride];
  };

  __device__ __forceinline__ void Split(uint32_t row, uint32_t dim, float x) {
    const __nv_bfloat16 first = __float2bfloat16_rn(x);
    operand[0][row][dim] = first;
    operand[1][row][dim] = __float2bfloat16_rn(x - __bfloat162float(first));
  }
  __device__ __forceinline__ float Result(uint32_t row, uint32_t dim) const {
    float sum = results[0][row][dim];
#pragma unroll
    for (uint32_t slice = 1; slice < MatrixShare<S>::kSlices; ++slice)
      sum += results[slice][row][dim];
    return sum;
  }
};

// A warp's share of a staged matrix in registers, so that it is there when the rows come.
template <typename S>
struct HeldShare {
  static constexpr bool kHeld = Matrix<S>::kStaged;  // which are one tile a warp
  uint4 fragments[kHeld ? MatrixShare<S>::kDepth : 1][2];

  __device__ __forceinline__ void Load(const uint4* matrix, uint32_t warp, uint32_t lane) {
    using Share = MatrixShare<S>;
    if constexpr (kHeld) {
      static_assert(Share::kTilesOfWarp == 1);
      const uint32_t first =
          warp % Share::kTiles * Share::kTiles + warp / Share::kTiles * Share::kDepth;
#pragma unroll
      for (uint32_t i = 0; i < Share::kDepth; ++i) {
        fragments[i][0] = matrix[(first + i) * 64 + lane];
        fragments[i][1] = matrix[(first + i) * 64 + 32 + lane];
      }
    }
  }
};

// results = operand times the matrix, of which the warp holds its share, or reads it at `matrix`.
template <typename S>
__device__ __forceinline__ void Multiply(const uint4* matrix, const HeldShare<S>& held,
                                         uint32_t warp, uint32_t lane, Rows<S>& rows) {
  using Share = MatrixShare<S>;
  const uint32_t slice = warp / Share::kTiles;
#pragma unroll
  for (uint32_t t = 0; t < Share::kTilesOfWarp; ++t) {
    const uint32_t tile = warp % Share::kTiles + t * S::kWarps;
    float sums[S::kValueTiles][3][4] = {};  // three, so that products need not wait for each other
#pragma unroll(HeldShare <S>::kHeld ? Share::kDepth : 4)
    for (uint32_t i = 0; i < Share::kDepth; ++i) {
      const uint32_t step = slice * Share::kDepth + i;
      uint4 first;
      uint4 second;
      if constexpr (HeldShare<S>::kHeld) {
        first = held.fragments[i][0];
        second = held.fragments[i][1];
      } else {
        const uint4* from = matrix + (tile * Share::kTiles + step) * 64 + lane;
        first = __ldg(from);
        second = __ldg(from + 32);
      }
      const uint32_t dim = step * 16 + lane % 4 * 2;
#pragma unroll
      for (uint32_t n = 0; n < S::kValueTiles; ++n) {
        const uint32_t row = n * 8 + lane / 4;
        uint32_t b[2][2] = {};
        if (S::kRows >= 8 || row < S::kRows) {
#pragma unroll
          for (uint32_t part = 0; part < 2; ++part) {
            b[part][0] = *reinterpret_cast<const uint32_t*>(&rows.operand[part][row][dim]);
            b[part][1] = *reinterpret_cast<const uint32_t*>(&rows.operand[part][row][dim + 8]);
          }
        }
        const auto multiply = [&](uint32_t of, const uint4& a, const uint32_t(&right)[2]) {
          const uint32_t left[4] = {a.x, a.y, a.z, a.w};
          MultiplyAdd16<true>(sums[n][of], left, right[0], right[1]);
        };
        multiply(0, second, b[0]);
        multiply(1, first, b[1]);
        multiply(2, first, b[0]);
      }
    }
#pragma unroll
    for (uint32_t n = 0; n < S::kValueTiles; ++n) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t row = n * 8 + lane % 4 * 2 + i % 2;
        if (S::kRows >= 8 || row < S::kRows) {
          rows.results[slice][row][tile * 16 + lane / 4 + i / 2 * 8] =
              sums[n][0][i] + sums[n][1][i] + sums[n][2][i];
        }
      }
    }
  }
}

// Queries as operands in shared memory.
template <typename S>
struct QueryOperands {
  uint2 fragments[S::kKeyTiles][S::kKeySteps][32];
  QueryRow rows[S::kRows];
};

// Puts the byte operands of a row, by a warp, from rows.results, times `scale`.
template <typename S>
__device__ __forceinline__ void Quantise(float scale, const float4 (&offset)[(S::kDim + 127) / 128],
                                         uint32_t row, uint32_t lane, const Rows<S>& rows,
                                         QueryOperands<S>& operands) {
  constexpr uint32_t kParts = (S::kDim + 127) / 128;
  constexpr float kGreatest = 127.0f * 256.0f;  // in two bytes, each signed
  float x[kParts][4];
  uint32_t top_bits = 0;  // of magnitudes; NaNs are the greatest
  float dot = 0.0f;
#pragma unroll
  for (uint32_t part = 0; part < kParts; ++part) {
    const uint32_t dim = lane * 4 + part * 128;
    const float of_offset[4] = {offset[part].x, offset[part].y, offset[part].z, offset[part].w};
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      x[part][i] = 0.0f;
      if (dim >= S::kDim) continue;
      x[part][i] = rows.Result(row, dim + i) * scale;
      dot = fmaf(of_offset[i],
                 __bfloat162float(rows.operand[0][row][dim + i]) +
                     __bfloat162float(rows.operand[1][row][dim + i]),
                 dot);
      top_bits = max(top_bits, __float_as_uint(fabsf(x[part][i])));
    }
  }
  const float top = __uint_as_float(__reduce_max_sync(kAllLanes, top_bits));
  dot = SumOfWarp(dot);
  const float units = top > 0x1.0p-100f ? kGreatest / top : 0.0f;
  int sum = 0;
#pragma unroll
  for (uint32_t part = 0; part < kParts; ++part) {
    const uint32_t dim = lane * 4 + part * 128;
    if (dim >= S::kDim) continue;
    const uint32_t field = dim / (S::kDim / 4);
    const uint32_t place = dim % (S::kDim / 4);  // in a row of codes
    const float of_field = field % 2 == 0 ? units : 0.25f * units;
    uint32_t bytes[2] = {};
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const int whole = __float2int_rn(x[part][i] * of_field);
      const int high = (whole + 128) >> 8;
      bytes[0] |= static_cast<uint32_t>(high & 255) << (8 * i);
      bytes[1] |= static_cast<uint32_t>(whole & 255) << (8 * i);
      sum += field % 2 == 0 ? whole : 4 * whole;
    }
    const uint32_t half_step = field * S::kPieces + place / 16;
#pragma unroll
    for (uint32_t byte = 0; byte < 2; ++byte) {
      const uint32_t to = (row % 4 * 2 + byte) * 4 + place % 16 / 4;
      uint2& fragment = operands.fragments[row / 4][half_step / 2][to];
      (half_step % 2 == 0 ? fragment.x : fragment.y) = bytes[byte];
    }
  }
  sum = __reduce_add_sync(kAllLanes, sum);
  if (lane == 0) {
    operands.rows[row] = {
        .alpha = top / kGreatest, .sum = static_cast<float>(sum), .offset = dot * scale};
  }
}

template <typename S>
const __device__ __forceinline__ uint4* MatrixOf(const AttendMatrix& matrix, uint32_t head) {
  return matrix.fragments + uint64_t{matrix.per_head * head} * (S::kDim * S::kDim / 4);
}

// Queries of a chunk: loaded, transformed, laid out. Warps meet several times.
template <typename S>
__device__ __forceinline__ void PrepareQueries(const AttendArguments& arguments,
                                               const ChunkPlace& place, uint32_t request,
                                               uint32_t warp, uint32_t lane, Matrix<S>& matrix,
                                               Rows<S>& rows, QueryOperands<S>& operands,
                                               PackedQueries<S>& queries) {
  constexpr uint32_t kParts = (S::kDim + 127) / 128;
  constexpr uint32_t kPieces = S::kDim / 8;  // of 16 bytes
  static_assert(S::kRows * kPieces <= S::kThreads);
  const uint32_t row = threadIdx.x / kPieces;
  uint4 piece = make_uint4(0, 0, 0, 0);
  if (row < S::kRows && place.group * S::kRows + row < arguments.rows) {
    const uint64_t at = QueryIndex(arguments, request, place.head, place.group * S::kRows + row);
    piece = __ldg(reinterpret_cast<const uint4*>(arguments.batch.queries) + at * kPieces +
                  threadIdx.x % kPieces);
  }
  float4 offset[kParts] = {};
  const float* offsets = arguments.k.offset + arguments.k.per_head * place.head * S::kDim;
#pragma unroll
  for (uint32_t part = 0; part < kParts; ++part) {
    const uint32_t dim = lane * 4 + part * 128;
    if (dim < S::kDim) offset[part] = __ldg(reinterpret_cast<const float4*>(offsets + dim));
  }
  const uint4* fragments = matrix.Place(MatrixOf<S>(arguments.k, place.head));
  HeldShare<S> held;
  matrix.Wait(0);
  held.Load(fragments, warp, lane);
  if (row < S::kRows) {
    const uint32_t dim = threadIdx.x % kPieces * 8;
    if (arguments.bf16) {
      *reinterpret_cast<uint4*>(&rows.operand[0][row][dim]) = piece;
      *reinterpret_cast<uint4*>(&rows.operand[1][row][dim]) = make_uint4(0, 0, 0, 0);
    } else {
      const uint32_t pairs[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
      for (uint32_t j = 0; j < 4; ++j) {
        const float2 pair = __half22float2(reinterpret_cast<const __half2&>(pairs[j]));
        rows.Split(row, dim + 2 * j, pair.x);
        rows.Split(row, dim + 2 * j + 1, pair.y);
      }
    }
  }
  Meet(kComputing, S::kThreads);
  Multiply<S>(fragments, held, warp, lane, rows);
  Meet(kComputing, S::kThreads);
  if (threadIdx.x == 0) matrix.Bring(MatrixOf<S>(arguments.v, place.head));
  for (uint32_t of_warp = warp; of_warp < S::kRows; of_warp += S::kWarps)
    Quantise<S>(arguments.scale, offset, of_warp, lane, rows, operands);
  Meet(kComputing, S::kThreads);
  queries.rows = operands.rows + lane % 4;
#pragma unroll
  for (uint32_t tile = 0; tile < S::kKeyTiles; ++tile) {
#pragma unroll
    for (uint32_t step = 0; step < S::kKeySteps; ++step)
      queries.fragments[tile][step] = operands.fragments[tile][step][lane];
    queries.alpha[tile] = queries.rows[4 * tile].alpha;
    queries.sum[tile] = queries.rows[4 * tile].sum;
  }
}

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_ATTENTION_ATTEND_TRANSFORM_CUH_
