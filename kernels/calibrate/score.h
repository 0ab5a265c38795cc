// Scores transforms by what attention makes of them: the error of its output on held-back tokens,
// with the sinks and the recent window exact, through the very codec that pages go through. Mean
// squared error of K or V ranks methods wrongly.
#ifndef OSCARKV_KERNELS_CALIBRATE_SCORE_H_
#define OSCARKV_KERNELS_CALIBRATE_SCORE_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

#include "kernels/calibrate/dump.h"
#include "kernels/codec/geometry.h"
#include "kernels/codec/transform_set.h"

namespace oscarkv::calibrate {

struct ScoreOptions {
  uint64_t sink_tokens = 64;
  uint64_t recent_tokens = 256;
  uint64_t context_tokens = 1536;  // of each held-back sequence, at most
  uint64_t queries = 32;           // positions scored in each sequence
  uint32_t group = 0;
  ParamsDType params = ParamsDType::kFp16;
};

// K or V rows of one head, what attention reads when they have been through the codec.
RowMatrix ThroughCodec(const RowMatrix& rows, const SideTransform& transform, uint32_t bits,
                       uint32_t group, ParamsDType params);

// The held-back tokens of one layer with exact attention worked out. Errors are relative: sum |o' -
// o|^2 / sum |o|^2 over all scored queries of all heads. Immutable.
class LayerScorer {
 public:
  // kInvalidArgument: a sequence too short to have quantised tokens before its scored queries, or
  // non-finite values.
  static absl::StatusOr<LayerScorer> Create(const LayerDump& dump,
                                            const std::vector<Sequence>& held_back,
                                            const ScoreOptions& options);

  // Error with only K, only V, or both through the codec. `heads` holds one transform, or one for
  // each KV head.
  double KError(const std::vector<SideTransform>& heads, uint32_t bits) const;
  double VError(const std::vector<SideTransform>& heads, uint32_t bits) const;
  double BothError(const std::vector<SideTransform>& k, uint32_t k_bits,
                   const std::vector<SideTransform>& v, uint32_t v_bits) const;

 private:
  // One KV head of one sequence. Rows of the query-shaped matrices are (query head, position)
  // pairs.
  struct Window {
    uint32_t head = 0;
    RowMatrix q;         // [queries, k_dim], divided by sqrt(k_dim)
    RowMatrix packed_k;  // [packed tokens, k_dim]: positions sink..; the ones that the codec holds
                         // for some query
    RowMatrix packed_v;  // [packed tokens, v_dim]
    RowMatrix logits;    // [queries, tokens], -infinity above the diagonal
    RowMatrix weights;   // softmax of logits
    RowMatrix v;         // [tokens, v_dim]
    RowMatrix output;    // [queries, v_dim], exact
    std::vector<Eigen::Index>
        packed_end;  // [queries]: packed tokens that this query reads through the codec
  };

  static absl::StatusOr<Window> MakeWindow(const LayerDump& dump, const Sequence& sequence,
                                           uint32_t head, const ScoreOptions& options);
  RowMatrix WeightsWithKeys(const Window& window, const RowMatrix& packed_k) const;
  RowMatrix OutputWithValues(const Window& window, const RowMatrix& weights,
                             const RowMatrix& packed_v) const;

  ScoreOptions options_;
  std::vector<Window> windows_;
  double norm_ = 0.0;  // sum |o|^2
};

}  // namespace oscarkv::calibrate

#endif  // OSCARKV_KERNELS_CALIBRATE_SCORE_H_
