// What comes before and after the attention kernel: queries of PACKED keys transformed and laid
// out as operands; partial results merged, PACKED sums taken back to the model's basis.
#include <algorithm>

#include "absl/strings/str_cat.h"

#include "kernels/attention/attend_device.cuh"
#include "kernels/device/status.h"

namespace oscarkv::cuda {
namespace {

constexpr uint32_t kPrepareThreads = 512;
constexpr int kTopExponent = 15;  // operands stay below 2^15: fp16 ends at 2^16

__device__ __forceinline__ float Bf16At(const std::byte* rows, uint64_t index) {
  return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(rows)[index]);
}

// Where a row of a (request, KV head) is among queries, outputs and log-sum-exps.
__device__ __forceinline__ uint64_t QueryIndex(const AttendArguments& arguments, uint32_t request,
                                               uint32_t head, uint32_t row) {
  const uint64_t token = uint64_t{request} * arguments.batch.new_tokens + row / arguments.ratio;
  return token * (arguments.kv_heads * arguments.ratio) + head * arguments.ratio +
         row % arguments.ratio;
}

// One tile of queries. Entries are multiplied by 2^exponent / 4^field and rounded to fp16.
template <uint32_t D>
__global__ void __launch_bounds__(kPrepareThreads)
    PrepareKernel(const __grid_constant__ AttendArguments arguments) {
  constexpr uint32_t kSlices = kPrepareThreads / D;
  constexpr uint32_t kWords = D / 64;
  __shared__ float query[D][kTileRows];
  __shared__ float parts[kSlices][kTileRows][D];
  __shared__ float tops[kPrepareThreads / 32];
  LetNextBegin();
  const uint32_t tile = blockIdx.x;
  const uint32_t head = blockIdx.y;
  const uint32_t request = blockIdx.z;
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t warp = threadIdx.x / 32;
  for (uint32_t i = threadIdx.x; i < kTileRows * D; i += kPrepareThreads) {
    const uint32_t row = tile * kTileRows + i / D;
    query[i % D][i / D] =
        row < arguments.rows
            ? Bf16At(arguments.batch.queries, QueryIndex(arguments, request, head, row) * D + i % D)
            : 0.0f;
  }
  __syncthreads();
  const AttendTransform& transform = arguments.transform;
  {
    const uint32_t dim = threadIdx.x % D;
    const uint32_t slice = threadIdx.x / D;
    const float* matrix =
        transform.k_inverse_transposed + uint64_t{transform.k_per_head * head} * D * D + dim;
    float sums[kTileRows] = {};
#pragma unroll 16
    for (uint32_t j = slice * (D / kSlices); j < (slice + 1) * (D / kSlices); ++j) {
      const float entry = __ldg(matrix + j * D);
      const float4 low = *reinterpret_cast<const float4*>(&query[j][0]);
      const float4 high = *reinterpret_cast<const float4*>(&query[j][4]);
      sums[0] = fmaf(entry, low.x, sums[0]);
      sums[1] = fmaf(entry, low.y, sums[1]);
      sums[2] = fmaf(entry, low.z, sums[2]);
      sums[3] = fmaf(entry, low.w, sums[3]);
      sums[4] = fmaf(entry, high.x, sums[4]);
      sums[5] = fmaf(entry, high.y, sums[5]);
      sums[6] = fmaf(entry, high.z, sums[6]);
      sums[7] = fmaf(entry, high.w, sums[7]);
    }
#pragma unroll
    for (uint32_t row = 0; row < kTileRows; ++row) parts[slice][row][dim] = sums[row];
  }
  __syncthreads();
  float top = 0.0f;
  for (uint32_t i = threadIdx.x; i < kTileRows * D; i += kPrepareThreads) {
    float sum = 0.0f;
#pragma unroll
    for (uint32_t slice = 0; slice < kSlices; ++slice) sum += parts[slice][i / D][i % D];
    sum *= arguments.scale;
    parts[0][i / D][i % D] = sum;
    top = fmaxf(top, fabsf(sum));
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
  if (lane == 0) tops[warp] = top;
  __syncthreads();
  top = 0.0f;
  for (const float of_warp : tops) top = fmaxf(top, of_warp);
  // The exponent of the least power of two above `top`, kept where 2^-exponent is finite too.
  const int above = static_cast<int>(__float_as_uint(top) >> 23 & 0xff) - 126;
  const int exponent = min(max(kTopExponent - above, -90), 120);
  const auto power = [](int of) { return __int_as_float((of + 127) << 23); };
  const uint64_t number = (uint64_t{request} * arguments.kv_heads + head) * gridDim.x + tile;
  for (uint32_t i = threadIdx.x; i < D / 16 * 32; i += kPrepareThreads) {
    const uint32_t step = i / 32;
    const uint32_t field = step / kWords;
    const uint32_t dim = field * (D / 4) + i % 4 * 4 * kWords + step % kWords * 4;
    const float* of_row = parts[0][i % 32 / 4] + dim;
    const float unit = power(exponent - 2 * static_cast<int>(field));
    arguments.workspace.fragments[number * (D / 16 * 32) + i] =
        make_uint2(PackPair<false>(of_row[0] * unit, of_row[2] * unit),
                   PackPair<false>(of_row[1] * unit, of_row[3] * unit));
  }
  if (warp < kTileRows) {
    const float* offset = transform.k_offset + uint64_t{transform.k_per_head * head} * D;
    float sum = 0.0f;
    float dot = 0.0f;
    for (uint32_t dim = lane; dim < D; dim += 32) {
      const int field = static_cast<int>(dim / (D / 4));
      const __half rounded = __float2half_rn(parts[0][warp][dim] * power(exponent - 2 * field));
      sum += __half2float(rounded) * power(2 * field - 24);
      dot = fmaf(offset[dim], query[dim][warp], dot);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, step);
      dot += __shfl_xor_sync(0xffffffffu, dot, step);
    }
    if (lane == 0) {
      QueryTile& result = arguments.workspace.tiles[number];
      result.sum[warp] = sum;
      result.offset[warp] = dot * arguments.scale;
      if (warp == 0) result.alpha = power(24 - exponent > 127 ? 127 : 24 - exponent);
    }
  }
}

constexpr uint32_t kMergeThreads = 256;
constexpr uint32_t kMergeWarps = kMergeThreads / 32;

// kRows rows of a (request, KV head); a warp weighs a row's partial results.
template <uint32_t D, uint32_t kRows>
__global__ void __launch_bounds__(kMergeThreads)
    MergeKernel(const __grid_constant__ AttendArguments arguments, uint32_t item_rows) {
  extern __shared__ float weights[];  // [kRows][partial results]
  constexpr uint32_t kSlices = kMergeThreads / D;
  __shared__ float sums[kSlices][2][kRows][D];  // of PACKED and WIDE
  __shared__ float2 totals[kRows];              // sum of probabilities, of PACKED ones
  __shared__ float log_sums[kRows];
  WaitForPrevious();
  const uint32_t first_row = blockIdx.x * kRows;
  const uint32_t head = blockIdx.y;
  const uint32_t request = blockIdx.z;
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t warp = threadIdx.x / 32;
  const AttendBatch& batch = arguments.batch;
  const uint32_t items = arguments.kv_heads * arguments.groups;
  const AttendPlan plan(batch.first_page[batch.requests] * items, arguments.blocks);
  const uint32_t pages = batch.first_page[request + 1] - batch.first_page[request];
  const uint32_t group = first_row / item_rows;  // of all rows here: kRows divides item_rows
  const uint32_t in_request = head * arguments.groups + group;
  const uint32_t unit = batch.first_page[request] * items + in_request * pages;
  const uint32_t first_block = pages == 0 ? 0 : plan.BlockOf(unit);
  const uint32_t partials = pages == 0 ? 0 : 2 * (plan.BlockOf(unit + pages - 1) - first_block + 1);
  const uint64_t first_slot = uint64_t{2} * (first_block + request * items + in_request);
  const uint32_t local_row = first_row % item_rows;
  for (uint32_t row = warp; row < kRows; row += kMergeWarps) {
    const float2* maximum_sum =
        arguments.workspace.maximum_sum + first_slot * item_rows + local_row + row;
    float top = kNothingSeen;
    for (uint32_t i = lane; i < partials; i += 32) {
      const float2 one = maximum_sum[i * item_rows];
      if (one.y != 0.0f) top = fmaxf(top, one.x);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
    float total = 0.0f;
    float packed = 0.0f;
    for (uint32_t i = lane; i < partials; i += 32) {
      const float2 one = maximum_sum[i * item_rows];
      const float weight = one.y != 0.0f ? Exp2(one.x - top) : 0.0f;
      weights[row * partials + i] = weight;
      total = fmaf(weight, one.y, total);
      if (i % 2 == 0) packed = fmaf(weight, one.y, packed);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      total += __shfl_xor_sync(0xffffffffu, total, step);
      packed += __shfl_xor_sync(0xffffffffu, packed, step);
    }
    if (lane == 0) {
      totals[row] = make_float2(total, packed);
      log_sums[row] = total != 0.0f ? (top + log2f(total)) * 0.6931471805599453f : -INFINITY;
    }
  }
  __syncthreads();
  const uint32_t dim = threadIdx.x % D;
  const uint32_t slice = threadIdx.x / D;
#pragma unroll
  for (uint32_t row = 0; row < kRows; ++row) {
    const float* outputs =
        arguments.workspace.outputs + (first_slot * item_rows + local_row + row) * D + dim;
    const float* of_row = weights + row * partials;
    float sum[2] = {};
    // Loads do not wait for weights, so that many are under way; what was not written counts
    // nothing.
#pragma unroll 8
    for (uint32_t i = 2 * slice; i < partials; i += 2 * kSlices) {
#pragma unroll
      for (uint32_t kind = 0; kind < 2; ++kind) {
        const float weight = of_row[i + kind];
        const float output = outputs[uint64_t{i + kind} * item_rows * D];
        sum[kind] = weight != 0.0f ? fmaf(weight, output, sum[kind]) : sum[kind];
      }
    }
    sums[slice][0][row][dim] = sum[0];
    sums[slice][1][row][dim] = sum[1];
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < 2 * kRows * D; i += kMergeThreads) {
    float* to = &sums[0][0][0][0] + i;
    float sum = *to;
#pragma unroll
    for (uint32_t other = 1; other < kSlices; ++other) sum += to[other * 2 * kRows * D];
    *to = sum;
  }
  __syncthreads();
  const AttendTransform& transform = arguments.transform;
  const float* matrix = transform.v_inverse + uint64_t{transform.v_per_head * head} * D * D + dim;
  float results[kRows] = {};
#pragma unroll 32
  for (uint32_t i = slice * (D / kSlices); i < (slice + 1) * (D / kSlices); ++i) {
    const float entry = __ldg(matrix + i * D);
#pragma unroll
    for (uint32_t row = 0; row < kRows; ++row)
      results[row] = fmaf(entry, sums[0][0][row][i], results[row]);
  }
  if constexpr (kSlices > 1) {
    __syncthreads();
    if (slice > 0) {
#pragma unroll
      for (uint32_t row = 0; row < kRows; ++row) sums[slice][0][row][dim] = results[row];
    }
    __syncthreads();
  }
  if (slice > 0) return;
  const float offset = transform.v_offset[uint64_t{transform.v_per_head * head} * D + dim];
#pragma unroll
  for (uint32_t row = 0; row < kRows; ++row) {
    if (first_row + row >= arguments.rows) break;
#pragma unroll
    for (uint32_t other = 1; other < kSlices; ++other) results[row] += sums[other][0][row][dim];
    const float2 total = totals[row];
    const float sum = fmaf(total.y, offset, results[row] + sums[0][1][row][dim]);
    const uint64_t at = QueryIndex(arguments, request, head, first_row + row);
    reinterpret_cast<__nv_bfloat16*>(batch.output)[at * D + dim] =
        __float2bfloat16_rn(total.x != 0.0f ? sum / total.x : 0.0f);
    if (dim == 0 && batch.log_sum_exp != nullptr) batch.log_sum_exp[at] = log_sums[row];
  }
}

template <uint32_t D, uint32_t kRows>
absl::Status LaunchMergeOf(const AttendArguments& arguments, uint32_t tiles, cudaStream_t stream) {
  const uint32_t item_rows = tiles * kTileRows;
  cudaLaunchAttribute early;
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  const cudaLaunchConfig_t config = {
      .gridDim =
          dim3((arguments.rows + kRows - 1) / kRows, arguments.kv_heads, arguments.batch.requests),
      .blockDim = kMergeThreads,
      .dynamicSmemBytes = size_t{kRows} * 2 * (arguments.blocks + 1) * sizeof(float),
      .stream = stream,
      .attrs = &early,
      .numAttrs = 1};
  return device::ToStatus(cudaLaunchKernelEx(&config, MergeKernel<D, kRows>, arguments, item_rows),
                          "merging");
}

template <typename F>
absl::Status ForDim(uint32_t dim, F&& call) {
  switch (dim) {
    case 64:
      return call(std::integral_constant<uint32_t, 64>());
    case 128:
      return call(std::integral_constant<uint32_t, 128>());
    case 256:
      return call(std::integral_constant<uint32_t, 256>());
    default:
      return absl::InternalError(absl::StrCat("no attention kernel for ", dim, " elements"));
  }
}

}  // namespace

absl::Status LaunchPrepareQueries(const AttendArguments& arguments, uint32_t dim, uint32_t tiles,
                                  cudaStream_t stream) {
  const dim3 grid(arguments.groups * tiles, arguments.kv_heads, arguments.batch.requests);
  return ForDim(dim, [&](auto d) {
    PrepareKernel<decltype(d)::value><<<grid, kPrepareThreads, 0, stream>>>(arguments);
    return device::LastLaunch("transforming queries");
  });
}

absl::Status LaunchMerge(const AttendArguments& arguments, uint32_t dim, uint32_t tiles,
                         cudaStream_t stream) {
  return ForDim(dim, [&](auto d) {
    // With few rows one a block is quickest, with many reading the matrix less often is.
    const uint32_t rows = arguments.rows * arguments.kv_heads * arguments.batch.requests;
    return rows <= 512 ? LaunchMergeOf<decltype(d)::value, 1>(arguments, tiles, stream)
                       : LaunchMergeOf<decltype(d)::value, 4>(arguments, tiles, stream);
  });
}

}  // namespace oscarkv::cuda
