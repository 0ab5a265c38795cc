// The frozen result of calibration: per layer, shared or per KV head, for K and for V, an
// invertible matrix, an offset and a clip ratio. A row x is quantised as y = (x - m) T and read
// back as x = y T^-1 + m (row vectors). T need not be orthogonal; OSCAR's rotation (arXiv
// 2605.17757) is the case T^-1 = T', m = 0.
#ifndef OSCARKV_KERNELS_CODEC_TRANSFORM_SET_H_
#define OSCARKV_KERNELS_CODEC_TRANSFORM_SET_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/base/bytes.h"
#include "kernels/codec/geometry.h"

namespace oscarkv {

// The transform of one head's K or V rows.
struct SideTransform {
  uint32_t dim = 0;
  std::vector<float> forward;  // T,    [dim][dim] row-major
  std::vector<float> inverse;  // T^-1, [dim][dim] row-major
  std::vector<float> offset;   // m,    [dim]
  float clip_ratio = 0.0f;     // of the order statistic; <= 0 or >= 1 leaves the row as it is
};

struct LayerTransform {
  std::string k_method;  // "hadamard", "oscar", "balanced+offset", ... for people
  std::string v_method;
  std::vector<SideTransform> k;  // one for all heads, or one for each KV head
  std::vector<SideTransform> v;
};

// Immutable once made; share it freely between threads.
class TransformSet {
 public:
  // Checks that every matrix is finite, has the declared size, and is inverted by its inverse: max
  // |T T^-1 - I| <= 1e-3. kInvalidArgument names layer, head and side, what was expected and what
  // was found.
  static absl::StatusOr<TransformSet> Create(std::vector<LayerTransform> layers, uint32_t kv_heads);

  uint32_t layers() const { return static_cast<uint32_t>(layers_.size()); }
  uint32_t kv_heads() const { return kv_heads_; }
  uint32_t k_head_dim() const { return layers_[0].k[0].dim; }
  uint32_t v_head_dim() const { return layers_[0].v[0].dim; }
  const LayerTransform& layer(uint32_t layer) const { return layers_[layer]; }
  const SideTransform& k(uint32_t layer, uint32_t head) const {
    return Pick(layers_[layer].k, head);
  }
  const SideTransform& v(uint32_t layer, uint32_t head) const {
    return Pick(layers_[layer].v, head);
  }

  // kFailedPrecondition naming both sides when `geometry` has other layers, heads or head dims.
  absl::Status CheckFits(const Geometry& geometry) const;

 private:
  TransformSet() = default;
  static const SideTransform& Pick(const std::vector<SideTransform>& side, uint32_t head) {
    return side.size() == 1 ? side[0] : side[head];
  }
  std::vector<LayerTransform> layers_;
  uint32_t kv_heads_ = 0;
};

// T = I, m = 0, no clip, for every layer: plain INT2. With `hadamard`, T = T^-1 = the
// Sylvester-Hadamard matrix / sqrt(dim) (head dims must be powers of two, otherwise
// kInvalidArgument).
absl::StatusOr<TransformSet> MakeIdentityTransformSet(const Geometry& geometry, float k_clip,
                                                      float v_clip);
absl::StatusOr<TransformSet> MakeHadamardTransformSet(const Geometry& geometry, float k_clip,
                                                      float v_clip);

// The index of the order statistic of |row| that `ratio` clips to, min(max(int(ratio * dim), 0),
// dim - 1); dim - 1 (no clip) for a ratio <= 0. OSCAR.
uint32_t ClipIndex(float ratio, uint32_t dim);

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_CODEC_TRANSFORM_SET_H_
