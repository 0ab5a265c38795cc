// What the codec is compared with: the same work with well-kept libraries and plain C++. Rows are
// dequantised to float and multiplied by Eigen's matrix product; the clip is std::nth_element.
// Compiled once for each instruction set that the kernels have, so that the comparison is fair.
#ifndef OSCARKV_TESTS_BENCH_FLOAT_ROUTE_H_
#define OSCARKV_TESTS_BENCH_FLOAT_ROUTE_H_

#include <cstdint>
#include <string_view>

namespace oscarkv::bench {

struct FloatRoute {
  // bf16 rows [rows][dim] to 2-bit codes [rows][dim / 4] and fp32 (scale, zero) [rows][2]; forward
  // is [dim][dim] row-major.
  void (*encode)(const uint16_t* x, const float* forward, uint32_t rows, uint32_t dim,
                 uint32_t clip_index, uint8_t* codes, float* params);
  // And back, to bf16.
  void (*decode)(const uint8_t* codes, const float* params, const float* inverse, uint32_t rows,
                 uint32_t dim, uint16_t* x);
  // Fused multiply-adds a second of one thread, in floats: the floor of the float route.
  double (*peak_fma_per_s)();
};

// For the instruction set of a kernel set's name: "cpu/AVX3_DL" and "cpu/AVX3" give AVX-512's,
// "cpu/AVX2" AVX2's, anything else plain C++'s.
FloatRoute FloatRouteFor(std::string_view kernels);

extern const FloatRoute kFloatRouteAvx512;
extern const FloatRoute kFloatRouteAvx2;
extern const FloatRoute kFloatRoutePlain;

}  // namespace oscarkv::bench

#endif  // OSCARKV_TESTS_BENCH_FLOAT_ROUTE_H_
