// What the attention kernels share on the device. Device code only.
#ifndef OSCARKV_KERNELS_ATTENTION_ATTEND_DEVICE_CUH_
#define OSCARKV_KERNELS_ATTENTION_ATTEND_DEVICE_CUH_

#include "kernels/attention/attend_kernels.h"
#include "kernels/codec/oscar/cuda_primitives.cuh"

namespace oscarkv::cuda {

// Programmatic launches: the next kernel of the stream may begin, and: wait for those before.
__device__ __forceinline__ void LetNextBegin() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
__device__ __forceinline__ void WaitForPrevious() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

__device__ __forceinline__ float Exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Over the lanes that share lane % 4.
__device__ __forceinline__ float SumOverRows(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 4);
  x += __shfl_xor_sync(0xffffffffu, x, 8);
  return x + __shfl_xor_sync(0xffffffffu, x, 16);
}
__device__ __forceinline__ float MaxOverRows(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 4));
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 8));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 16));
}

// The thread blocks' ranges of the units of all work items. None is empty: blocks beyond the units
// have no range.
struct AttendPlan {
  uint32_t total;
  uint32_t blocks;

  __device__ __forceinline__ AttendPlan(uint32_t units, uint32_t blocks_there)
      : total(units), blocks(min(units, blocks_there)) {}

  __device__ __forceinline__ uint32_t Begin(uint32_t block) const {
    return static_cast<uint32_t>(uint64_t{total} * block / blocks);
  }
  __device__ __forceinline__ uint32_t BlockOf(uint32_t unit) const {
    return static_cast<uint32_t>(((uint64_t{unit} + 1) * blocks - 1) / total);
  }
};

// sums += a b, 16 x 8 with 16 in between: bf16 operands, fp32 sums.
__device__ __forceinline__ void MultiplyAddBf16(float (&sums)[4], const uint32_t (&a)[4],
                                                uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// An 8 x 8 matrix of 16-bit elements, a row over four lanes, transposed.
__device__ __forceinline__ uint32_t Transpose(uint32_t rows) {
  uint32_t columns;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(columns) : "r"(rows));
  return columns;
}

// Makes what this thread wrote to shared memory known to the copy engine.
__device__ __forceinline__ void FenceForCopies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_ATTENTION_ATTEND_DEVICE_CUH_
