// Namespaces of engines that keep rotated caches: WIDE pages in the transformed basis.
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/codec/page_codec.h"
#include "tests/codec/codec_testing.h"
#include "tests/codec/engine_cache.h"
#include "tests/codec/page_testing.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kSlots = 8;
const std::vector<int64_t> kTokens = {3, 0, 6};

Geometry SmallGeometry(DType dtype = DType::kFp32) {
  return {.layers = 2,
          .kv_heads = 2,
          .k_head_dim = 32,
          .v_head_dim = 48,
          .page_tokens = 3,
          .dtype = dtype};
}

class WideBasisTest : public ::testing::TestWithParam<CodecBackend> {
 protected:
  std::unique_ptr<PageCodec> Codec(WideBasis basis, const Geometry& geometry = SmallGeometry(),
                                   bool with_set = true) const {
    CodecSpec spec;
    spec.bits[0] = {.k = 4, .v = 4};
    spec.params = ParamsDType::kFp32;
    spec.wide_basis = basis;
    auto codec = MakePageCodec(GetParam(), geometry, spec, with_set ? set_ : nullptr);
    EXPECT_OK(codec);
    return *std::move(codec);
  }

  // The rows of `model` taken to the transformed basis in double.
  void Transform(EngineCache& model, EngineCache& rotated) const {
    for (uint32_t block = 0; block < 4; ++block) {
      const uint32_t layer = block / 2;
      const uint32_t head = block % 2;
      for (int64_t slot = 0; slot < kSlots; ++slot) {
        for (KvSide side : {KvSide::kK, KvSide::kV}) {
          const SideTransform& t = side == KvSide::kK ? set_->k(layer, head) : set_->v(layer, head);
          const std::vector<float> x = model.Read(side, layer, head, slot);
          std::vector<float> y(t.dim);
          for (uint32_t j = 0; j < t.dim; ++j) {
            double sum = 0.0;
            for (uint32_t i = 0; i < t.dim; ++i)
              sum += static_cast<double>(x[i] - t.offset[i]) *
                     static_cast<double>(t.forward[i * t.dim + j]);
            y[j] = static_cast<float>(sum);
          }
          rotated.Write(side, layer, head, slot, y);
        }
      }
    }
  }

  const std::shared_ptr<const TransformSet> set_ = RotationSet(SmallGeometry(), 1.0f);
};

void ExpectNear(EngineCache& expected, EngineCache& found, float bound) {
  for (uint32_t block = 0; block < 4; ++block) {
    for (int64_t slot : kTokens) {
      for (KvSide side : {KvSide::kK, KvSide::kV}) {
        const std::vector<float> a = expected.Read(side, block / 2, block % 2, slot);
        const std::vector<float> b = found.Read(side, block / 2, block % 2, slot);
        float most = 0.0f;
        for (float value : a) most = std::max(most, std::fabs(value));
        for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], most * bound);
      }
    }
  }
}

TEST_P(WideBasisTest, RotatedEnginesPushAndFetchBothEncodingsAsTheyAre) {
  const auto codec = Codec(WideBasis::kTransformed);
  EXPECT_EQ(codec->engine_basis(), DecodeBasis::kTransformed);
  EngineCache rotated(EngineLayout::kTokenMajor, SmallGeometry(), DType::kFp32, kSlots);
  rotated.FillGaussian(1);
  EngineCache back(EngineLayout::kNhd, SmallGeometry(), DType::kFp32, kSlots);
  const EncodedPage wide = EncodePage(*codec, Encoding::kWide, rotated, kTokens);
  ASSERT_OK(DecodePage(*codec, Encoding::kWide, wide, codec->engine_basis(), back, kTokens));
  ExpectNear(rotated, back, 0.0f);
  // No transform is applied to PACKED rows either: half a step of 15 is all that is lost.
  const EncodedPage packed = EncodePage(*codec, Encoding::kPacked, rotated, kTokens);
  ASSERT_OK(DecodePage(*codec, Encoding::kPacked, packed, codec->engine_basis(), back, kTokens));
  ExpectNear(rotated, back, 2.0f / 30.0f + 1e-4f);
}

TEST_P(WideBasisTest, TransformedPagesComeBackInTheModelsBasis) {
  const auto codec = Codec(WideBasis::kTransformed);
  EngineCache model(EngineLayout::kTokenMajor, SmallGeometry(), DType::kFp32, kSlots);
  EngineCache rotated(EngineLayout::kTokenMajor, SmallGeometry(), DType::kFp32, kSlots);
  model.FillGaussian(2);
  Transform(model, rotated);
  EngineCache back(EngineLayout::kHnd, SmallGeometry(), DType::kFp32, kSlots);
  const EncodedPage wide = EncodePage(*codec, Encoding::kWide, rotated, kTokens);
  ASSERT_OK(DecodePage(*codec, Encoding::kWide, wide, DecodeBasis::kModel, back, kTokens));
  ExpectNear(model, back, 0x1p-14f);
  // PACKED pages of the same rotated rows agree with it to within their own error.
  const EncodedPage packed = EncodePage(*codec, Encoding::kPacked, rotated, kTokens);
  ASSERT_OK(DecodePage(*codec, Encoding::kPacked, packed, DecodeBasis::kModel, back, kTokens));
  ExpectNear(model, back, 0.25f);
}

TEST_P(WideBasisTest, ModelPagesGoToTheTransformedBasis) {
  const auto codec = Codec(WideBasis::kModel);
  EXPECT_EQ(codec->engine_basis(), DecodeBasis::kModel);
  EngineCache model(EngineLayout::kTokenMajor, SmallGeometry(), DType::kFp32, kSlots);
  EngineCache rotated(EngineLayout::kTokenMajor, SmallGeometry(), DType::kFp32, kSlots);
  model.FillGaussian(3);
  Transform(model, rotated);
  EngineCache back(EngineLayout::kHnd, SmallGeometry(), DType::kFp32, kSlots);
  const EncodedPage wide = EncodePage(*codec, Encoding::kWide, model, kTokens);
  ASSERT_OK(DecodePage(*codec, Encoding::kWide, wide, DecodeBasis::kTransformed, back, kTokens));
  ExpectNear(rotated, back, 0x1p-14f);
}

TEST_P(WideBasisTest, HalvesAreRoundedOnceOnTheWay) {
  for (const auto& [dtype, bound] : {std::pair{DType::kBf16, 0x1p-8f}, {DType::kFp16, 0x1p-10f}}) {
    const Geometry geometry = SmallGeometry(dtype);
    const auto codec = Codec(WideBasis::kTransformed, geometry);
    EngineCache rotated(EngineLayout::kTokenMajor, geometry, dtype, kSlots);
    rotated.FillGaussian(4);
    const EncodedPage wide = EncodePage(*codec, Encoding::kWide, rotated, kTokens);
    EngineCache exact(EngineLayout::kTokenMajor, geometry, DType::kFp32, kSlots);
    EngineCache halves(EngineLayout::kTokenMajor, geometry, dtype, kSlots);
    ASSERT_OK(DecodePage(*codec, Encoding::kWide, wide, DecodeBasis::kModel, exact, kTokens));
    ASSERT_OK(DecodePage(*codec, Encoding::kWide, wide, DecodeBasis::kModel, halves, kTokens));
    ExpectNear(exact, halves, bound);
  }
}

TEST_P(WideBasisTest, WithoutTheSetTheOtherBasisIsRefused) {
  for (WideBasis basis : {WideBasis::kModel, WideBasis::kTransformed}) {
    const auto codec = Codec(basis, SmallGeometry(), false);
    EngineCache cache(EngineLayout::kTokenMajor, SmallGeometry(), DType::kFp32, kSlots);
    cache.FillGaussian(5);
    const EncodedPage wide = EncodePage(*codec, Encoding::kWide, cache, kTokens);
    const std::vector<Bytes> before = cache.memory();
    const DecodeBasis other =
        basis == WideBasis::kModel ? DecodeBasis::kTransformed : DecodeBasis::kModel;
    EXPECT_THAT(DecodePage(*codec, Encoding::kWide, wide, other, cache, {1, 2, 4}),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("item 0: WIDE pages")));
    EXPECT_EQ(cache.memory(), before);
    EXPECT_OK(DecodePage(*codec, Encoding::kWide, wide, codec->engine_basis(), cache, kTokens));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, WideBasisTest,
                         ::testing::Values(CodecBackend::kReference, CodecBackend::kCpu),
                         [](const auto& backend) {
                           return backend.param == CodecBackend::kReference ? "reference" : "cpu";
                         });

}  // namespace
}  // namespace oscarkv::testing
