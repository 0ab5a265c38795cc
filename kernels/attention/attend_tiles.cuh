// Sixteen tokens at a time: logits, running maxima and sums, weighted values; for attend.cu.
#ifndef OSCARKV_KERNELS_ATTENTION_ATTEND_TILES_CUH_
#define OSCARKV_KERNELS_ATTENTION_ATTEND_TILES_CUH_

#include "kernels/attention/attend_device.cuh"

namespace oscarkv::cuda {

constexpr uint32_t kWarps = kAttendThreads / 32;
constexpr float kHeadroom = 4.0f;    // log2 of the greatest probability after maxima have moved
constexpr float kCeiling = 4096.0f;  // of probabilities times scales, before maxima move

template <uint32_t D, uint32_t kTilesOf>
struct Shape {
  static constexpr uint32_t kDim = D;
  static constexpr uint32_t kTiles = kTilesOf;
  static constexpr uint32_t kRows = kTiles * kTileRows;
  static constexpr uint32_t kSteps = D / 16;
  static constexpr uint32_t kRowBytes = D / 4;     // of codes
  static constexpr uint32_t kKeyWords = D / 64;    // that a lane reads of a key
  static constexpr uint32_t kValueBytes = D / 32;  // that a lane reads of a value
  static constexpr uint32_t kHalves = kValueBytes / 2;
  static constexpr uint32_t kBlocksResident = D <= 128 && kTiles == 1 ? 2 : 1;
  static constexpr uint32_t kStages = 3;
  static constexpr uint32_t kMergeBytes = kWarps * kRows * (D + 2) * 4;
};

// Row r of a left operand is token TokenOfRow(r): chosen so that neither keys' nor values' reads
// collide in shared memory's banks.
__device__ __forceinline__ uint32_t TokenOfRow(uint32_t row) { return row ^ (row >> 2 & 1); }

// What a warp has summed up. Columns of a tile: queries 2 quad and 2 quad + 1.
template <typename S>
struct Running {
  float maximum[S::kTiles][2];
  float base[S::kTiles][2];  // offset - maximum
  float sum[S::kTiles][2];   // of probabilities, over this lane's tokens
  float zero[S::kTiles][2];  // of probability * scale * zero, likewise
  float acc[S::kTiles][S::kSteps][4];
  float value_scale;  // power of two that scales of values are multiplied by

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
      for (uint32_t j = 0; j < 2; ++j) {
        maximum[tile][j] = kNothingSeen;
        base[tile][j] = -kNothingSeen;
        sum[tile][j] = 0.0f;
        zero[tile][j] = 0.0f;
      }
#pragma unroll
      for (uint32_t step = 0; step < S::kSteps; ++step) {
#pragma unroll
        for (float& x : acc[tile][step]) x = 0.0f;
      }
    }
    value_scale = 1.0f;
  }

  // Takes the maxima up to those of `logits` (less kHeadroom) and value_scale to 1 / the greatest
  // of `scales`, and what has been summed along. `offset` is what logits had added.
  __device__ __forceinline__ void Move(const float (&logits)[S::kTiles][4], float scales,
                                       const float (&offset)[S::kTiles][2]) {
    const float greatest = MaxOverRows(scales);
    const float old_scale = value_scale;
    if (greatest > 0.0f && greatest < 65536.0f) {
      const uint32_t exponent = __float_as_uint(greatest) >> 23;
      value_scale = __uint_as_float((254u - exponent) << 23);
    }
    const float ratio = value_scale / old_scale;
#pragma unroll
    for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
      for (uint32_t j = 0; j < 2; ++j) {
        const float top = MaxOverRows(fmaxf(logits[tile][j], logits[tile][2 + j]));
        const float moved = fmaxf(maximum[tile][j], top - kHeadroom);
        const float factor = Exp2(maximum[tile][j] - moved);
        maximum[tile][j] = moved;
        base[tile][j] = offset[tile][j] - moved;
        sum[tile][j] *= factor;
        zero[tile][j] *= factor * ratio;
#pragma unroll
        for (uint32_t step = 0; step < S::kSteps; ++step) {
          acc[tile][step][j] *= factor * ratio;
          acc[tile][step][2 + j] *= factor * ratio;
        }
      }
    }
  }
};

// Where a warp is: the work item's KV head, and what bounds its queries' sight.
struct Item {
  uint32_t request;
  uint32_t head;
  uint32_t group;
  uint32_t index;       // of all items
  uint32_t first_page;  // of the request's pages that this thread block takes, in the page table
  uint32_t pages;
  uint32_t seen_by_all;  // positions below are seen by every query
};

// Positions below this are seen by row `row` of the work item.
__device__ __forceinline__ uint32_t SeenBy(const AttendArguments& arguments, const Item& item,
                                           uint32_t row) {
  return item.seen_by_all + min(row, arguments.rows - 1) / arguments.ratio;
}

// Makes -infinity of logits that their queries do not see. `token`: of the page, the lane's first.
template <typename S>
__device__ __forceinline__ void Hide(const AttendArguments& arguments, const Item& item,
                                     uint32_t token0, uint32_t token1, uint32_t tokens,
                                     uint32_t position, uint32_t quad,
                                     float (&logits)[S::kTiles][4]) {
#pragma unroll
  for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
    for (uint32_t j = 0; j < 2; ++j) {
      const uint32_t row = item.group * S::kRows + tile * kTileRows + 2 * quad + j;
      const uint32_t seen = SeenBy(arguments, item, row);
      if (token0 >= tokens || position + token0 >= seen) logits[tile][j] = -INFINITY;
      if (token1 >= tokens || position + token1 >= seen) logits[tile][2 + j] = -INFINITY;
    }
  }
}

struct Params {
  float scale;
  float zero;
};
__device__ __forceinline__ Params LoadParams(const std::byte* params, uint32_t token) {
  const float2 both = __half22float2(reinterpret_cast<const __half2*>(params)[token]);
  return {both.x, both.y};
}

template <uint32_t kWords>
__device__ __forceinline__ void LoadWords(uint32_t (&words)[kWords], const std::byte* from) {
  if constexpr (kWords == 4) {
    const uint4 all = *reinterpret_cast<const uint4*>(from);
    words[0] = all.x, words[1] = all.y, words[2] = all.z, words[3] = all.w;
  } else if constexpr (kWords == 2) {
    const uint2 all = *reinterpret_cast<const uint2*>(from);
    words[0] = all.x, words[1] = all.y;
  } else {
    words[0] = *reinterpret_cast<const uint32_t*>(from);
  }
}

// What a warp keeps of its work item's queries.
template <typename S>
struct PackedQueries {
  uint2 fragments[S::kTiles][S::kSteps];
  float sum[S::kTiles][2];
  float alpha[S::kTiles];
  const QueryTile* tiles;

  __device__ __forceinline__ void Load(const AttendArguments& arguments, const Item& item,
                                       uint32_t lane) {
    const uint32_t first =
        ((item.request * arguments.kv_heads + item.head) * arguments.groups + item.group) *
        S::kTiles;
    tiles = arguments.workspace.tiles + first;
#pragma unroll
    for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
      for (uint32_t step = 0; step < S::kSteps; ++step) {
        fragments[tile][step] =
            arguments.workspace.fragments[((first + tile) * S::kSteps + step) * 32 + lane];
      }
      alpha[tile] = tiles[tile].alpha;
      sum[tile][0] = tiles[tile].sum[2 * (lane & 3)];
      sum[tile][1] = tiles[tile].sum[2 * (lane & 3) + 1];
    }
  }
};

// 16 tokens of a PACKED block. kHidden: some may be beyond the page or beyond what queries see.
template <typename S, bool kHidden>
__device__ __forceinline__ void TakePacked(const AttendArguments& arguments, const Item& item,
                                           const PackedQueries<S>& queries, const std::byte* block,
                                           uint32_t token, uint32_t tokens, uint32_t position,
                                           uint32_t lane, Running<S>& running) {
  const uint32_t quad = lane & 3;
  const uint32_t row = lane >> 2;
  const uint32_t token0 = token + TokenOfRow(row);
  uint32_t keys[2][S::kKeyWords];
#pragma unroll
  for (uint32_t r = 0; r < 2; ++r)
    LoadWords(keys[r], block + (token0 + 8 * r) * S::kRowBytes + quad * 4 * S::kKeyWords);
  float sums[S::kTiles][2][4] = {};
#pragma unroll
  for (uint32_t step = 0; step < S::kSteps; ++step) {
    const uint32_t mask = 0x30003u << (2 * (step / S::kKeyWords));
    const uint32_t w = step % S::kKeyWords;
    const uint32_t a[4] = {keys[0][w] & mask, keys[1][w] & mask, keys[0][w] >> 8 & mask,
                           keys[1][w] >> 8 & mask};
#pragma unroll
    for (uint32_t tile = 0; tile < S::kTiles; ++tile)
      MultiplyAdd(sums[tile][step & 1], a, queries.fragments[tile][step]);
  }
  const Params k0 = LoadParams(block + arguments.packed.k_params, token0);
  const Params k1 = LoadParams(block + arguments.packed.k_params, token0 + 8);
  Params v0 = LoadParams(block + arguments.packed.v_params, token0);
  Params v1 = LoadParams(block + arguments.packed.v_params, token0 + 8);
  if constexpr (kHidden) {
    if (token0 >= tokens) v0 = {0.0f, 0.0f};
    if (token0 + 8 >= tokens) v1 = {0.0f, 0.0f};
  }
  const auto logits_from = [&](const float(&base)[S::kTiles][2], float(&logits)[S::kTiles][4]) {
#pragma unroll
    for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
      const float scale0 = k0.scale * queries.alpha[tile];
      const float scale1 = k1.scale * queries.alpha[tile];
#pragma unroll
      for (uint32_t j = 0; j < 2; ++j) {
        const float sum = queries.sum[tile][j];
        logits[tile][j] =
            fmaf(scale0, fmaf(-k0.zero, sum, sums[tile][0][j] + sums[tile][1][j]), base[tile][j]);
        logits[tile][2 + j] =
            fmaf(scale1, fmaf(-k1.zero, sum, sums[tile][0][2 + j] + sums[tile][1][2 + j]),
                 base[tile][j]);
      }
    }
    if constexpr (kHidden)
      Hide<S>(arguments, item, token0, token0 + 8, tokens, position, quad, logits);
  };
  float logits[S::kTiles][4];
  float p[S::kTiles][4];
  float check = 0.0f;
  const auto weigh = [&] {
    const float scale0 = v0.scale * running.value_scale;
    const float scale1 = v1.scale * running.value_scale;
    logits_from(running.base, logits);
    check = 0.0f;
#pragma unroll
    for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        logits[tile][i] = Exp2(logits[tile][i]);
        p[tile][i] = logits[tile][i] * (i < 2 ? scale0 : scale1);
        check += fabsf(p[tile][i]);
      }
    }
  };
  weigh();
  if (__any_sync(0xffffffffu, !(check <= kCeiling))) {
    float offset[S::kTiles][2];
#pragma unroll
    for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
      offset[tile][0] = queries.tiles[tile].offset[2 * quad];
      offset[tile][1] = queries.tiles[tile].offset[2 * quad + 1];
    }
    logits_from(offset, logits);
    running.Move(logits, fmaxf(fabsf(v0.scale), fabsf(v1.scale)), offset);
    weigh();
  }
  // Values.
  uint2 right[S::kTiles];
#pragma unroll
  for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
    running.sum[tile][0] += logits[tile][0] + logits[tile][2];
    running.sum[tile][1] += logits[tile][1] + logits[tile][3];
    right[tile].x = Transpose(PackPair<false>(p[tile][0], p[tile][1]));
    right[tile].y = Transpose(PackPair<false>(p[tile][2], p[tile][3]));
#pragma unroll
    for (uint32_t j = 0; j < 2; ++j) {
      running.zero[tile][j] = fmaf(p[tile][j], v0.zero, running.zero[tile][j]);
      running.zero[tile][j] = fmaf(p[tile][2 + j], v1.zero, running.zero[tile][j]);
    }
  }
  const std::byte* values = block + arguments.packed.v_rows + row * S::kValueBytes;
  constexpr uint32_t kWords = (S::kValueBytes + 3) / 4;
  uint32_t words[4][kWords];
#pragma unroll
  for (uint32_t j = 0; j < 4; ++j) {
    const std::byte* from =
        values + (token + TokenOfRow(2 * quad + j % 2) + j / 2 * 8) * S::kRowBytes;
    if constexpr (S::kValueBytes == 2) {
      words[j][0] = *reinterpret_cast<const uint16_t*>(from);
    } else {
      LoadWords(words[j], from);
    }
  }
#pragma unroll
  for (uint32_t half = 0; half < S::kHalves; ++half) {
    const uint32_t selector = half % 2 == 0 ? 0x5410 : 0x7632;
    const uint32_t low = __byte_perm(words[0][half / 2], words[1][half / 2], selector);
    const uint32_t high = __byte_perm(words[2][half / 2], words[3][half / 2], selector);
#pragma unroll
    for (uint32_t field = 0; field < 4; ++field) {
      const uint32_t mask = 0x30003u << (2 * field);
      const uint32_t a[4] = {low & mask, low >> 8 & mask, high & mask, high >> 8 & mask};
#pragma unroll
      for (uint32_t tile = 0; tile < S::kTiles; ++tile)
        MultiplyAdd(running.acc[tile][field * S::kHalves + half], a, right[tile]);
    }
  }
}

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_ATTENTION_ATTEND_TILES_CUH_
