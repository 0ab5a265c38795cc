// Properties of the quantiser, on every implementation: packing, bounds, degenerate rows, and the
// errors that theory and measurements elsewhere give for Gaussian rows.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "tests/codec/codec_testing.h"

namespace oscarkv::testing {
namespace {

constexpr uint32_t kDim = 128;

class QuantiserTest : public ::testing::TestWithParam<const RowKernels*> {
 protected:
  const RowKernels& kernels() const { return *GetParam(); }

  Encoded EncodeFp32(const RowFormat& format, const Rows& rows) const {
    return Encode(kernels(), format, nullptr, DType::kFp32, ToBytes(rows, DType::kFp32));
  }
  // Encoded and decoded in the transformed basis.
  Rows Through(const RowFormat& format, const Rows& rows) const {
    return FromBytes(Decode(kernels(), format, nullptr, DType::kFp32, EncodeFp32(format, rows)),
                     format.dim, DType::kFp32);
  }
};

// A row of codes as values: with 0 and the greatest code in every group, scale is 1 and zero is 0.
TEST_P(QuantiserTest, PackingIsStrided) {
  Rows quarters{kDim, {}};
  Rows cycling{kDim, {}};
  for (uint32_t i = 0; i < kDim; ++i) {
    quarters.values.push_back(static_cast<float>(i >> 5));
    cycling.values.push_back(static_cast<float>(i % 4));
  }
  const RowFormat format = Format(kDim);
  EXPECT_EQ(EncodeFp32(format, quarters).codes, Bytes(32, std::byte{0xe4}));
  const Bytes codes = EncodeFp32(format, cycling).codes;
  for (size_t i = 0; i < 32; ++i)
    EXPECT_EQ(codes[i],
              (std::array{std::byte{0}, std::byte{0x55}, std::byte{0xaa}, std::byte{0xff}}[i % 4]));
  Rows halves{kDim, {}};
  for (uint32_t i = 0; i < kDim; ++i) halves.values.push_back(i < 64 ? 15.0f : 0.0f);
  EXPECT_EQ(EncodeFp32(Format(kDim, 4), halves).codes, Bytes(64, std::byte{0x0f}));
}

TEST_P(QuantiserTest, HundredsOfThousandsOfRowsOfCodesUnpackToThemselves) {
  std::mt19937_64 random(8);
  constexpr uint32_t narrow = 32;
  constexpr size_t batch_rows = 10000;
  for (uint32_t bits : {2u, 4u}) {
    const RowFormat format = Format(narrow, bits, 16);
    const uint32_t most = (1u << bits) - 1;
    for (int batch = 0; batch < 20; ++batch) {
      Rows rows{narrow, std::vector<float>(narrow * batch_rows)};
      for (float& value : rows.values) value = static_cast<float>(random() & most);
      for (size_t i = 0; i < rows.values.size(); i += 16) {
        rows.values[i + random() % 8] = 0.0f;
        rows.values[i + 8 + random() % 8] = static_cast<float>(most);
      }
      ASSERT_EQ(Through(format, rows).values, rows.values);
    }
  }
}

// Against the row as the clip leaves it.
void ExpectWithinHalfAStep(const RowFormat& format, const Encoded& encoded, const Rows& rows,
                           const Rows& found) {
  for (size_t row = 0; row < rows.count(); ++row) {
    std::vector<float> magnitudes;
    for (float value : rows.row(row)) magnitudes.push_back(std::fabs(value));
    std::sort(magnitudes.begin(), magnitudes.end());
    const float most = magnitudes[format.clip_index];
    const double ulp =
        static_cast<double>(std::nextafter(magnitudes.back(), INFINITY) - magnitudes.back());
    for (uint32_t i = 0; i < format.dim; ++i) {
      const double step = ParamsOf(format, encoded, row, i / format.group).scale;
      const double x = static_cast<double>(std::clamp(rows.row(row)[i], -most, most));
      ASSERT_NEAR(x, static_cast<double>(found.row(row)[i]), step / 2 + 4 * ulp);
    }
  }
}

TEST_P(QuantiserTest, ErrorIsAtMostHalfAStepOfTheClampedRow) {
  for (float offset : {0.0f, 6.0f, 60.0f, 600.0f}) {
    Rows rows = GaussianRows(kDim, 200, 9);
    for (float& value : rows.values) value += offset;
    for (uint32_t bits : {2u, 4u}) {
      for (uint32_t group : {16u, 32u, 64u, 128u}) {
        for (float ratio : {0.0f, 0.9f}) {
          const RowFormat format = Format(kDim, bits, group, ParamsDType::kFp32, ratio);
          ExpectWithinHalfAStep(format, EncodeFp32(format, rows), rows, Through(format, rows));
        }
      }
    }
  }
}

TEST_P(QuantiserTest, EncodingWhatWasDecodedGivesTheSameCodes) {
  for (float offset : {0.0f, 6.0f, 60.0f, 600.0f}) {
    for (uint32_t group : {32u, 128u}) {
      const RowFormat format = Format(kDim, 2, group, ParamsDType::kFp32);
      Rows rows = GaussianRows(kDim, 500, 10);
      for (float& value : rows.values) value += offset;
      EXPECT_EQ(EncodeFp32(format, Through(format, rows)).codes, EncodeFp32(format, rows).codes)
          << offset;
    }
  }
}

TEST_P(QuantiserTest, ConstantRowsAreExactToAnUlp) {
  for (float constant : {0.0f, 1.0f, -3.0f, 1e4f, -0.3f}) {
    const Rows rows{kDim, std::vector<float>(kDim, constant)};
    const RowFormat format = Format(kDim, 2, 0, ParamsDType::kFp32, 0.9f);
    const Encoded encoded = EncodeFp32(format, rows);
    EXPECT_EQ(encoded.codes, Bytes(32, std::byte{0}));
    EXPECT_NEAR(ParamsOf(format, encoded, 0, 0).scale, 3.333e-9, 1e-12);
    EXPECT_EQ(encoded.report.constant_rows, 1u);
    const float found = Through(format, rows).values[77];
    EXPECT_LE(std::fabs(found - constant),
              std::nextafter(std::fabs(constant), INFINITY) - std::fabs(constant));
    // With fp16 params such a scale would vanish: the group is flat.
    const float half = Through(Format(kDim), rows).values[77];
    EXPECT_EQ(half, Fp16ToFloat(FloatToFp16(constant)));
  }
}

TEST_P(QuantiserTest, TwoValuedRowsAreExact) {
  Rows rows{kDim, {}};
  for (uint32_t i = 0; i < kDim; ++i) rows.values.push_back(i % 3 == 0 ? 100.5f : 100.0f);
  const RowFormat format = Format(kDim, 2, 0, ParamsDType::kFp32);
  const std::vector<uint32_t> codes = CodesOf(format, EncodeFp32(format, rows), 0);
  for (uint32_t i = 0; i < kDim; ++i) EXPECT_EQ(codes[i], i % 3 == 0 ? 3u : 0u);
  const Rows found = Through(format, rows);
  for (uint32_t i = 0; i < kDim; ++i) EXPECT_NEAR(found.values[i], rows.values[i], 2e-5f);
}

TEST_P(QuantiserTest, HugeOffsetsNeverSpillIntoTheNextCode) {
  // The least element of every group has code 0 whatever rounding does; a 4 would show up in its
  // neighbour's bits.
  for (float offset : {0.0f, 10.0f, 100.0f, 1000.0f}) {
    for (uint32_t bits : {2u, 4u}) {
      const RowFormat format = Format(kDim, bits, 0, ParamsDType::kFp32);
      Rows rows = GaussianRows(kDim, 300, 11);
      for (float& value : rows.values) value = offset * 3.0f + 1e-3f * value;
      const Encoded encoded = EncodeFp32(format, rows);
      const Rows found =
          FromBytes(Decode(kernels(), format, nullptr, DType::kFp32, encoded), kDim, DType::kFp32);
      for (size_t row = 0; row < rows.count(); ++row) {
        const std::vector<uint32_t> codes = CodesOf(format, encoded, row);
        const auto least = std::min_element(rows.row(row).begin(), rows.row(row).end());
        EXPECT_EQ(codes[static_cast<size_t>(least - rows.row(row).begin())], 0u);
        for (uint32_t i = 0; i < kDim; ++i)
          ASSERT_NEAR(found.row(row)[i], rows.row(row)[i], 3e-3f + offset * 3.0f * 0x1p-21f);
      }
    }
  }
}

TEST_P(QuantiserTest, GroupsBeyondTheParamsReadBackAsNanAndTheirNeighboursAsTheyAre) {
  for (float large : {2e5f, 1e6f, 3e38f}) {
    for (int sign : {-1, 0, 1}) {  // both signs, or a constant of one
      Rows rows = GaussianRows(64, 1, 15);
      for (uint32_t i = 16; i < 32; ++i)
        rows.values[i] =
            sign != 0 ? large * static_cast<float>(sign) : (i % 2 == 0 ? large : -large);
      const RowFormat format = Format(64, 2, 16);
      const Encoded encoded = EncodeFp32(format, rows);
      EXPECT_EQ(encoded.report.overflow_rows, 1u);
      const Rows found = Through(format, rows);
      for (uint32_t i = 0; i < 64; ++i) {
        EXPECT_EQ(std::isnan(found.values[i]), i >= 16 && i < 32);
        if (i < 16 || i >= 32) {
          EXPECT_NEAR(found.values[i], rows.values[i], 1.0f);
        }
      }
    }
  }
}

TEST_P(QuantiserTest, NearlyConstantRowsKeepTheirValueInHalfPrecisionParams) {
  // Ranges whose scales are subnormal in fp16, or vanish there, and zeros up to its end.
  for (float value : {2e-3f, -2e-3f, 0.01f, 0.3f, -1.0f, 4.0f, 300.0f}) {
    for (float range : {1e-8f, 5e-8f, 1.2e-7f, 3e-7f, 1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f}) {
      for (uint32_t bits : {2u, 4u}) {
        Rows rows{kDim, {}};
        for (uint32_t i = 0; i < kDim; ++i)
          rows.values.push_back(value + range * static_cast<float>(i % 16) / 15.0f);
        const auto [least, most] = std::minmax_element(rows.values.begin(), rows.values.end());
        const float bound = 1.5f * (*most - *least) + 0x1p-10f * std::fabs(value);
        const Rows found = Through(Format(kDim, bits), rows);
        for (uint32_t i = 0; i < kDim; ++i)
          ASSERT_NEAR(found.values[i], rows.values[i], bound) << value << ", range " << range;
      }
    }
  }
}

struct GaussianCase {
  uint32_t group;
  float ratio;
  double error;
};

// sum |x - x'|^2 / sum |x|^2
double RelativeError(const Rows& rows, const Rows& found) {
  double error = 0.0;
  double energy = 0.0;
  for (size_t i = 0; i < rows.values.size(); ++i) {
    const double x = static_cast<double>(rows.values[i]);
    error += std::pow(x - static_cast<double>(found.values[i]), 2);
    energy += x * x;
  }
  return error / energy;
}

TEST_P(QuantiserTest, GaussianRowsHaveTheKnownErrors) {
  const GaussianCase cases[] = {{128, 0.0f, 0.2508},  {128, 0.96f, 0.1562}, {128, 0.92f, 0.1274},
                                {128, 0.90f, 0.1222}, {64, 0.0f, 0.2027},   {64, 0.96f, 0.1504},
                                {64, 0.92f, 0.1265},  {32, 0.0f, 0.1543},   {32, 0.96f, 0.1319},
                                {32, 0.92f, 0.1196},  {16, 0.0f, 0.1068},   {16, 0.96f, 0.1016},
                                {16, 0.92f, 0.1009}};
  const Rows rows = GaussianRows(kDim, 10000, 12);
  for (const auto& [group, ratio, error] : cases) {
    const double fp32 =
        RelativeError(rows, Through(Format(kDim, 2, group, ParamsDType::kFp32, ratio), rows));
    const double fp16 =
        RelativeError(rows, Through(Format(kDim, 2, group, ParamsDType::kFp16, ratio), rows));
    EXPECT_NEAR(fp32 / error, 1.0, 0.02) << "group " << group << ", ratio " << ratio;
    EXPECT_NEAR(fp16 / fp32, 1.0, 1e-3) << "group " << group << ", ratio " << ratio;
  }
}

TEST_P(QuantiserTest, GaussianRowsUseTheCodesInTheKnownShares) {
  const std::pair<float, std::array<double, 4>> cases[] = {{0.0f, {5.1, 44.8, 45.0, 5.1}},
                                                           {0.96f, {9.1, 40.9, 40.9, 9.1}},
                                                           {0.92f, {12.5, 37.5, 37.5, 12.5}}};
  const Rows rows = GaussianRows(kDim, 10000, 13);
  for (const auto& [ratio, shares] : cases) {
    const RowFormat format = Format(kDim, 2, 0, ParamsDType::kFp16, ratio);
    const Encoded encoded = EncodeFp32(format, rows);
    std::array<double, 4> found = {};
    for (size_t row = 0; row < rows.count(); ++row) {
      for (uint32_t code : CodesOf(format, encoded, row)) found[code] += 100.0 / (1e4 * kDim);
    }
    for (size_t code = 0; code < 4; ++code) EXPECT_NEAR(found[code], shares[code], 0.5);
  }
}

TEST_P(QuantiserTest, HalfPrecisionZerosBearCommonOffsets) {
  // Relative to the row's spread about its mean, at offsets of 6, 60 and 600 standard deviations.
  struct Case {
    float offset;
    double fp32;
    double fp16;
  };
  for (const auto& [offset, fp32, fp16] :
       {Case{6.0f, 0.252, 0.252}, {60.0f, 0.254, 0.254}, {600.0f, 0.252, 0.281}}) {
    Rows rows = GaussianRows(kDim, 10000, 14);
    Rows centred = rows;
    for (float& value : rows.values) value += offset;
    for (const auto& [params, expected] :
         {std::pair{ParamsDType::kFp32, fp32}, {ParamsDType::kFp16, fp16}}) {
      Rows found = Through(Format(kDim, 2, 0, params), rows);
      for (float& value : found.values) value -= offset;
      EXPECT_NEAR(RelativeError(centred, found) / expected, 1.0, 0.03) << offset;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllKernels, QuantiserTest, ::testing::ValuesIn(AllKernels()),
                         [](const auto& kernels) { return TestName(*kernels.param); });

}  // namespace
}  // namespace oscarkv::testing
