// Encoding, second half: rows in the transformed basis to bytes in shared memory, and from there to
// pages and checksums. Device code only; used by cuda_encode.cu.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_ENCODE_STAGE_CUH_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_ENCODE_STAGE_CUH_

#include "kernels/codec/oscar/cuda_encode_rows.cuh"
#include "kernels/codec/oscar/cuda_quantise.cuh"

namespace oscarkv::cuda::encode {

struct Staged {
  uint32_t codes[2];  // of this lane's rows, in a warp group's staged bytes
  uint32_t params[2];
};

__device__ __forceinline__ void StageParams(std::byte* to, const GroupNumbers& group, bool fp32) {
  if (fp32) {
    reinterpret_cast<float*>(to)[0] = group.scale;
    reinterpret_cast<float*>(to)[1] = group.zero;
    return;
  }
  const uint32_t scale =
      isnan(group.scale) ? 0x7e00u : __half_as_ushort(__float2half_rn(group.scale));
  const uint32_t zero = __half_as_ushort(__float2half_rn(group.zero));
  *reinterpret_cast<uint32_t*>(to) = scale | zero << 16;
}

// Scale and zero of this lane's elements, a row or a run at a time.
template <typename S>
struct Numbers {
  float scale[2];
  float zero[2];
  float reciprocal[2];
  const float2 (*scratch)[S::kOneGroup ? 1 : S::kRuns] = nullptr;
  uint32_t run_shift = 0;  // runs of a group, as a power of two

  __device__ __forceinline__ void Take(uint32_t r, uint32_t row, uint32_t run) {
    if constexpr (S::kOneGroup) return;
    const float2 both = scratch[row][run >> run_shift];
    scale[r] = both.x;
    zero[r] = both.y;
    reciprocal[r] = both.x == 0.0f ? 0.0f : __frcp_rn(both.x);
  }
};

// This lane's codes, packed, to its rows' staged bytes.
template <typename S, bool kQuick>
__device__ __forceinline__ void StageCodes(const float (&y)[S::kTiles][4], Numbers<S> numbers,
                                           const float (&threshold)[2], uint32_t lane,
                                           std::byte* staged, const Staged& at) {
  const uint32_t quad = lane & 3;
#pragma unroll
  for (uint32_t r = 0; r < 2; ++r) {
    uint32_t bytes[S::kFieldTiles];  // of two dims each, in its halves
#pragma unroll
    for (uint32_t field = S::kFields; field-- > 0;) {
#pragma unroll
      for (uint32_t s = 0; s < S::kFieldTiles; ++s) {
        if (s % S::kRunTiles == 0) {
          numbers.Take(r, lane / 4 + 8 * r,
                       (field * S::kRowBytes + quad * S::kLaneBytes) / S::kRun + s / S::kRunTiles);
        }
        const float* pair = &y[field * S::kFieldTiles + s][2 * r];
        uint32_t codes;
        if constexpr (kQuick) {
          codes = __byte_perm(
              QuickCode(pair[0], numbers.scale[r], numbers.reciprocal[r], numbers.zero[r]),
              QuickCode(pair[1], numbers.scale[r], numbers.reciprocal[r], numbers.zero[r]), 0x5410);
          codes = __vimin_s16x2_relu(codes, ((1u << S::kBits) - 1u) * 0x10001u);
        } else {
          codes = SlowCode<S::kBits>(pair[0], numbers.scale[r], numbers.zero[r], threshold[r]) |
                  SlowCode<S::kBits>(pair[1], numbers.scale[r], numbers.zero[r], threshold[r])
                      << 16;
        }
        bytes[s] = field + 1 == S::kFields ? codes : (bytes[s] << S::kBits) + codes;
      }
    }
    auto* to = reinterpret_cast<uint32_t*>(staged + at.codes[r] + quad * S::kLaneBytes);
#pragma unroll
    for (uint32_t word = 0; word < S::kLaneBytes / 4; ++word)
      to[word] = __byte_perm(bytes[2 * word], bytes[2 * word + 1], 0x6420);
  }
}

__device__ __forceinline__ float Clipped(float value, float threshold) {
  return fminf(fmaxf(value, -threshold), threshold);
}

struct RowCounts {
  uint32_t constant = 0;
  uint32_t nonfinite = 0;
  uint32_t overflow = 0;
};

// Clips, quantises and stages a warp's 16 rows. `good`: this lane's two rows are to be trusted;
// `counted`: they are written.
template <typename S>
__device__ __forceinline__ void QuantiseRows(const float (&y)[S::kTiles][4],
                                             const ForwardHead& head, const bool (&good)[2],
                                             const bool (&counted)[2], uint32_t groups, bool fp32,
                                             uint32_t lane,
                                             float2 (*scratch)[S::kOneGroup ? 1 : S::kRuns],
                                             std::byte* staged, const Staged& at, bool (&finite)[2],
                                             RowCounts& counts) {
  const uint32_t quad = lane & 3;
  float least[2];
  float most[2];
  float magnitude[2];
#pragma unroll
  for (uint32_t r = 0; r < 2; ++r) {
    least[r] = kInfinity;
    most[r] = -kInfinity;
#pragma unroll
    for (uint32_t tile = 0; tile < S::kTiles; tile += S::kRunTiles) {
      float run_least = y[tile][2 * r];
      float run_most = run_least;
#pragma unroll
      for (uint32_t i = 1; i < S::kRun; ++i) {
        run_least = MinOrNan(run_least, y[tile + i / 2][2 * r + i % 2]);
        run_most = MaxOrNan(run_most, y[tile + i / 2][2 * r + i % 2]);
      }
      if constexpr (!S::kOneGroup) {
        const uint32_t first = tile / S::kFieldTiles * S::kRowBytes + quad * S::kLaneBytes;
        scratch[lane / 4 + 8 * r][first / S::kRun + tile % S::kFieldTiles / S::kRunTiles] =
            make_float2(run_least, run_most);
      }
      least[r] = MinOrNan(least[r], run_least);
      most[r] = MaxOrNan(most[r], run_most);
    }
    least[r] = OfQuad(least[r], MinOrNan);
    most[r] = OfQuad(most[r], MaxOrNan);
    magnitude[r] = MaxOrNan(fabsf(least[r]), fabsf(most[r]));
    finite[r] = good[r] && magnitude[r] < kInfinity;
    if (!finite[r]) magnitude[r] = 0.0f;
  }
  float threshold[2] = {kInfinity, kInfinity};
  if (head.above != 0) {
    OrderStatistic(y, magnitude, head.above, head.clip_guess, head.clip_spread, threshold);
  }
  // Of lanes that share rows, the first sees to the first row and the second to the second.
  const uint32_t mine = quad & 1;
  const bool my_finite = finite[mine];
  const float my_threshold = mine == 0 ? threshold[0] : threshold[1];
  const float my_least = Clipped(mine == 0 ? least[0] : least[1], my_threshold);
  const float my_most = Clipped(mine == 0 ? most[0] : most[1], my_threshold);
  const float my_magnitude = mine == 0 ? magnitude[0] : magnitude[1];
  bool quick = true;
  bool overflow = false;
  Numbers<S> numbers;
  if constexpr (S::kOneGroup) {
    GroupNumbers group = MakeGroupNumbers<S::kBits>(my_least, my_most, fp32);
    overflow = group.overflow;
    if (!my_finite) group = NanNumbers();
    quick = IsQuick(group, __fsub_rn(my_most, my_least), my_magnitude);
    const float reciprocal = group.code_scale == 0.0f ? 0.0f : __frcp_rn(group.code_scale);
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      numbers.scale[r] = __shfl_sync(kAllLanes, group.code_scale, (lane & ~3u) + r);
      numbers.zero[r] = __shfl_sync(kAllLanes, group.code_zero, (lane & ~3u) + r);
      numbers.reciprocal[r] = __shfl_sync(kAllLanes, reciprocal, (lane & ~3u) + r);
    }
    if (quad < 2) StageParams(staged + (mine == 0 ? at.params[0] : at.params[1]), group, fp32);
  } else {
    const uint32_t runs = S::kRuns / groups;
    __syncwarp();
    // The first two lanes of a row take its even groups, the others its odd ones.
    float2(&row)[S::kRuns] = scratch[lane / 4 + 8 * mine];
    for (uint32_t group_number = quad / 2; group_number < groups; group_number += 2) {
      float2 both = row[group_number * runs];
      for (uint32_t run = 1; run < runs; ++run) {
        both.x = fminf(both.x, row[group_number * runs + run].x);
        both.y = fmaxf(both.y, row[group_number * runs + run].y);
      }
      both.x = Clipped(both.x, my_threshold);
      both.y = Clipped(both.y, my_threshold);
      GroupNumbers group = MakeGroupNumbers<S::kBits>(both.x, both.y, fp32);
      overflow = overflow || group.overflow;
      if (!my_finite) group = NanNumbers();
      quick = quick && IsQuick(group, __fsub_rn(both.y, both.x), my_magnitude);
      StageParams(
          staged + (mine == 0 ? at.params[0] : at.params[1]) + group_number * (fp32 ? 8 : 4), group,
          fp32);
      // Runs of this group and those before have been read, by this lane or the one beside it.
      __syncwarp();
      row[group_number] = make_float2(group.code_scale, group.code_zero);
    }
    __syncwarp();
    overflow = overflow || __shfl_xor_sync(kAllLanes, overflow, 2);
    numbers.scratch = scratch;
    numbers.run_shift = 31 - __clz(static_cast<int>(runs));
  }
  if (__all_sync(kAllLanes, quick)) {
    StageCodes<S, true>(y, numbers, threshold, lane, staged, at);
  } else {
    StageCodes<S, false>(y, numbers, threshold, lane, staged, at);
  }
  const bool my_counted = quad < 2 && counted[mine];
  counts.constant += my_counted && my_finite && my_least == my_most ? 1 : 0;
  counts.nonfinite += my_counted && !my_finite ? 1 : 0;
  counts.overflow += my_counted && my_finite && overflow ? 1 : 0;
}

// Stores staged words and returns this lane's part of the block's checksum. `behind`: words of the
// block's content after them.
__device__ __forceinline__ uint32_t Emit(const CrcTables& tables, const uint32_t* powers,
                                         const uint32_t* staged, uint32_t words, uint32_t behind,
                                         std::byte* to, uint32_t lane) {
  if (lane >= words) return 0;
  const uint32_t power = powers[behind + (words - 1 - lane) % kCrcLanes];
  auto* stored = reinterpret_cast<uint32_t*>(to);
  uint32_t remainder = 0;
#pragma unroll 2
  for (uint32_t i = lane; i < words; i += kCrcLanes) {
    const uint32_t word = staged[i];
    stored[i] = word;
    remainder = tables.step[0][remainder & 0xff] ^ tables.step[1][(remainder >> 8) & 0xff] ^
                tables.step[2][(remainder >> 16) & 0xff] ^ tables.step[3][remainder >> 24] ^ word;
  }
  return CrcMultiply(power, remainder);
}

// What a thread block works on.
struct Work {
  const EncodeLayer* layer;
  const EncodeSide* side;
  uint32_t side_of_layer;
  uint32_t layer_in_range;
  uint32_t head_in_range;
  uint64_t block_offset;
  uint32_t params_row_bytes;
};

// A page's part of a tile, from staged bytes to the page.
template <typename S>
__device__ __forceinline__ void EmitSegment(const EncodeArguments& arguments, const Work& work,
                                            const Tiling& tiling, const CrcTables& tables,
                                            uint32_t tile, uint32_t segment,
                                            const std::byte* staged, uint32_t lane) {
  const uint32_t page = tiling.FirstPage(tile) + segment;
  const uint32_t first = tiling.FirstToken(tile);
  const uint32_t rows = min(tiling.segment_rows, tiling.page_tokens - first);
  const std::byte* from =
      staged + segment * tiling.segment_rows * (S::kRowBytes + work.params_row_bytes);
  const std::byte* params_from = from + tiling.segment_rows * S::kRowBytes;
  std::byte* block = arguments.batch.page_bytes[page] + work.block_offset;
  const uint32_t code_words = rows * S::kRowBytes / 4;
  const uint32_t params_words = rows * work.params_row_bytes / 4;
  const uint32_t codes_at = work.side->rows_offset + first * S::kRowBytes;
  const uint32_t params_at = work.side->params_offset + first * work.params_row_bytes;
  const uint32_t all = work.layer->content_words;
  uint32_t part;
  if (tiling.page_tiles == 1) {  // codes and params of all tokens follow each other
    const uint32_t words = code_words + params_words;
    part = Emit(tables, arguments.crc_powers, reinterpret_cast<const uint32_t*>(from), words,
                all - codes_at / 4 - words, block + codes_at, lane);
  } else {
    part = Emit(tables, arguments.crc_powers, reinterpret_cast<const uint32_t*>(from), code_words,
                all - codes_at / 4 - code_words, block + codes_at, lane);
    part ^= Emit(tables, arguments.crc_powers, reinterpret_cast<const uint32_t*>(params_from),
                 params_words, all - params_at / 4 - params_words, block + params_at, lane);
  }
  part = __reduce_xor_sync(kAllLanes, part);
  if (work.side_of_layer == 1 && first + rows == tiling.page_tokens) {
    for (uint32_t word = all + lane; word < work.layer->stride / 4; word += 32)
      reinterpret_cast<uint32_t*>(block)[word] = 0;
  }
  if (lane == 0) {
    if (work.side_of_layer == 0 && first == 0) part ^= work.layer->crc_constant;
    const DeviceEncodeBatch& batch = arguments.batch;
    atomicXor(&batch.block_crc32c[(uint64_t{page} * batch.layers.count + work.layer_in_range) *
                                      batch.heads.count +
                                  work.head_in_range],
              part);
  }
}

}  // namespace oscarkv::cuda::encode

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_ENCODE_STAGE_CUH_
