// Partial results: warps' into a thread block's, thread blocks' into the item's; for attend.cuh.
#ifndef OSCARKV_KERNELS_ATTENTION_ATTEND_MERGE_CUH_
#define OSCARKV_KERNELS_ATTENTION_ATTEND_MERGE_CUH_

#include "kernels/attention/attend_transform.cuh"

namespace oscarkv::cuda {

// Of a thread's elements of an item's outputs: `value` = sum of 2^(logit - top) times V, `total` =
// sum of 2^(logit - top).
template <typename S>
struct Partial {
  static constexpr uint32_t kElements =
      S::kRows * S::kDim > S::kThreads ? S::kRows* S::kDim / S::kThreads : 1;

  float value[kElements];
  float top[kElements];
  float total[kElements];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (uint32_t i = 0; i < kElements; ++i) {
      value[i] = 0.0f;
      top[i] = kNothingSeen;
      total[i] = 0.0f;
    }
  }
  // The thread's element i: of row Row(i), the same for a whole warp, and dim Dim(i).
  static __device__ __forceinline__ uint32_t Row(uint32_t i) {
    return (threadIdx.x + i * S::kThreads) / S::kDim;
  }
  static __device__ __forceinline__ uint32_t Dim(uint32_t i) {
    return (threadIdx.x + i * S::kThreads) % S::kDim;
  }
  static __device__ __forceinline__ bool Is(uint32_t i) { return Row(i) < S::kRows; }

  __device__ __forceinline__ void Add(const Partial& other) {
#pragma unroll
    for (uint32_t i = 0; i < kElements; ++i) {
      const float highest = fmaxf(top[i], other.top[i]);
      const float mine = Exp2(top[i] - highest);
      const float others = Exp2(other.top[i] - highest);
      value[i] = value[i] * mine + other.value[i] * others;
      total[i] = total[i] * mine + other.total[i] * others;
      top[i] = highest;
    }
  }
};

// A warp's sums into shared memory: PACKED ones in the transformed basis, WIDE ones in the model's.
template <typename S, bool kWide>
__device__ __forceinline__ void LeaveWarp(const Running<S>& running, uint32_t warp, uint32_t lane,
                                          Rows<S>& rows,
                                          float2 (&maximum_sum)[S::kWarps][S::kRows]) {
  const uint32_t quad = lane & 3;
  const uint32_t row = lane >> 2;
  float zero[S::kKeyTiles];
#pragma unroll
  for (uint32_t tile = 0; tile < S::kKeyTiles; ++tile) {
    const float sum = SumOverRows(running.sum[tile]);
    zero[tile] = kWide ? 0.0f : SumOverRows(running.zero[tile]);
    if (row == 0) maximum_sum[warp][4 * tile + quad] = make_float2(running.maximum[tile], sum);
  }
#pragma unroll
  for (uint32_t tile = 0; tile < S::kKeyTiles; ++tile) {
#pragma unroll
    for (uint32_t step = 0; step < S::kSteps; ++step) {
      const float(&acc)[4] = running.acc[tile / 2][step];
      float2 pair = make_float2(acc[tile % 2], acc[2 + tile % 2]);
      if constexpr (S::kKeyTiles == 1) {
        pair.x += acc[1];
        pair.y += acc[3];
      }
      uint32_t dim = step / 4 * 64 + row * 8 + step % 4 * 2;
      if constexpr (!kWide) {
        const uint32_t field = step / S::kPieces;
        dim = field * S::kRowBytes + step % S::kPieces * 16 + row * 2;
        const float unit = static_cast<float>(1 << (24 - 2 * field));
        pair.x = fmaf(pair.x, unit, -zero[tile]);
        pair.y = fmaf(pair.y, unit, -zero[tile]);
      }
      *reinterpret_cast<float2*>(&rows.outputs[warp][4 * tile + quad][dim]) = pair;
    }
  }
}

// What warps leave for each other.
template <typename S>
struct WarpSums {
  float2 maximum_sum[S::kWarps][S::kRows];
  alignas(16) float weights[S::kWarps][S::kWarps];  // a row for each warp's own use
};

// The warps' sums together.
template <typename S>
__device__ __forceinline__ void AddWarps(const Rows<S>& rows, WarpSums<S>& sums, uint32_t warp,
                                         uint32_t lane, Partial<S>& partial) {
#pragma unroll
  for (uint32_t i = 0; i < Partial<S>::kElements; ++i) {
    if (!Partial<S>::Is(i)) continue;
    const uint32_t row = Partial<S>::Row(i);
    const float2 mine = sums.maximum_sum[lane % S::kWarps][row];
    float top = mine.x;
#pragma unroll
    for (uint32_t step = S::kWarps / 2; step > 0; step /= 2)
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, static_cast<int>(step)));
    const float weight = Exp2(mine.x - top);
    __syncwarp();
    if (lane < S::kWarps) sums.weights[warp][lane] = weight;
    float total = weight * mine.y;
#pragma unroll
    for (uint32_t step = S::kWarps / 2; step > 0; step /= 2)
      total += __shfl_xor_sync(kAllLanes, total, static_cast<int>(step));
    __syncwarp();
    float values[4] = {};
#pragma unroll
    for (uint32_t other = 0; other < S::kWarps; other += 4) {
      const float4 four = *reinterpret_cast<const float4*>(&sums.weights[warp][other]);
      const float* from = &rows.outputs[other][row][Partial<S>::Dim(i)];
      constexpr uint32_t kWarpApart = S::kRows * S::kStride;
      values[0] = fmaf(four.x, from[0], values[0]);
      values[1] = fmaf(four.y, from[kWarpApart], values[1]);
      values[2] = fmaf(four.z, from[2 * kWarpApart], values[2]);
      values[3] = fmaf(four.w, from[3 * kWarpApart], values[3]);
    }
    partial.value[i] = (values[0] + values[1]) + (values[2] + values[3]);
    partial.top[i] = top;
    partial.total[i] = total;
  }
}

// An item's results out of what is left in the slots of its chunks, `apart` from each other: a few
// chunks at a time, all of whose loads are under way together.
template <typename S>
__device__ __forceinline__ void AddChunks(const AttendWorkspace& workspace, uint64_t first,
                                          uint32_t apart, uint32_t splits, uint32_t lane,
                                          Partial<S>& partial) {
  constexpr uint32_t kAhead = 16;
  partial.Clear();
  for (uint32_t split = 0; split < splits; split += kAhead) {
#pragma unroll
    for (uint32_t i = 0; i < Partial<S>::kElements; ++i) {
      if (!Partial<S>::Is(i)) continue;
      const uint64_t row = (first + uint64_t{split} * apart) * S::kRows + Partial<S>::Row(i);
      float2 one = make_float2(kNothingSeen, 0.0f);
      if (lane < kAhead && split + lane < splits)
        one = __ldcg(&workspace.maximum_sum[row + lane * (apart * S::kRows)]);
      float values[kAhead];
      const float* from = workspace.outputs + row * S::kDim + Partial<S>::Dim(i);
#pragma unroll
      for (uint32_t j = 0; j < kAhead; ++j) {
        values[j] = 0.0f;
        if (split + j < splits) values[j] = __ldcg(from);
        from += apart * (S::kRows * S::kDim);
      }
      const float top = fmaxf(partial.top[i], MaxOfWarp(one.x));
      const float before = Exp2(partial.top[i] - top);
      const float weight = Exp2(one.x - top);
      float value = partial.value[i] * before;
#pragma unroll
      for (uint32_t j = 0; j < kAhead; ++j)
        value = fmaf(__shfl_sync(kAllLanes, weight, static_cast<int>(j)), values[j], value);
      partial.value[i] = value;
      partial.total[i] = fmaf(partial.total[i], before, SumOfWarp(weight * one.y));
      partial.top[i] = top;
    }
  }
}

template <typename S>
__device__ __forceinline__ void WriteOutputs(const AttendArguments& arguments, const Chunk& chunk,
                                             const Partial<S>& partial) {
#pragma unroll
  for (uint32_t i = 0; i < Partial<S>::kElements; ++i) {
    const uint32_t row = chunk.group * S::kRows + Partial<S>::Row(i);
    if (!Partial<S>::Is(i) || row >= arguments.rows) continue;
    const uint32_t dim = Partial<S>::Dim(i);
    const float total = partial.total[i];
    const uint64_t at = QueryIndex(arguments, chunk.request, chunk.head, row);
    const float output = total != 0.0f ? partial.value[i] / total : 0.0f;
    if (arguments.bf16) {
      reinterpret_cast<__nv_bfloat16*>(arguments.batch.output)[at * S::kDim + dim] =
          __float2bfloat16_rn(output);
    } else {
      reinterpret_cast<__half*>(arguments.batch.output)[at * S::kDim + dim] =
          __float2half_rn(output);
    }
    if (dim == 0 && arguments.batch.log_sum_exp != nullptr) {
      arguments.batch.log_sum_exp[at] =
          total != 0.0f ? (partial.top[i] + log2f(total)) * 0.6931471805599453f : -INFINITY;
    }
  }
}

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_ATTENTION_ATTEND_MERGE_CUH_
