// CRC32C as the product of polynomials over GF(2), so that many threads can work on one block: word
// i of a message of W words (32 bits, little-endian) adds w x^(32 (W - i)) to the remainder.
// Constants for the device kernels, and the arithmetic, on both sides.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_CRC32C_H_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_CRC32C_H_

#include <cstdint>
#include <vector>

#ifdef __CUDACC__
#define OSCARKV_HOST_DEVICE __host__ __device__
#else
#define OSCARKV_HOST_DEVICE
#endif

namespace oscarkv::cuda {

inline constexpr uint32_t kCrcPolynomial = 0x82f63b78u;  // Castagnoli, reflected: x^0 is bit 31
inline constexpr uint32_t kCrcLanes = 32;

// a b mod P.
OSCARKV_HOST_DEVICE constexpr uint32_t CrcMultiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (int bit = 31; bit >= 0; --bit) {
    product ^= b & (0u - ((a >> bit) & 1u));
    b = (b >> 1) ^ (kCrcPolynomial & (0u - (b & 1u)));
  }
  return product;
}

// x^(32 words) mod P.
constexpr uint32_t CrcPower(uint64_t words) {
  uint32_t result = 0x80000000u;
  uint32_t square = CrcMultiply(0x00800000u, 0x00800000u);  // x^8 squared: x^16
  square = CrcMultiply(square, square);                     // x^32
  for (; words != 0; words >>= 1) {
    if ((words & 1) != 0) result = CrcMultiply(result, square);
    square = CrcMultiply(square, square);
  }
  return result;
}

// What a warp needs: lane l takes words l, l + 32, ... and moves its remainder on by 32 words at a
// time, a byte of it at a time.
struct CrcTables {
  uint32_t step[4][256];      // step[b][v]: v << 8 b, times x^(32 * 32)
  uint32_t power[kCrcLanes];  // power[n]: x^(32 (n + 1))
};

// What joins the remainders of a warp's lanes, four bits at a time: of[n][v][d] is v << 4 n, times
// x^(32 (d + 1)), for a lane whose last word is d words before the end.
struct CrcMultiples {
  uint32_t of[8][16][kCrcLanes];
};

CrcTables MakeCrcTables();
CrcMultiples MakeCrcMultiples();
// x^32, x^64, ... `count` of them.
std::vector<uint32_t> MakeCrcPowers(uint32_t count);

// The same sum as a product of matrices of bits, for warps that walk over a message 16 bytes a lane
// at a time, `step` words from one time to the next. A warp's 512 bytes are 16 rows: of lane 4 g +
// t's words w0 to w3, row g has w0 at column t and w1 at column 4 + t, row g + 8 has w2 and w3. A
// row's remainder goes into its first word of the next step.
struct CrcFold {
  uint32_t columns[8][32];  // [2 * (output bit / 8) + half of the columns][lane]
};

inline constexpr uint32_t kWarpFoldWords = 128;

CrcFold MakeCrcFold(uint32_t step);
// By which rows' last remainders are multiplied: [warp][16], where warp w's words of a step begin
// 128 w words into it, and the message ends `after` words (zeros) before the last step's end.
std::vector<uint32_t> MakeCrcRows(uint32_t warps, uint32_t after);

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_CRC32C_H_
