#include "kernels/codec/transform_set.h"

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "tests/codec/codec_testing.h"
#include "tests/support/status_matchers.h"

namespace oscarkv {
namespace {

using ::oscarkv::testing::IdentityTransform;
using ::oscarkv::testing::RandomBalanced;
using ::oscarkv::testing::RandomRotation;
using ::oscarkv::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr uint32_t kHeads = 3;

// Two layers: the first shared by its heads, the second with one transform a head.
std::vector<LayerTransform> TwoLayers() {
  std::vector<LayerTransform> layers(2);
  layers[0] = {"a", "b", {RandomRotation(32, 1)}, {IdentityTransform(48)}};
  layers[1] = {"a",
               "b",
               {RandomRotation(32, 2), RandomRotation(32, 3), RandomRotation(32, 4)},
               {RandomBalanced(48, 20.0, 5)}};
  return layers;
}

TEST(TransformSetTest, HeadsShareATransformOrHaveTheirOwn) {
  const auto set = TransformSet::Create(TwoLayers(), kHeads);
  ASSERT_OK(set);
  EXPECT_EQ(&set->k(0, 0), &set->k(0, 2));
  EXPECT_NE(&set->k(1, 0), &set->k(1, 2));
  EXPECT_EQ(set->k(1, 2).forward, RandomRotation(32, 4).forward);
  EXPECT_EQ(set->v_head_dim(), 48u);
}

TEST(TransformSetTest, AnInverseThatDoesNotInvertIsNamed) {
  auto layers = TwoLayers();
  layers[1].k[2].inverse[7] += 0.01f;
  EXPECT_THAT(TransformSet::Create(layers, kHeads),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("layer 1, K"), HasSubstr("head 2"),
                             HasSubstr("does not invert"), HasSubstr("at most 0.001"))));
  layers = TwoLayers();
  std::swap(layers[0].v[0].inverse, layers[0].v[0].forward);  // both are the identity
  EXPECT_OK(TransformSet::Create(layers, kHeads));
  std::swap(layers[0].k[0].inverse, layers[1].k[0].inverse);  // of another layer
  EXPECT_THAT(TransformSet::Create(layers, kHeads),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer 0, K")));
}

TEST(TransformSetTest, WhatIsNotFiniteIsRefused) {
  for (float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (int where = 0; where < 4; ++where) {
      auto layers = TwoLayers();
      SideTransform& side = layers[1].v[0];
      (where == 0   ? side.forward[3]
       : where == 1 ? side.inverse[3]
       : where == 2 ? side.offset[3]
                    : side.clip_ratio) = bad;
      EXPECT_THAT(TransformSet::Create(layers, kHeads),
                  StatusIs(absl::StatusCode::kInvalidArgument,
                           AllOf(HasSubstr("layer 1, V"), HasSubstr("finite"))));
    }
  }
}

TEST(TransformSetTest, WrongSizesAreNamed) {
  auto layers = TwoLayers();
  layers[1].k.pop_back();
  EXPECT_THAT(TransformSet::Create(layers, kHeads),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("layer 1, K"), HasSubstr("3 KV heads, found 2"))));
  layers = TwoLayers();
  layers[1].v[0] = RandomRotation(64, 1);
  EXPECT_THAT(TransformSet::Create(layers, kHeads),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("layer 1, V"), HasSubstr("must be 48"))));
  layers = TwoLayers();
  layers[0].k[0].inverse.pop_back();
  EXPECT_THAT(TransformSet::Create(layers, kHeads),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("1023")));
  EXPECT_FALSE(TransformSet::Create({}, kHeads).ok());
  EXPECT_FALSE(TransformSet::Create(TwoLayers(), 0).ok());
}

TEST(TransformSetTest, FitsItsOwnGeometryOnly) {
  const auto set = TransformSet::Create(TwoLayers(), kHeads);
  ASSERT_OK(set);
  const Geometry fits{
      .layers = 2, .kv_heads = kHeads, .k_head_dim = 32, .v_head_dim = 48, .page_tokens = 8};
  EXPECT_OK(set->CheckFits(fits));
  for (auto field :
       {&Geometry::layers, &Geometry::kv_heads, &Geometry::k_head_dim, &Geometry::v_head_dim}) {
    Geometry other = fits;
    other.*field += 16;
    EXPECT_THAT(set->CheckFits(other),
                StatusIs(absl::StatusCode::kFailedPrecondition,
                         AllOf(HasSubstr("is for 2 layers, 3 KV heads, head dims 32 and 48"),
                               HasSubstr("the geometry has"))));
  }
}

TEST(TransformSetTest, HadamardNeedsAPowerOfTwoAndIsItsOwnInverse) {
  Geometry geometry{
      .layers = 1, .kv_heads = 1, .k_head_dim = 64, .v_head_dim = 96, .page_tokens = 8};
  EXPECT_THAT(MakeHadamardTransformSet(geometry, 0.0f, 0.0f),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("found head dim 96")));
  geometry.v_head_dim = 256;
  const auto set = MakeHadamardTransformSet(geometry, 0.9f, 0.8f);
  ASSERT_OK(set);
  EXPECT_EQ(set->v(0, 0).forward, set->v(0, 0).inverse);
  for (float entry : set->v(0, 0).forward) EXPECT_EQ(std::fabs(entry), 1.0f / 16.0f);
  EXPECT_EQ(set->k(0, 0).clip_ratio, 0.9f);
  EXPECT_EQ(set->v(0, 0).clip_ratio, 0.8f);
}

TEST(ClipIndexTest, IsTheTruncatedShareOfTheDim) {
  EXPECT_EQ(ClipIndex(0.90f, 128), 115u);
  EXPECT_EQ(ClipIndex(0.92f, 128), 117u);
  EXPECT_EQ(ClipIndex(0.96f, 128), 122u);
  EXPECT_EQ(ClipIndex(0.90f, 64), 57u);
  EXPECT_EQ(ClipIndex(0.92f, 64), 58u);
  EXPECT_EQ(ClipIndex(0.96f, 64), 61u);
  EXPECT_EQ(ClipIndex(0.90f, 256), 230u);
  EXPECT_EQ(ClipIndex(0.92f, 256), 235u);
  EXPECT_EQ(ClipIndex(0.96f, 256), 245u);
}

TEST(ClipIndexTest, NoClipForRatiosOutsideZeroToOne) {
  for (uint32_t dim : {64u, 128u, 256u}) {
    for (float ratio : {1.0f, 1.5f, 0.0f, -0.5f, std::numeric_limits<float>::quiet_NaN()})
      EXPECT_EQ(ClipIndex(ratio, dim), dim - 1);
    EXPECT_EQ(ClipIndex(0.001f, dim), 0u);
  }
}

}  // namespace
}  // namespace oscarkv
