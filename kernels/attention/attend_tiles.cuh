// Sixteen tokens at a time: logits, running maxima and sums, weighted values; for attend.cuh.
//
// Logits stand tokens x queries. Codes of PACKED keys are left operands as they lie, masked bytes:
// code * 4^(field % 2). Queries are 16-bit integers, a column for each byte, fields' powers of four
// taken out. So products are exact, and a lane (row r, quad q) holds those of tokens r and r + 8
// with query q of each key tile of four. Values stand dims x tokens: codes of two tokens side by
// side, masked, code * 4^field * 2^-24 in fp16, denormal and exact; their scale is in the
// probabilities; zero points and powers of four are applied to the sums. Of eight columns each has
// a query; where there are four queries only, each has two columns, of the first and of the last
// eight tokens.
#ifndef OSCARKV_KERNELS_ATTENTION_ATTEND_TILES_CUH_
#define OSCARKV_KERNELS_ATTENTION_ATTEND_TILES_CUH_

#include "kernels/attention/attend_device.cuh"
#include "kernels/attention/attend_kernels.h"
#include "kernels/attention/attend_plan.cuh"

namespace oscarkv::cuda {

constexpr float kNothingSeen = -1e30f;     // stands for a maximum of no logits
constexpr float kHeadroom = 4.0f;          // log2 of the greatest weight after maxima have moved
constexpr float kCeiling = 4096.0f;        // of weights, before maxima move
constexpr float kLeastScale = 0x1.0p-40f;  // for the sake of its logarithm

// What a kernel is built for, and its extents.
template <uint32_t D, uint32_t kRowsOf, bool kFp32ParamsOf>
struct Shape {
  static constexpr uint32_t kDim = D;
  static constexpr uint32_t kRows = kRowsOf;  // of a work item: 4, 8 or 16
  static constexpr bool kFp32Params = kFp32ParamsOf;
  static constexpr uint32_t kKeyTiles = kRows / 4;          // of four queries
  static constexpr uint32_t kValueTiles = (kRows + 7) / 8;  // of eight columns
  static constexpr uint32_t kSteps = D / 16;                // of sixteen dims
  static constexpr uint32_t kKeySteps = D / 32;             // of 32 dims
  static constexpr uint32_t kRowBytes = D / 4;              // of codes
  static constexpr uint32_t kParamsBytes = kFp32Params ? 8 : 4;
  static constexpr uint32_t kPieces = D / 64;  // of 16 bytes, of a row of codes
  static constexpr uint32_t kWarps = kSteps * kValueTiles > 8 ? 8 : 16;  // that compute
  static constexpr uint32_t kThreads = kWarps * 32;
  // A warp group more, of which one warp brings pages in and the others return at once: registers
  // move between whole groups.
  static constexpr uint32_t kBlockThreads = kThreads + 128;
  static constexpr uint32_t kRegisters = kWarps == 16 ? 112 : 216;
  static constexpr uint32_t kRegistersLeft = kWarps == 16 ? 32 : 56;
  static constexpr uint32_t kStride = D + 8;  // of rows in shared memory
};

// Of an item's query, in units of log2: logit = alpha scale_k (product - zero_k sum) + offset.
struct QueryRow {
  float alpha;
  float sum;
  float offset;
};

// What a lane keeps of its work item's queries.
template <typename S>
struct PackedQueries {
  uint2 fragments[S::kKeyTiles][S::kKeySteps];
  float alpha[S::kKeyTiles];
  float sum[S::kKeyTiles];
  const QueryRow* rows;  // the lane's first, in shared memory
};

// What a warp has summed up.
template <typename S>
struct Running {
  float maximum[S::kKeyTiles];
  float base[S::kKeyTiles];  // offset - maximum
  float sum[S::kKeyTiles];   // of probabilities, over this lane's tokens
  float zero[S::kKeyTiles];  // of weight * zero, likewise
  float acc[S::kValueTiles][S::kSteps][4];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (uint32_t tile = 0; tile < S::kKeyTiles; ++tile) {
      maximum[tile] = kNothingSeen;
      base[tile] = -kNothingSeen;
      sum[tile] = 0.0f;
      zero[tile] = 0.0f;
    }
#pragma unroll
    for (uint32_t tile = 0; tile < S::kValueTiles; ++tile) {
#pragma unroll
      for (uint32_t step = 0; step < S::kSteps; ++step) {
#pragma unroll
        for (float& x : acc[tile][step]) x = 0.0f;
      }
    }
  }

  // The key tile whose query a column of sums belongs to.
  static __device__ __forceinline__ constexpr uint32_t KeyTile(uint32_t value_tile, uint32_t i) {
    return S::kKeyTiles == 1 ? 0 : 2 * value_tile + i % 2;
  }

  // Takes the maxima up so that weights, 2^(logit + log_scale - maximum), are at most 2^kHeadroom,
  // and what has been summed along. `offset` is what logits had added.
  __device__ __forceinline__ void Move(const float (&logits)[S::kKeyTiles][2],
                                       const float (&log_scale)[2],
                                       const float (&offset)[S::kKeyTiles]) {
    float factors[S::kKeyTiles];
#pragma unroll
    for (uint32_t tile = 0; tile < S::kKeyTiles; ++tile) {
      const float top =
          MaxOverRows(fmaxf(logits[tile][0] + log_scale[0], logits[tile][1] + log_scale[1]));
      const float moved = fmaxf(maximum[tile], top - kHeadroom);
      factors[tile] = Exp2(maximum[tile] - moved);
      maximum[tile] = moved;
      base[tile] = offset[tile] - moved;
      sum[tile] *= factors[tile];
      zero[tile] *= factors[tile];
    }
#pragma unroll
    for (uint32_t tile = 0; tile < S::kValueTiles; ++tile) {
#pragma unroll
      for (uint32_t step = 0; step < S::kSteps; ++step) {
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) acc[tile][step][i] *= factors[KeyTile(tile, i)];
      }
    }
  }
};

// Positions below `seen_by_all` are seen by all queries, below that + i by new token i.
struct Sight {
  uint32_t seen_by_all;
  uint32_t first_row;  // of the item
};

// Makes -infinity of logits that their queries do not see.
template <typename S>
__device__ __forceinline__ void Hide(const AttendArguments& arguments, const Sight& sight,
                                     uint32_t token, uint32_t tokens, uint32_t position,
                                     uint32_t lane, float (&logits)[S::kKeyTiles][2]) {
#pragma unroll
  for (uint32_t tile = 0; tile < S::kKeyTiles; ++tile) {
    const uint32_t row = min(sight.first_row + tile * 4 + lane % 4, arguments.rows - 1);
    const uint32_t seen = sight.seen_by_all + row / arguments.ratio;
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      const uint32_t at = token + lane / 4 + 8 * i;
      if (at >= tokens || position + at >= seen) logits[tile][i] = -INFINITY;
    }
  }
}

// Weights as right operands, tokens x columns.
template <typename S, bool kBf16>
__device__ __forceinline__ void ToOperands(const float (&weights)[S::kKeyTiles][2], uint32_t lane,
                                           uint2 (&operands)[S::kValueTiles]) {
  if constexpr (S::kKeyTiles == 1) {
    // A query's columns: the first has its first eight tokens, the second the others.
    const uint32_t both = Transpose(PackPair<kBf16>(weights[0][0], weights[0][1]));
    const uint32_t of_first = (lane & 4) == 0 ? both : 0;
    operands[0] = make_uint2(of_first, both ^ of_first);
  } else {
#pragma unroll
    for (uint32_t tile = 0; tile < S::kValueTiles; ++tile) {
      operands[tile].x = Transpose(PackPair<kBf16>(weights[2 * tile][0], weights[2 * tile + 1][0]));
      operands[tile].y = Transpose(PackPair<kBf16>(weights[2 * tile][1], weights[2 * tile + 1][1]));
    }
  }
}

// Where a lane reads a PACKED block in shared memory: addresses for its first tile.
struct LanePlace {
  uint32_t keys;
  uint32_t values;
  uint32_t k_params;
  uint32_t v_params;

  template <typename S>
  static __device__ __forceinline__ LanePlace Of(const AttendArguments& arguments, uint32_t block,
                                                 uint32_t token, uint32_t lane) {
    const uint32_t codes = block + (token + lane % 16) * S::kRowBytes + lane / 16 * 16;
    const uint32_t params = block + (token + lane / 4) * S::kParamsBytes;
    return {.keys = codes,
            .values = codes + arguments.packed.v_rows,
            .k_params = params + arguments.packed.k_params,
            .v_params = params + arguments.packed.v_params};
  }
  template <typename S>
  __device__ __forceinline__ void Advance(uint32_t tokens) {
    keys += tokens * S::kRowBytes;
    values += tokens * S::kRowBytes;
    k_params += tokens * S::kParamsBytes;
    v_params += tokens * S::kParamsBytes;
  }
};

struct Params {
  float scale;
  float zero;
};
template <typename S>
__device__ __forceinline__ Params LoadParams(uint32_t address) {
  if constexpr (S::kFp32Params) {
    const float2 both = LoadShared<float2>(address);
    return {both.x, both.y};
  } else {
    const uint32_t bits = LoadShared<uint32_t>(address);
    const float2 both = __half22float2(reinterpret_cast<const __half2&>(bits));
    return {both.x, both.y};
  }
}

// 16-byte pieces of 16 rows of codes: matrix 2 p + h is piece p of rows 8 h and on.
template <typename S, bool kTransposed>
__device__ __forceinline__ void LoadCodes(uint32_t address, uint32_t (&matrices)[S::kPieces * 2]) {
  if constexpr (S::kPieces < 4) {
    LoadMatrices<kTransposed>(matrices, address);
  } else {
#pragma unroll
    for (uint32_t half = 0; half < S::kPieces / 2; ++half) {
      uint32_t of_half[4];
      LoadMatrices<kTransposed>(of_half, address + half * 32);
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) matrices[half * 4 + i] = of_half[i];
    }
  }
}

template <typename S>
__device__ __forceinline__ void MultiplyKeys(const PackedQueries<S>& queries, uint32_t address,
                                             float (&products)[S::kKeyTiles][2]) {
  uint32_t keys[2][S::kPieces * 2];  // as they lie, and fields 2 and 3 down to 0 and 1
  LoadCodes<S, false>(address, keys[0]);
#pragma unroll
  for (uint32_t i = 0; i < S::kPieces * 2; ++i) keys[1][i] = keys[0][i] >> 4;
  int sums[S::kKeyTiles][4] = {};
#pragma unroll
  for (uint32_t step = 0; step < S::kKeySteps; ++step) {
    uint32_t a[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t field = (2 * step + i / 2) / S::kPieces;
      const uint32_t piece = (2 * step + i / 2) % S::kPieces;
      a[i] = keys[field / 2][2 * piece + i % 2] & (field % 2 == 0 ? 0x03030303u : 0x0c0c0c0cu);
    }
#pragma unroll
    for (uint32_t tile = 0; tile < S::kKeyTiles; ++tile)
      MultiplyAddBytes(sums[tile], a, queries.fragments[tile][step]);
  }
#pragma unroll
  for (uint32_t tile = 0; tile < S::kKeyTiles; ++tile) {
    products[tile][0] = __int2float_rn(sums[tile][0] * 256 + sums[tile][1]);
    products[tile][1] = __int2float_rn(sums[tile][2] * 256 + sums[tile][3]);
  }
}

template <typename S>
__device__ __forceinline__ void MultiplyValues(uint32_t address,
                                               const uint2 (&weights)[S::kValueTiles],
                                               Running<S>& running) {
  uint32_t values[S::kPieces * 2];
  LoadCodes<S, true>(address, values);
#pragma unroll
  for (uint32_t piece = 0; piece < S::kPieces; ++piece) {
    const uint32_t low = values[2 * piece];
    const uint32_t high = values[2 * piece + 1];
#pragma unroll
    for (uint32_t field = 0; field < 4; ++field) {
      const uint32_t mask = 0x30003u << (2 * field);
      const uint32_t a[4] = {low & mask, low >> 8 & mask, high & mask, high >> 8 & mask};
#pragma unroll
      for (uint32_t tile = 0; tile < S::kValueTiles; ++tile)
        MultiplyAdd(running.acc[tile][field * S::kPieces + piece], a, weights[tile]);
    }
  }
}

// 16 tokens of a PACKED block, of which tokens from `plain` on may be beyond the page or beyond
// what queries see.
template <typename S>
__device__ __forceinline__ void TakePacked(const AttendArguments& arguments, const Sight& sight,
                                           const PackedQueries<S>& queries, const LanePlace& place,
                                           uint32_t token, uint32_t plain, uint32_t tokens,
                                           uint32_t position, uint32_t lane, Running<S>& running) {
  const bool hidden = token + kTileTokens > plain;
  float products[S::kKeyTiles][2];
  MultiplyKeys<S>(queries, place.keys, products);
  Params k[2];
  Params v[2];
#pragma unroll
  for (uint32_t i = 0; i < 2; ++i) {
    k[i] = LoadParams<S>(place.k_params + i * 8 * S::kParamsBytes);
    v[i] = LoadParams<S>(place.v_params + i * 8 * S::kParamsBytes);
    if (hidden && token + lane / 4 + 8 * i >= tokens) v[i] = {0.0f, 0.0f};
  }
  float logits[S::kKeyTiles][2];
  const auto logits_from = [&](const float(&base)[S::kKeyTiles]) {
#pragma unroll
    for (uint32_t tile = 0; tile < S::kKeyTiles; ++tile) {
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        logits[tile][i] = fmaf(k[i].scale * queries.alpha[tile],
                               fmaf(-k[i].zero, queries.sum[tile], products[tile][i]), base[tile]);
      }
    }
    if (hidden) Hide<S>(arguments, sight, token, tokens, position, lane, logits);
  };
  float weights[S::kKeyTiles][2];
  float check;
  const auto weigh = [&] {
    logits_from(running.base);
    check = 0.0f;
#pragma unroll
    for (uint32_t tile = 0; tile < S::kKeyTiles; ++tile) {
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        logits[tile][i] = Exp2(logits[tile][i]);
        weights[tile][i] = logits[tile][i] * v[i].scale;
        check += fabsf(weights[tile][i]);
      }
    }
  };
  weigh();
  if (__any_sync(kAllLanes, !(check <= kCeiling))) {
    float offset[S::kKeyTiles];
#pragma unroll
    for (uint32_t tile = 0; tile < S::kKeyTiles; ++tile)
      offset[tile] = queries.rows[4 * tile].offset;
    const float log_scale[2] = {Log2(fmaxf(fabsf(v[0].scale), kLeastScale)),
                                Log2(fmaxf(fabsf(v[1].scale), kLeastScale))};
    logits_from(offset);
    running.Move(logits, log_scale, offset);
    weigh();
  }
#pragma unroll
  for (uint32_t tile = 0; tile < S::kKeyTiles; ++tile) {
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      running.sum[tile] += logits[tile][i];
      running.zero[tile] = fmaf(weights[tile][i], v[i].zero, running.zero[tile]);
    }
  }
  uint2 operands[S::kValueTiles];
  ToOperands<S, false>(weights, lane, operands);
  MultiplyValues<S>(place.values, operands, running);
}

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_ATTENTION_ATTEND_TILES_CUH_
