// The disk format: what is encoded is decoded, what is damaged is refused, and FORMAT.md's worked
// example, read out of the document itself, is what is written.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/base/checksum.h"
#include "server/tier/disk/format.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

using ::testing::HasSubstr;
using Block = std::array<std::byte, kDiskBlockBytes>;
using Header = std::array<std::byte, kPageHeaderBytes>;

DiskId SomeId(uint8_t value) {
  DiskId id;
  id.fill(std::byte{value});
  return id;
}

const std::string kFingerprint(32, '\xaa');
const std::string kKey(16, '\xbb');
const std::string kParent(16, '\xcc');

PageHeader ExampleHeader() {
  std::vector<std::byte> body(64);
  for (size_t i = 0; i < body.size(); ++i) body[i] = static_cast<std::byte>(i);
  return {.generation = 7,
          .sequence = 9,
          .first_position = 16,
          .body_bytes = 64,
          .body_crc = Crc32c(body),
          .body_checksum_bytes = 4,
          .record_block = 2,
          .segment = 3,
          .entry = 0,
          .encoding = Encoding::kPacked,
          .removed = false,
          .fingerprint = kFingerprint,
          .key = kKey,
          .parent = kParent};
}
Header Encoded(const PageHeader& header) {
  Header bytes;
  EncodePageHeader(header, bytes);
  return bytes;
}

// The blocks ```hex NAME ... ``` of FORMAT.md, by name, as one line of digits.
std::map<std::string, std::string> ReadExample() {
  std::ifstream file(OSCARKV_SOURCE_DIR "/server/tier/disk/FORMAT.md");
  std::map<std::string, std::string> blocks;
  std::string* open = nullptr;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("```")) {
      open = line.starts_with("```hex ") ? &blocks[line.substr(7)] : nullptr;
    } else if (open != nullptr) {
      for (const char c : line)
        if (c != ' ') *open += c;
    }
  }
  return blocks;
}
std::string Hex(ByteView bytes) {
  std::string text;
  for (const std::byte byte : bytes) {
    char digits[3];
    std::snprintf(digits, sizeof(digits), "%02x", static_cast<unsigned>(byte));
    text += digits;
  }
  return text;
}

TEST(DiskFormatTest, WorkedExampleIsWhatIsWritten) {
  const std::map<std::string, std::string> example = ReadExample();
  Block block;
  EncodeSegmentHeader({.id = SomeId(0x11), .segment = 3, .generation = 7, .segment_bytes = 1 << 20},
                      block);
  EXPECT_EQ(example.at("segment-header"), Hex(ByteView(block).first(64)));
  EXPECT_EQ(example.at("page-header"), Hex(Encoded(ExampleHeader())));
}

TEST(DiskFormatTest, EverythingComesBack) {
  Block block;
  const Superblock superblock{.id = SomeId(1), .segment_bytes = 2 << 20, .owner = "node-7"};
  EncodeSuperblock(superblock, block);
  EXPECT_THAT(DecodeSuperblock(block), IsOkAndHolds(superblock));
  const SegmentHeader segment{
      .id = SomeId(2), .segment = 5, .generation = 1ull << 40, .segment_bytes = 4ull << 30};
  EncodeSegmentHeader(segment, block);
  EXPECT_THAT(DecodeSegmentHeader(block), IsOkAndHolds(segment));
  const SegmentSeal seal{.id = SomeId(3), .segment = 6, .generation = 8, .entries = 1000};
  EncodeSegmentSeal(seal, block);
  EXPECT_THAT(DecodeSegmentSeal(block), IsOkAndHolds(seal));
  PageHeader page = ExampleHeader();
  EXPECT_THAT(DecodePageHeader(Encoded(page)), IsOkAndHolds(page));
  const std::string longest(64, 'k');
  page.key = page.parent = longest;
  page.removed = true;
  page.encoding = Encoding::kWide;
  EXPECT_THAT(DecodePageHeader(Encoded(page)), IsOkAndHolds(page));
  page.parent = {};
  EXPECT_THAT(DecodePageHeader(Encoded(page)), IsOkAndHolds(page));
}

TEST(DiskFormatTest, EveryFlippedBitIsFound) {
  const Header good = Encoded(ExampleHeader());
  for (size_t bit = 0; bit < kPageHeaderBytes * 8; ++bit) {
    Header bad = good;
    bad[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_FALSE(DecodePageHeader(bad).ok()) << "bit " << bit;
  }
  Block block;
  EncodeSegmentSeal({.id = SomeId(3), .segment = 6, .generation = 8, .entries = 10}, block);
  for (size_t bit = 0; bit < kDiskBlockBytes * 8; bit += 7) {
    block[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_FALSE(DecodeSegmentSeal(block).ok()) << "bit " << bit;
    block[bit / 8] ^= std::byte{1} << (bit % 8);
  }
  EXPECT_OK(DecodeSegmentSeal(block));
}

TEST(DiskFormatTest, AnotherVersionIsRefusedNamingBoth) {
  Block block;
  EncodeSuperblock({.id = SomeId(1), .segment_bytes = 1 << 20, .owner = "a"}, block);
  block[8] = std::byte{2};
  EXPECT_THAT(DecodeSuperblock(block),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       "written in version 2 of the format, this program has version 1"));
  Header header = Encoded(ExampleHeader());
  header[60] = std::byte{9};
  EXPECT_THAT(DecodePageHeader(header),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("version 9")));
}

// With a right checksum, so that only the field is wrong.
void ExpectRefused(const std::function<void(Header&)>& spoil) {
  Header bytes = Encoded(ExampleHeader());
  spoil(bytes);
  StoreLe<uint32_t>(&bytes[4], 0);
  StoreLe<uint32_t>(&bytes[4], Crc32c(bytes));
  EXPECT_THAT(DecodePageHeader(bytes),
              StatusIs(absl::StatusCode::kDataLoss, "a field is out of its range"));
}

TEST(DiskFormatTest, FieldsOutOfRangeAreRefused) {
  ExpectRefused([](Header& h) { h[52] = std::byte{15}; });          // key too short
  ExpectRefused([](Header& h) { h[52] = std::byte{65}; });          // too long
  ExpectRefused([](Header& h) { h[53] = std::byte{1}; });           // parent too short
  ExpectRefused([](Header& h) { h[53] = std::byte{255}; });         // too long
  ExpectRefused([](Header& h) { h[54] = std::byte{0}; });           // no such encoding
  ExpectRefused([](Header& h) { h[54] = std::byte{3}; });           // no such encoding
  ExpectRefused([](Header& h) { h[55] = std::byte{2}; });           // unknown flag
  ExpectRefused([](Header& h) { StoreLe<uint32_t>(&h[32], 0); });   // no body
  ExpectRefused([](Header& h) { StoreLe<uint32_t>(&h[56], 65); });  // more checksums than body
}

TEST(DiskFormatTest, RandomBytesAreRefused) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 2000; ++round) {
    Header bytes;
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    if (round % 2 == 0) std::ranges::copy(AsBytes("OKVP"), bytes.begin());
    EXPECT_FALSE(DecodePageHeader(bytes).ok());
  }
}

}  // namespace
}  // namespace oscarkv::testing
