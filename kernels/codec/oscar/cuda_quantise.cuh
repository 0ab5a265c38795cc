// FORMAT.md's arithmetic on transformed rows that lie in registers as tensor cores leave them: of
// 16 rows, a lane has two, `lane / 4` and the eighth after it, and a quarter of each. Device code
// only.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_QUANTISE_CUH_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_QUANTISE_CUH_

#include <cstdint>

#include <cuda_fp16.h>

#include "kernels/codec/oscar/cuda_primitives.cuh"

namespace oscarkv::cuda {

inline constexpr uint32_t kAllLanes = 0xffffffffu;
inline constexpr float kInfinity = __builtin_huge_valf();

// Of a NaN and a number, the NaN.
__device__ __forceinline__ float MinOrNan(float a, float b) {
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}
__device__ __forceinline__ float MaxOrNan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

// Over the four lanes that share rows.
template <typename Operation>
__device__ __forceinline__ float OfQuad(float value, Operation operation) {
  value = operation(value, __shfl_xor_sync(kAllLanes, value, 1));
  return operation(value, __shfl_xor_sync(kAllLanes, value, 2));
}
__device__ __forceinline__ uint32_t SumOfQuad(uint32_t value) {
  value += __shfl_xor_sync(kAllLanes, value, 1);
  return value + __shfl_xor_sync(kAllLanes, value, 2);
}

// sums[0] and sums[2] become this lane's two rows' sums over all elements of `pairs`.
template <uint32_t kTiles>
__device__ __forceinline__ void SumRows(const uint32_t (&pairs)[kTiles][2], float (&sums)[4]) {
  const uint2 ones = make_uint2(0x3c003c00u, 0x3c003c00u);
  float other[4] = {};
#pragma unroll
  for (float& sum : sums) sum = 0.0f;
#pragma unroll
  for (uint32_t tile = 0; tile < kTiles; tile += 4) {
    MultiplyAdd(sums, {pairs[tile][0], pairs[tile][1], pairs[tile + 1][0], pairs[tile + 1][1]},
                ones);
    MultiplyAdd(other,
                {pairs[tile + 2][0], pairs[tile + 2][1], pairs[tile + 3][0], pairs[tile + 3][1]},
                ones);
  }
  sums[0] += other[0];
  sums[2] += other[2];
}

__device__ __forceinline__ uint32_t Bits(__half2 value) {
  return *reinterpret_cast<const uint32_t*>(&value);
}
__device__ __forceinline__ __half2 Halves(uint32_t bits) {
  return *reinterpret_cast<const __half2*>(&bits);
}

// A row's search: more than `above` magnitudes are >= low, at most that are >= high.
struct Bracket {
  uint32_t low;
  uint32_t high;
  float count_low;
  float count_high;
  uint32_t guess;
  bool found;  // exactly one more than `above` are >= low
};

// The exact order statistic of each row's magnitudes that has `above` behind it. `most`: rows'
// greatest magnitudes, finite; a row that is not looked for has 0.
//
// Counts magnitudes that pass a threshold until one parts the row at the wanted place; then the
// least that passes is it. First among thresholds that fp16 holds: magnitudes as fp16, rounded
// down, compare with those as they do themselves, two an instruction, and the tensor cores add the
// verdicts up. Where that does not part a row, by bisection of fp32 bit patterns.
template <uint32_t kTiles>
__device__ __forceinline__ void OrderStatistic(const float (&y)[kTiles][4], const float (&most)[2],
                                               uint32_t above, float clip_guess, float clip_spread,
                                               float (&result)[2]) {
  constexpr uint32_t kInterpolations = 6;
  const float wanted = static_cast<float>(above + 1);
  const float dim = static_cast<float>(kTiles * 8);
  Bracket row[2];
  float scale[2];
  uint32_t low_bits[2];
  {
    uint32_t keys[kTiles][2];
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      // The greatest magnitude goes to 2^14..2^15.
      const int exponent = max(static_cast<int>(__float_as_uint(most[r]) >> 23), 27);
      scale[r] = __uint_as_float(static_cast<uint32_t>(127 + 14 + 127 - exponent) << 23);
#pragma unroll
      for (uint32_t tile = 0; tile < kTiles; ++tile) {
        asm("cvt.rz.f16x2.f32 %0, %1, %2;"
            : "=r"(keys[tile][r])
            : "f"(fabsf(y[tile][2 * r + 1]) * scale[r]), "f"(fabsf(y[tile][2 * r]) * scale[r]));
      }
    }
    float sums[4];
    SumRows(keys, sums);
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      row[r].low = 0;
      row[r].high = __half_as_ushort(__float2half_rz(most[r] * scale[r])) + 1u;
      row[r].count_low = dim;
      row[r].count_high = 0.0f;
      row[r].found = most[r] == 0.0f;
      row[r].guess =
          __half_as_ushort(__float2half_rz(fminf(sums[2 * r] / dim * clip_guess, 40000.0f)));
    }
    for (uint32_t round = 0;; ++round) {
      bool done = true;
#pragma unroll
      for (uint32_t r = 0; r < 2; ++r) {
        row[r].guess = max(min(row[r].guess, row[r].high - 1), row[r].low + 1);
        done = done && (row[r].found || row[r].high - row[r].low <= 1);
      }
      if (__all_sync(kAllLanes, done)) break;
      uint32_t verdicts[kTiles][2];
#pragma unroll
      for (uint32_t r = 0; r < 2; ++r) {
        const __half2 threshold = Halves(row[r].guess * 0x10001u);
#pragma unroll
        for (uint32_t tile = 0; tile < kTiles; ++tile)
          verdicts[tile][r] = Bits(__hge2(Halves(keys[tile][r]), threshold));
      }
      SumRows(verdicts, sums);
#pragma unroll
      for (uint32_t r = 0; r < 2; ++r) {
        Bracket& it = row[r];
        if (it.found || it.high - it.low <= 1) continue;
        const float count = sums[2 * r];
        const float passed = static_cast<float>(it.guess);
        if (count >= wanted) {
          it.low = it.guess;
          it.count_low = count;
          it.found = count == wanted;
        } else {
          it.high = it.guess;
          it.count_high = count;
        }
        if (round >= kInterpolations) {
          it.guess = (it.low + it.high) / 2;
        } else if (it.count_low < dim && it.count_high > 0.0f) {
          const float share =
              __fdividef(it.count_low - wanted + 0.25f, it.count_low - it.count_high);
          it.guess = it.low + static_cast<uint32_t>(share * static_cast<float>(it.high - it.low));
        } else {
          // Ten bits of fraction: a part of the value is about that part of 1400 steps.
          it.guess = static_cast<uint32_t>(
              max(0.0f, passed + (count - wanted + 0.25f) * clip_spread * 1400.0f));
        }
      }
    }
  }
  bool done = true;
#pragma unroll
  for (uint32_t r = 0; r < 2; ++r) {
    const float back = 1.0f / scale[r];  // exact
    const float low = __half2float(__ushort_as_half(static_cast<uint16_t>(row[r].low))) * back;
    const float high = __half2float(__ushort_as_half(static_cast<uint16_t>(row[r].high))) * back;
    low_bits[r] = __float_as_uint(low);
    row[r].high = min(__float_as_uint(high), __float_as_uint(most[r]) + 1);
    done = done && (row[r].found || row[r].high - low_bits[r] <= 1);
  }
  while (!__all_sync(kAllLanes, done)) {
    done = true;
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const uint32_t middle = (low_bits[r] + row[r].high) / 2;
      const float threshold = __uint_as_float(middle);
      uint32_t count = 0;
#pragma unroll
      for (uint32_t tile = 0; tile < kTiles; ++tile) {
        count += fabsf(y[tile][2 * r]) >= threshold ? 1 : 0;
        count += fabsf(y[tile][2 * r + 1]) >= threshold ? 1 : 0;
      }
      count = SumOfQuad(count);
      if (!row[r].found && row[r].high - low_bits[r] > 1) {
        if (count > above) {
          low_bits[r] = middle;
          row[r].found = count == above + 1;
        } else {
          row[r].high = middle;
        }
      }
      done = done && (row[r].found || row[r].high - low_bits[r] <= 1);
    }
  }
#pragma unroll
  for (uint32_t r = 0; r < 2; ++r) {
    const float low = __uint_as_float(low_bits[r]);
    float least = kInfinity;
#pragma unroll
    for (uint32_t tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (uint32_t e = 0; e < 2; ++e) {
        const float magnitude = fabsf(y[tile][2 * r + e]);
        if (magnitude >= low) least = fminf(least, magnitude);
      }
    }
    result[r] = OfQuad(least, [](float a, float b) { return fminf(a, b); });
  }
}

// GroupParams of format.h. `code_scale` is 0 for codes that are all 0.
struct GroupNumbers {
  float code_scale;
  float code_zero;
  float scale;
  float zero;
  bool overflow;
};

__device__ __forceinline__ GroupNumbers NanNumbers() {
  return {0.0f, 0.0f, __uint_as_float(0x7fc00000u), 0.0f, true};
}

template <uint32_t kBits>
__device__ __forceinline__ GroupNumbers MakeGroupNumbers(float least, float most, bool fp32) {
  constexpr float kCodes = static_cast<float>((1u << kBits) - 1u);
  constexpr float kRangeLeast = 1e-8f;
  constexpr float kHalfMost = 65504.0f;
  const float range = __fsub_rn(most, least);
  GroupNumbers group;
  group.code_scale = __fdiv_rn(range > kRangeLeast ? range : kRangeLeast, kCodes);
  group.code_zero = __fsub_rn(0.0f, __fdiv_rn(least, group.code_scale));
  group.scale = group.code_scale;
  group.zero = group.code_zero;
  group.overflow = false;
  if (fp32) return isfinite(group.scale) && isfinite(group.zero) ? group : NanNumbers();
  if (!(group.scale <= kHalfMost)) return NanNumbers();
  const float scale = __half2float(__float2half_rn(group.scale));
  const float zero = __half2float(__float2half_rn(group.zero));
  const float half_range = __fmul_rn(range, 0.5f);
  if (scale == 0.0f || fabsf(group.zero) > kHalfMost ||
      fabsf(__fsub_rn(__fmul_rn(__fsub_rn(0.0f, zero), scale), least)) > half_range) {
    group.scale = __fadd_rn(least, half_range);
    group.zero = -1.0f;
    group.code_scale = 0.0f;
    group.code_zero = 0.0f;
  }
  return fabsf(group.scale) <= kHalfMost ? group : NanNumbers();
}

// May elements of a group go unclipped through QuickCode? `most`: the row's greatest magnitude,
// before the clip.
__device__ __forceinline__ bool IsQuick(const GroupNumbers& group, float range, float most) {
  return group.code_scale == 0.0f ||
         (range > 1e-8f && group.code_scale < 0x1p60f && most <= 8192.0f * group.code_scale);
}

// trunc((y / scale + zero) + 0.5) as the lower half of the result, not held to the codes there are;
// `reciprocal` is 1 / scale rounded. One correction makes the quotient that of IEEE division: it is
// off by less than 1.5 units in the last place before, and exact quotients that close to the middle
// of two floats that 2^-22 units decide have their first estimate next to them. A group's codes do
// not go down with y, and its greatest and least have the greatest and least code: so elements
// beyond them, which the clip would have brought there, are held to codes instead.
__device__ __forceinline__ uint32_t QuickCode(float y, float scale, float reciprocal, float zero) {
  const float estimate = __fmul_rn(y, reciprocal);
  const float quotient = __fmaf_rn(__fmaf_rn(-scale, estimate, y), reciprocal, estimate);
  return __float_as_uint(
      __fadd_rz(__fadd_rn(__fadd_rn(quotient, zero), 0.5f), 0x1.8p23f));  // rounded down
}

template <uint32_t kBits>
__device__ __forceinline__ uint32_t SlowCode(float y, float scale, float zero, float threshold) {
  constexpr float kMost = static_cast<float>((1u << kBits) - 1u);
  if (scale == 0.0f) return 0;
  const float clipped = fminf(fmaxf(y, -threshold), threshold);
  const float code = __fadd_rn(__fadd_rn(__fdiv_rn(clipped, scale), zero), 0.5f);
  return static_cast<uint32_t>(code > 0.0f ? (code < kMost ? code : kMost) : 0.0f);
}

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_QUANTISE_CUH_
