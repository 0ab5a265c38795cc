// What every implementation of RowKernels keeps (FORMAT.md, "Bounds between implementations").
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "tests/codec/codec_testing.h"

namespace oscarkv::testing {
namespace {

constexpr DType kDTypes[] = {DType::kBf16, DType::kFp16, DType::kFp32};
constexpr ParamsDType kParams[] = {ParamsDType::kFp16, ParamsDType::kFp32};

// All formats of a head dim, without clip.
std::vector<RowFormat> FormatsOf(uint32_t dim) {
  std::vector<RowFormat> formats;
  for (uint32_t bits : {2u, 4u}) {
    for (uint32_t group : {16u, 32u, 64u, 0u}) {
      if (group != 0 && (dim % group != 0 || dim == group)) continue;
      for (ParamsDType params : kParams) formats.push_back(Format(dim, bits, group, params));
    }
  }
  return formats;
}

std::string Describe(const RowFormat& format, DType dtype) {
  return absl::StrCat("dim ", format.dim, ", ", format.bits, " bits, group ", format.group,
                      ", clip index ", format.clip_index, ", params of ",
                      format.params == ParamsDType::kFp16 ? 2 : 4, " bytes, rows of dtype ",
                      static_cast<int>(dtype));
}

using Fill = std::function<float(uint32_t)>;

void Append(Rows& rows, const Fill& fill) {
  for (uint32_t i = 0; i < rows.dim; ++i) rows.values.push_back(fill(i));
}

// Plain rows and every kind of awkward one.
Rows AwkwardRows(uint32_t dim) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  std::mt19937_64 random(dim);
  std::normal_distribution<float> normal;
  const auto gauss = [&](uint32_t) { return normal(random); };
  Rows rows{dim, {}};
  Append(rows, gauss);
  for (float constant : {0.0f, -0.0f, 1.0f, -3.0f, 1e4f, 7e4f, -1e30f, 1e-40f})
    Append(rows, [&](uint32_t) { return constant; });
  Append(rows, [](uint32_t i) { return i % 3 == 0 ? 0.0f : -0.0f; });
  Append(rows, [](uint32_t i) { return i % 2 == 0 ? 100.0f : 100.5f; });
  // Ties: of magnitudes at the clip, and of values halfway between two codes.
  Append(rows, [&](uint32_t) { return 0.5f * static_cast<float>(random() % 7) - 1.5f; });
  Append(rows, [](uint32_t i) { return (i % 2 == 0 ? 1.0f : -1.0f) * (i < 4 ? 5.0f : 2.0f); });
  for (float bad : {nan, -nan, inf, -inf})
    Append(rows, [&](uint32_t i) { return i == dim - 3 ? bad : normal(random); });
  for (float offset : {10.0f, -1e3f, 3e4f, 1e6f})
    Append(rows, [&](uint32_t) { return offset + normal(random); });
  for (float scale : {1e-3f, 1e-6f, 1e-8f, 1e-30f, 1e-42f, 1e6f, 1e37f})
    Append(rows, [&](uint32_t) { return scale * normal(random); });
  Append(rows, [&](uint32_t i) { return (i % 2 == 0 ? 3.0f : -3.0f) * 1e38f; });
  // One group beyond fp16's params, the others within.
  Append(rows, [&](uint32_t i) { return i < 16 ? 1e6f * normal(random) : normal(random); });
  Append(rows, [&](uint32_t i) { return i == 0 ? 1e3f : normal(random); });
  return rows;
}

// Any bits at all, NaNs not too often.
Bytes RandomBits(uint32_t dim, size_t count, DType dtype, uint64_t seed) {
  std::mt19937_64 random(seed);
  Bytes bytes(dim * count * DTypeBytes(dtype));
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  const uint32_t high = DTypeBytes(dtype) - 1;  // its top bits are sign and exponent
  for (size_t i = 0; i < dim * count; ++i) {
    if (i / dim % 4 != 0) bytes[i * DTypeBytes(dtype) + high] &= std::byte{0xbb};
  }
  return bytes;
}

// Equal bytes but for the payloads of NaNs.
void ExpectSameNumbers(const Bytes& expected, const Bytes& found, uint32_t dim, DType dtype) {
  const Rows a = FromBytes(expected, dim, dtype);
  const Rows b = FromBytes(found, dim, dtype);
  ASSERT_EQ(a.values.size(), b.values.size());
  for (size_t i = 0; i < a.values.size(); ++i) {
    if (std::isnan(a.values[i]) && std::isnan(b.values[i])) continue;
    ASSERT_EQ(std::bit_cast<uint32_t>(a.values[i]), std::bit_cast<uint32_t>(b.values[i]))
        << "row " << i / dim << ", element " << i % dim << ": " << a.values[i] << ", "
        << b.values[i];
  }
}

void ExpectSameBytes(const RowKernels& kernels, const RowFormat& format, DType dtype,
                     const Bytes& rows) {
  SCOPED_TRACE(Describe(format, dtype));
  const Encoded expected = Encode(ReferenceRowKernels(), format, nullptr, dtype, rows);
  const Encoded found = Encode(kernels, format, nullptr, dtype, rows);
  ASSERT_EQ(expected.codes, found.codes);
  ASSERT_EQ(expected.params, found.params);
  ASSERT_TRUE(expected == found) << "the reports differ";
  for (DType out : kDTypes) {
    ExpectSameNumbers(Decode(ReferenceRowKernels(), format, nullptr, out, expected),
                      Decode(kernels, format, nullptr, out, expected), format.dim, out);
  }
}

class RowKernelsContract : public ::testing::TestWithParam<const RowKernels*> {
 protected:
  const RowKernels& kernels() const { return *GetParam(); }
};

TEST_P(RowKernelsContract, WritesTheReferencesBytesForAwkwardRowsOfEveryFormat) {
  for (uint32_t dim = 16; dim <= 256 && !HasFatalFailure(); dim += 16) {
    const Rows rows = AwkwardRows(dim);
    for (RowFormat format : FormatsOf(dim)) {
      for (DType dtype : kDTypes) {
        for (uint32_t clip_index : {dim - 1, dim * 9 / 10, dim / 2, 0u}) {
          format.clip_index = clip_index;
          ExpectSameBytes(kernels(), format, dtype, ToBytes(rows, dtype));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(RowKernelsContract, WritesTheReferencesBytesForAnyBits) {
  for (uint32_t dim : {64u, 128u, 144u, 256u}) {
    for (RowFormat format : FormatsOf(dim)) {
      for (DType dtype : kDTypes) {
        format.clip_index = dim * 7 / 8;
        ExpectSameBytes(kernels(), format, dtype, RandomBits(dim, 64, dtype, dim));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(RowKernelsContract, ARowsBytesDoNotDependOnItsCompany) {
  const uint32_t dim = 64;
  const SideTransform transform = RandomRotation(dim, 5);
  const RowFormat format = Format(dim, 2, 32, ParamsDType::kFp16, 0.9f);
  const Bytes all = ToBytes(KeyLikeRows(dim, 9, 6), DType::kBf16);
  const size_t row_bytes = size_t{dim} * 2;
  for (const SideTransform* t : {static_cast<const SideTransform*>(nullptr), &transform}) {
    const Encoded whole = Encode(kernels(), format, t, DType::kBf16, all);
    for (size_t count = 1; count <= 9; ++count) {
      for (size_t first = 0; first + count <= 9; ++first) {
        const Bytes part(all.begin() + static_cast<std::ptrdiff_t>(first * row_bytes),
                         all.begin() + static_cast<std::ptrdiff_t>((first + count) * row_bytes));
        const Encoded encoded = Encode(kernels(), format, t, DType::kBf16, part);
        ASSERT_TRUE(std::equal(
            encoded.codes.begin(), encoded.codes.end(),
            whole.codes.begin() + static_cast<std::ptrdiff_t>(first * CodeBytes(format))));
        ASSERT_TRUE(std::equal(
            encoded.params.begin(), encoded.params.end(),
            whole.params.begin() + static_cast<std::ptrdiff_t>(first * ParamsBytes(format))));
        ASSERT_EQ(encoded.report.rows, count);
      }
    }
  }
}

TEST_P(RowKernelsContract, RowsLeftOutAreNotWrittenAndOthersAreTheSame) {
  const uint32_t dim = 48;
  const RowFormat format = Format(dim);
  const SideTransform transform = RandomRotation(dim, 7);
  const auto prepared = kernels().Prepare(transform);
  const Encoded encoded = Encode(kernels(), format, &transform, DType::kFp16,
                                 ToBytes(GaussianRows(dim, 9, 8), DType::kFp16));
  for (const PreparedTransform* t : {static_cast<const PreparedTransform*>(nullptr),
                                     static_cast<const PreparedTransform*>(prepared.get())}) {
    for (DType dtype : kDTypes) {
      const Bytes whole =
          Decode(kernels(), format, t == nullptr ? nullptr : &transform, dtype, encoded);
      const size_t row_bytes = size_t{dim} * DTypeBytes(dtype);
      // Every row in a buffer of its own with a margin, each second one left out.
      Bytes buffer(size_t{9} * 2 * row_bytes, std::byte{0xee});
      std::vector<std::byte*> rows(9);
      for (size_t i = 0; i < 9; i += 2) rows[i] = buffer.data() + i * 2 * row_bytes;
      kernels().Decode(format, t, encoded.codes.data(), encoded.params.data(), dtype, rows);
      for (size_t i = 0; i < 18 * row_bytes; ++i) {
        const size_t row = i / row_bytes / 2;
        const bool written = i / row_bytes % 2 == 0 && row % 2 == 0;
        ASSERT_EQ(buffer[i], written ? whole[row * row_bytes + i % row_bytes] : std::byte{0xee});
      }
    }
  }
}

struct TransformCase {
  const char* name;
  SideTransform transform;
};

// Made once, because decompositions take long in builds with a sanitizer.
const std::vector<TransformCase>& TransformsOf(uint32_t dim) {
  static auto& cases = *new std::map<uint32_t, std::vector<TransformCase>>();
  std::vector<TransformCase>& of_dim = cases[dim];
  if (of_dim.empty()) {
    of_dim = {{"identity", IdentityTransform(dim)},
              {"rotation", RandomRotation(dim, dim)},
              {"balanced", RandomBalanced(dim, 13.0, dim + 1)},
              {"ill-conditioned", RandomBalanced(dim, 30.0, dim + 2)}};
  }
  return of_dim;
}

// Codes may differ by 1 and params by what FORMAT.md says; how many codes do.
size_t CountDifferentCodes(const RowFormat& format, const Encoded& expected, const Encoded& found,
                           size_t count) {
  size_t different = 0;
  for (size_t row = 0; row < count; ++row) {
    const std::vector<uint32_t> a = CodesOf(format, expected, row);
    const std::vector<uint32_t> b = CodesOf(format, found, row);
    for (uint32_t i = 0; i < format.dim; ++i) {
      different += a[i] != b[i] ? 1u : 0u;
      EXPECT_LE(std::max(a[i], b[i]) - std::min(a[i], b[i]), 1u);
    }
    for (uint32_t group = 0; group < format.dim / format.group; ++group) {
      const Pair p = ParamsOf(format, expected, row, group);
      const Pair q = ParamsOf(format, found, row, group);
      EXPECT_LE(std::fabs(p.scale - q.scale), p.scale * 0x1p-10);
      EXPECT_LE(std::fabs(p.zero - q.zero), std::max(1.0, std::fabs(p.zero)) * 0x1p-10);
    }
  }
  return different;
}

TEST_P(RowKernelsContract, TransformedRowsDifferFromTheReferenceInFewCodes) {
  for (uint32_t dim : {16u, 48u, 64u, 96u, 128u, 240u, 256u}) {
    for (const auto& [name, transform] : TransformsOf(dim)) {
      for (RowFormat format :
           {Format(dim, 2, 0, ParamsDType::kFp16, 0.85f), Format(dim, 4, 16, ParamsDType::kFp32)}) {
        SCOPED_TRACE(absl::StrCat(name, ", ", Describe(format, DType::kBf16)));
        const size_t count = 25600 / dim;
        const Bytes rows = ToBytes(KeyLikeRows(dim, count, dim), DType::kBf16);
        const Encoded expected =
            Encode(ReferenceRowKernels(), format, &transform, DType::kBf16, rows);
        const Encoded found = Encode(kernels(), format, &transform, DType::kBf16, rows);
        const size_t different = CountDifferentCodes(format, expected, found, count);
        EXPECT_LE(static_cast<double>(different), 1e-3 * static_cast<double>(count * dim));
      }
    }
  }
}

// What FORMAT.md, "Reading a row", gives in exact arithmetic.
std::vector<double> ExactRow(const RowFormat& format, const SideTransform& transform,
                             const Encoded& encoded, size_t row) {
  const uint32_t dim = format.dim;
  const std::vector<uint32_t> codes = CodesOf(format, encoded, row);
  std::vector<double> x(transform.offset.begin(), transform.offset.end());
  for (uint32_t i = 0; i < dim; ++i) {
    const Pair pair = ParamsOf(format, encoded, row, i / format.group);
    const double y = (codes[i] - pair.zero) * pair.scale;
    for (uint32_t j = 0; j < dim; ++j)
      x[j] += y * static_cast<double>(transform.inverse[i * dim + j]);
  }
  return x;
}

// The greatest error of an element, in parts of its row's greatest magnitude.
double WorstShare(const RowFormat& format, const SideTransform& transform, const Encoded& encoded,
                  const Rows& found) {
  double worst = 0.0;
  for (size_t row = 0; row < found.count(); ++row) {
    const std::vector<double> exact = ExactRow(format, transform, encoded, row);
    double most = 0.0;
    double error = 0.0;
    for (uint32_t i = 0; i < format.dim; ++i) {
      most = std::max(most, std::fabs(exact[i]));
      error = std::max(error, std::fabs(exact[i] - static_cast<double>(found.row(row)[i])));
    }
    worst = std::max(worst, error / most);
  }
  return worst;
}

TEST_P(RowKernelsContract, InverseTransformStaysWithinTheBoundOfTheResultsDtype) {
  std::map<DType, double> worst;
  for (uint32_t dim : {16u, 48u, 64u, 96u, 128u, 240u, 256u}) {
    for (const auto& [name, transform] : TransformsOf(dim)) {
      for (uint32_t bits : {2u, 4u}) {
        for (uint32_t group : {0u, 16u}) {
          const RowFormat format = Format(dim, bits, group, ParamsDType::kFp16, 0.9f);
          SCOPED_TRACE(absl::StrCat(name, ", ", Describe(format, DType::kBf16)));
          const Encoded encoded = Encode(ReferenceRowKernels(), format, &transform, DType::kFp32,
                                         ToBytes(KeyLikeRows(dim, 20, dim), DType::kFp32));
          for (DType dtype : kDTypes) {
            const Rows found =
                FromBytes(Decode(kernels(), format, &transform, dtype, encoded), dim, dtype);
            const double bound = dtype == DType::kBf16 ? 0x1p-5 : 0x1p-9;
            const double share = WorstShare(format, transform, encoded, found);
            EXPECT_LE(share, bound);
            worst[dtype] = std::max(worst[dtype], share);
          }
        }
      }
    }
  }
  for (const auto& [dtype, share] : worst)
    RecordProperty(absl::StrCat("log2_worst_", std::string(DTypeName(dtype))),
                   absl::StrCat(std::log2(share)));
}

TEST_P(RowKernelsContract, ANanScaleReadsBackAsNanAndTouchesNoOtherRow) {
  const uint32_t dim = 64;
  const SideTransform transform = RandomRotation(dim, 3);
  const RowFormat format = Format(dim, 2, 16);
  Rows rows = GaussianRows(dim, 7, 4);
  const Bytes clean = ToBytes(rows, DType::kBf16);
  rows.row(2)[5] = std::numeric_limits<float>::quiet_NaN();
  rows.row(4)[0] = -std::numeric_limits<float>::infinity();
  const Bytes dirty = ToBytes(rows, DType::kBf16);
  const Encoded a = Encode(kernels(), format, &transform, DType::kBf16, clean);
  const Encoded b = Encode(kernels(), format, &transform, DType::kBf16, dirty);
  EXPECT_EQ(b.report.nonfinite_rows, 2u);
  EXPECT_EQ(a.report.nonfinite_rows, 0u);
  for (DType dtype : kDTypes) {
    const Rows from_clean = FromBytes(Decode(kernels(), format, &transform, dtype, a), dim, dtype);
    const Rows from_dirty = FromBytes(Decode(kernels(), format, &transform, dtype, b), dim, dtype);
    for (size_t row = 0; row < 7; ++row) {
      for (uint32_t i = 0; i < dim; ++i) {
        if (row == 2 || row == 4) {
          ASSERT_TRUE(std::isnan(from_dirty.row(row)[i]));
        } else {
          ASSERT_EQ(from_dirty.row(row)[i], from_clean.row(row)[i]);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllKernels, RowKernelsContract, ::testing::ValuesIn(AllKernels()),
                         [](const auto& kernels) { return TestName(*kernels.param); });

}  // namespace
}  // namespace oscarkv::testing
