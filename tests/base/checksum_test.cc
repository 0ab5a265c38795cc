#include "kernels/base/checksum.h"

#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace oscarkv {
namespace {

TEST(Crc32cTest, MatchesThePublishedVectors) {
  // RFC 3720, section B.4.
  EXPECT_EQ(Crc32c(AsBytes("123456789")), 0xe3069283u);
  EXPECT_EQ(Crc32c(AsBytes(std::string(32, '\0'))), 0x8a9136aau);
  EXPECT_EQ(Crc32c(AsBytes(std::string(32, '\xff'))), 0x62a8ab43u);
  EXPECT_EQ(Crc32c(ByteView{}), 0u);
}

TEST(Crc32cTest, InstructionAndTableAgreeAtEveryLengthAndAlignment) {
  std::mt19937_64 random(7);
  std::vector<std::byte> bytes(5000);  // more than three of the longest lanes, three times
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  for (size_t start = 0; start < 9; ++start) {
    for (size_t count = 0; count + start <= bytes.size(); count += count < 300 ? 1 : 31) {
      const ByteView view = ByteView(bytes).subspan(start, count);
      ASSERT_EQ(Crc32c(view), Crc32cPortable(view)) << "start " << start << ", count " << count;
    }
  }
}

TEST(Crc32cTest, ContinuesOverParts) {
  const std::string text = "a page travels in parts of any size" + std::string(4000, 'x');
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    const uint32_t first = Crc32c(AsBytes(std::string_view(text).substr(0, cut)));
    EXPECT_EQ(Crc32c(AsBytes(std::string_view(text).substr(cut)), first), Crc32c(AsBytes(text)));
  }
}

}  // namespace
}  // namespace oscarkv
