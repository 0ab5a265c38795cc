// Hopper's matrix products of a warp group: 64 rows from registers times a matrix in shared memory,
// fp32 sums (PTX ISA 8, section 9.7.15). Device code only.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_MATRIX_CUH_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_MATRIX_CUH_

#include <cstdint>

namespace oscarkv::cuda {

// A K-major matrix in shared memory whose columns are 128 or 32 bytes, in groups of eight.
__device__ __forceinline__ uint64_t MatrixOfWideColumns(uint32_t shared_address) {
  return uint64_t{(shared_address & 0x3ffff) >> 4} | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}
__device__ __forceinline__ uint64_t MatrixOfNarrowColumns(uint32_t shared_address) {
  return uint64_t{(shared_address & 0x3ffff) >> 4} | uint64_t{1} << 16 | uint64_t{256 >> 4} << 32 |
         uint64_t{3} << 62;
}

__device__ __forceinline__ void FenceProducts() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void WaitForProducts() {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

#define OSCARKV_TILE(t) "+f"(sums[t][0]), "+f"(sums[t][1]), "+f"(sums[t][2]), "+f"(sums[t][3])
#define OSCARKV_TILES_8(t)                                                        \
  OSCARKV_TILE(t), OSCARKV_TILE(t + 1), OSCARKV_TILE(t + 2), OSCARKV_TILE(t + 3), \
      OSCARKV_TILE(t + 4), OSCARKV_TILE(t + 5), OSCARKV_TILE(t + 6), OSCARKV_TILE(t + 7)
#define OSCARKV_PRODUCT_64(type)                                                            \
  asm volatile(                                                                             \
      "{\n\t.reg .pred add;\n\tsetp.ne.b32 add, %37, 0;\n\t"                                \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                           \
      " "                                                                                   \
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22," \
      "%23,%24,%25,%26,%27,%28,%29,%30,%31}, "                                              \
      "{%32,%33,%34,%35}, %36, add, 1, 1, 0;\n\t}"                                          \
      : OSCARKV_TILES_8(kFirst)                                                             \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))
#define OSCARKV_PRODUCT_128(type)                                                           \
  asm volatile(                                                                             \
      "{\n\t.reg .pred add;\n\tsetp.ne.b32 add, %69, 0;\n\t"                                \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                          \
      " "                                                                                   \
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22," \
      "%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,"    \
      "%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,"    \
      "%63}, {%64,%65,%66,%67}, %68, add, 1, 1, 0;\n\t}"                                    \
      : OSCARKV_TILES_8(kFirst), OSCARKV_TILES_8(kFirst + 8)                                \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))

// Tiles kFirst.. of 8 columns each, kTiles of them: sums = a b, or sums += a b with `add`. Begins;
// WaitForProducts ends it.
template <uint32_t kFirst, uint32_t kTiles, bool kBf16, uint32_t kAll>
__device__ __forceinline__ void BeginProduct(float (&sums)[kAll][4], const uint32_t (&a)[4],
                                             uint64_t b, uint32_t add) {
  static_assert(kTiles == 8 || kTiles == 16);
  if constexpr (kTiles == 8) {
    if constexpr (kBf16) {
      OSCARKV_PRODUCT_64("bf16");
    } else {
      OSCARKV_PRODUCT_64("f16");
    }
  } else {
    if constexpr (kBf16) {
      OSCARKV_PRODUCT_128("bf16");
    } else {
      OSCARKV_PRODUCT_128("f16");
    }
  }
}

#undef OSCARKV_PRODUCT_128
#undef OSCARKV_PRODUCT_64
#undef OSCARKV_TILES_8
#undef OSCARKV_TILE

// Keeps the compiler from moving uses of sums across the wait.
template <uint32_t kAll>
__device__ __forceinline__ void HoldSums(float (&sums)[kAll][4]) {
#pragma unroll
  for (uint32_t tile = 0; tile < kAll; ++tile) {
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) asm volatile("" : "+f"(sums[tile][i])::"memory");
  }
}

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_MATRIX_CUH_
