// What every page codec keeps, whatever processor it runs on and whatever the engine's layout.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "kernels/base/checksum.h"
#include "kernels/codec/page_codec.h"
#include "tests/codec/codec_testing.h"
#include "tests/codec/engine_cache.h"
#include "tests/codec/page_testing.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr uint32_t kSlots = 24;
constexpr EngineLayout kLayouts[] = {EngineLayout::kTokenMajor, EngineLayout::kNhd,
                                     EngineLayout::kHnd};

Geometry SmallGeometry() {
  return {.layers = 3,
          .kv_heads = 2,
          .k_head_dim = 64,
          .v_head_dim = 48,
          .page_tokens = 5,
          .dtype = DType::kBf16};
}

CodecSpec SmallSpec() {
  CodecSpec spec;
  spec.bits = {{.k = 2, .v = 2}, {.k = 4, .v = 2}, {.k = 2, .v = 4}};
  spec.group = 16;
  return spec;
}

const std::vector<int64_t> kSomeSlots = {7, 2, 19, 3, 11};

class PageCodecContract : public ::testing::TestWithParam<CodecBackend> {
 protected:
  std::unique_ptr<PageCodec> Codec(const Geometry& geometry, const CodecSpec& spec,
                                   std::shared_ptr<const TransformSet> set) const {
    auto codec = MakePageCodec(GetParam(), geometry, spec, std::move(set));
    EXPECT_OK(codec);
    return *std::move(codec);
  }
  std::unique_ptr<PageCodec> SmallCodec() const {
    return Codec(SmallGeometry(), SmallSpec(), RotationSet(SmallGeometry(), 0.9f));
  }
};

TEST_P(PageCodecContract, EveryLayoutGivesTheSamePage) {
  const auto codec = SmallCodec();
  for (Encoding encoding : {Encoding::kWide, Encoding::kPacked}) {
    std::vector<EncodedPage> pages;
    for (EngineLayout layout : kLayouts) {
      EngineCache cache(layout, SmallGeometry(), DType::kBf16, kSlots);
      cache.FillGaussian(1);
      pages.push_back(EncodePage(*codec, encoding, cache, kSomeSlots));
      EXPECT_EQ(pages.back().report.rows, 2u * 3 * 2 * 5);
    }
    EXPECT_EQ(pages[0].bytes, pages[1].bytes);
    EXPECT_EQ(pages[0].bytes, pages[2].bytes);
    EXPECT_EQ(pages[0].crcs, pages[2].crcs);
  }
}

TEST_P(PageCodecContract, AWidePageIsTheEnginesRowsBlockByBlock) {
  const auto codec = SmallCodec();
  EngineCache cache(EngineLayout::kNhd, SmallGeometry(), DType::kBf16, kSlots);
  cache.FillGaussian(2);
  const EncodedPage page = EncodePage(*codec, Encoding::kWide, cache, kSomeSlots);
  Bytes expected;
  for (uint32_t layer = 0; layer < 3; ++layer) {
    for (uint32_t head = 0; head < 2; ++head) {
      Bytes block;
      for (KvSide side : {KvSide::kK, KvSide::kV}) {
        for (int64_t slot : kSomeSlots) {
          const auto row = cache.Row(side, layer, head, slot);
          block.insert(block.end(), row.begin(), row.end());
        }
      }
      EXPECT_EQ(page.crcs[layer * 2 + head], Crc32c(block));
      block.resize((block.size() + 63) / 64 * 64);
      expected.insert(expected.end(), block.begin(), block.end());
    }
  }
  EXPECT_EQ(page.bytes, expected);
}

TEST_P(PageCodecContract, APackedPageIsTheReferencesRowsBlockByBlock) {
  // An identity transform, so that the bytes are exact.
  const auto codec = Codec(SmallGeometry(), SmallSpec(), IdentitySet(SmallGeometry(), 0.9f, 0.8f));
  EngineCache cache(EngineLayout::kHnd, SmallGeometry(), DType::kBf16, kSlots);
  cache.FillGaussian(3);
  const EncodedPage page = EncodePage(*codec, Encoding::kPacked, cache, kSomeSlots);
  Bytes expected;
  for (uint32_t layer = 0; layer < 3; ++layer) {
    for (uint32_t head = 0; head < 2; ++head) {
      Bytes block;
      for (KvSide side : {KvSide::kK, KvSide::kV}) {
        const bool is_k = side == KvSide::kK;
        Bytes rows;
        for (int64_t slot : kSomeSlots) {
          const auto row = cache.Row(side, layer, head, slot);
          rows.insert(rows.end(), row.begin(), row.end());
        }
        const LayerBits bits = SmallSpec().bits[layer];
        const RowFormat format = Format(is_k ? 64 : 48, is_k ? bits.k : bits.v, 16,
                                        ParamsDType::kFp16, is_k ? 0.9f : 0.8f);
        const Encoded encoded = Encode(ReferenceRowKernels(), format, nullptr, DType::kBf16, rows);
        block.insert(block.end(), encoded.codes.begin(), encoded.codes.end());
        block.insert(block.end(), encoded.params.begin(), encoded.params.end());
      }
      EXPECT_EQ(page.crcs[layer * 2 + head], Crc32c(block));
      block.resize((block.size() + 63) / 64 * 64);
      expected.insert(expected.end(), block.begin(), block.end());
    }
  }
  EXPECT_EQ(page.bytes, expected);
}

TEST_P(PageCodecContract, WidePagesComeBackBitForBitInEveryLayout) {
  const auto codec = SmallCodec();
  EngineCache source(EngineLayout::kTokenMajor, SmallGeometry(), DType::kBf16, kSlots);
  source.FillGaussian(4);
  source.Row(KvSide::kK, 0, 0, 7)[1] = std::byte{0xff};  // a NaN with a payload
  source.Row(KvSide::kK, 0, 0, 7)[0] = std::byte{0x93};
  const EncodedPage page = EncodePage(*codec, Encoding::kWide, source, kSomeSlots);
  for (EngineLayout layout : kLayouts) {
    SCOPED_TRACE(LayoutName(layout));
    EngineCache cache(layout, SmallGeometry(), DType::kBf16, kSlots);
    ASSERT_OK(
        DecodePage(*codec, Encoding::kWide, page, DecodeBasis::kModel, cache, {0, 9, 1, 20, 5}));
    const std::vector<int64_t> there = {0, 9, 1, 20, 5};
    for (size_t token = 0; token < 5; ++token) {
      for (uint32_t block = 0; block < 6; ++block) {
        for (KvSide side : {KvSide::kK, KvSide::kV}) {
          const auto a = source.Row(side, block / 2, block % 2, kSomeSlots[token]);
          const auto b = cache.Row(side, block / 2, block % 2, there[token]);
          ASSERT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end()));
        }
      }
    }
  }
}

TEST_P(PageCodecContract, DecodeWritesItsSlotsAndNothingElse) {
  const auto codec = SmallCodec();
  EngineCache source(EngineLayout::kTokenMajor, SmallGeometry(), DType::kBf16, kSlots);
  source.FillGaussian(5);
  for (Encoding encoding : {Encoding::kWide, Encoding::kPacked}) {
    const EncodedPage page = EncodePage(*codec, encoding, source, kSomeSlots);
    for (EngineLayout layout : kLayouts) {
      SCOPED_TRACE(LayoutName(layout));
      EngineCache whole(layout, SmallGeometry(), DType::kBf16, kSlots);
      ASSERT_OK(DecodePage(*codec, encoding, page, DecodeBasis::kModel, whole, {4, 5, 6, 7, 8}));
      EngineCache part(layout, SmallGeometry(), DType::kBf16, kSlots);
      const EngineCache untouched(layout, SmallGeometry(), DType::kBf16, kSlots);
      // Tokens 1 and 4 are left out.
      ASSERT_OK(DecodePage(*codec, encoding, page, DecodeBasis::kModel, part, {4, -1, 6, 7, -1}));
      for (uint32_t block = 0; block < 6; ++block) {
        for (KvSide side : {KvSide::kK, KvSide::kV}) {
          for (int64_t slot = 0; slot < kSlots; ++slot) {
            const bool written = slot == 4 || slot == 6 || slot == 7;
            const auto found = part.Row(side, block / 2, block % 2, slot);
            const auto expected = whole.Row(side, block / 2, block % 2, slot);
            if (written) {
              ASSERT_TRUE(std::equal(found.begin(), found.end(), expected.begin()));
            }
            // The pattern that was there before.
            ASSERT_NE(written, std::all_of(found.begin(), found.end(),
                                           [](std::byte b) { return b == std::byte{0xc3}; }));
          }
        }
      }
      ASSERT_OK(
          DecodePage(*codec, encoding, page, DecodeBasis::kModel, part, {-1, -1, -1, -1, -1}));
      EngineCache nothing(layout, SmallGeometry(), DType::kBf16, kSlots);
      ASSERT_OK(DecodePage(*codec, encoding, page, DecodeBasis::kModel, nothing,
                           std::vector<int64_t>(5, -1)));
      EXPECT_EQ(nothing.memory(), untouched.memory());
    }
  }
}

TEST_P(PageCodecContract, APartOfAPageDecodesToThatPartOfTheCache) {
  const auto codec = SmallCodec();
  EngineCache source(EngineLayout::kTokenMajor, SmallGeometry(), DType::kBf16, kSlots);
  source.FillGaussian(6);
  const std::vector<int64_t> slots = {0, 1, 2, 3, 4};
  for (Encoding encoding : {Encoding::kWide, Encoding::kPacked}) {
    const EncodedPage page = EncodePage(*codec, encoding, source, kSomeSlots);
    EngineCache whole(EngineLayout::kNhd, SmallGeometry(), DType::kBf16, kSlots);
    ASSERT_OK(DecodePage(*codec, encoding, page, DecodeBasis::kModel, whole, slots));
    const PageLayout& layout = codec->layout(encoding);
    for (BlockRange layers : {BlockRange{0, 3}, BlockRange{1, 1}, BlockRange{1, 2}}) {
      for (BlockRange heads : {BlockRange{0, 2}, BlockRange{0, 1}, BlockRange{1, 1}}) {
        const EncodedPage part = CutPart(layout, page, layers, heads);
        EngineCache cache(EngineLayout::kNhd, SmallGeometry(), DType::kBf16, kSlots);
        DecodeItem item{.encoding = encoding,
                        .layers = layers,
                        .heads = heads,
                        .slots = slots,
                        .bytes = part.bytes,
                        .block_crc32c = part.crcs,
                        .result = {}};
        ASSERT_OK(codec->Decode({&item, 1}, DecodeBasis::kModel, cache.View()));
        ASSERT_OK(item.result);
        const EngineCache untouched(EngineLayout::kNhd, SmallGeometry(), DType::kBf16, kSlots);
        for (uint32_t layer = 0; layer < 3; ++layer) {
          if (layer < layers.first || layer >= layers.first + layers.count) {
            EXPECT_EQ(cache.memory()[layer], untouched.memory()[layer]);
            continue;
          }
          for (uint32_t head = 0; head < 2; ++head) {
            const bool inside = head >= heads.first && head < heads.first + heads.count;
            const auto found = cache.Row(KvSide::kV, layer, head, 3);
            const auto expected = whole.Row(KvSide::kV, layer, head, 3);
            EXPECT_EQ(inside, std::equal(found.begin(), found.end(), expected.begin()));
          }
        }
      }
    }
  }
}

TEST_P(PageCodecContract, ADamagedBlockIsNamedAndItsPageWritesNothing) {
  const auto codec = SmallCodec();
  EngineCache source(EngineLayout::kTokenMajor, SmallGeometry(), DType::kBf16, kSlots);
  source.FillGaussian(7);
  for (Encoding encoding : {Encoding::kWide, Encoding::kPacked}) {
    const EncodedPage good = EncodePage(*codec, encoding, source, kSomeSlots);
    EncodedPage bad = good;
    const PageLayout& layout = codec->layout(encoding);
    // The last byte of content of the last but one block.
    bad.bytes[layout.block_offset(2, 0) + layout.block(2).bytes - 1] ^= std::byte{0x10};
    const std::vector<int64_t> slots = {0, 1, 2, 3, 4};
    std::vector<DecodeItem> items(2);
    for (size_t i = 0; i < 2; ++i) {
      items[i] = {.encoding = encoding,
                  .layers = {0, 3},
                  .heads = {0, 2},
                  .slots = slots,
                  .bytes = i == 0 ? bad.bytes : good.bytes,
                  .block_crc32c = good.crcs,
                  .result = {}};
    }
    EngineCache cache(EngineLayout::kNhd, SmallGeometry(), DType::kBf16, kSlots);
    const EngineCache untouched(EngineLayout::kNhd, SmallGeometry(), DType::kBf16, kSlots);
    ASSERT_OK(codec->Decode({items.data(), 1}, DecodeBasis::kModel, cache.View()));
    EXPECT_THAT(items[0].result,
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("layer 2, head 0")));
    EXPECT_EQ(cache.memory(), untouched.memory());
    // Its neighbour in the same call is not held up.
    ASSERT_OK(codec->Decode(items, DecodeBasis::kModel, cache.View()));
    EXPECT_FALSE(items[0].result.ok());
    EXPECT_OK(items[1].result);
    EXPECT_NE(cache.memory(), untouched.memory());
  }
}

TEST_P(PageCodecContract, DamageToThePaddingIsNoDamage) {
  const auto codec = SmallCodec();
  EngineCache source(EngineLayout::kTokenMajor, SmallGeometry(), DType::kBf16, kSlots);
  source.FillGaussian(8);
  EncodedPage page = EncodePage(*codec, Encoding::kPacked, source, kSomeSlots);
  const BlockLayout& block = codec->layout(Encoding::kPacked).block(0);
  ASSERT_LT(block.bytes, block.stride);
  for (uint64_t i = block.bytes; i < block.stride; ++i) {
    EXPECT_EQ(page.bytes[i], std::byte{0}) << "padding is written as zero";
    page.bytes[i] = std::byte{0xff};
  }
  EngineCache cache(EngineLayout::kNhd, SmallGeometry(), DType::kBf16, kSlots);
  EXPECT_OK(DecodePage(*codec, Encoding::kPacked, page, DecodeBasis::kModel, cache, kSomeSlots));
}

TEST_P(PageCodecContract, WideRowsAreRoundedToTheNamespacesDtypeAndBackToTheEngines) {
  const auto codec = SmallCodec();
  EngineCache source(EngineLayout::kTokenMajor, SmallGeometry(), DType::kFp32, kSlots);
  source.FillGaussian(9);
  const EncodedPage page = EncodePage(*codec, Encoding::kWide, source, kSomeSlots);
  for (DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    EngineCache cache(EngineLayout::kHnd, SmallGeometry(), dtype, kSlots);
    ASSERT_OK(DecodePage(*codec, Encoding::kWide, page, DecodeBasis::kModel, cache, kSomeSlots));
    for (int64_t slot : kSomeSlots) {
      const std::vector<float> exact = source.Read(KvSide::kK, 1, 1, slot);
      const std::vector<float> found = cache.Read(KvSide::kK, 1, 1, slot);
      for (size_t i = 0; i < exact.size(); ++i) {
        const float once = Bf16ToFloat(FloatToBf16(exact[i]));
        ASSERT_EQ(found[i], dtype == DType::kFp16 ? Fp16ToFloat(FloatToFp16(once)) : once);
      }
    }
  }
}

TEST_P(PageCodecContract, PackedRowsAreQuantisedFromTheEnginesOwnPrecision) {
  // Values that bf16 cannot tell apart.
  const auto codec = Codec(SmallGeometry(), SmallSpec(), IdentitySet(SmallGeometry(), 0.0f, 0.0f));
  EngineCache source(EngineLayout::kTokenMajor, SmallGeometry(), DType::kFp32, kSlots);
  std::vector<float> row(64);
  for (size_t i = 0; i < 64; ++i) row[i] = 1.0f + static_cast<float>(i % 4) * 0x1p-10f;
  for (uint32_t slot = 0; slot < kSlots; ++slot) {
    for (uint32_t block = 0; block < 6; ++block) {
      source.Write(KvSide::kK, block / 2, block % 2, slot, row);
      source.Write(KvSide::kV, block / 2, block % 2, slot, std::span(row).first(48));
    }
  }
  const EncodedPage page = EncodePage(*codec, Encoding::kPacked, source, kSomeSlots);
  EXPECT_EQ(page.bytes[0], std::byte{0x00});  // dims 0, 16, 32, 48: all of them the least
  EXPECT_EQ(page.bytes[1], std::byte{0x55});
  EXPECT_EQ(page.bytes[3], std::byte{0xff});
}

TEST_P(PageCodecContract, DegenerateRowsAreCountedAndTouchNoOtherRow) {
  // Without offsets, so that a row of zeros stays one.
  const auto codec = Codec(SmallGeometry(), SmallSpec(), RotationSet(SmallGeometry(), 0.0f));
  EngineCache clean(EngineLayout::kTokenMajor, SmallGeometry(), DType::kFp32, kSlots);
  EngineCache dirty(EngineLayout::kTokenMajor, SmallGeometry(), DType::kFp32, kSlots);
  clean.FillGaussian(10);
  dirty.FillGaussian(10);
  std::vector<float> row = dirty.Read(KvSide::kK, 0, 1, kSomeSlots[1]);
  row[17] = std::numeric_limits<float>::quiet_NaN();
  dirty.Write(KvSide::kK, 0, 1, kSomeSlots[1], row);
  row.assign(64, 0.0f);
  dirty.Write(KvSide::kK, 1, 0, kSomeSlots[2], row);  // constant in any linear basis
  row.assign(48, 3e7f);
  dirty.Write(KvSide::kV, 2, 1, kSomeSlots[3], row);  // beyond fp16's params
  const EncodedPage a = EncodePage(*codec, Encoding::kPacked, clean, kSomeSlots);
  const EncodedPage b = EncodePage(*codec, Encoding::kPacked, dirty, kSomeSlots);
  EXPECT_EQ(b.report.nonfinite_rows, 1u);
  EXPECT_EQ(b.report.constant_rows, 1u);
  EXPECT_EQ(b.report.overflow_rows, 1u);
  EXPECT_EQ(a.report.nonfinite_rows + a.report.constant_rows + a.report.overflow_rows, 0u);
  EngineCache from_a(EngineLayout::kNhd, SmallGeometry(), DType::kFp32, kSlots);
  EngineCache from_b(EngineLayout::kNhd, SmallGeometry(), DType::kFp32, kSlots);
  ASSERT_OK(DecodePage(*codec, Encoding::kPacked, a, DecodeBasis::kModel, from_a, kSomeSlots));
  ASSERT_OK(DecodePage(*codec, Encoding::kPacked, b, DecodeBasis::kModel, from_b, kSomeSlots));
  for (size_t token = 0; token < 5; ++token) {
    for (uint32_t block = 0; block < 6; ++block) {
      const int64_t slot = kSomeSlots[token];
      const auto k_a = from_a.Read(KvSide::kK, block / 2, block % 2, slot);
      const auto k_b = from_b.Read(KvSide::kK, block / 2, block % 2, slot);
      if (block == 1 && token == 1) {
        EXPECT_TRUE(std::all_of(k_b.begin(), k_b.end(), [](float x) { return std::isnan(x); }));
      } else if (block == 2 && token == 2) {
        EXPECT_EQ(k_b, std::vector<float>(64, 0.0f));
      } else {
        EXPECT_EQ(k_a, k_b);
      }
    }
  }
}

TEST_P(PageCodecContract, WhatWasInTheBufferDoesNotShow) {
  const auto codec = SmallCodec();
  EngineCache source(EngineLayout::kTokenMajor, SmallGeometry(), DType::kBf16, kSlots);
  source.FillGaussian(11);
  for (Encoding encoding : {Encoding::kWide, Encoding::kPacked}) {
    EXPECT_EQ(EncodePage(*codec, encoding, source, kSomeSlots, std::byte{0}).bytes,
              EncodePage(*codec, encoding, source, kSomeSlots, std::byte{0xff}).bytes);
  }
}

TEST_P(PageCodecContract, APageDecodesIntoAWidePageAndFromThereIntoTheCache) {
  const auto codec = SmallCodec();
  EngineCache source(EngineLayout::kTokenMajor, SmallGeometry(), DType::kBf16, kSlots);
  source.FillGaussian(12);
  const EncodedPage packed = EncodePage(*codec, Encoding::kPacked, source, kSomeSlots);
  EngineCache direct(EngineLayout::kNhd, SmallGeometry(), DType::kBf16, kSlots);
  ASSERT_OK(DecodePage(*codec, Encoding::kPacked, packed, DecodeBasis::kModel, direct, kSomeSlots));

  const PageLayout& wide = codec->layout(Encoding::kWide);
  EncodedPage between{Bytes(wide.page_bytes()), {}, {}};
  std::vector<std::byte*> bases(6);
  std::vector<int64_t> tokens(5);
  std::iota(tokens.begin(), tokens.end(), 0);
  DecodeItem item = WholeItem(*codec, Encoding::kPacked, packed, tokens);
  ASSERT_OK(
      codec->Decode({&item, 1}, DecodeBasis::kModel, WidePageView(wide, between.bytes, bases)));
  ASSERT_OK(item.result);
  for (uint32_t block = 0; block < 6; ++block) {
    between.crcs.push_back(
        Crc32c(ByteView(between.bytes)
                   .subspan(wide.block_offset(block / 2, block % 2), wide.block(block / 2).bytes)));
  }
  EngineCache there(EngineLayout::kNhd, SmallGeometry(), DType::kBf16, kSlots);
  ASSERT_OK(DecodePage(*codec, Encoding::kWide, between, DecodeBasis::kModel, there, kSomeSlots));
  EXPECT_EQ(there.memory(), direct.memory());
}

TEST_P(PageCodecContract, WrongArgumentsAreNamedWithWhatWasExpectedAndFound) {
  const auto codec = SmallCodec();
  EngineCache cache(EngineLayout::kNhd, SmallGeometry(), DType::kBf16, kSlots);
  cache.FillGaussian(13);
  const EncodedPage page = EncodePage(*codec, Encoding::kPacked, cache, kSomeSlots);
  const std::vector<Bytes> before = cache.memory();
  const EngineView view = cache.View();
  std::vector<DecodeItem> items(2, WholeItem(*codec, Encoding::kPacked, page, kSomeSlots));
  const auto decode = [&](const DecodeItem& wrong) {
    items[1] = wrong;
    return codec->Decode(items, DecodeBasis::kModel, view);
  };
  const auto expect = [&](const absl::Status& status, const char* a, const char* b) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument,
                                 AllOf(HasSubstr("item 1"), HasSubstr(a), HasSubstr(b))));
    EXPECT_EQ(cache.memory(), before) << "nothing may be written";
  };
  const DecodeItem right = items[0];
  DecodeItem wrong = right;
  wrong.bytes = wrong.bytes.first(wrong.bytes.size() - 1);
  expect(decode(wrong), absl::StrCat("bytes must be ", page.bytes.size()).c_str(),
         absl::StrCat("found ", page.bytes.size() - 1).c_str());
  wrong = right;
  wrong.block_crc32c = wrong.block_crc32c.first(5);
  expect(decode(wrong), "checksums must be 6", "found 5");
  wrong = right;
  wrong.layers = {1, 3};
  expect(decode(wrong), "layers from 1, 3 of them", "0..2");
  wrong = right;
  wrong.heads = {0, 0xffffffffu};
  expect(decode(wrong), "heads from 0", "0..1");
  wrong = right;
  wrong.heads = {0, 0};
  expect(decode(wrong), "heads from 0, 0 of them", "0..1");
  wrong = right;
  wrong.slots = wrong.slots.first(4);
  expect(decode(wrong), "slots must be 5", "found 4");
  for (int64_t slot : {int64_t{-2}, int64_t{kSlots}}) {
    std::vector<int64_t> slots = kSomeSlots;
    slots[3] = slot;
    wrong = right;
    wrong.slots = slots;
    expect(decode(wrong), "slot of token 3 must be -1..23", absl::StrCat("found ", slot).c_str());
  }
  items[1] = right;
  EngineView bad = view;
  bad.v.layer_base = bad.v.layer_base.first(2);
  EXPECT_THAT(codec->Decode(items, DecodeBasis::kModel, bad),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("engine view, V"), HasSubstr("must be 3, found 2"))));
  bad = view;
  bad.block_tokens = 0;
  EXPECT_THAT(codec->Decode(items, DecodeBasis::kModel, bad),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("block_tokens")));
}

TEST_P(PageCodecContract, EncodeRefusesWrongSizesAndWritesNothing) {
  const auto codec = SmallCodec();
  EngineCache cache(EngineLayout::kNhd, SmallGeometry(), DType::kBf16, kSlots);
  const PageLayout& layout = codec->layout(Encoding::kPacked);
  Bytes bytes(layout.page_bytes() + 1, std::byte{0x77});
  std::vector<uint32_t> crcs(6, 0x77);
  const EncodeItem right{.encoding = Encoding::kPacked,
                         .slots = kSomeSlots,
                         .page = MutableByteView(bytes).first(layout.page_bytes()),
                         .block_crc32c = crcs};
  std::vector<EncodeItem> items = {right, right};
  const auto expect = [&](const char* what) {
    EXPECT_THAT(
        codec->Encode(cache.View(), items, nullptr),
        StatusIs(absl::StatusCode::kInvalidArgument, AllOf(HasSubstr("item 1"), HasSubstr(what))));
    EXPECT_EQ(bytes, Bytes(layout.page_bytes() + 1, std::byte{0x77}));
    EXPECT_EQ(crcs, std::vector<uint32_t>(6, 0x77));
  };
  items[1].page = bytes;
  expect("page bytes must be");
  items[1] = right;
  items[1].block_crc32c = std::span(crcs).first(1);
  expect("block checksums must be 6, found 1");
  items[1] = right;
  std::vector<int64_t> slots = kSomeSlots;
  slots[0] = -1;  // an encoder leaves no token out
  items[1].slots = slots;
  expect("slot of token 0 must be 0..23, found -1");
}

TEST_P(PageCodecContract, WithoutATransformSetThereAreWidePagesOnly) {
  const auto codec = Codec(SmallGeometry(), SmallSpec(), nullptr);
  EXPECT_FALSE(codec->can_pack());
  EngineCache cache(EngineLayout::kNhd, SmallGeometry(), DType::kBf16, kSlots);
  cache.FillGaussian(14);
  const EncodedPage wide = EncodePage(*codec, Encoding::kWide, cache, kSomeSlots);
  EXPECT_OK(DecodePage(*codec, Encoding::kWide, wide, DecodeBasis::kModel, cache, kSomeSlots));
  const auto packs = SmallCodec();
  EncodedPage packed = EncodePage(*packs, Encoding::kPacked, cache, kSomeSlots);
  EXPECT_THAT(DecodePage(*codec, Encoding::kPacked, packed, DecodeBasis::kModel, cache, kSomeSlots),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("needs a transform set")));
  const EncodeItem item{.encoding = Encoding::kPacked,
                        .slots = kSomeSlots,
                        .page = packed.bytes,
                        .block_crc32c = packed.crcs};
  EXPECT_THAT(codec->Encode(cache.View(), {&item, 1}, nullptr),
              StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_P(PageCodecContract, ATransformSetOfAnotherShapeIsRefusedNamingBoth) {
  Geometry other = SmallGeometry();
  other.layers = 4;
  EXPECT_THAT(
      MakePageCodec(GetParam(), SmallGeometry(), SmallSpec(), IdentitySet(other, 0.0f, 0.0f)),
      StatusIs(absl::StatusCode::kFailedPrecondition,
               AllOf(HasSubstr("4 layers"), HasSubstr("the geometry has 3"))));
}

INSTANTIATE_TEST_SUITE_P(Backends, PageCodecContract,
                         ::testing::Values(CodecBackend::kReference, CodecBackend::kCpu),
                         [](const auto& backend) {
                           return backend.param == CodecBackend::kReference ? "reference" : "cpu";
                         });

}  // namespace
}  // namespace oscarkv::testing
