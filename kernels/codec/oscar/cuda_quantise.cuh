// FORMAT.md's arithmetic on transformed rows that lie in registers as tensor cores leave them: of
// 16 rows, a lane has two, `lane / 4` and the eighth after it, and a quarter of each. Device code
// only.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_QUANTISE_CUH_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_QUANTISE_CUH_

#include <cstdint>

#include <cuda_fp16.h>

#include "kernels/codec/oscar/cuda_primitives.cuh"
#include "kernels/codec/oscar/cuda_transforms.h"

namespace oscarkv::cuda {

inline constexpr uint32_t kAllLanes = 0xffffffffu;
inline constexpr float kInfinity = __builtin_huge_valf();

// Of the four lanes that share two rows, even ones see to the first row and odd ones to the second:
// what `operation` makes of the row's parts, given this lane's part of either.
template <typename T, typename Operation>
__device__ __forceinline__ T OfMyRow(T first, T second, bool odd, Operation operation) {
  const T mine =
      operation(odd ? second : first, __shfl_xor_sync(kAllLanes, odd ? first : second, 1));
  return operation(mine, __shfl_xor_sync(kAllLanes, mine, 2));
}

// Both rows' values where each lane has its own row's.
template <typename T>
__device__ __forceinline__ void OfBothRows(T mine, bool odd, T (&both)[2]) {
  const T other = __shfl_xor_sync(kAllLanes, mine, 1);
  both[0] = odd ? other : mine;
  both[1] = odd ? mine : other;
}

// To a unit in the last place, of normal numbers.
__device__ __forceinline__ float Reciprocal(float value) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

__device__ __forceinline__ uint32_t Bits(__half2 value) {
  return *reinterpret_cast<const uint32_t*>(&value);
}
__device__ __forceinline__ __half2 Halves(uint32_t bits) {
  return *reinterpret_cast<const __half2*>(&bits);
}

// This lane's row's sum over all elements of `pairs`; the tensor cores add.
template <uint32_t kTiles>
__device__ __forceinline__ float SumOfMyRow(const uint32_t (&pairs)[kTiles][2], bool odd) {
  const uint2 ones = make_uint2(0x3c003c00u, 0x3c003c00u);
  float sums[2][4] = {};
#pragma unroll
  for (uint32_t tile = 0; tile < kTiles; tile += 2) {
    MultiplyAdd(sums[tile / 2 % 2],
                {pairs[tile][0], pairs[tile][1], pairs[tile + 1][0], pairs[tile + 1][1]}, ones);
  }
  return odd ? sums[0][2] + sums[1][2] : sums[0][0] + sums[1][0];
}

// The same of a few thousand ones and zeros at most: half the registers.
template <uint32_t kTiles>
__device__ __forceinline__ float CountOfMyRow(const uint32_t (&pairs)[kTiles][2], bool odd) {
  const uint2 ones = make_uint2(0x3c003c00u, 0x3c003c00u);
  uint32_t sums[2][2] = {};
#pragma unroll
  for (uint32_t tile = 0; tile < kTiles; tile += 2) {
    MultiplyAddHalf(sums[tile / 2 % 2],
                    {pairs[tile][0], pairs[tile][1], pairs[tile + 1][0], pairs[tile + 1][1]}, ones);
  }
  const __half2 both =
      __hadd2(Halves(odd ? sums[0][1] : sums[0][0]), Halves(odd ? sums[1][1] : sums[1][0]));
  return __low2float(both);
}

// The `rank`-th (from 1) of those `numbers`, a warp's, that are >= `least`, in their order.
template <uint32_t kEach>
__device__ __forceinline__ uint32_t Ranked(const uint32_t (&numbers)[kEach], uint32_t least,
                                           uint32_t rank) {
  while (true) {
    uint32_t beyond = 0xffffffffu;  // what is less goes around, and further
#pragma unroll
    for (uint32_t number : numbers) beyond = min(beyond, number - least);
    least += __reduce_min_sync(kAllLanes, beyond);
    if (rank == 1) return least;
    uint32_t count = 0;
#pragma unroll
    for (uint32_t number : numbers) count += number == least ? 1 : 0;
    count = __reduce_add_sync(kAllLanes, count);
    if (rank <= count) return least;
    rank -= count;
    ++least;
  }
}

// Magnitudes as fp16, rounded down, and their bits as an integer, which orders them: in a float
// that has it in its last bits, so that both are at hand.
constexpr float kKeyOfZero = 0x1p23f;
__device__ __forceinline__ float KeyOf(float magnitude) {
  return __uint_as_float(__float_as_uint(kKeyOfZero) |
                         __half_as_ushort(__float2half_rz(magnitude)));
}
__device__ __forceinline__ float NumberOfKey(float key) {
  return __half2float(__ushort_as_half(static_cast<uint16_t>(__float_as_uint(key) & 0xffffu)));
}

// The exact order statistic of the magnitudes of this lane's row that has `above` behind it.
// `most`: the row's greatest magnitude; `finite`: it is, and the result matters. `memory`: of the
// warp, for two rows.
//
// Counts magnitudes that pass a threshold, narrowing it down until one parts the row beside the
// wanted one; then that is the least that passes, or the greatest that does not. Thresholds are
// those that fp16 holds: magnitudes as fp16, rounded down, compare with them as they do themselves,
// two an instruction, and the tensor cores add the verdicts up. Rows that so many rounds do not
// part there, because of ties in fp16 or for their shape, are looked through one after the other.
template <uint32_t kTiles>
__device__ __forceinline__ float OrderStatistic(const float (&y)[kTiles][4], float most,
                                                bool finite, const ForwardHead& head, uint32_t lane,
                                                float4* memory) {
  constexpr uint32_t kRoundsLeast = 4;  // seldom are fewer enough for a warp's rows
  constexpr uint32_t kRoundsMost = 6;
  constexpr float kDim = static_cast<float>(kTiles * 8);
  const bool odd = (lane & 1) != 0;
  const float wanted = static_cast<float>(head.above + 1);
  // Between them, low included, are the thresholds that may yet part the row, as keys.
  float low = kKeyOfZero;
  float high = KeyOf(most) + 1.0f;
  const float beyond_all = high;
  // Counts of what passes them; at first as if elements lay as close everywhere as at the guess.
  float count_low;
  float count_high;
  {
    uint32_t keys[kTiles][2];
#pragma unroll
    for (uint32_t tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (uint32_t r = 0; r < 2; ++r) {
        asm("cvt.rz.f16x2.f32 %0, %1, %2;"
            : "=r"(keys[tile][r])
            : "f"(y[tile][2 * r + 1]), "f"(y[tile][2 * r]));
        keys[tile][r] &= 0x7fff7fffu;
      }
    }
    const float mean = SumOfMyRow(keys, odd) * (1.0f / kDim);
    float guess = fmaxf(fminf(KeyOf(mean * head.clip_guess), high - 1.0f), low + 1.0f);
    count_low = fmaf(guess - low, head.clip_density, wanted);
    count_high = fmaf(guess - high, head.clip_density, wanted);
#pragma unroll 1
    for (uint32_t round = 0; round < kRoundsMost; ++round) {
      if (round >= kRoundsLeast &&
          __all_sync(kAllLanes, count_low == wanted || count_high == wanted - 1.0f))
        break;
      const uint32_t my_threshold = __byte_perm(__float_as_uint(guess), 0, 0x1010);
      uint32_t threshold[2];
      OfBothRows(my_threshold, odd, threshold);
      uint32_t verdicts[kTiles][2];
#pragma unroll
      for (uint32_t tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (uint32_t r = 0; r < 2; ++r)
          verdicts[tile][r] = Bits(__hge2(Halves(keys[tile][r]), Halves(threshold[r])));
      }
      const float count = CountOfMyRow(verdicts, odd);
      const bool enough = count >= wanted;
      low = enough ? guess : low;
      count_low = enough ? count : count_low;
      high = enough ? high : guess;
      count_high = enough ? count_high : count;
      const float share = (count_low - (wanted - 0.5f)) * Reciprocal(count_low - count_high);
      guess = fmaxf(fminf(fmaf(share, high - low, low), high - 1.0f), low + 1.0f);
    }
  }
  // The wanted one is the `up`-th of those from low upwards, and the `down`-th of those below high.
  const float up = (low == kKeyOfZero ? kDim : count_low) - wanted + 1.0f;
  const float down = wanted - (high == beyond_all ? 0.0f : count_high);
  const bool upwards = up <= down;
  const float from = NumberOfKey(upwards ? low : high);
  float both[2];
  OfBothRows(from, odd, both);
  // The least difference from there that is not negative, and the negative one nearest to 0.
  uint32_t above[2] = {0xffffffffu, 0xffffffffu};
  int32_t below[2] = {INT32_MAX, INT32_MAX};
#pragma unroll
  for (uint32_t tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const float first = __fsub_rn(fabsf(y[tile][2 * r]), both[r]);
      const float second = __fsub_rn(fabsf(y[tile][2 * r + 1]), both[r]);
      above[r] = __vimin3_u32(above[r], __float_as_uint(first), __float_as_uint(second));
      below[r] = __vimin3_s32(below[r], __float_as_int(first), __float_as_int(second));
    }
  }
  const uint32_t my_above =
      OfMyRow(above[0], above[1], odd, [](uint32_t a, uint32_t b) { return min(a, b); });
  const int32_t my_below =
      OfMyRow(below[0], below[1], odd, [](int32_t a, int32_t b) { return min(a, b); });
  const float distance = upwards ? __uint_as_float(my_above) : __int_as_float(my_below);
  // From half to twice the threshold the difference, and so this sum, is exact.
  float result = from + distance;
  const bool found = (upwards ? up : down) == 1.0f && fabsf(distance) <= 0.5f * from;
  uint32_t rows = __ballot_sync(kAllLanes, finite && !found && (lane & 2) == 0);
  if (rows == 0) return result;
  const uint32_t flip = upwards ? 0 : 0xffffffffu;
  const uint32_t rank = static_cast<uint32_t>(upwards ? up : down);
  const uint32_t start = upwards ? __float_as_uint(from) : ~(__float_as_uint(from) - 1);
  while (rows != 0) {
    const uint32_t owner = static_cast<uint32_t>(__ffs(static_cast<int>(rows))) - 1;
    rows &= rows - 1;
    if (lane / 4 == owner / 4) {
#pragma unroll
      for (uint32_t tile = 0; tile < kTiles; ++tile)
        memory[tile * 4 + (lane & 3)] = make_float4(y[tile][0], y[tile][1], y[tile][2], y[tile][3]);
    }
    __syncwarp();
    const uint32_t its_flip = __shfl_sync(kAllLanes, flip, owner);
    uint32_t numbers[kTiles / 4];
#pragma unroll
    for (uint32_t i = 0; i < kTiles / 4; i += 2) {
      const float2 pair =
          reinterpret_cast<const float2*>(memory)[2 * (lane + 16 * i) + (owner & 1)];
      numbers[i] = __float_as_uint(fabsf(pair.x)) ^ its_flip;
      numbers[i + 1] = __float_as_uint(fabsf(pair.y)) ^ its_flip;
    }
    const uint32_t number =
        Ranked(numbers, __shfl_sync(kAllLanes, start, owner), __shfl_sync(kAllLanes, rank, owner));
    if (lane / 4 == owner / 4 && odd == ((owner & 1) != 0))
      result = __uint_as_float(number ^ its_flip);
    __syncwarp();
  }
  return result;
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

// value / kDivisor, rounded: the product with the rounded reciprocal is off by a unit in the last
// place at most, which the exact remainder sets right (not for denormals).
template <uint32_t kDivisor>
__device__ __forceinline__ float DivideBy(float value) {
  constexpr float kReciprocal = 1.0f / kDivisor;
  const float quotient = __fmul_rn(value, kReciprocal);
  const float rest = __fmaf_rn(-quotient, static_cast<float>(kDivisor), value);
  return __fmaf_rn(rest, kReciprocal, quotient);
}

template <uint32_t kBits>
__device__ __forceinline__ GroupNumbers MakeGroupNumbers(float least, float most, bool fp32) {
  constexpr float kRangeLeast = 1e-8f;
  constexpr float kHalfMost = 65504.0f;
  const float range = __fsub_rn(most, least);
  GroupNumbers group;
  group.code_scale = DivideBy<(1u << kBits) - 1u>(range > kRangeLeast ? range : kRangeLeast);
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

// Codes of a group at two instructions each: `scale` and `zero` make y's place among the codes,
// from 1/4 below the middle of the first to 1/4 above the middle of the last, into 0..1, where it
// is held; Fixed() is then the code above 16 bits of fraction. Within a `margin` of where the
// code changes the quantiser's own roundings decide, so the place is moved up by one margin, and
// what then lies within two of a change must be left to SlowCode.
//
// A group's codes do not go down with y, and its greatest and least have the greatest and least
// code: so elements beyond them, which the clip would have brought there, are held as well.
struct QuickNumbers {
  float scale;
  float zero;
  bool exact;  // the margin is large enough
};

template <uint32_t kBits>
struct QuickCodes {
  static constexpr float kSpan = static_cast<float>((1u << kBits) - 1u) + 0.5f;
  // In units of 2^-16, twice the margin: zero points go further with more codes.
  static constexpr uint32_t kMargins = kBits == 2 ? 1 : 4;
  static constexpr float kZeroMost = kBits == 2 ? 6.0f : 24.0f;

  // Of a group with no wider range, the greatest element has not the greatest code.
  static constexpr float kNarrow = 1e-8f / static_cast<float>((1u << kBits) - 1u);

  // `code_scale` and `code_zero` as in GroupNumbers.
  static __device__ __forceinline__ QuickNumbers Make(float code_scale, float code_zero) {
    if (code_scale == 0.0f) return {0.0f, 0.25f / kSpan, true};  // codes 0, half-way to 1
    return {Reciprocal(code_scale * kSpan),
            (code_zero + (0.25f + 0x1p-17f * kMargins)) * (1.0f / kSpan),
            fabsf(code_zero) <= kZeroMost && code_scale > kNarrow && code_scale < 0x1p100f};
  }
  // Denormal floats are the fixed-point numbers that are wanted here.
  static __device__ __forceinline__ uint32_t Fixed(float y, float scale, float zero) {
    const float place = __saturatef(__fmaf_rn(y, scale, zero));
    return __float_as_uint(__fmaf_rz(place, kSpan * 0x1p-133f, 0.25f * 0x1p-133f));
  }
};

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
