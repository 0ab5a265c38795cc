#include "kernels/calibrate/moments.h"

#include <algorithm>

#include "absl/functional/function_ref.h"

#include "kernels/base/status_macros.h"

namespace oscarkv::calibrate {
namespace {

constexpr uint64_t kChunkTokens = 1024;

// Calls visit(sequence, first token within it, count) over all tokens, in chunks.
absl::Status ForEachChunk(
    const std::vector<Sequence>& sequences,
    absl::FunctionRef<absl::Status(const Sequence&, uint64_t, uint64_t)> visit) {
  for (const Sequence& sequence : sequences) {
    for (uint64_t first = 0; first < sequence.tokens; first += kChunkTokens) {
      OSCARKV_RETURN_IF_ERROR(
          visit(sequence, first, std::min(kChunkTokens, sequence.tokens - first)));
    }
  }
  return absl::OkStatus();
}

// The rows of a chunk at positions >= sink_tokens.
Eigen::MatrixXd BehindSinks(const RowMatrix& rows, uint64_t first, uint64_t sink_tokens) {
  const uint64_t skip =
      first >= sink_tokens
          ? 0
          : std::min<uint64_t>(sink_tokens - first, static_cast<uint64_t>(rows.rows()));
  return rows.bottomRows(rows.rows() - static_cast<Eigen::Index>(skip)).cast<double>();
}

void AddRows(const Eigen::MatrixXd& rows, Eigen::MatrixXd* second, Eigen::RowVectorXd* sum) {
  second->noalias() += rows.transpose() * rows;
  *sum += rows.colwise().sum();
}

HeadMoments Zero(const DumpShape& shape) {
  const auto square = [](uint32_t dim) { return Eigen::MatrixXd::Zero(dim, dim).eval(); };
  return {.q = square(shape.k_dim),
          .k = square(shape.k_dim),
          .k_mean = Eigen::RowVectorXd::Zero(shape.k_dim),
          .v = square(shape.v_dim),
          .v_mean = Eigen::RowVectorXd::Zero(shape.v_dim),
          .v_scored = square(shape.v_dim)};
}

// First pass: everything but v_scored, as sums.
absl::Status AddPlainMoments(const LayerDump& dump, const std::vector<Sequence>& sequences,
                             uint64_t sink_tokens, LayerMoments* moments) {
  const uint32_t ratio = dump.shape().queries_per_kv_head();
  return ForEachChunk(
      sequences, [&](const Sequence& sequence, uint64_t first, uint64_t count) -> absl::Status {
        moments->tokens += count;
        moments->kv_samples += first + count - std::clamp(sink_tokens, first, first + count);
        for (uint32_t head = 0; head < dump.shape().kv_heads; ++head) {
          HeadMoments& sums = moments->heads[head];
          for (uint32_t i = 0; i < ratio; ++i) {
            OSCARKV_ASSIGN_OR_RETURN(const RowMatrix q, dump.Read(Tensor3::kQ, head * ratio + i,
                                                                  sequence, first, count));
            const Eigen::MatrixXd rows = q.cast<double>();
            sums.q.noalias() += rows.transpose() * rows;
          }
          OSCARKV_ASSIGN_OR_RETURN(const RowMatrix k,
                                   dump.Read(Tensor3::kK, head, sequence, first, count));
          OSCARKV_ASSIGN_OR_RETURN(const RowMatrix v,
                                   dump.Read(Tensor3::kV, head, sequence, first, count));
          AddRows(BehindSinks(k, first, sink_tokens), &sums.k, &sums.k_mean);
          AddRows(BehindSinks(v, first, sink_tokens), &sums.v, &sums.v_mean);
        }
        return absl::OkStatus();
      });
}

// Second pass: C_V += w_t v_t' v_t with w_t = k_t (Q'Q) k_t', normalised to sum to N within each
// head.
absl::Status AddScoredMoments(const LayerDump& dump, const std::vector<Sequence>& sequences,
                              LayerMoments* moments) {
  std::vector<double> weight_sums(moments->heads.size(), 0.0);
  OSCARKV_RETURN_IF_ERROR(ForEachChunk(
      sequences, [&](const Sequence& sequence, uint64_t first, uint64_t count) -> absl::Status {
        for (uint32_t head = 0; head < dump.shape().kv_heads; ++head) {
          OSCARKV_ASSIGN_OR_RETURN(const RowMatrix k,
                                   dump.Read(Tensor3::kK, head, sequence, first, count));
          OSCARKV_ASSIGN_OR_RETURN(const RowMatrix v,
                                   dump.Read(Tensor3::kV, head, sequence, first, count));
          const Eigen::MatrixXd keys = k.cast<double>();
          const Eigen::VectorXd weights =
              (keys * moments->heads[head].q).cwiseProduct(keys).rowwise().sum();
          weight_sums[head] += weights.sum();
          const Eigen::MatrixXd values = v.cast<double>();
          moments->heads[head].v_scored.noalias() +=
              values.transpose() * weights.asDiagonal() * values;
        }
        if (first + count == sequence.tokens) dump.Release(sequence);
        return absl::OkStatus();
      }));
  for (size_t head = 0; head < moments->heads.size(); ++head) {
    moments->heads[head].v_scored /= std::max(weight_sums[head], 1e-12);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LayerMoments> AccumulateMoments(const LayerDump& dump,
                                               const std::vector<Sequence>& sequences,
                                               uint64_t sink_tokens) {
  LayerMoments moments;
  moments.heads.assign(dump.shape().kv_heads, Zero(dump.shape()));
  OSCARKV_RETURN_IF_ERROR(AddPlainMoments(dump, sequences, sink_tokens, &moments));
  const double queries = static_cast<double>(std::max<uint64_t>(moments.tokens, 1)) *
                         dump.shape().queries_per_kv_head();
  const double samples = static_cast<double>(std::max<uint64_t>(moments.kv_samples, 1));
  for (HeadMoments& head : moments.heads) {
    head.q /= queries;
    head.k /= samples;
    head.k_mean /= samples;
    head.v /= samples;
    head.v_mean /= samples;
  }
  OSCARKV_RETURN_IF_ERROR(AddScoredMoments(dump, sequences, &moments));
  return moments;
}

}  // namespace oscarkv::calibrate
