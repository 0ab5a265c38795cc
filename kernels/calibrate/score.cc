#include "kernels/calibrate/score.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "kernels/codec/oscar/format.h"
#include "kernels/codec/oscar/row_kernels.h"

namespace oscarkv::calibrate {
namespace {

using Eigen::Index;

void SoftmaxRows(RowMatrix* logits) {
  for (Index i = 0; i < logits->rows(); ++i) {
    auto row = logits->row(i).array();
    row = (row - row.maxCoeff()).exp();
    // What no sum can see becomes zero: products with denormal numbers take a hundred times as
    // long.
    row = (row < 1e-20f).select(0.0f, row);
    row /= row.sum();
  }
}

const SideTransform& Pick(const std::vector<SideTransform>& heads, uint32_t head) {
  return heads.size() == 1 ? heads[0] : heads[head];
}

}  // namespace

RowMatrix ThroughCodec(const RowMatrix& rows, const SideTransform& transform, uint32_t bits,
                       uint32_t group, ParamsDType params) {
  const uint32_t dim = transform.dim;
  const RowFormat format{.dim = dim,
                         .bits = bits,
                         .group = group == 0 ? dim : group,
                         .clip_index = ClipIndex(transform.clip_ratio, dim),
                         .params = params};
  const auto count = static_cast<size_t>(rows.rows());
  std::vector<std::byte> codes(count * dim * bits / 8);
  std::vector<std::byte> pairs(count * (dim / format.group) * 2 * ParamBytes(params));
  RowMatrix result(rows.rows(), rows.cols());
  std::vector<const std::byte*> sources(count);
  std::vector<std::byte*> destinations(count);
  for (size_t i = 0; i < count; ++i) {
    sources[i] = reinterpret_cast<const std::byte*>(rows.data() + i * dim);
    destinations[i] = reinterpret_cast<std::byte*>(result.data() + i * dim);
  }
  const RowKernels& kernels = CpuRowKernels();
  const std::unique_ptr<const PreparedTransform> prepared = kernels.Prepare(transform);
  EncodeReport report;
  kernels.Encode(format, prepared.get(), DType::kFp32, sources, codes.data(), pairs.data(),
                 &report);
  kernels.Decode(format, prepared.get(), codes.data(), pairs.data(), DType::kFp32, destinations);
  return result;
}

absl::StatusOr<LayerScorer::Window> LayerScorer::MakeWindow(const LayerDump& dump,
                                                            const Sequence& sequence, uint32_t head,
                                                            const ScoreOptions& options) {
  const uint64_t tokens = std::min(sequence.tokens, options.context_tokens);
  const uint64_t sinks = options.sink_tokens;
  // Short sequences are scored with a shorter window, so that something is quantised.
  const uint64_t recent =
      std::min(options.recent_tokens, tokens > sinks ? (tokens - sinks) / 2 : 0);
  const uint64_t first_query = sinks + recent + (tokens - sinks - recent) / 4;
  const uint64_t positions = std::min(options.queries, tokens - first_query);
  const uint32_t ratio = dump.shape().queries_per_kv_head();
  Window window;
  window.head = head;
  window.q.resize(static_cast<Index>(positions * ratio), dump.shape().k_dim);
  OSCARKV_ASSIGN_OR_RETURN(const RowMatrix k, dump.Read(Tensor3::kK, head, sequence, 0, tokens));
  OSCARKV_ASSIGN_OR_RETURN(window.v, dump.Read(Tensor3::kV, head, sequence, 0, tokens));
  std::vector<uint64_t> position_of;
  for (uint32_t i = 0; i < ratio; ++i) {
    for (uint64_t j = 0; j < positions; ++j) {
      const uint64_t position = first_query + j * (tokens - first_query) / positions;
      OSCARKV_ASSIGN_OR_RETURN(const RowMatrix q,
                               dump.Read(Tensor3::kQ, head * ratio + i, sequence, position, 1));
      window.q.row(static_cast<Index>(position_of.size())) = q.row(0);
      position_of.push_back(position);
      window.packed_end.push_back(
          static_cast<Index>(position + 1 - std::min(position + 1, recent + sinks)));
    }
  }
  window.q /= std::sqrt(static_cast<float>(dump.shape().k_dim));
  const Index packed = *std::max_element(window.packed_end.begin(), window.packed_end.end());
  window.packed_k = k.middleRows(static_cast<Index>(sinks), packed);
  window.packed_v = window.v.middleRows(static_cast<Index>(sinks), packed);
  window.logits.noalias() = window.q * k.transpose();
  for (Index row = 0; row < window.logits.rows(); ++row) {
    const Index visible = static_cast<Index>(position_of[static_cast<size_t>(row)]) + 1;
    window.logits.row(row)
        .tail(window.logits.cols() - visible)
        .setConstant(-std::numeric_limits<float>::infinity());
  }
  window.weights = window.logits;
  SoftmaxRows(&window.weights);
  window.output.noalias() = window.weights * window.v;
  return window;
}

absl::StatusOr<LayerScorer> LayerScorer::Create(const LayerDump& dump,
                                                const std::vector<Sequence>& held_back,
                                                const ScoreOptions& options) {
  LayerScorer scorer;
  scorer.options_ = options;
  for (const Sequence& sequence : held_back) {
    const uint64_t least = options.sink_tokens + 64;
    if (sequence.tokens < least) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", dump.layer(), ": a held-back sequence has ", sequence.tokens,
                       " tokens, scoring needs ", least, " (", options.sink_tokens,
                       " sinks and 64 more): dump longer sequences"));
    }
    for (uint32_t head = 0; head < dump.shape().kv_heads; ++head) {
      OSCARKV_ASSIGN_OR_RETURN(Window window, MakeWindow(dump, sequence, head, options));
      scorer.norm_ += static_cast<double>(window.output.squaredNorm());
      scorer.windows_.push_back(std::move(window));
    }
    dump.Release(sequence);
  }
  scorer.norm_ = std::max(scorer.norm_, 1e-30);
  return scorer;
}

RowMatrix LayerScorer::WeightsWithKeys(const Window& window, const RowMatrix& packed_k) const {
  RowMatrix weights = window.logits;
  const RowMatrix packed = window.q * packed_k.transpose();
  const auto sinks = static_cast<Index>(options_.sink_tokens);
  for (Index row = 0; row < weights.rows(); ++row) {
    const Index count = window.packed_end[static_cast<size_t>(row)];
    weights.row(row).segment(sinks, count) = packed.row(row).head(count);
  }
  SoftmaxRows(&weights);
  return weights;
}

RowMatrix LayerScorer::OutputWithValues(const Window& window, const RowMatrix& weights,
                                        const RowMatrix& packed_v) const {
  // What the exact rows give, plus the difference that the packed rows make.
  const auto sinks = static_cast<Index>(options_.sink_tokens);
  RowMatrix read = weights.middleCols(sinks, packed_v.rows());
  for (Index row = 0; row < read.rows(); ++row) {
    const Index count = window.packed_end[static_cast<size_t>(row)];
    read.row(row).tail(read.cols() - count).setZero();
  }
  RowMatrix output = weights * window.v;
  output.noalias() += read * (packed_v - window.packed_v);
  return output;
}

double LayerScorer::KError(const std::vector<SideTransform>& heads, uint32_t bits) const {
  double error = 0.0;
  for (const Window& window : windows_) {
    const RowMatrix k = ThroughCodec(window.packed_k, Pick(heads, window.head), bits,
                                     options_.group, options_.params);
    const RowMatrix output = WeightsWithKeys(window, k) * window.v;
    error += static_cast<double>((output - window.output).squaredNorm());
  }
  return error / norm_;
}

double LayerScorer::VError(const std::vector<SideTransform>& heads, uint32_t bits) const {
  double error = 0.0;
  for (const Window& window : windows_) {
    const RowMatrix v = ThroughCodec(window.packed_v, Pick(heads, window.head), bits,
                                     options_.group, options_.params);
    error += static_cast<double>(
        (OutputWithValues(window, window.weights, v) - window.output).squaredNorm());
  }
  return error / norm_;
}

double LayerScorer::BothError(const std::vector<SideTransform>& k_heads, uint32_t k_bits,
                              const std::vector<SideTransform>& v_heads, uint32_t v_bits) const {
  double error = 0.0;
  for (const Window& window : windows_) {
    const RowMatrix k = ThroughCodec(window.packed_k, Pick(k_heads, window.head), k_bits,
                                     options_.group, options_.params);
    const RowMatrix v = ThroughCodec(window.packed_v, Pick(v_heads, window.head), v_bits,
                                     options_.group, options_.params);
    const RowMatrix output = OutputWithValues(window, WeightsWithKeys(window, k), v);
    error += static_cast<double>((output - window.output).squaredNorm());
  }
  return error / norm_;
}

}  // namespace oscarkv::calibrate
