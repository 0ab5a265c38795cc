#include "kernels/base/dtype.h"

#include <cmath>
#include <limits>
#include <random>

#include "gtest/gtest.h"

namespace oscarkv {
namespace {

TEST(DTypeTest, EveryHalfSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const float value = Fp16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(Fp16ToFloat(FloatToFp16(value))));
    } else {
      ASSERT_EQ(FloatToFp16(value), bits);
    }
  }
}

// The half nearest to `value`, ties to even, worked out in exact arithmetic.
double NearestHalf(float value) {
  const double magnitude = std::fabs(static_cast<double>(value));
  if (magnitude >= 65520.0) return std::copysign(HUGE_VAL, value);
  const int exponent = magnitude < std::ldexp(1.0, -14) ? -14 : std::ilogb(magnitude);
  const double quantum = std::ldexp(1.0, exponent - 10);
  return std::copysign(std::nearbyint(magnitude / quantum) * quantum, value);
}

TEST(DTypeTest, HalvesRoundToNearestEven) {
  std::mt19937 random(11);
  for (int i = 0; i < 1000000; ++i) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (std::isnan(value)) continue;
    const double found = static_cast<double>(Fp16ToFloat(FloatToFp16(value)));
    ASSERT_EQ(found, NearestHalf(value)) << value;
    ASSERT_EQ(std::signbit(found), std::signbit(value)) << value;
  }
}

TEST(DTypeTest, Bf16RoundsToNearestEven) {
  EXPECT_EQ(FloatToBf16(1.0f), 0x3f80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // a tie, down to even
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);  // a tie, up to even
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isinf(Bf16ToFloat(FloatToBf16(std::numeric_limits<float>::max()))));
}

TEST(DTypeTest, ParsesItsOwnNamesOnly) {
  EXPECT_EQ(ParseDType("bf16"), DType::kBf16);
  EXPECT_EQ(ParseDType("fp32"), DType::kFp32);
  EXPECT_EQ(ParseDType("int8"), std::nullopt);
}

}  // namespace
}  // namespace oscarkv
