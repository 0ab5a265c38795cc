// Rows, transforms and calls that the codec's tests share.
#ifndef OSCARKV_TESTS_CODEC_CODEC_TESTING_H_
#define OSCARKV_TESTS_CODEC_CODEC_TESTING_H_

#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/bytes.h"
#include "kernels/base/dtype.h"
#include "kernels/codec/oscar/row_kernels.h"
#include "kernels/codec/transform_set.h"

namespace oscarkv::testing {

using Bytes = std::vector<std::byte>;

// Every implementation of RowKernels that this machine can run, the reference first. A new one
// registers itself here, and all suites of this folder hold it.
std::vector<const RowKernels*> AllKernels();
// Letters and digits only, for names of tests.
std::string TestName(const RowKernels& kernels);

// Row-major rows of `dim` elements.
struct Rows {
  uint32_t dim = 0;
  std::vector<float> values;

  size_t count() const { return values.size() / dim; }
  std::span<float> row(size_t i) { return std::span(values).subspan(i * dim, dim); }
  std::span<const float> row(size_t i) const { return std::span(values).subspan(i * dim, dim); }
};

Rows GaussianRows(uint32_t dim, size_t count, uint64_t seed);
// As keys are: a mean and a gain for each channel, and now and then an outlier.
Rows KeyLikeRows(uint32_t dim, size_t count, uint64_t seed);

// The rows in `dtype`, rounded to nearest even, and back.
Bytes ToBytes(const Rows& rows, DType dtype);
Rows FromBytes(const Bytes& bytes, uint32_t dim, DType dtype);

// Transforms of three kinds: T = I, a random rotation, and an ill-conditioned matrix with an
// offset.
SideTransform IdentityTransform(uint32_t dim);
SideTransform RandomRotation(uint32_t dim, uint64_t seed);
SideTransform RandomBalanced(uint32_t dim, double condition, uint64_t seed);

struct Encoded {
  Bytes codes;
  Bytes params;
  EncodeReport report;

  bool operator==(const Encoded& other) const;
};

RowFormat Format(uint32_t dim, uint32_t bits = 2, uint32_t group = 0,
                 ParamsDType params = ParamsDType::kFp16, float clip_ratio = 0.0f);
size_t CodeBytes(const RowFormat& format);    // of a row
size_t ParamsBytes(const RowFormat& format);  // of a row

// `transform` may be null.
Encoded Encode(const RowKernels& kernels, const RowFormat& format, const SideTransform* transform,
               DType dtype, const Bytes& rows);
Bytes Decode(const RowKernels& kernels, const RowFormat& format, const SideTransform* transform,
             DType dtype, const Encoded& encoded);

// Codes one by one, and a row's params, without the kernels' help.
std::vector<uint32_t> CodesOf(const RowFormat& format, const Encoded& encoded, size_t row);
struct Pair {
  double scale = 0.0;
  double zero = 0.0;
};
Pair ParamsOf(const RowFormat& format, const Encoded& encoded, size_t row, uint32_t group);

// CRC-32 (IEEE, as in zlib), which the published golden values are given in.
uint32_t Crc32(std::span<const std::byte> bytes);

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_CODEC_CODEC_TESTING_H_
