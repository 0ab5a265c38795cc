// What the attention kernel is made of, one instruction a function. Device code only.
#ifndef OSCARKV_KERNELS_ATTENTION_ATTEND_DEVICE_CUH_
#define OSCARKV_KERNELS_ATTENTION_ATTEND_DEVICE_CUH_

#include "kernels/codec/oscar/cuda_primitives.cuh"

namespace oscarkv::cuda {

constexpr uint32_t kAllLanes = 0xffffffffu;

// Programmatic launches: the next kernel of the stream may begin, and: wait for those before.
__device__ __forceinline__ void LetNextBegin() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
__device__ __forceinline__ void WaitForPrevious() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Waits for `threads` threads, whole warps, to come to barrier `number` (0 is __syncthreads').
__device__ __forceinline__ void Meet(uint32_t number, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// Counts a warp as come to barrier `number`, and lets it go on: what it wrote before is seen by
// those who meet there.
__device__ __forceinline__ void ComeTo(uint32_t number, uint32_t threads) {
  __threadfence_block();
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

__device__ __forceinline__ float Exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ __forceinline__ float Log2(float x) {
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ __forceinline__ float MaxOfWarp(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}
__device__ __forceinline__ float SumOfWarp(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// Over the lanes that share lane % 4.
__device__ __forceinline__ float SumOverRows(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 4);
  x += __shfl_xor_sync(kAllLanes, x, 8);
  return x + __shfl_xor_sync(kAllLanes, x, 16);
}
__device__ __forceinline__ float MaxOverRows(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 4));
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 8));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 16));
}

// sums += a b, 16 x 8 with 16 in between: operands of bf16 or fp16, fp32 sums.
template <bool kBf16>
__device__ __forceinline__ void MultiplyAdd16(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                              uint32_t b1) {
  if constexpr (kBf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    MultiplyAdd(sums, a, make_uint2(b0, b1));
  }
}

// sums += a b, 16 x 8 with 32 in between: a unsigned, b signed bytes.
__device__ __forceinline__ void MultiplyAddBytes(int (&sums)[4], const uint32_t (&a)[4], uint2 b) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

// An 8 x 8 matrix of 16-bit elements, a row over four lanes, transposed.
__device__ __forceinline__ uint32_t Transpose(uint32_t rows) {
  uint32_t columns;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(columns) : "r"(rows));
  return columns;
}

// 8 x 8 matrices of 16-bit elements out of shared memory, a row over four lanes; lane 8 m + i
// brings the address of row i of matrix m. Transposed: a column over four lanes.
template <bool kTransposed>
__device__ __forceinline__ void LoadMatrices(uint32_t (&matrices)[4], uint32_t address) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address)
                 : "memory");
  }
}
template <bool kTransposed>
__device__ __forceinline__ void LoadMatrices(uint32_t (&matrices)[2], uint32_t address) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(matrices[0]), "=r"(matrices[1])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(matrices[0]), "=r"(matrices[1])
                 : "r"(address)
                 : "memory");
  }
}

template <typename T>
__device__ __forceinline__ T LoadShared(uint32_t address) {
  T x;
  if constexpr (sizeof(T) == 8) {
    asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];"
                 : "=f"(x.x), "=f"(x.y)
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
  }
  return x;
}

// A load that stays where it is written, of what never changes.
__device__ __forceinline__ uint4 LoadConstant(const uint4* from) {
  uint4 x;
  asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from));
  return x;
}

// Adds to a counter of the device: what this thread has seen written comes before, what others
// wrote before their additions is seen after.
__device__ __forceinline__ uint32_t AddInOrder(uint32_t* counter, uint32_t value) {
  uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(counter), "r"(value)
               : "memory");
  return before;
}

// Starts to bring `bytes` (a multiple of 16) into the L2 cache.
__device__ __forceinline__ void PrefetchBulk(const void* from_global, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from_global), "r"(bytes)
               : "memory");
}

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_ATTENTION_ATTEND_DEVICE_CUH_
