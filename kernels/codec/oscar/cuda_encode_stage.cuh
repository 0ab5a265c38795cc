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

// What this lane's codes are made with, a row or a run at a time.
template <typename S>
struct Numbers {
  float scale[2];
  float zero[2];
  QuickNumbers quick[2];
  const float2 (*scratch)[S::kOneGroup ? 1 : S::kRuns] = nullptr;
  uint32_t run_shift = 0;  // runs of a group, as a power of two

  __device__ __forceinline__ void Take(uint32_t r, uint32_t row, uint32_t run) {
    if constexpr (S::kOneGroup) return;
    const float2 both = scratch[row][run >> run_shift];
    scale[r] = both.x;
    zero[r] = both.y;
    quick[r] = QuickCodes<S::kBits>::Make(both.x, both.y);
  }
};

// This lane's codes, packed, to its rows' staged bytes. Returns whether they are right; they always
// are when `kQuick` is not set: then pairs of which some lane's is not certain are made again.
template <typename S, bool kQuick>
__device__ __forceinline__ bool StageCodes(const float (&y)[S::kTiles][4], Numbers<S> numbers,
                                           const float (&threshold)[2], bool exact, uint32_t lane,
                                           std::byte* staged, const Staged& at) {
  using Quick = QuickCodes<S::kBits>;
  const uint32_t quad = lane & 3;
  uint32_t least = 0xffffffffu;
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
        const uint32_t first = Quick::Fixed(pair[0], numbers.quick[r].scale, numbers.quick[r].zero);
        const uint32_t second =
            Quick::Fixed(pair[1], numbers.quick[r].scale, numbers.quick[r].zero);
        uint32_t codes = __byte_perm(first, second, 0x7632);
        if constexpr (kQuick) {
          least = __vimin3_u16x2(least, first, second);  // of fractions, in the lower half
        } else if (__any_sync(kAllLanes,
                              !exact || min(first & 0xffffu, second & 0xffffu) < Quick::kMargins)) {
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
  return !kQuick || (least & 0xffffu) >= Quick::kMargins;
}

__device__ __forceinline__ float Clipped(float value, float threshold) {
  return fminf(fmaxf(value, -threshold), threshold);
}

struct RowCounts {
  uint32_t constant = 0;
  uint32_t nonfinite = 0;
  uint32_t overflow = 0;
};

// Of this lane's row, before the clip.
struct Extremes {
  float least;
  float most;
};

__device__ __forceinline__ bool IsFinite(const Extremes& row) {
  return fabsf(row.least) < kInfinity && fabsf(row.most) < kInfinity;
}

// Least and greatest of this lane's runs of one group each.
template <typename S>
__device__ __forceinline__ void ExtremesOfRuns(const float (&y)[S::kTiles][4], uint32_t lane,
                                               float2 (*runs)[S::kOneGroup ? 1 : S::kRuns]) {
#pragma unroll
  for (uint32_t r = 0; r < 2; ++r) {
#pragma unroll
    for (uint32_t tile = 0; tile < S::kTiles; tile += S::kRunTiles) {
      float least = y[tile][2 * r];
      float most = least;
#pragma unroll
      for (uint32_t i = 1; i < S::kRun; ++i) {
        least = fminf(least, y[tile + i / 2][2 * r + i % 2]);
        most = fmaxf(most, y[tile + i / 2][2 * r + i % 2]);
      }
      const uint32_t first = tile / S::kFieldTiles * S::kRowBytes + (lane & 3) * S::kLaneBytes;
      runs[lane / 4 + 8 * r][first / S::kRun + tile % S::kFieldTiles / S::kRunTiles] =
          make_float2(least, most);
    }
  }
}

// At half an instruction for each: as signed integers the greatest positive float is the greatest,
// as unsigned ones the least negative, or a NaN or infinity of either sign. Rows that lack a sign
// are looked at again.
template <typename S>
__device__ __forceinline__ Extremes ExtremesOfRow(const float (&y)[S::kTiles][4], uint32_t lane) {
  int32_t most[2] = {INT32_MIN, INT32_MIN};
  uint32_t least[2] = {0, 0};
#pragma unroll
  for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const uint32_t first = __float_as_uint(y[tile][2 * r]);
      const uint32_t second = __float_as_uint(y[tile][2 * r + 1]);
      most[r] = __vimax3_s32(most[r], static_cast<int32_t>(first), static_cast<int32_t>(second));
      least[r] = __vimax3_u32(least[r], first, second);
    }
  }
  const bool odd = (lane & 1) != 0;
  const int32_t my_most =
      OfMyRow(most[0], most[1], odd, [](int32_t a, int32_t b) { return max(a, b); });
  const uint32_t my_least =
      OfMyRow(least[0], least[1], odd, [](uint32_t a, uint32_t b) { return max(a, b); });
  Extremes row = {__uint_as_float(my_least), __int_as_float(my_most)};
  const bool both_signs = my_most >= 0 && static_cast<int32_t>(my_least) < 0;
  if (!__all_sync(kAllLanes, both_signs)) {
    float again[2][2] = {{kInfinity, kInfinity}, {-kInfinity, -kInfinity}};
#pragma unroll
    for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        again[0][i / 2] = fminf(again[0][i / 2], y[tile][i]);
        again[1][i / 2] = fmaxf(again[1][i / 2], y[tile][i]);
      }
    }
    const float least = OfMyRow(again[0][0], again[0][1], odd, fminf);
    const float most = OfMyRow(again[1][0], again[1][1], odd, fmaxf);
    // An infinity or NaN has been seen above.
    if (!both_signs && IsFinite(row)) row = {least, most};
  }
  return row;
}

// Clips, quantises and stages a warp's 16 rows. `good`: this lane's two rows are to be trusted;
// `counted`: they are written. Returns whether this lane's row, the first for even lanes and the
// second for odd ones, is finite.
template <typename S>
__device__ __forceinline__ bool QuantiseRows(const float (&y)[S::kTiles][4],
                                             const ForwardHead& head, bool good, bool counted,
                                             uint32_t groups, bool fp32, uint32_t lane,
                                             Scratch<S>& scratch, std::byte* staged,
                                             const Staged& at, RowCounts& counts) {
  const uint32_t quad = lane & 3;
  const bool odd = (lane & 1) != 0;
  const Extremes extremes = ExtremesOfRow<S>(y, lane);
  const bool finite = good && IsFinite(extremes);
  float my_threshold = kInfinity;
  if (head.above != 0) {
    my_threshold = OrderStatistic(y, fmaxf(fabsf(extremes.least), fabsf(extremes.most)), finite,
                                  head, lane, scratch.rows);
  }
  const float least = Clipped(extremes.least, my_threshold);
  const float most = Clipped(extremes.most, my_threshold);
  bool quick = true;
  bool overflow = false;
  Numbers<S> numbers;
  if constexpr (S::kOneGroup) {
    GroupNumbers group = MakeGroupNumbers<S::kBits>(least, most, fp32);
    overflow = group.overflow;
    if (!finite) group = NanNumbers();
    const QuickNumbers mine = QuickCodes<S::kBits>::Make(group.code_scale, group.code_zero);
    quick = mine.exact;
    OfBothRows(group.code_scale, odd, numbers.scale);
    OfBothRows(group.code_zero, odd, numbers.zero);
    float both[2];
    OfBothRows(mine.scale, odd, both);
    numbers.quick[0].scale = both[0];
    numbers.quick[1].scale = both[1];
    OfBothRows(mine.zero, odd, both);
    numbers.quick[0].zero = both[0];
    numbers.quick[1].zero = both[1];
    if (quad < 2) StageParams(staged + (odd ? at.params[1] : at.params[0]), group, fp32);
  } else {
    const uint32_t runs = S::kRuns / groups;
    ExtremesOfRuns<S>(y, lane, scratch.runs);
    __syncwarp();
    // The first two lanes of a row take its even groups, the others its odd ones.
    float2(&row)[S::kRuns] = scratch.runs[lane / 4 + 8 * (quad & 1)];
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
      if (!finite) group = NanNumbers();
      quick = quick && QuickCodes<S::kBits>::Make(group.code_scale, group.code_zero).exact;
      StageParams(staged + (odd ? at.params[1] : at.params[0]) + group_number * (fp32 ? 8 : 4),
                  group, fp32);
      // Runs of this group and those before have been read, by this lane or the one beside it.
      __syncwarp();
      row[group_number] = make_float2(group.code_scale, group.code_zero);
    }
    __syncwarp();
    overflow = overflow || __shfl_xor_sync(kAllLanes, overflow, 2);
    numbers.scratch = scratch.runs;
    numbers.run_shift = 31 - __clz(static_cast<int>(runs));
  }
  float threshold[2];
  OfBothRows(my_threshold, odd, threshold);
  const bool exact = __all_sync(kAllLanes, quick);
  if (!exact ||
      !__all_sync(kAllLanes, StageCodes<S, true>(y, numbers, threshold, exact, lane, staged, at)))
    StageCodes<S, false>(y, numbers, threshold, exact, lane, staged, at);
  const bool first = quad < 2 && counted;
  counts.constant += first && finite && least == most ? 1 : 0;
  counts.nonfinite += first && !finite ? 1 : 0;
  counts.overflow += first && finite && overflow ? 1 : 0;
  return finite;
}

// A product with x^(32 behind), for the words of a block's content that are `behind` others: what a
// lane's bit of the other factor adds to it. As a rule all parts that a warp stores have one.
struct CrcColumn {
  uint32_t behind = 0xffffffffu;
  uint32_t column = 0;

  __device__ __forceinline__ uint32_t Multiply(const uint32_t* powers, uint32_t words_behind,
                                               uint32_t factor, uint32_t lane) {
    if (words_behind != behind) {
      behind = words_behind;
      column = behind == 0 ? 1u << 31 : powers[behind - 1];
#pragma unroll 1
      for (uint32_t bit = lane; bit < 31; ++bit)  // times x
        column = (column >> 1) ^ (kCrcPolynomial & (0u - (column & 1u)));
    }
    return __reduce_xor_sync(kAllLanes, (factor >> lane & 1) != 0 ? column : 0);
  }
};

// Stores staged words and returns the remainder that they leave.
__device__ __forceinline__ uint32_t Emit(const CrcTables& tables, const CrcMultiples& multiples,
                                         const uint32_t* staged, uint32_t words, std::byte* to,
                                         uint32_t lane) {
  auto* stored = reinterpret_cast<uint32_t*>(to);
  uint32_t remainder = 0;
#pragma unroll 2
  for (uint32_t i = lane; i < words; i += kCrcLanes) {
    const uint32_t word = staged[i];
    stored[i] = word;
    remainder = tables.step[0][remainder & 0xff] ^ tables.step[1][(remainder >> 8) & 0xff] ^
                tables.step[2][(remainder >> 16) & 0xff] ^ tables.step[3][remainder >> 24] ^ word;
  }
  const uint32_t* of_lane = &multiples.of[0][0][(words - 1 - lane) % kCrcLanes];
  uint32_t product = 0;
#pragma unroll
  for (uint32_t nibble = 0; nibble < 8; ++nibble)
    product ^= __ldg(of_lane + (nibble * 16 + (remainder >> (4 * nibble) & 15)) * kCrcLanes);
  return __reduce_xor_sync(kAllLanes, product);
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
  uint32_t first_tile;
  uint32_t end_tile;
  uint32_t turns;  // of the quantising warp groups, a tile each

  template <typename S>
  __device__ __forceinline__ uint32_t Tile(uint32_t turn, uint32_t warp_group) const {
    return first_tile + turn * S::kWarpGroups + warp_group;
  }
  template <typename S>
  __device__ __forceinline__ uint32_t StagedBytes() const {  // of a tile
    return kTileRows * (S::kRowBytes + params_row_bytes);
  }
  // Where a page's checksum and status are.
  __device__ __forceinline__ uint64_t BlockNumber(const EncodeArguments& arguments,
                                                  uint32_t page) const {
    return (uint64_t{page} * arguments.batch.layers.count + layer_in_range) *
               arguments.batch.heads.count +
           head_in_range;
  }
};

// A page's part of a tile, from staged bytes to the page.
template <typename S>
__device__ __forceinline__ void EmitSegment(const EncodeArguments& arguments, const Work& work,
                                            const Tiling& tiling, const CrcTables& tables,
                                            uint32_t tile, uint32_t segment,
                                            const std::byte* staged, uint32_t lane,
                                            CrcColumn (&columns)[2]) {
  const uint32_t page = tiling.FirstPage(tile) + segment;
  std::byte* block = arguments.batch.page_bytes[page];
  if (!IsUsable(block)) {
    if (lane == 0)
      atomicOr(&arguments.batch.status[work.BlockNumber(arguments, page)], kBadPointer);
    return;
  }
  block += work.block_offset;
  const uint32_t first = tiling.FirstToken(tile);
  const uint32_t rows = min(tiling.segment_rows, tiling.page_tokens - first);
  const std::byte* from =
      staged + segment * tiling.segment_rows * (S::kRowBytes + work.params_row_bytes);
  const std::byte* params_from = from + tiling.segment_rows * S::kRowBytes;
  const uint32_t code_words = rows * S::kRowBytes / 4;
  const uint32_t params_words = rows * work.params_row_bytes / 4;
  const uint32_t codes_at = work.side->rows_offset + first * S::kRowBytes;
  const uint32_t params_at = work.side->params_offset + first * work.params_row_bytes;
  const uint32_t all = work.layer->content_words;
  // Where a page is not cut, codes and params of all tokens follow each other.
  const uint32_t words = code_words + (tiling.page_tiles == 1 ? params_words : 0);
  uint32_t part = columns[0].Multiply(
      arguments.crc_powers, all - codes_at / 4 - words,
      Emit(tables, *arguments.crc_multiples, reinterpret_cast<const uint32_t*>(from), words,
           block + codes_at, lane),
      lane);
  if (tiling.page_tiles != 1) {
    part ^= columns[1].Multiply(
        arguments.crc_powers, all - params_at / 4 - params_words,
        Emit(tables, *arguments.crc_multiples, reinterpret_cast<const uint32_t*>(params_from),
             params_words, block + params_at, lane),
        lane);
  }
  if (work.side_of_layer == 1 && first + rows == tiling.page_tokens) {
    for (uint32_t word = all + lane; word < work.layer->stride / 4; word += 32)
      reinterpret_cast<uint32_t*>(block)[word] = 0;
  }
  if (lane == 0) {
    if (work.side_of_layer == 0 && first == 0) part ^= work.layer->crc_constant;
    atomicXor(&arguments.batch.block_crc32c[work.BlockNumber(arguments, page)], part);
  }
}

}  // namespace oscarkv::cuda::encode

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_ENCODE_STAGE_CUH_
