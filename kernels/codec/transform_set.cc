#include "kernels/codec/transform_set.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"

namespace oscarkv {
namespace {

constexpr double kInversionErrorMax = 1e-3;

bool AllFinite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(),
                     [](float value) { return std::isfinite(value); });
}

absl::Status CheckSizes(const SideTransform& side, uint32_t dim) {
  const size_t square = size_t{dim} * dim;
  if (side.dim != dim || dim == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("head dim must be ", dim, " as in the other heads, found ", side.dim));
  }
  if (side.forward.size() != square || side.inverse.size() != square || side.offset.size() != dim) {
    return absl::InvalidArgumentError(
        absl::StrCat("a transform of head dim ", dim, " has matrices of ", square,
                     " elements and an offset of ", dim, ", found ", side.forward.size(), ", ",
                     side.inverse.size(), " and ", side.offset.size()));
  }
  if (!AllFinite(side.forward) || !AllFinite(side.inverse) || !AllFinite(side.offset) ||
      !std::isfinite(side.clip_ratio)) {
    return absl::InvalidArgumentError("matrices, offset and clip ratio must be finite");
  }
  return absl::OkStatus();
}

// max |T T^-1 - I|
double InversionError(const SideTransform& side) {
  double worst = 0.0;
  std::vector<double> row(side.dim);
  for (uint32_t i = 0; i < side.dim; ++i) {
    std::fill(row.begin(), row.end(), 0.0);
    for (uint32_t k = 0; k < side.dim; ++k) {
      const double factor = static_cast<double>(side.forward[i * side.dim + k]);
      for (uint32_t j = 0; j < side.dim; ++j)
        row[j] += factor * static_cast<double>(side.inverse[k * side.dim + j]);
    }
    row[i] -= 1.0;
    for (double error : row) worst = std::max(worst, std::fabs(error));
  }
  return worst;
}

absl::Status CheckSide(const std::vector<SideTransform>& heads, uint32_t kv_heads, uint32_t dim) {
  if (heads.size() != 1 && heads.size() != kv_heads) {
    return absl::InvalidArgumentError(absl::StrCat("expected one transform or one for each of ",
                                                   kv_heads, " KV heads, found ", heads.size()));
  }
  for (size_t head = 0; head < heads.size(); ++head) {
    const std::string where = absl::StrCat("head ", head);
    OSCARKV_RETURN_IF_ERROR(Annotate(CheckSizes(heads[head], dim), where));
    const double error = InversionError(heads[head]);
    if (!(error <= kInversionErrorMax)) {
      return Annotate(absl::InvalidArgumentError(
                          absl::StrCat("the inverse does not invert: max |T T^-1 - I| is ", error,
                                       ", at most ", kInversionErrorMax, " is accepted")),
                      where);
    }
  }
  return absl::OkStatus();
}

SideTransform MakeSide(uint32_t dim, bool hadamard, float clip_ratio) {
  SideTransform side;
  side.dim = dim;
  side.offset.assign(dim, 0.0f);
  side.clip_ratio = clip_ratio;
  side.forward.resize(size_t{dim} * dim);
  const float entry =
      hadamard ? static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim))) : 0.0f;
  for (uint32_t i = 0; i < dim; ++i) {
    for (uint32_t j = 0; j < dim; ++j) {
      const bool negative = std::popcount(i & j) % 2 == 1;
      side.forward[i * dim + j] = hadamard ? (negative ? -entry : entry) : (i == j ? 1.0f : 0.0f);
    }
  }
  side.inverse = side.forward;  // both are symmetric involutions
  return side;
}

absl::StatusOr<TransformSet> MakeUniformSet(const Geometry& geometry, bool hadamard, float k_clip,
                                            float v_clip) {
  OSCARKV_RETURN_IF_ERROR(ValidateGeometry(geometry));
  LayerTransform layer;
  layer.k_method = layer.v_method = hadamard ? "hadamard" : "identity";
  layer.k.push_back(MakeSide(geometry.k_head_dim, hadamard, k_clip));
  layer.v.push_back(MakeSide(geometry.v_head_dim, hadamard, v_clip));
  return TransformSet::Create(std::vector<LayerTransform>(geometry.layers, layer),
                              geometry.kv_heads);
}

}  // namespace

absl::StatusOr<TransformSet> TransformSet::Create(std::vector<LayerTransform> layers,
                                                  uint32_t kv_heads) {
  if (layers.empty() || kv_heads == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a transform set needs layers and KV heads, found ", layers.size(), " and ", kv_heads));
  }
  if (layers[0].k.empty() || layers[0].v.empty())
    return absl::InvalidArgumentError("layer 0: no transform for K or V");
  const uint32_t k_dim = layers[0].k[0].dim;
  const uint32_t v_dim = layers[0].v[0].dim;
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    OSCARKV_RETURN_IF_ERROR(Annotate(CheckSide(layers[layer].k, kv_heads, k_dim),
                                     absl::StrCat("layer ", layer, ", K")));
    OSCARKV_RETURN_IF_ERROR(Annotate(CheckSide(layers[layer].v, kv_heads, v_dim),
                                     absl::StrCat("layer ", layer, ", V")));
  }
  TransformSet set;
  set.layers_ = std::move(layers);
  set.kv_heads_ = kv_heads;
  return set;
}

absl::Status TransformSet::CheckFits(const Geometry& geometry) const {
  if (layers() == geometry.layers && kv_heads() == geometry.kv_heads &&
      k_head_dim() == geometry.k_head_dim && v_head_dim() == geometry.v_head_dim) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "the transform set is for ", layers(), " layers, ", kv_heads(), " KV heads, head dims ",
      k_head_dim(), " and ", v_head_dim(), "; the geometry has ", geometry.layers, ", ",
      geometry.kv_heads, ", ", geometry.k_head_dim, " and ", geometry.v_head_dim));
}

absl::StatusOr<TransformSet> MakeIdentityTransformSet(const Geometry& geometry, float k_clip,
                                                      float v_clip) {
  return MakeUniformSet(geometry, false, k_clip, v_clip);
}

absl::StatusOr<TransformSet> MakeHadamardTransformSet(const Geometry& geometry, float k_clip,
                                                      float v_clip) {
  for (uint32_t dim : {geometry.k_head_dim, geometry.v_head_dim}) {
    if (!std::has_single_bit(dim)) {
      return absl::InvalidArgumentError(
          absl::StrCat("a Hadamard matrix needs a power of two, found head dim ", dim));
    }
  }
  return MakeUniformSet(geometry, true, k_clip, v_clip);
}

uint32_t ClipIndex(float ratio, uint32_t dim) {
  if (!(ratio > 0.0f) || ratio >= 1.0f) return dim - 1;
  // In double, as the reference computes it: 0.92 * 128 is 117.76, not a rounding of it.
  const double index = static_cast<double>(ratio) * dim;
  return std::min(static_cast<uint32_t>(index), dim - 1);
}

}  // namespace oscarkv
