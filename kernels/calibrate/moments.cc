#include "kernels/calibrate/moments.h"

#include <algorithm>
#include <cmath>

#include "absl/functional/function_ref.h"

#include "kernels/base/status_macros.h"

namespace oscarkv::calibrate {
namespace {

using Eigen::Index;
using Eigen::MatrixXd;
using Eigen::RowVectorXd;
using Eigen::VectorXd;

// What is held in memory at once. Attention is taken within a window and to the sinks.
constexpr uint64_t kWindowTokens = 2048;
// Every eighth query says enough about what is attended to.
constexpr uint64_t kQueryStride = 8;

// Tokens of one sequence: its sinks, or a part of what is behind them.
struct Window {
  const Sequence* sequence;
  uint64_t first;  // within the sequence
  uint64_t tokens;
  bool sinks;
};

absl::Status ForEachWindow(const std::vector<Sequence>& sequences, uint64_t sink_tokens,
                           absl::FunctionRef<absl::Status(const Window&)> visit) {
  for (const Sequence& sequence : sequences) {
    const uint64_t sinks = std::min(sink_tokens, sequence.tokens);
    if (sinks > 0) OSCARKV_RETURN_IF_ERROR(visit({&sequence, 0, sinks, true}));
    for (uint64_t first = sinks; first < sequence.tokens; first += kWindowTokens) {
      const uint64_t tokens = std::min(kWindowTokens, sequence.tokens - first);
      OSCARKV_RETURN_IF_ERROR(visit({&sequence, first, tokens, false}));
    }
  }
  return absl::OkStatus();
}

// A weighted second moment and mean in the making.
class WeightedSums {
 public:
  explicit WeightedSums(uint32_t dim)
      : lower_(MatrixXd::Zero(dim, dim)), sum_(RowVectorXd::Zero(dim)) {}

  void Add(const MatrixXd& rows) {
    lower_.selfadjointView<Eigen::Lower>().rankUpdate(rows.transpose());
    sum_ += rows.colwise().sum();
    weight_ += static_cast<double>(rows.rows());
  }
  // Weights are not negative.
  void Add(const MatrixXd& rows, const VectorXd& weights) {
    const MatrixXd scaled = weights.cwiseSqrt().asDiagonal() * rows;
    lower_.selfadjointView<Eigen::Lower>().rankUpdate(scaled.transpose());
    sum_ += weights.transpose() * rows;
    weight_ += weights.sum();
  }
  double weight() const { return weight_; }
  MatrixXd Second() const {
    return MatrixXd(lower_.selfadjointView<Eigen::Lower>()) / std::max(weight_, 1e-300);
  }
  RowVectorXd Mean() const { return sum_ / std::max(weight_, 1e-300); }

 private:
  MatrixXd lower_;  // the lower triangle of sum w x' x
  RowVectorXd sum_;
  double weight_ = 0.0;
};

struct HeadSums {
  WeightedSums q_plain, k_plain, v_plain, v_scored;
  WeightedSums q, k, v;  // by attention

  explicit HeadSums(const DumpShape& shape)
      : q_plain(shape.k_dim),
        k_plain(shape.k_dim),
        v_plain(shape.v_dim),
        v_scored(shape.v_dim),
        q(shape.k_dim),
        k(shape.k_dim),
        v(shape.v_dim) {}
};

class Accumulator {
 public:
  Accumulator(const LayerDump& dump, uint64_t sink_tokens, uint64_t recent_tokens)
      : dump_(dump),
        sinks_(sink_tokens),
        recent_(static_cast<Index>(recent_tokens)),
        heads_(dump.shape().kv_heads, HeadSums(dump.shape())) {}

  // First pass: equal weights.
  absl::Status AddPlain(const Window& window) {
    tokens_ += window.tokens;
    if (!window.sinks) kv_samples_ += window.tokens;
    for (uint32_t head = 0; head < heads_.size(); ++head) {
      OSCARKV_ASSIGN_OR_RETURN(const RowMatrix k, Read(Tensor3::kK, head, window));
      OSCARKV_ASSIGN_OR_RETURN(const RowMatrix v, Read(Tensor3::kV, head, window));
      if (!window.sinks) {
        heads_[head].k_plain.Add(k.cast<double>());
        heads_[head].v_plain.Add(v.cast<double>());
      }
      for (uint32_t i = 0; i < ratio(); ++i) {
        OSCARKV_ASSIGN_OR_RETURN(const RowMatrix q, Read(Tensor3::kQ, head * ratio() + i, window));
        heads_[head].q_plain.Add(q.cast<double>());
      }
    }
    dump_.Release(*window.sequence, window.first, window.tokens);
    return absl::OkStatus();
  }

  // Second pass: weights that need the first, or attention.
  absl::Status AddWeighted(const Window& window) {
    for (uint32_t head = 0; head < heads_.size(); ++head) {
      OSCARKV_ASSIGN_OR_RETURN(const RowMatrix k, Read(Tensor3::kK, head, window));
      OSCARKV_ASSIGN_OR_RETURN(const RowMatrix v, Read(Tensor3::kV, head, window));
      const MatrixXd k_rows = k.cast<double>();
      const MatrixXd v_rows = v.cast<double>();
      HeadSums& sums = heads_[head];
      // k_t (Q'Q) k_t' is the mean squared logit of key t, never negative but for rounding.
      const VectorXd energy =
          (k_rows * sums.q_plain.Second()).cwiseProduct(k_rows).rowwise().sum().cwiseMax(0.0);
      sums.v_scored.Add(v_rows, energy);
      if (!window.sinks) OSCARKV_RETURN_IF_ERROR(AddAttention(window, head, k, k_rows, v_rows));
    }
    dump_.Release(*window.sequence, window.first, window.tokens);
    return absl::OkStatus();
  }

  LayerMoments Finish() const {
    LayerMoments moments{.tokens = tokens_, .kv_samples = kv_samples_, .heads = {}};
    for (const HeadSums& sums : heads_) {
      const bool attended = sums.k.weight() > 0.0;
      const WeightedSums& q = attended ? sums.q : sums.q_plain;
      const WeightedSums& k = attended ? sums.k : sums.k_plain;
      const WeightedSums& v = attended ? sums.v : sums.v_plain;
      moments.heads.push_back({.q_plain = sums.q_plain.Second(),
                               .v_scored = sums.v_scored.Second(),
                               .q = q.Second(),
                               .k = k.Second(),
                               .k_mean = k.Mean(),
                               .v = v.Second(),
                               .v_mean = v.Mean()});
    }
    return moments;
  }

 private:
  uint32_t ratio() const { return dump_.shape().queries_per_kv_head(); }

  absl::StatusOr<RowMatrix> Read(Tensor3 which, uint32_t head, const Window& window) const {
    return dump_.Read(which, head, *window.sequence, window.first, window.tokens);
  }

  // Softmax attention of every eighth query to the sinks and the window; what falls on packed keys
  // (those before a query's recent window) weighs queries, keys and values.
  absl::Status AddAttention(const Window& window, uint32_t head, const RowMatrix& k,
                            const MatrixXd& k_rows, const MatrixXd& v_rows) {
    const Index tokens = k.rows();
    if (tokens <= recent_) return absl::OkStatus();
    const auto stride = static_cast<Index>(kQueryStride);
    const Index count = (tokens - recent_ + stride - 1) / stride;
    const uint64_t sinks = std::min(window.first, sinks_);
    OSCARKV_ASSIGN_OR_RETURN(const RowMatrix sink_keys,
                             dump_.Read(Tensor3::kK, head, *window.sequence, 0, sinks));
    RowMatrix keys(sink_keys.rows() + tokens, k.cols());
    keys << sink_keys, k;
    VectorXd key_weights = VectorXd::Zero(tokens);
    VectorXd value_weights = VectorXd::Zero(tokens);
    for (uint32_t i = 0; i < ratio(); ++i) {
      OSCARKV_ASSIGN_OR_RETURN(const RowMatrix all, Read(Tensor3::kQ, head * ratio() + i, window));
      RowMatrix queries(count, all.cols());
      for (Index row = 0; row < count; ++row) queries.row(row) = all.row(recent_ + row * stride);
      RowMatrix weights = (queries / std::sqrt(static_cast<float>(all.cols()))) * keys.transpose();
      VectorXd query_weights(count);
      for (Index row = 0; row < count; ++row) {
        query_weights(row) = KeepPacked(sink_keys.rows(), recent_ + row * stride, weights.row(row));
      }
      const auto packed = weights.rightCols(tokens);
      heads_[head].q.Add(queries.cast<double>(), query_weights);
      key_weights += packed.colwise().sum().transpose().cast<double>();
      value_weights += packed.cwiseAbs2().colwise().sum().transpose().cast<double>();
    }
    heads_[head].k.Add(k_rows, key_weights);
    heads_[head].v.Add(v_rows, value_weights);
    return absl::OkStatus();
  }

  // Turns a row of logits into attention, keeps what falls on packed keys, and returns its sum.
  double KeepPacked(Index sinks, Index position, Eigen::Ref<Eigen::RowVectorXf> logits) const {
    auto visible = logits.head(sinks + position + 1).array();
    visible = (visible - visible.maxCoeff()).exp();
    // Denormal numbers are slow, and no sum can see them.
    visible = (visible < 1e-20f).select(0.0f, visible);
    visible /= visible.sum();
    const Index end = position + 1 - recent_;
    logits.head(sinks).setZero();
    logits.tail(logits.cols() - sinks - end).setZero();
    return static_cast<double>(logits.segment(sinks, end).sum());
  }

  const LayerDump& dump_;
  const uint64_t sinks_;
  const Index recent_;
  uint64_t tokens_ = 0;
  uint64_t kv_samples_ = 0;
  std::vector<HeadSums> heads_;
};

}  // namespace

absl::StatusOr<LayerMoments> AccumulateMoments(const LayerDump& dump,
                                               const std::vector<Sequence>& sequences,
                                               uint64_t sink_tokens, uint64_t recent_tokens) {
  Accumulator accumulator(dump, sink_tokens, recent_tokens);
  OSCARKV_RETURN_IF_ERROR(ForEachWindow(
      sequences, sink_tokens, [&](const Window& window) { return accumulator.AddPlain(window); }));
  OSCARKV_RETURN_IF_ERROR(ForEachWindow(sequences, sink_tokens, [&](const Window& window) {
    return accumulator.AddWeighted(window);
  }));
  return accumulator.Finish();
}

}  // namespace oscarkv::calibrate
