// Scores transforms by what attention makes of them: the error of its output on held-back tokens,
// with the sinks and the recent window exact and the rest through the codec's quantiser. Mean
// squared error of K or V ranks methods wrongly.
#ifndef OSCARKV_KERNELS_CALIBRATE_SCORE_H_
#define OSCARKV_KERNELS_CALIBRATE_SCORE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

#include "kernels/calibrate/dump.h"
#include "kernels/calibrate/split.h"
#include "kernels/codec/geometry.h"
#include "kernels/codec/transform_set.h"

namespace oscarkv::calibrate {

struct ScoreOptions {
  uint64_t sink_tokens = 64;
  uint64_t recent_tokens = 256;
  uint64_t context_tokens = 1536;  // of each held-back part, at most
  uint64_t queries = 32;           // positions scored in each held-back part
  uint32_t group = 0;
  ParamsDType params = ParamsDType::kFp16;
};

// The held-back tokens of one layer with exact attention worked out. Errors are relative to the
// layer, sum |o' - o|^2 of one KV head's queries over sum |o|^2 of all heads', so that they add up
// over heads. The transform is multiplied in fp32 by Eigen, the quantiser is the codec's own; keys
// never leave the transformed basis, since q . (y T^-1 + m) = (q T^-T) . y + q . m. Immutable.
class LayerScorer {
 public:
  // kInvalidArgument naming the layer: a part too short to have quantised tokens before its scored
  // queries, or values that are not finite.
  static absl::StatusOr<LayerScorer> Create(const LayerDump& dump,
                                            const std::vector<HeldBack>& held_back,
                                            const ScoreOptions& options);

  // The error with only K, or only V, through the codec, at each of `clip_ratios` (the transform's
  // own is not used). Infinite when a row is beyond the range of its params.
  std::vector<double> KErrors(uint32_t head, const SideTransform& transform, uint32_t bits,
                              std::span<const float> clip_ratios) const;
  std::vector<double> VErrors(uint32_t head, const SideTransform& transform, uint32_t bits,
                              std::span<const float> clip_ratios) const;
  // With both, over all heads; `k` and `v` hold one transform, or one for each KV head.
  double BothError(const std::vector<SideTransform>& k, uint32_t k_bits,
                   const std::vector<SideTransform>& v, uint32_t v_bits) const;

  // The recent window scored with: shorter than asked for where a held-back part is too short for
  // it.
  uint64_t recent_tokens() const { return recent_tokens_; }
  uint64_t queries() const;  // rows scored, over all query heads

 private:
  // One KV head of one held-back part. Rows of the query-shaped matrices are (query head, position)
  // pairs.
  struct Window {
    uint32_t head = 0;
    RowMatrix q;         // [queries, k_dim], divided by sqrt(k_dim)
    RowMatrix packed_k;  // [packed, k_dim]: tokens that the codec holds for some query
    RowMatrix packed_v;  // [packed, v_dim]
    std::vector<Eigen::Index> packed_end;  // [queries]: packed tokens that this one reads
    // Attention to what stays exact, not yet divided by its sum.
    Eigen::VectorXf exact_max;  // [queries], of the logits
    Eigen::VectorXf exact_sum;  // [queries], of exp(logit - exact_max)
    RowMatrix exact_output;     // [queries, v_dim]
    RowMatrix packed_weights;   // [queries, packed], exact attention to packed tokens
    RowMatrix output;           // [queries, v_dim], exact
    RowMatrix packed_output;    // [queries, v_dim], what packed tokens add to it
  };

  absl::StatusOr<Window> MakeWindow(const LayerDump& dump, const HeldBack& part,
                                    uint32_t head) const;
  absl::Status ReadQueries(const LayerDump& dump, const HeldBack& part, Window& window) const;
  static void AttendExactly(const RowMatrix& k, const RowMatrix& v, Eigen::Index sinks,
                            Eigen::Index recent, Window& window);
  static double KeyError(const Window& window, const RowMatrix& packed_logits,
                         const RowMatrix& packed_values);
  RowMatrix Quantized(const RowMatrix& rows, float clip_ratio, uint32_t bits) const;

  ScoreOptions options_;
  uint64_t recent_tokens_ = 0;
  std::vector<Window> windows_;
  double norm_ = 0.0;  // sum |o|^2
};

// (rows - m) T, and the quantiser's own rounding of rows in the transformed basis.
RowMatrix Transformed(const RowMatrix& rows, const SideTransform& transform);
RowMatrix ThroughQuantizer(const RowMatrix& rows, uint32_t bits, uint32_t group, float clip_ratio,
                           ParamsDType params);

}  // namespace oscarkv::calibrate

#endif  // OSCARKV_KERNELS_CALIBRATE_SCORE_H_
