// WIDE pages, sixteen tokens at a time, read where they are; for attend.cuh.
#ifndef OSCARKV_KERNELS_ATTENTION_ATTEND_WIDE_CUH_
#define OSCARKV_KERNELS_ATTENTION_ATTEND_WIDE_CUH_

#include "kernels/attention/attend_tiles.cuh"

namespace oscarkv::cuda {

// Where a row of a (request, KV head) is among queries, outputs and log-sum-exps.
__device__ __forceinline__ uint64_t QueryIndex(const AttendArguments& arguments, uint32_t request,
                                               uint32_t head, uint32_t row) {
  const uint64_t token = uint64_t{request} * arguments.batch.new_tokens + row / arguments.ratio;
  return token * (arguments.kv_heads * arguments.ratio) + head * arguments.ratio +
         row % arguments.ratio;
}

// Queries as right operands: 16 bytes a piece of 32 elements, for two products. Columns 2 i and
// 2 i + 1 are queries i and i + 4 of a value tile.
template <typename S>
struct WideQueries {
  uint4 fragments[S::kValueTiles][S::kDim / 32];

  __device__ __forceinline__ void Load(const AttendArguments& arguments, const Chunk& chunk,
                                       uint32_t lane) {
#pragma unroll
    for (uint32_t tile = 0; tile < S::kValueTiles; ++tile) {
      const uint32_t column = lane / 4;
      const uint32_t row = chunk.group * S::kRows + tile * 8 + column / 2 + column % 2 * 4;
      const uint64_t at = QueryIndex(arguments, chunk.request, chunk.head, row);
#pragma unroll
      for (uint32_t piece = 0; piece < S::kDim / 32; ++piece) {
        fragments[tile][piece] = make_uint4(0, 0, 0, 0);
        if (row < arguments.rows) {
          fragments[tile][piece] = __ldg(reinterpret_cast<const uint4*>(
              arguments.batch.queries + at * (S::kDim * 2) + piece * 64 + lane % 4 * 16));
        }
      }
    }
  }
};

template <typename S, bool kBf16>
__device__ __forceinline__ void TakeWide(const AttendArguments& arguments, const Sight& sight,
                                         const WideQueries<S>& queries, const std::byte* block,
                                         uint32_t token, uint32_t tokens, uint32_t position,
                                         uint32_t lane, Running<S>& running) {
  constexpr uint32_t kPieces = S::kDim / 32;  // 16 bytes a lane of a key
  constexpr uint32_t kRow = S::kDim * 2;
  const uint32_t quad = lane & 3;
  const uint32_t row = lane >> 2;
  const uint32_t last = arguments.page_tokens - 1;
  float sums[S::kValueTiles][4] = {};
#pragma unroll
  for (uint32_t piece = 0; piece < kPieces; ++piece) {
    const std::byte* from = block + piece * 64 + quad * 16;
    const uint4 k0 = __ldg(reinterpret_cast<const uint4*>(from + min(token + row, last) * kRow));
    const uint4 k1 =
        __ldg(reinterpret_cast<const uint4*>(from + min(token + row + 8, last) * kRow));
    const uint32_t a[4] = {k0.x, k1.x, k0.y, k1.y};
    const uint32_t b[4] = {k0.z, k1.z, k0.w, k1.w};
#pragma unroll
    for (uint32_t tile = 0; tile < S::kValueTiles; ++tile) {
      const uint4& query = queries.fragments[tile][piece];
      MultiplyAdd16<kBf16>(sums[tile], a, query.x, query.y);
      MultiplyAdd16<kBf16>(sums[tile], b, query.z, query.w);
    }
  }
  float logits[S::kKeyTiles][2];
  const auto logits_from = [&](const float(&base)[S::kKeyTiles]) {
#pragma unroll
    for (uint32_t tile = 0; tile < S::kKeyTiles; ++tile) {
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i)
        logits[tile][i] = fmaf(sums[tile / 2][tile % 2 + 2 * i], arguments.scale, base[tile]);
    }
    Hide<S>(arguments, sight, token, tokens, position, lane, logits);
  };
  float check;
  const auto weigh = [&] {
    logits_from(running.base);
    check = 0.0f;
#pragma unroll
    for (uint32_t tile = 0; tile < S::kKeyTiles; ++tile) {
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        logits[tile][i] = Exp2(logits[tile][i]);
        check += logits[tile][i];
      }
    }
  };
  weigh();
  if (__any_sync(kAllLanes, !(check <= kCeiling))) {
    const float none[S::kKeyTiles] = {};
    const float one[2] = {};
    logits_from(none);
    running.Move(logits, one, none);
    weigh();
  }
#pragma unroll
  for (uint32_t tile = 0; tile < S::kKeyTiles; ++tile)
    running.sum[tile] += logits[tile][0] + logits[tile][1];
  uint2 operands[S::kValueTiles];
  ToOperands<S, kBf16>(logits, lane, operands);
  const std::byte* values = block + arguments.wide.v_rows + row * 16;
#pragma unroll
  for (uint32_t part = 0; part < S::kDim / 64; ++part) {
    uint32_t words[4][4];
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
      const uint32_t at = token + 2 * quad + j % 2 + j / 2 * 8;
      uint4 all = make_uint4(0, 0, 0, 0);  // what is beyond may hold anything, NaN too
      if (at < tokens) all = __ldg(reinterpret_cast<const uint4*>(values + at * kRow + part * 128));
      words[j][0] = all.x, words[j][1] = all.y, words[j][2] = all.z, words[j][3] = all.w;
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t a[4] = {__byte_perm(words[0][i], words[1][i], 0x5410),
                             __byte_perm(words[0][i], words[1][i], 0x7632),
                             __byte_perm(words[2][i], words[3][i], 0x5410),
                             __byte_perm(words[2][i], words[3][i], 0x7632)};
#pragma unroll
      for (uint32_t tile = 0; tile < S::kValueTiles; ++tile) {
        MultiplyAdd16<kBf16>(running.acc[tile][part * 4 + i], a, operands[tile].x,
                             operands[tile].y);
      }
    }
  }
}

// The chunk's WIDE pages; several warps to a page.
template <typename S, bool kBf16>
__device__ __forceinline__ void TakeWidePages(const AttendArguments& arguments, const Chunk& chunk,
                                              const Sight& sight, uint32_t warp, uint32_t lane,
                                              Running<S>& running) {
  constexpr uint32_t kAcross = 4;                   // warps to a page
  constexpr uint32_t kPages = S::kWarps / kAcross;  // at once
  WideQueries<S> queries;
  queries.Load(arguments, chunk, lane);
  const uint64_t offset =
      arguments.wide.layer_offset + uint64_t{chunk.head} * arguments.wide.stride;
  for (uint32_t first = chunk.page + warp / kAcross * chunk.splits; first < chunk.pages_end;
       first += 32 * kPages * chunk.splits) {
    const uint32_t mine = first + lane * kPages * chunk.splits;
    AttendPage page{};
    if (mine < chunk.pages_end) page = arguments.batch.pages[chunk.first_page + mine];
    uint32_t to_take =
        __ballot_sync(kAllLanes, page.encoding == Encoding::kWide && page.tokens > 0);
    while (to_take != 0) {
      const auto source = static_cast<int>(__ffs(static_cast<int>(to_take)) - 1);
      to_take &= to_take - 1;
      const uint32_t tokens =
          __shfl_sync(kAllLanes, min(uint32_t{page.tokens}, arguments.page_tokens), source);
      const uint32_t position = __shfl_sync(kAllLanes, page.position, source);
      const std::byte* bytes = reinterpret_cast<const std::byte*>(
          __shfl_sync(kAllLanes, reinterpret_cast<uint64_t>(page.bytes), source));
      for (uint32_t token = warp % kAcross * kTileTokens; token < tokens;
           token += kAcross * kTileTokens) {
        TakeWide<S, kBf16>(arguments, sight, queries, bytes + offset, token, tokens, position, lane,
                           running);
      }
    }
  }
}

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_ATTENTION_ATTEND_WIDE_CUH_
