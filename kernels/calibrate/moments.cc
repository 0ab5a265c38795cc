#include "kernels/calibrate/moments.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/functional/function_ref.h"

#include "kernels/base/status_macros.h"

namespace oscarkv::calibrate {
namespace {

using Eigen::Index;
using Eigen::MatrixXd;
using Eigen::RowVectorXd;
using Eigen::VectorXd;

// What is held in memory at once. Attention is taken within a window.
constexpr uint64_t kWindowTokens = 2048;
// Every eighth query says enough about what is attended to.
constexpr uint64_t kQueryStride = 8;

struct Window {
  const Sequence* sequence;
  uint64_t first;  // within the sequence
  uint64_t tokens;
};

absl::Status ForEachWindow(const std::vector<Sequence>& sequences,
                           absl::FunctionRef<absl::Status(const Window&)> visit) {
  for (const Sequence& sequence : sequences) {
    for (uint64_t first = 0; first < sequence.tokens; first += kWindowTokens) {
      OSCARKV_RETURN_IF_ERROR(
          visit({&sequence, first, std::min(kWindowTokens, sequence.tokens - first)}));
    }
  }
  return absl::OkStatus();
}

// A weighted second moment and mean in the making.
struct WeightedSums {
  MatrixXd second;
  RowVectorXd sum;
  double weight = 0.0;

  explicit WeightedSums(uint32_t dim)
      : second(MatrixXd::Zero(dim, dim)), sum(RowVectorXd::Zero(dim)) {}

  void Add(const MatrixXd& rows, const VectorXd& weights) {
    second.noalias() += rows.transpose() * weights.asDiagonal() * rows;
    sum += weights.transpose() * rows;
    weight += weights.sum();
  }
  MatrixXd Second() const { return second / std::max(weight, 1e-300); }
  RowVectorXd Mean() const { return sum / std::max(weight, 1e-300); }
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
        recent_(recent_tokens),
        heads_(dump.shape().kv_heads, HeadSums(dump.shape())) {}

  // First pass: equal weights.
  absl::Status AddPlain(const Window& window) {
    tokens_ += window.tokens;
    const uint64_t skip = Skip(window);
    kv_samples_ += window.tokens - skip;
    for (uint32_t head = 0; head < heads_.size(); ++head) {
      OSCARKV_ASSIGN_OR_RETURN(const MatrixXd k, Read(Tensor3::kK, head, window));
      OSCARKV_ASSIGN_OR_RETURN(const MatrixXd v, Read(Tensor3::kV, head, window));
      const auto behind = static_cast<Index>(window.tokens - skip);
      heads_[head].k_plain.Add(k.bottomRows(behind), VectorXd::Ones(behind));
      heads_[head].v_plain.Add(v.bottomRows(behind), VectorXd::Ones(behind));
      for (uint32_t i = 0; i < ratio(); ++i) {
        OSCARKV_ASSIGN_OR_RETURN(const MatrixXd q, Read(Tensor3::kQ, head * ratio() + i, window));
        heads_[head].q_plain.Add(q, VectorXd::Ones(q.rows()));
      }
    }
    return absl::OkStatus();
  }

  // Second pass: weights that need the first, or attention.
  absl::Status AddWeighted(const Window& window) {
    for (uint32_t head = 0; head < heads_.size(); ++head) {
      OSCARKV_ASSIGN_OR_RETURN(const MatrixXd k, Read(Tensor3::kK, head, window));
      OSCARKV_ASSIGN_OR_RETURN(const MatrixXd v, Read(Tensor3::kV, head, window));
      HeadSums& sums = heads_[head];
      sums.v_scored.Add(v, (k * sums.q_plain.Second()).cwiseProduct(k).rowwise().sum());
      OSCARKV_RETURN_IF_ERROR(AddAttention(window, head, k, v));
    }
    if (window.first + window.tokens == window.sequence->tokens) dump_.Release(*window.sequence);
    return absl::OkStatus();
  }

  LayerMoments Finish() const {
    LayerMoments moments{.tokens = tokens_, .kv_samples = kv_samples_, .heads = {}};
    for (const HeadSums& sums : heads_) {
      const bool attended = sums.k.weight > 0.0;
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

  // Rows of the window that are sinks.
  uint64_t Skip(const Window& window) const {
    return window.first >= sinks_ ? 0 : std::min(sinks_ - window.first, window.tokens);
  }

  absl::StatusOr<MatrixXd> Read(Tensor3 which, uint32_t head, const Window& window) const {
    OSCARKV_ASSIGN_OR_RETURN(const RowMatrix rows, dump_.Read(which, head, *window.sequence,
                                                              window.first, window.tokens));
    return MatrixXd(rows.cast<double>());
  }

  // Softmax attention of every eighth query within the window; what falls on packed keys weighs
  // queries, keys and values.
  absl::Status AddAttention(const Window& window, uint32_t head, const MatrixXd& k,
                            const MatrixXd& v) {
    const uint64_t first_query = sinks_ + recent_ + 1;
    if (window.tokens <= first_query) return absl::OkStatus();
    const auto count =
        static_cast<Index>((window.tokens - first_query + kQueryStride - 1) / kQueryStride);
    const RowMatrix keys = k.cast<float>();
    VectorXd key_weights = VectorXd::Zero(k.rows());
    VectorXd value_weights = VectorXd::Zero(v.rows());
    for (uint32_t i = 0; i < ratio(); ++i) {
      OSCARKV_ASSIGN_OR_RETURN(const RowMatrix all,
                               dump_.Read(Tensor3::kQ, head * ratio() + i, *window.sequence,
                                          window.first, window.tokens));
      RowMatrix queries(count, all.cols());
      for (Index row = 0; row < count; ++row) queries.row(row) = all.row(PositionOf(row));
      RowMatrix weights = (queries / std::sqrt(static_cast<float>(all.cols()))) * keys.transpose();
      VectorXd query_weights(count);
      for (Index row = 0; row < count; ++row)
        query_weights(row) = KeepPacked(PositionOf(row), &weights, row);
      heads_[head].q.Add(queries.cast<double>(), query_weights);
      key_weights += weights.colwise().sum().transpose().cast<double>();
      value_weights += weights.cwiseAbs2().colwise().sum().transpose().cast<double>();
    }
    heads_[head].k.Add(k, key_weights);
    heads_[head].v.Add(v, value_weights);
    return absl::OkStatus();
  }

  Index PositionOf(Index row) const {
    return static_cast<Index>(sinks_ + recent_ + 1 + static_cast<uint64_t>(row) * kQueryStride);
  }

  // Turns a row of logits into attention, keeps what falls on packed keys (sinks <= t < position -
  // recent), and returns its sum.
  double KeepPacked(Index position, RowMatrix* logits, Index row) const {
    auto visible = logits->row(row).head(position + 1).array();
    visible = (visible - visible.maxCoeff()).exp();
    visible /= visible.sum();
    const auto first = static_cast<Index>(sinks_);
    const auto end = position - static_cast<Index>(recent_);
    logits->row(row).head(first).setZero();
    logits->row(row).tail(logits->cols() - end).setZero();
    return static_cast<double>(logits->row(row).segment(first, end - first).sum());
  }

  const LayerDump& dump_;
  const uint64_t sinks_;
  const uint64_t recent_;
  uint64_t tokens_ = 0;
  uint64_t kv_samples_ = 0;
  std::vector<HeadSums> heads_;
};

}  // namespace

absl::StatusOr<LayerMoments> AccumulateMoments(const LayerDump& dump,
                                               const std::vector<Sequence>& sequences,
                                               uint64_t sink_tokens, uint64_t recent_tokens) {
  Accumulator accumulator(dump, sink_tokens, recent_tokens);
  OSCARKV_RETURN_IF_ERROR(
      ForEachWindow(sequences, [&](const Window& window) { return accumulator.AddPlain(window); }));
  OSCARKV_RETURN_IF_ERROR(ForEachWindow(
      sequences, [&](const Window& window) { return accumulator.AddWeighted(window); }));
  return accumulator.Finish();
}

}  // namespace oscarkv::calibrate
