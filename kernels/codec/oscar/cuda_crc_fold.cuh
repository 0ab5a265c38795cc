// CRC32C of what a thread block has in registers, as CrcFold says: products of bit matrices on the
// tensor cores, which no other part of the kernels uses for bits. Device code only.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_CRC_FOLD_CUH_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_CRC_FOLD_CUH_

#include "kernels/codec/oscar/cuda_crc32c.h"

namespace oscarkv::cuda {

// The number of common ones of rows of a and columns of b, 16 x 8 with 256 bits in between.
__device__ __forceinline__ void CountCommonBits(int32_t (&counts)[4], const uint32_t (&a)[4],
                                                uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%10,%10,%10,%10};"
      : "=r"(counts[0]), "=r"(counts[1]), "=r"(counts[2]), "=r"(counts[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(0));
}

// One thread's part of it. All kFoldThreads threads of a block make one and use it together.
class FoldedCrc {
 public:
  __device__ __forceinline__ explicit FoldedCrc(const CrcFold& fold)
      : row_(fold.rows[threadIdx.x / 32][threadIdx.x % 32 / 4 + (threadIdx.x & 1) * 8]) {
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) columns_[i] = fold.columns[i][threadIdx.x % 32];
  }

  // This thread's 16 bytes of the next step.
  __device__ __forceinline__ void Add(uint4 words) {
    const uint32_t quad = threadIdx.x & 3;
    const uint32_t a[4] = {words.x ^ (quad == 0 ? remainder_[0] : 0),
                           words.z ^ (quad == 0 ? remainder_[1] : 0), words.y, words.w};
    int32_t counts[4][4];
#pragma unroll
    for (uint32_t tile = 0; tile < 4; ++tile)
      CountCommonBits(counts[tile], a, columns_[2 * tile], columns_[2 * tile + 1]);
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      uint32_t bits[4];  // two output bits a tile, then those of other lanes' columns above them
#pragma unroll
      for (uint32_t tile = 0; tile < 4; ++tile) {
        bits[tile] = (static_cast<uint32_t>(counts[tile][2 * r]) & 1) |
                     static_cast<uint32_t>(counts[tile][2 * r + 1]) << 1;
      }
      uint32_t word = __byte_perm(__byte_perm(bits[0], bits[1], 0x0040),
                                  __byte_perm(bits[2], bits[3], 0x0040), 0x5410);
      word = (word & 0x03030303u) << 2 * quad;
      word |= __shfl_xor_sync(0xffffffffu, word, 1);
      remainder_[r] = word | __shfl_xor_sync(0xffffffffu, word, 2);
    }
  }

  // The sum of the whole message in every thread, before initial value and final exclusive-or.
  // `scratch` is in shared memory; all threads have passed a barrier since it was last used.
  __device__ __forceinline__ uint32_t Sum(uint32_t (&scratch)[kFoldThreads / 32]) const {
    const uint32_t quad = threadIdx.x & 3;
    const uint32_t mine = quad == 0 ? remainder_[0] : remainder_[1];
    const uint32_t part = quad < 2 ? CrcMultiply(row_, mine) : 0;
    const uint32_t of_warp = __reduce_xor_sync(0xffffffffu, part);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = of_warp;
    __syncthreads();
    uint32_t sum = 0;
#pragma unroll
    for (uint32_t warp = 0; warp < kFoldThreads / 32; ++warp) sum ^= scratch[warp];
    return sum;
  }

 private:
  uint32_t columns_[8];
  uint32_t row_;
  uint32_t remainder_[2] = {0, 0};
};

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_CRC_FOLD_CUH_
