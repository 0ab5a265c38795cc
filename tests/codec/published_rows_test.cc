// One row with values worked out elsewhere, from the published description of OSCAR: scales, zeros,
// how often each code comes, the first bytes, and a CRC-32 of all of them. The row has no ties, and
// its nearest rounding boundary is 2.9e-3 away, so any correct fp32 implementation gives the same.
#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "gtest/gtest.h"

#include "tests/codec/codec_testing.h"

namespace oscarkv::testing {
namespace {

constexpr uint32_t kDim = 128;

Rows PublishedRow() {
  Rows row{kDim, {}};
  for (uint32_t i = 0; i < kDim; ++i) {
    const double x = (1.0 + i / 64.0) * std::sin(5.7 * i + 2.9) / (1.02 + std::cos(3.99 * i)) + 0.3;
    row.values.push_back(Bf16ToFloat(FloatToBf16(static_cast<float>(x))));
  }
  return row;
}

struct GroupOf {
  float scale;
  float zero;
};

struct Published {
  std::string name;
  float clip_ratio;
  uint32_t group;
  std::vector<GroupOf> groups;      // empty: not published
  std::vector<uint32_t> histogram;  // likewise
  std::string first_bytes;          // hexadecimal
  uint32_t crc;
};

using Histogram = std::vector<uint32_t>;

class PublishedRowTest : public ::testing::TestWithParam<const RowKernels*> {
 protected:
  static void ExpectPublished(const Published& published, const Encoded& encoded) {
    SCOPED_TRACE(published.name);
    const RowFormat format =
        Format(kDim, 2, published.group, ParamsDType::kFp32, published.clip_ratio);
    for (uint32_t group = 0; group < published.groups.size(); ++group) {
      const Pair pair = ParamsOf(format, encoded, 0, group);
      const auto [scale, zero] = published.groups[group];
      EXPECT_NEAR(pair.scale, static_cast<double>(scale), 1e-6 * static_cast<double>(scale));
      EXPECT_NEAR(pair.zero, static_cast<double>(zero), 1e-6 * static_cast<double>(zero));
    }
    if (!published.histogram.empty()) {
      Histogram histogram(4);
      for (uint32_t code : CodesOf(format, encoded, 0)) ++histogram[code];
      EXPECT_EQ(histogram, published.histogram);
    }
    const std::string bytes(AsText(encoded.codes));
    EXPECT_EQ(absl::BytesToHexString(bytes.substr(0, published.first_bytes.size() / 2)),
              published.first_bytes);
    EXPECT_EQ(Crc32(encoded.codes), published.crc);
  }
};

TEST(PublishedRow, IsTheRowThatWasMeant) {
  const Rows row = PublishedRow();
  const std::vector<float> first(row.values.begin(), row.values.begin() + 6);
  EXPECT_EQ(first,
            (std::vector<float>{0.41796875f, 2.375f, 1.4375f, 0.81640625f, 11.375f, 0.2890625f}));
  EXPECT_EQ(*std::min_element(row.values.begin(), row.values.end()), -12.75f);
  EXPECT_EQ(*std::max_element(row.values.begin(), row.values.end()), 115.5f);
  EXPECT_EQ(Crc32(ToBytes(row, DType::kBf16)), 0xb54544aeu);
}

TEST_P(PublishedRowTest, WholeRowWithAndWithoutClip) {
  const Published cases[] = {
      {"no clip", 0.0f, 128, {{42.75f, 0.2982456f}}, {115, 8, 3, 2}, "00000010c104", 0xdc7ca4a1},
      {"0.96",
       0.96f,
       128,
       {{15.166667f, 0.8406593f}},
       {13, 102, 7, 6},
       "55555575d6594514",
       0xb3d2bf48},
      {"0.92", 0.92f, 128, {{8.6666667f, 1.4711538f}}, {3, 60, 52, 13}, "", 0x9d43dfdd}};
  const Bytes row = ToBytes(PublishedRow(), DType::kBf16);
  for (const Published& published : cases) {
    const RowFormat format = Format(kDim, 2, 0, ParamsDType::kFp32, published.clip_ratio);
    ExpectPublished(published, Encode(*GetParam(), format, nullptr, DType::kBf16, row));
  }
}

TEST_P(PublishedRowTest, SmallerGroupsWithTheClipOfTheWholeRow) {
  const Published cases[] = {
      {"0.96, 64", 0.96f, 64, {{11.0f, 1.1590909f}, {13.625f, 0.5963303f}}, {}, "", 0x97138ca8},
      {"0.96, 32", 0.96f, 32, {}, {}, "", 0x69efc830},
      {"0.92, 32", 0.92f, 32, {}, {}, "", 0x443bb4e1}};
  const Bytes row = ToBytes(PublishedRow(), DType::kBf16);
  for (const Published& published : cases) {
    const RowFormat format =
        Format(kDim, 2, published.group, ParamsDType::kFp32, published.clip_ratio);
    ExpectPublished(published, Encode(*GetParam(), format, nullptr, DType::kBf16, row));
  }
}

// The reference engine's other clip rule: seven steps of bisection for the value that
// dim - clip_index magnitudes exceed.
float BisectedThreshold(const Rows& row, uint32_t clip_index) {
  float low = 0.0f;
  float high = 0.0f;
  for (float value : row.values) high = std::max(high, std::fabs(value));
  for (int step = 0; step < 7; ++step) {
    const float middle = (low + high) / 2.0f;
    const auto above = std::count_if(row.values.begin(), row.values.end(),
                                     [&](float value) { return std::fabs(value) > middle; });
    (above > static_cast<std::ptrdiff_t>(kDim - clip_index) ? low : high) = middle;
  }
  return high;
}

TEST_P(PublishedRowTest, TheReferencesBisectionGivesOtherBytesAndIsNotTheRule) {
  const Published cases[] = {
      {"0.96", 0.96f, 128, {{11.16797f, 1.141658f}}, {9, 103, 7, 9}, "", 0xad4852f0},
      {"0.92", 0.92f, 128, {}, {}, "", 0xf2fbc52a}};
  const std::array<float, 2> thresholds = {20.753906f, 13.535156f};
  for (size_t i = 0; i < 2; ++i) {
    Rows row = PublishedRow();
    const float threshold = BisectedThreshold(row, ClipIndex(cases[i].clip_ratio, kDim));
    EXPECT_FLOAT_EQ(threshold, thresholds[i]);
    for (float& value : row.values) value = std::clamp(value, -threshold, threshold);
    const RowFormat unclipped = Format(kDim, 2, 0, ParamsDType::kFp32);
    ExpectPublished(cases[i], Encode(*GetParam(), unclipped, nullptr, DType::kFp32,
                                     ToBytes(row, DType::kFp32)));
    const RowFormat clipped = Format(kDim, 2, 0, ParamsDType::kFp32, cases[i].clip_ratio);
    EXPECT_NE(Crc32(Encode(*GetParam(), clipped, nullptr, DType::kBf16,
                           ToBytes(PublishedRow(), DType::kBf16))
                        .codes),
              cases[i].crc);
  }
}

INSTANTIATE_TEST_SUITE_P(AllKernels, PublishedRowTest, ::testing::ValuesIn(AllKernels()),
                         [](const auto& kernels) { return TestName(*kernels.param); });

}  // namespace
}  // namespace oscarkv::testing
