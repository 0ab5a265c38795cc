// Pages that move: through other memory, in parts, and between workers that split the heads
// differently. Moves are byte ranges of stored pages, never a re-encoding.
#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/codec/page_codec.h"
#include "tests/codec/codec_testing.h"
#include "tests/codec/engine_cache.h"
#include "tests/codec/page_testing.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

constexpr uint32_t kTokens = 6;
const std::vector<int64_t> kSlots = {0, 1, 2, 3, 4, 5};

Geometry WithHeads(uint32_t heads) {
  return {.layers = 3,
          .kv_heads = heads,
          .k_head_dim = 64,
          .v_head_dim = 64,
          .page_tokens = kTokens,
          .dtype = DType::kBf16};
}

CodecSpec Spec() {
  CodecSpec spec;
  spec.bits = {{.k = 2, .v = 2}, {.k = 4, .v = 2}, {.k = 4, .v = 4}};
  return spec;
}

// The heads first..first + count of a model's caches and transforms: what one worker holds.
struct Shard {
  Shard(const std::shared_ptr<const TransformSet>& model_set, EngineCache& model, uint32_t first,
        uint32_t count)
      : geometry(WithHeads(count)),
        cache(EngineLayout::kTokenMajor, geometry, DType::kBf16, kTokens) {
    std::vector<LayerTransform> layers(3);
    for (uint32_t layer = 0; layer < 3; ++layer) {
      for (uint32_t head = 0; head < count; ++head) {
        layers[layer].k.push_back(model_set->k(layer, first + head));
        layers[layer].v.push_back(model_set->v(layer, first + head));
        for (KvSide side : {KvSide::kK, KvSide::kV}) {
          for (int64_t slot : kSlots) {
            const auto row = model.Row(side, layer, first + head, slot);
            std::copy(row.begin(), row.end(), cache.Row(side, layer, head, slot).begin());
          }
        }
      }
    }
    auto set = TransformSet::Create(std::move(layers), count);
    EXPECT_OK(set);
    auto made = MakePageCodec(CodecBackend::kCpu, geometry, Spec(),
                              std::make_shared<const TransformSet>(*std::move(set)));
    EXPECT_OK(made);
    codec = *std::move(made);
  }

  EncodedPage Page(Encoding encoding) { return EncodePage(*codec, encoding, cache, kSlots); }

  Geometry geometry;
  EngineCache cache;
  std::unique_ptr<PageCodec> codec;
};

class ReshardingTest : public ::testing::TestWithParam<Encoding> {
 protected:
  ReshardingTest() { model_.FillGaussian(21); }
  Shard MakeShard(uint32_t first, uint32_t count) { return Shard(set_, model_, first, count); }

  const std::shared_ptr<const TransformSet> set_ = RotationSet(WithHeads(8), 0.9f);
  EngineCache model_{EngineLayout::kTokenMajor, WithHeads(8), DType::kBf16, kTokens};
};

TEST_P(ReshardingTest, OneWorkersPageSplitsIntoThoseOfTwo) {
  Shard whole = MakeShard(0, 8);
  const EncodedPage page = whole.Page(GetParam());
  for (uint32_t rank = 0; rank < 2; ++rank) {
    const EncodedPage part = CutPart(whole.codec->layout(GetParam()), page, {0, 3}, {rank * 4, 4});
    const EncodedPage expected = MakeShard(rank * 4, 4).Page(GetParam());
    EXPECT_EQ(part.bytes, expected.bytes);
    EXPECT_EQ(part.crcs, expected.crcs);
  }
}

TEST_P(ReshardingTest, TwoWorkersPagesMakeThatOfOneLayerByLayer) {
  Shard ranks[2] = {MakeShard(0, 4), MakeShard(4, 4)};
  const EncodedPage pages[2] = {ranks[0].Page(GetParam()), ranks[1].Page(GetParam())};
  EncodedPage joined;
  for (uint32_t layer = 0; layer < 3; ++layer) {
    for (size_t rank = 0; rank < 2; ++rank) {
      const EncodedPage run =
          CutPart(ranks[rank].codec->layout(GetParam()), pages[rank], {layer, 1}, {0, 4});
      joined.bytes.insert(joined.bytes.end(), run.bytes.begin(), run.bytes.end());
      joined.crcs.insert(joined.crcs.end(), run.crcs.begin(), run.crcs.end());
    }
  }
  const EncodedPage expected = MakeShard(0, 8).Page(GetParam());
  EXPECT_EQ(joined.bytes, expected.bytes);
  EXPECT_EQ(joined.crcs, expected.crcs);
}

TEST_P(ReshardingTest, WorkersThatShareAHeadReadTheSameBlocks) {
  // Four workers of two heads each feed sixteen that hold one head each, every head twice.
  std::deque<Shard> four;
  for (uint32_t rank = 0; rank < 4; ++rank) four.emplace_back(set_, model_, rank * 2, 2u);
  for (uint32_t reader = 0; reader < 16; ++reader) {
    const uint32_t head = reader / 2;
    Shard& owner = four[head / 2];
    const EncodedPage part =
        CutPart(owner.codec->layout(GetParam()), owner.Page(GetParam()), {0, 3}, {head % 2, 1});
    Shard own = MakeShard(head, 1);
    EXPECT_EQ(part.bytes, own.Page(GetParam()).bytes);
    EngineCache cache(EngineLayout::kNhd, own.geometry, DType::kBf16, kTokens);
    EXPECT_OK(DecodePage(*own.codec, GetParam(), part, DecodeBasis::kModel, cache, kSlots));
  }
}

TEST_P(ReshardingTest, PoisonInTheTargetsPaddingDoesNotShow) {
  Shard whole = MakeShard(0, 8);
  const EncodedPage page = whole.Page(GetParam());
  const PageLayout& layout = whole.codec->layout(GetParam());
  EncodedPage moved{Bytes(page.bytes.size(), std::byte{0xdb}), page.crcs, {}};
  for (uint32_t layer = 0; layer < 3; ++layer) {
    for (uint32_t head = 0; head < 8; ++head) {
      const auto at = static_cast<std::ptrdiff_t>(layout.block_offset(layer, head));
      std::copy_n(page.bytes.begin() + at, layout.block(layer).bytes, moved.bytes.begin() + at);
    }
  }
  EngineCache a(EngineLayout::kNhd, whole.geometry, DType::kBf16, kTokens);
  EngineCache b(EngineLayout::kNhd, whole.geometry, DType::kBf16, kTokens);
  ASSERT_OK(DecodePage(*whole.codec, GetParam(), page, DecodeBasis::kModel, a, kSlots));
  ASSERT_OK(DecodePage(*whole.codec, GetParam(), moved, DecodeBasis::kModel, b, kSlots));
  EXPECT_EQ(a.memory(), b.memory());
}

INSTANTIATE_TEST_SUITE_P(Encodings, ReshardingTest,
                         ::testing::Values(Encoding::kWide, Encoding::kPacked),
                         [](const auto& encoding) {
                           return encoding.param == Encoding::kWide ? "wide" : "packed";
                         });

// A page pushed at once after prefill, and one made token by token while decoding and re-encoded
// from its WIDE form, are the same bytes: there is one rule for the clip, whatever the path.
TEST(OneRuleTest, EncodingFromTheEngineAndFromAWidePageGivesTheSameBytes) {
  const Geometry geometry = WithHeads(8);
  const auto set = RotationSet(geometry, 0.9f);
  for (CodecBackend backend : {CodecBackend::kReference, CodecBackend::kCpu}) {
    auto codec = MakePageCodec(backend, geometry, Spec(), set);
    ASSERT_OK(codec);
    EngineCache cache(EngineLayout::kHnd, geometry, DType::kBf16, kTokens);
    cache.FillGaussian(22);
    const EncodedPage direct = EncodePage(**codec, Encoding::kPacked, cache, kSlots);
    EncodedPage wide = EncodePage(**codec, Encoding::kWide, cache, kSlots);
    std::vector<std::byte*> bases(6);
    const EngineView view = WidePageView((*codec)->layout(Encoding::kWide), wide.bytes, bases);
    EncodedPage again{Bytes(direct.bytes.size()), std::vector<uint32_t>(24), {}};
    const EncodeItem item{.encoding = Encoding::kPacked,
                          .slots = kSlots,
                          .page = again.bytes,
                          .block_crc32c = again.crcs};
    ASSERT_OK((*codec)->Encode(view, {&item, 1}, nullptr));
    EXPECT_EQ(again.bytes, direct.bytes);
    EXPECT_EQ(again.crcs, direct.crcs);
  }
}

}  // namespace
}  // namespace oscarkv::testing
