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

TEST(DTypeTest, HalvesRoundLikeTheCompilersOwn) {
  std::mt19937 random(11);
  for (int i = 0; i < 1000000; ++i) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (std::isnan(value)) continue;
    const _Float16 expected = static_cast<_Float16>(value);
    ASSERT_EQ(FloatToFp16(value), std::bit_cast<uint16_t>(expected)) << value;
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
