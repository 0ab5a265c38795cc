#include "kernels/calibrate/score.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "kernels/codec/oscar/format.h"
#include "kernels/codec/oscar/row_kernels.h"

namespace oscarkv::calibrate {
namespace {

using Eigen::Index;

// Replaces logits by exp(logit - max), with what no sum can see as zero: products with denormal
// numbers take a hundred times as long.
template <typename Logits>
void Exponentiate(Logits& logits, float max) {
  logits = (logits.array() - max).exp().matrix();
  logits = (logits.array() < 1e-20f).select(0.0f, logits);
}

// Quantised tokens that the least scored query must have before it.
constexpr uint64_t kPackedMin = 32;

Eigen::Map<const RowMatrix> MapOf(const std::vector<float>& values, uint32_t dim) {
  return {values.data(), dim, dim};
}

Eigen::Map<const Eigen::RowVectorXf> MapOf(const std::vector<float>& values) {
  return {values.data(), static_cast<Index>(values.size())};
}

const SideTransform& Pick(const std::vector<SideTransform>& heads, uint32_t head) {
  return heads.size() == 1 ? heads[0] : heads[head];
}

// Rows beyond the range of their params read back as NaN: no error is greater.
double OrInfinite(double error) {
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

// Logits of queries over transformed keys: q . (y T^-1 + m) = (q T^-T) . y + q . m.
struct TransformedQueries {
  RowMatrix rows;             // q T^-T
  Eigen::VectorXf constants;  // q . m

  TransformedQueries(const RowMatrix& q, const SideTransform& transform)
      : rows(q * MapOf(transform.inverse, transform.dim).transpose()),
        constants(q * MapOf(transform.offset).transpose()) {}

  RowMatrix Logits(const RowMatrix& keys) const {
    RowMatrix logits = rows * keys.transpose();
    logits.colwise() += constants;
    return logits;
  }
};

}  // namespace

RowMatrix Transformed(const RowMatrix& rows, const SideTransform& transform) {
  return (rows.rowwise() - MapOf(transform.offset)) * MapOf(transform.forward, transform.dim);
}

RowMatrix ThroughQuantizer(const RowMatrix& rows, uint32_t bits, uint32_t group, float clip_ratio,
                           ParamsDType params) {
  const auto dim = static_cast<uint32_t>(rows.cols());
  const RowFormat format{.dim = dim,
                         .bits = bits,
                         .group = group == 0 ? dim : group,
                         .clip_index = ClipIndex(clip_ratio, dim),
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
  EncodeReport report;
  kernels.Encode(format, nullptr, DType::kFp32, sources, codes.data(), pairs.data(), &report);
  kernels.Decode(format, nullptr, codes.data(), pairs.data(), DType::kFp32, destinations);
  return result;
}

// The queries to score, spread over the part behind a recent window that is followed by packed
// tokens.
absl::Status LayerScorer::ReadQueries(const LayerDump& dump, const HeldBack& part,
                                      Window& window) const {
  const uint64_t first_query = recent_tokens_ + (part.tokens - recent_tokens_) / 4;
  const uint64_t positions = std::min(options_.queries, part.tokens - first_query);
  const uint32_t ratio = dump.shape().queries_per_kv_head();
  window.q.resize(static_cast<Index>(positions * ratio), dump.shape().k_dim);
  for (uint32_t i = 0; i < ratio; ++i) {
    for (uint64_t j = 0; j < positions; ++j) {
      const uint64_t token = first_query + j * (part.tokens - first_query) / positions;
      OSCARKV_ASSIGN_OR_RETURN(const RowMatrix q, dump.Read(Tensor3::kQ, window.head * ratio + i,
                                                            part.sequence, part.first + token, 1));
      window.q.row(static_cast<Index>(window.packed_end.size())) = q.row(0);
      window.packed_end.push_back(static_cast<Index>(token + 1 - recent_tokens_));
    }
  }
  window.q /= std::sqrt(static_cast<float>(dump.shape().k_dim));
  return absl::OkStatus();
}

// Exact attention, apart for what stays exact and for what is packed. The rows of k and v are the
// sinks, then the held-back part.
void LayerScorer::AttendExactly(const RowMatrix& k, const RowMatrix& v, Index sinks, Index recent,
                                Window& window) {
  const Index queries = window.q.rows();
  const Index packed = window.packed_k.rows();
  RowMatrix weights = window.q * k.transpose();
  window.exact_max.resize(queries);
  window.exact_sum.resize(queries);
  window.exact_output.resize(queries, v.cols());
  window.output.resize(queries, v.cols());
  window.packed_output.resize(queries, v.cols());
  window.packed_weights = RowMatrix::Zero(queries, packed);
  for (Index row = 0; row < queries; ++row) {
    const Index end = window.packed_end[static_cast<size_t>(row)];
    auto visible = weights.row(row).head(sinks + end + recent);
    window.exact_max(row) = visible.maxCoeff();
    Exponentiate(visible, window.exact_max(row));
    const auto sink_part = visible.head(sinks);
    const auto packed_part = visible.segment(sinks, end);
    const auto recent_part = visible.tail(recent);
    window.exact_sum(row) = sink_part.sum() + recent_part.sum();
    window.exact_output.row(row) =
        sink_part * v.topRows(sinks) + recent_part * v.middleRows(sinks + end, recent);
    const float sum = window.exact_sum(row) + packed_part.sum();
    window.packed_weights.row(row).head(end) = packed_part / sum;
    window.packed_output.row(row) =
        window.packed_weights.row(row).head(end) * window.packed_v.topRows(end);
    window.output.row(row) = window.packed_output.row(row) + window.exact_output.row(row) / sum;
  }
}

absl::StatusOr<LayerScorer::Window> LayerScorer::MakeWindow(const LayerDump& dump,
                                                            const HeldBack& part,
                                                            uint32_t head) const {
  const uint64_t sinks = std::min(options_.sink_tokens, part.first);
  const auto read_behind_sinks = [&](Tensor3 which) -> absl::StatusOr<RowMatrix> {
    OSCARKV_ASSIGN_OR_RETURN(const RowMatrix front,
                             dump.Read(which, head, part.sequence, 0, sinks));
    OSCARKV_ASSIGN_OR_RETURN(const RowMatrix rows,
                             dump.Read(which, head, part.sequence, part.first, part.tokens));
    RowMatrix all(front.rows() + rows.rows(), rows.cols());
    all << front, rows;
    return all;
  };
  OSCARKV_ASSIGN_OR_RETURN(const RowMatrix k, read_behind_sinks(Tensor3::kK));
  OSCARKV_ASSIGN_OR_RETURN(const RowMatrix v, read_behind_sinks(Tensor3::kV));
  Window window;
  window.head = head;
  OSCARKV_RETURN_IF_ERROR(ReadQueries(dump, part, window));
  const Index packed = *std::max_element(window.packed_end.begin(), window.packed_end.end());
  window.packed_k = k.middleRows(static_cast<Index>(sinks), packed);
  window.packed_v = v.middleRows(static_cast<Index>(sinks), packed);
  AttendExactly(k, v, static_cast<Index>(sinks), static_cast<Index>(recent_tokens_), window);
  return window;
}

absl::StatusOr<LayerScorer> LayerScorer::Create(const LayerDump& dump,
                                                const std::vector<HeldBack>& held_back,
                                                const ScoreOptions& options) {
  LayerScorer scorer;
  scorer.options_ = options;
  scorer.recent_tokens_ = options.recent_tokens;
  for (const HeldBack& part : held_back) {
    if (part.tokens < 2 * kPackedMin) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", dump.layer(), ": a held-back part has ", part.tokens,
                       " tokens behind the ", options.sink_tokens, " sinks, scoring needs ",
                       2 * kPackedMin, ": dump longer sequences"));
    }
    // Short parts are scored with a shorter window, so that something is quantised.
    scorer.recent_tokens_ = std::min(scorer.recent_tokens_, part.tokens / 2);
  }
  for (const HeldBack& part : held_back) {
    for (uint32_t head = 0; head < dump.shape().kv_heads; ++head) {
      OSCARKV_ASSIGN_OR_RETURN(Window window, scorer.MakeWindow(dump, part, head));
      scorer.norm_ += static_cast<double>(window.output.squaredNorm());
      scorer.windows_.push_back(std::move(window));
    }
    dump.Release(part.sequence, 0, part.sequence.tokens);
  }
  scorer.norm_ = std::max(scorer.norm_, 1e-30);
  return scorer;
}

uint64_t LayerScorer::queries() const {
  uint64_t rows = 0;
  for (const Window& window : windows_) rows += static_cast<uint64_t>(window.q.rows());
  return rows;
}

RowMatrix LayerScorer::Quantized(const RowMatrix& rows, float clip_ratio, uint32_t bits) const {
  return ThroughQuantizer(rows, bits, options_.group, clip_ratio, options_.params);
}

// Merges attention to packed tokens with the exact rest (as two splits of one softmax merge) and
// compares.
double LayerScorer::KeyError(const Window& window, const RowMatrix& packed_logits,
                             const RowMatrix& packed_values) {
  const Index queries = window.q.rows();
  RowMatrix weights = packed_logits;
  Eigen::VectorXf packed_scale(queries);
  Eigen::VectorXf exact_scale(queries);
  for (Index row = 0; row < queries; ++row) {
    const Index end = window.packed_end[static_cast<size_t>(row)];
    auto used = weights.row(row).head(end);
    const float packed_max = end > 0 ? used.maxCoeff() : -std::numeric_limits<float>::infinity();
    const float max = std::max(packed_max, window.exact_max(row));
    Exponentiate(used, max);
    weights.row(row).tail(weights.cols() - end).setZero();
    const float exact = std::exp(window.exact_max(row) - max);
    const float sum = exact * window.exact_sum(row) + used.sum();
    packed_scale(row) = 1.0f / sum;
    exact_scale(row) = exact / sum;
  }
  RowMatrix difference = packed_scale.asDiagonal() * (weights * packed_values);
  difference += exact_scale.asDiagonal() * window.exact_output;
  difference -= window.output;
  return static_cast<double>(difference.squaredNorm());
}

std::vector<double> LayerScorer::KErrors(uint32_t head, const SideTransform& transform,
                                         uint32_t bits, std::span<const float> clip_ratios) const {
  std::vector<double> errors(clip_ratios.size(), 0.0);
  for (const Window& window : windows_) {
    if (window.head != head) continue;
    const RowMatrix keys = Transformed(window.packed_k, transform);
    const TransformedQueries queries(window.q, transform);
    for (size_t i = 0; i < clip_ratios.size(); ++i) {
      const RowMatrix logits = queries.Logits(Quantized(keys, clip_ratios[i], bits));
      errors[i] += OrInfinite(KeyError(window, logits, window.packed_v) / norm_);
    }
  }
  return errors;
}

std::vector<double> LayerScorer::VErrors(uint32_t head, const SideTransform& transform,
                                         uint32_t bits, std::span<const float> clip_ratios) const {
  std::vector<double> errors(clip_ratios.size(), 0.0);
  for (const Window& window : windows_) {
    if (window.head != head) continue;
    const RowMatrix values = Transformed(window.packed_v, transform);
    // W (y T^-1 + m) = (W y) T^-1 + (W 1) m.
    RowMatrix constant = window.packed_weights.rowwise().sum() * MapOf(transform.offset);
    constant -= window.packed_output;
    for (size_t i = 0; i < clip_ratios.size(); ++i) {
      const RowMatrix read = window.packed_weights * Quantized(values, clip_ratios[i], bits);
      const RowMatrix difference = read * MapOf(transform.inverse, transform.dim) + constant;
      errors[i] += OrInfinite(static_cast<double>(difference.squaredNorm()) / norm_);
    }
  }
  return errors;
}

double LayerScorer::BothError(const std::vector<SideTransform>& k, uint32_t k_bits,
                              const std::vector<SideTransform>& v, uint32_t v_bits) const {
  double error = 0.0;
  for (const Window& window : windows_) {
    const SideTransform& of_k = Pick(k, window.head);
    const SideTransform& of_v = Pick(v, window.head);
    const RowMatrix keys = Quantized(Transformed(window.packed_k, of_k), of_k.clip_ratio, k_bits);
    RowMatrix values = Quantized(Transformed(window.packed_v, of_v), of_v.clip_ratio, v_bits) *
                       MapOf(of_v.inverse, of_v.dim);
    values.rowwise() += MapOf(of_v.offset);
    error += KeyError(window, TransformedQueries(window.q, of_k).Logits(keys), values);
  }
  return OrInfinite(error / norm_);
}

}  // namespace oscarkv::calibrate
