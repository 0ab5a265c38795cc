// Hopper's asynchronous copies, barriers in shared memory and tensor-core products, one PTX
// instruction a function (PTX ISA 8, sections 9.7.9 and 9.7.14). Device code only.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_PRIMITIVES_CUH_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_PRIMITIVES_CUH_

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace oscarkv::cuda {

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// A barrier whose phase ends when `arrivals` threads have arrived and all announced bytes are
// there.
struct Barrier {
  uint64_t state;

  __device__ __forceinline__ void Init(uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(&state)),
                 "r"(arrivals));
  }
  __device__ __forceinline__ void Arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(&state))
                 : "memory");
  }
  // As so many threads.
  __device__ __forceinline__ void Arrive(uint32_t count) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(&state)),
                 "r"(count)
                 : "memory");
  }
  __device__ __forceinline__ void ArriveExpecting(uint32_t bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(&state)),
        "r"(bytes)
        : "memory");
  }
  // Waits for the end of the phase of this parity; what was written before the arrivals is seen.
  __device__ __forceinline__ void Wait(uint32_t parity) {
    asm volatile(
        "{\n\t.reg .pred done;\n"
        "again:\n\t"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
        "@!done bra again;\n\t}" ::"r"(SharedAddress(&state)),
        "r"(parity)
        : "memory");
  }
};

// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Copies `bytes` (a multiple of 16, both ends 16-byte aligned) and announces them to `barrier`.
__device__ __forceinline__ void BulkCopy(void* to_shared, const void* from_global, uint32_t bytes,
                                         Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(SharedAddress(to_shared)),
      "l"(from_global), "r"(bytes), "r"(SharedAddress(&barrier->state))
      : "memory");
}

// Copies 16 bytes, past the first cache; WaitForPieces ends all that this thread began.
__device__ __forceinline__ void CopyPiece(uint32_t to_shared, const void* from_global) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to_shared),
               "l"(from_global)
               : "memory");
}
__device__ __forceinline__ void WaitForPieces() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// 16 rows of 32 bytes, the left-hand operand of a product; lane l's address is that of row l mod
// 16, its second half for lanes 16 and up.
__device__ __forceinline__ void LoadMatrices(uint32_t shared_address, uint32_t (&a)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(shared_address)
               : "memory");
}

// Moves registers between the warps of a block; all four warps of a warp group call it.
template <uint32_t kRegisters>
__device__ __forceinline__ void RaiseRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <uint32_t kRegisters>
__device__ __forceinline__ void LowerRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// sums += a b, 16 x 8 with 16 in between: fp16 operands, fp32 sums.
__device__ __forceinline__ void MultiplyAdd(float (&sums)[4], const uint32_t (&a)[4], uint2 b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

// The same with sums of fp16: those of a lane's first row, then of the eighth after it.
__device__ __forceinline__ void MultiplyAddHalf(uint32_t (&sums)[2], const uint32_t (&a)[4],
                                                uint2 b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1}, {%2,%3,%4,%5}, {%6,%7}, {%0,%1};"
      : "+r"(sums[0]), "+r"(sums[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

// May `alignment` bytes at a time be moved there?
__device__ __forceinline__ bool IsUsable(const void* pointer, uint32_t alignment = 16) {
  return pointer != nullptr && (reinterpret_cast<uintptr_t>(pointer) & (alignment - 1)) == 0;
}

// Stores to global memory; the compiler cannot tell that a pointer out of a table leads there.
__device__ __forceinline__ void StoreGlobal(void* to, uint4 value) {
  asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}
__device__ __forceinline__ void StoreGlobal(void* to, uint2 value) {
  asm volatile("st.global.v2.b32 [%0], {%1,%2};" ::"l"(to), "r"(value.x), "r"(value.y) : "memory");
}
__device__ __forceinline__ void StoreGlobal(void* to, uint32_t value) {
  asm volatile("st.global.b32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
// The same for what nobody reads soon: it leaves the second-level cache first.
__device__ __forceinline__ void StoreStreaming(void* to, uint4 value) {
  asm volatile("st.global.cs.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}

// Two floats as two elements of the engine's dtype, the first in the lower half.
template <bool kBf16>
__device__ __forceinline__ uint32_t PackPair(float low, float high) {
  uint32_t pair;
  if constexpr (kBf16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_PRIMITIVES_CUH_
