#include "kernels/codec/transform_file.h"

#include <limits>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/base/sha256.h"
#include "kernels/safetensors/safetensors.h"
#include "tests/support/status_matchers.h"

namespace oscarkv {
namespace {

using ::oscarkv::testing::IsOkAndHolds;
using ::oscarkv::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;

// An invertible transform: a diagonal matrix of powers of two.
SideTransform Diagonal(uint32_t dim, float scale, float offset, float clip_ratio) {
  SideTransform side;
  side.dim = dim;
  side.forward.assign(size_t{dim} * dim, 0.0f);
  side.inverse = side.forward;
  for (uint32_t i = 0; i < dim; ++i) {
    side.forward[i * dim + i] = scale;
    side.inverse[i * dim + i] = 1.0f / scale;
  }
  side.offset.assign(dim, offset);
  side.clip_ratio = clip_ratio;
  return side;
}

TransformSet MixedSet() {
  std::vector<LayerTransform> layers(2);
  layers[0] = {"hadamard", "oscar", {Diagonal(16, 1.0f, 0.0f, 0.9f)}, {Diagonal(32, 2.0f, 1, 0)}};
  layers[1] = {"balanced+offset",
               "oscar-head",
               {Diagonal(16, 2.0f, 3.0f, 0.8f), Diagonal(16, 4.0f, 5.0f, 0.7f)},
               {Diagonal(32, 0.5f, 0.0f, 0.0f)}};
  auto set = TransformSet::Create(std::move(layers), 2);
  EXPECT_OK(set);
  return *std::move(set);
}

void ExpectSameSide(const SideTransform& a, const SideTransform& b) {
  EXPECT_EQ(a.forward, b.forward);
  EXPECT_EQ(a.inverse, b.inverse);
  EXPECT_EQ(a.offset, b.offset);
  EXPECT_EQ(a.clip_ratio, b.clip_ratio);
}

TEST(TransformFileTest, ReadsBackEveryLayerAndHead) {
  const TransformSet set = MixedSet();
  const std::string file = SerializeTransformFile(set, R"({"k_bits":2})");

  const auto parsed = ParseTransformFile(AsBytes(file));

  ASSERT_OK(parsed);
  EXPECT_EQ(parsed->layers(), 2u);
  EXPECT_EQ(parsed->kv_heads(), 2u);
  for (uint32_t layer = 0; layer < 2; ++layer) {
    EXPECT_EQ(parsed->layer(layer).k_method, set.layer(layer).k_method);
    EXPECT_EQ(parsed->layer(layer).v_method, set.layer(layer).v_method);
    for (uint32_t head = 0; head < 2; ++head) {
      ExpectSameSide(parsed->k(layer, head), set.k(layer, head));
      ExpectSameSide(parsed->v(layer, head), set.v(layer, head));
    }
  }
  EXPECT_THAT(TransformFileReport(AsBytes(file)), IsOkAndHolds(R"({"k_bits":2})"));
}

TEST(TransformFileTest, TheSameSetHasTheSameHash) {
  const std::string file = SerializeTransformFile(MixedSet(), "{}");
  EXPECT_EQ(Sha256Of(AsBytes(file)), Sha256Of(AsBytes(SerializeTransformFile(MixedSet(), "{}"))));
  EXPECT_NE(Sha256Of(AsBytes(file)),
            Sha256Of(AsBytes(SerializeTransformFile(MixedSet(), "{\"other\":1}"))));
}

// The parts of a file, to be put together wrongly.
struct Parts {
  std::map<std::string, std::string, std::less<>> metadata;
  std::vector<std::vector<float>> storage;
  std::vector<Tensor> tensors;

  void Add(const std::string& name, std::vector<uint64_t> shape) {
    uint64_t elements = 1;
    for (const uint64_t extent : shape) elements *= extent;
    std::vector<float> values(elements, 0.0f);
    // Identities where matrices stand.
    if (shape.size() == 4) {
      const uint64_t dim = shape[3];
      for (uint64_t i = 0; i < elements; ++i) {
        if (dim > 0 && (i / dim) % dim == i % dim) values[i] = 1.0f;
      }
    }
    storage.push_back(std::move(values));
    tensors.push_back({name, "F32", std::move(shape), {}});
  }
  std::string File() {
    for (size_t i = 0; i < tensors.size(); ++i)
      tensors[i].bytes = std::as_bytes(std::span(storage[i]));
    return SerializeSafetensors(tensors, metadata);
  }
};

Parts GoodParts(uint64_t layers = 2, uint64_t heads = 1, uint64_t dim = 16) {
  Parts parts;
  parts.metadata = {{"format", "oscarkv-transform-1"}, {"kv_heads", "2"}};
  for (const std::string side : {"k", "v"}) {
    parts.Add(side + ".forward", {layers, heads, dim, dim});
    parts.Add(side + ".inverse", {layers, heads, dim, dim});
    parts.Add(side + ".offset", {layers, heads, dim});
    parts.Add(side + ".clip_ratio", {layers, heads});
  }
  return parts;
}

absl::Status Refusal(Parts parts) {
  const std::string file = parts.File();
  return ParseTransformFile(AsBytes(file)).status();
}

TEST(TransformFileTest, AcceptsAFileMadeByOthers) { EXPECT_OK(Refusal(GoodParts())); }

TEST(TransformFileTest, RefusesAnotherFormat) {
  Parts parts = GoodParts();
  parts.metadata["format"] = "oscarkv-transform-9";
  EXPECT_THAT(Refusal(parts),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("oscarkv-transform-1"), HasSubstr("oscarkv-transform-9"))));
  parts = GoodParts();
  parts.metadata["kv_heads"] = "many";
  EXPECT_THAT(Refusal(parts), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("kv_heads")));
}

TEST(TransformFileTest, RefusesMissingTensorsAndShapesThatDoNotBelongTogether) {
  Parts parts = GoodParts();
  parts.tensors.pop_back();
  EXPECT_THAT(Refusal(parts), StatusIs(absl::StatusCode::kNotFound, HasSubstr("v.clip_ratio")));
  parts = GoodParts();
  parts.tensors[2].shape = {2, 16, 1};
  EXPECT_THAT(Refusal(parts), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("k: ")));
  EXPECT_THAT(Refusal(GoodParts(2, 3)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("2 KV heads")));
}

TEST(TransformFileTest, RefusesExtentsThatNoModelHasBeforeAllocating) {
  // Empty tensors cost a file nothing, whatever they claim.
  EXPECT_THAT(Refusal(GoodParts(100000, 1, 0)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layers")));
  EXPECT_THAT(Refusal(GoodParts(2, 1, 0)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("head_dim")));
  EXPECT_THAT(Refusal(GoodParts(1, 1, 272)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("272")));
}

TEST(TransformFileTest, RefusesAnInverseThatDoesNotInvertNamingLayerSideAndHead) {
  Parts parts = GoodParts(2, 2);
  parts.storage[1][3 * 256 + 5] = 0.5f;  // K, layer 1, head 1
  EXPECT_THAT(Refusal(parts), StatusIs(absl::StatusCode::kInvalidArgument,
                                       AllOf(HasSubstr("layer 1"), HasSubstr("K"),
                                             HasSubstr("head 1"), HasSubstr("0.5"))));
  parts = GoodParts();
  parts.storage[4][0] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(Refusal(parts), StatusIs(absl::StatusCode::kInvalidArgument,
                                       AllOf(HasSubstr("layer 0"), HasSubstr("finite"))));
}

TEST(TransformFileTest, RefusesEveryTruncation) {
  const std::string file = SerializeTransformFile(MixedSet(), "{}");
  for (size_t bytes = 0; bytes < file.size(); bytes += 37) {
    EXPECT_THAT(ParseTransformFile(AsBytes(std::string_view(file).substr(0, bytes))),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << bytes;
  }
}

}  // namespace
}  // namespace oscarkv
