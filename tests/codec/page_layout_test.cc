#include "kernels/codec/page_layout.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "tests/support/status_matchers.h"

namespace oscarkv {
namespace {

using ::oscarkv::testing::StatusIs;
using ::testing::HasSubstr;

PageLayout Layout(const Geometry& geometry, const CodecSpec& spec, Encoding encoding) {
  auto layout = PageLayout::Create(geometry, spec, encoding);
  EXPECT_OK(layout);
  return *std::move(layout);
}

Geometry EightHeads(uint32_t page_tokens) {
  return {.layers = 36,
          .kv_heads = 8,
          .k_head_dim = 128,
          .v_head_dim = 128,
          .page_tokens = page_tokens};
}

TEST(PageLayoutTest, BytesOfATokensKAndVByGroupAndParams) {
  struct Case {
    uint32_t group;
    uint64_t with_fp32;
    uint64_t with_fp16;
  };
  for (const Case& c : {Case{0, 80, 72}, {64, 96, 80}, {32, 128, 96}, {16, 192, 128}}) {
    CodecSpec spec;
    spec.group = c.group;
    spec.params = ParamsDType::kFp32;
    EXPECT_EQ(Layout(EightHeads(8), spec, Encoding::kPacked).block(0).bytes, 8 * c.with_fp32);
    spec.params = ParamsDType::kFp16;
    EXPECT_EQ(Layout(EightHeads(8), spec, Encoding::kPacked).block(0).bytes, 8 * c.with_fp16);
  }
}

TEST(PageLayoutTest, APageOfThirtySixLayersAndEightHeads) {
  CodecSpec spec;
  EXPECT_EQ(Layout(EightHeads(8), spec, Encoding::kPacked).page_bytes(), 165'888u);
  spec.params = ParamsDType::kFp32;
  EXPECT_EQ(Layout(EightHeads(8), spec, Encoding::kPacked).page_bytes(), 184'320u);
  EXPECT_EQ(Layout(EightHeads(8), spec, Encoding::kWide).page_bytes(), 8u * 36 * 8 * 2 * 256);
}

// Bits an element over a context whose sinks and recent tokens are WIDE, from the layouts.
double BitsPerElement(uint64_t context, uint64_t wide_tokens, ParamsDType params) {
  CodecSpec spec;
  spec.params = params;
  const Geometry geometry = EightHeads(64);
  const auto page = [&](Encoding encoding) {
    return static_cast<double>(Layout(geometry, spec, encoding).page_bytes());
  };
  const double wide_pages = static_cast<double>(wide_tokens) / 64.0;
  const double pages = static_cast<double>(context) / 64.0;
  const double bytes =
      wide_pages * page(Encoding::kWide) + (pages - wide_pages) * page(Encoding::kPacked);
  return bytes * 8.0 / (static_cast<double>(context) * 36 * 8 * 256);
}

TEST(PageLayoutTest, BitsPerElementOfLongContexts) {
  constexpr uint64_t k = 1024;
  EXPECT_NEAR(BitsPerElement(128 * k, 320, ParamsDType::kFp16), 2.284, 0.0005);
  EXPECT_NEAR(BitsPerElement(128 * k, 320, ParamsDType::kFp32), 2.533, 0.0005);
  EXPECT_NEAR(BitsPerElement(32 * k, 320, ParamsDType::kFp16), 2.384, 0.0005);
  EXPECT_NEAR(BitsPerElement(32 * k, 320, ParamsDType::kFp32), 2.63, 0.005);
  EXPECT_NEAR(BitsPerElement(4 * k, 320, ParamsDType::kFp16), 3.32, 0.005);
}

TEST(PageLayoutTest, PartsFollowEachOtherWithoutGaps) {
  CodecSpec spec;
  spec.bits = {{.k = 2, .v = 4}};
  spec.group = 16;
  const Geometry geometry{
      .layers = 1, .kv_heads = 3, .k_head_dim = 64, .v_head_dim = 48, .page_tokens = 5};
  const PageLayout layout = Layout(geometry, spec, Encoding::kPacked);
  const BlockLayout& block = layout.block(0);
  EXPECT_EQ(block.k.rows_offset, 0u);
  EXPECT_EQ(block.k.row_bytes, 16u);
  EXPECT_EQ(block.k.params_offset, 5u * 16);
  EXPECT_EQ(block.k.params_row_bytes, 4u * 2 * 2);
  EXPECT_EQ(block.v.rows_offset, 5u * (16 + 16));
  EXPECT_EQ(block.v.row_bytes, 24u);
  EXPECT_EQ(block.v.params_offset, 5u * (32 + 24));
  EXPECT_EQ(block.v.params_row_bytes, 3u * 2 * 2);
  EXPECT_EQ(block.bytes, 5u * (32 + 24 + 12));
  EXPECT_EQ(block.stride, 384u);
  EXPECT_EQ(layout.block_offset(0, 2), 768u);
  EXPECT_EQ(layout.page_bytes(), 3u * 384);
}

TEST(PageLayoutTest, BitsThatDifferByLayerMoveTheLayersBehind) {
  CodecSpec spec;
  spec.bits = {{.k = 2, .v = 2}, {.k = 4, .v = 2}, {.k = 4, .v = 4}};
  Geometry geometry = EightHeads(16);
  geometry.layers = 3;
  const PageLayout layout = Layout(geometry, spec, Encoding::kPacked);
  const uint64_t two = uint64_t{16} * (32 + 4);  // of one side
  const uint64_t four = uint64_t{16} * (64 + 4);
  EXPECT_EQ(layout.block(0).bytes, two + two);
  EXPECT_EQ(layout.block(1).bytes, four + two);
  EXPECT_EQ(layout.block(2).bytes, four + four);
  for (uint32_t layer = 0; layer < 3; ++layer) {
    EXPECT_EQ(layout.block_offset(layer, 0) % kBlockAlignment, 0u);
    EXPECT_EQ(layout.block(layer).stride % kBlockAlignment, 0u);
    EXPECT_LT(layout.block(layer).stride - layout.block(layer).bytes, kBlockAlignment);
  }
  EXPECT_EQ(layout.block_offset(2, 1),
            8 * (layout.block(0).stride + layout.block(1).stride) + layout.block(2).stride);
}

TEST(PageLayoutTest, ARangesBytesAreThoseOfItsBlocks) {
  CodecSpec spec;
  spec.bits = {{.k = 2, .v = 2}, {.k = 4, .v = 2}, {.k = 4, .v = 4}};
  Geometry geometry = EightHeads(16);
  geometry.layers = 3;
  const PageLayout layout = Layout(geometry, spec, Encoding::kPacked);
  EXPECT_EQ(layout.range_bytes({0, 3}, {0, 8}), layout.page_bytes());
  EXPECT_EQ(layout.range_bytes({1, 1}, {0, 8}),
            layout.block_offset(2, 0) - layout.block_offset(1, 0));
  EXPECT_EQ(layout.range_bytes({1, 2}, {3, 2}),
            2 * (layout.block(1).stride + layout.block(2).stride));
}

TEST(PageLayoutTest, WideBlocksHoldTheModelsDtype) {
  for (DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    Geometry geometry = EightHeads(3);
    geometry.v_head_dim = 80;
    geometry.dtype = dtype;
    const PageLayout layout = Layout(geometry, CodecSpec{}, Encoding::kWide);
    EXPECT_EQ(layout.block(0).k.row_bytes, 128u * DTypeBytes(dtype));
    EXPECT_EQ(layout.block(0).v.rows_offset, 3u * 128 * DTypeBytes(dtype));
    EXPECT_EQ(layout.block(0).bytes, 3u * 208 * DTypeBytes(dtype));
    EXPECT_EQ(layout.block(0).k.params_row_bytes, 0u);
  }
}

TEST(PageLayoutTest, APageBeyondAGibibyteIsRefused) {
  const Geometry geometry{.layers = 512,
                          .kv_heads = 256,
                          .k_head_dim = 256,
                          .v_head_dim = 256,
                          .page_tokens = 4096,
                          .dtype = DType::kFp32};
  for (Encoding encoding : {Encoding::kWide, Encoding::kPacked}) {
    EXPECT_THAT(PageLayout::Create(geometry, CodecSpec{}, encoding),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("the most is 1073741824")));
  }
}

}  // namespace
}  // namespace oscarkv
