#include "kernels/calibrate/calibrate.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

#include "kernels/base/status_macros.h"
#include "kernels/calibrate/candidates.h"
#include "kernels/calibrate/moments.h"

namespace oscarkv::calibrate {
namespace {

struct Split {
  std::vector<Sequence> fitted;
  std::vector<Sequence> held_back;
};

// At most this many held-back sequences are scored: more cost time and change little.
constexpr size_t kScoredSequencesMax = 2;

// Whole sequences from the end are held back; of a single sequence, its end.
Split SplitSequences(const LayerDump& dump, double share) {
  Split split;
  uint64_t tokens = 0;
  for (const Sequence& sequence : dump.sequences()) tokens += sequence.tokens;
  const auto wanted = static_cast<uint64_t>(share * static_cast<double>(tokens));
  split.fitted = dump.sequences();
  if (split.fitted.size() == 1) {
    Sequence& only = split.fitted[0];
    const uint64_t held =
        std::clamp<uint64_t>(wanted, std::min<uint64_t>(512, only.tokens / 2), only.tokens / 2);
    only.tokens -= held;
    split.held_back.push_back({only.file, only.first_token + only.tokens, held});
    return split;
  }
  uint64_t held = 0;
  while (split.fitted.size() > 1 && (held == 0 || held < wanted)) {
    held += split.fitted.back().tokens;
    if (split.held_back.size() < kScoredSequencesMax)
      split.held_back.push_back(split.fitted.back());
    split.fitted.pop_back();
  }
  return split;
}

// Finds the clip of least error. The error is flat around its least, so a coarse look and one
// refinement serve.
Score FitClip(const std::string& method, uint32_t dim, const std::optional<float>& fixed,
              absl::FunctionRef<double(float)> error_of) {
  if (fixed.has_value()) return {method, *fixed, error_of(*fixed)};
  const auto ratio_of = [&](double share) {
    const auto index = static_cast<uint32_t>(share * dim);
    return index + 1 >= dim ? 0.0f : (static_cast<float>(index) + 0.5f) / static_cast<float>(dim);
  };
  Score best{method, 0.0f, error_of(0.0f)};
  const auto attempt = [&](double share) {
    const float ratio = ratio_of(share);
    if (ratio == 0.0f) return;
    const double error = error_of(ratio);
    if (error < best.error) best = {method, ratio, error};
  };
  for (const double share : {0.82, 0.88, 0.94}) attempt(share);
  const double centre = best.clip_ratio == 0.0f ? 1.0 : static_cast<double>(best.clip_ratio);
  for (const double step : {-0.03, 0.03}) attempt(centre + step);
  return best;
}

struct Choice {
  Candidate candidate;
  Score score;
};

// Scores every candidate of one side and keeps the best.
Choice Choose(Side side, const LayerMoments& moments, const LayerScorer& scorer,
              const CalibrateOptions& options, std::vector<Score>* table) {
  const bool is_k = side == Side::kK;
  const uint32_t bits = is_k ? options.k_bits : options.v_bits;
  const auto error_of = [&](const Candidate& candidate, float clip) {
    const std::vector<SideTransform> heads = candidate.Build(clip);
    return is_k ? scorer.KError(heads, bits) : scorer.VError(heads, bits);
  };
  const auto dim = static_cast<uint32_t>((is_k ? moments.heads[0].k : moments.heads[0].v).rows());
  const Candidate naive = NaiveCandidate(dim);
  table->push_back({"naive", 0.0f, error_of(naive, 0.0f)});
  Choice best;
  for (Candidate& candidate : MakeCandidates(side, moments, options)) {
    const Score score = FitClip(candidate.method, dim, is_k ? options.k_clip : options.v_clip,
                                [&](float clip) { return error_of(candidate, clip); });
    table->push_back(score);
    if (best.candidate.pairs.empty() || score.error < best.score.error)
      best = {std::move(candidate), score};
  }
  return best;
}

std::vector<double> MeanSpectrum(const LayerMoments& moments,
                                 Eigen::MatrixXd HeadMoments::*moment) {
  std::vector<double> spectrum;
  for (const HeadMoments& head : moments.heads) {
    const Eigen::VectorXd values =
        Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(head.*moment, Eigen::EigenvaluesOnly)
            .eigenvalues();
    spectrum.resize(static_cast<size_t>(values.size()), 0.0);
    for (Eigen::Index i = 0; i < values.size(); ++i) {
      spectrum[static_cast<size_t>(values.size() - 1 - i)] +=
          values(i) / static_cast<double>(moments.heads.size());
    }
  }
  return spectrum;
}

double GreatestCondition(const Candidate& candidate) {
  double condition = 1.0;
  for (const MatrixPair& pair : candidate.pairs)
    condition = std::max(condition, ConditionNumber(pair.forward));
  return condition;
}

double InversionError(const std::vector<SideTransform>& heads) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  double worst = 0.0;
  for (const SideTransform& head : heads) {
    const Eigen::Map<const Matrix> forward(head.forward.data(), head.dim, head.dim);
    const Eigen::Map<const Matrix> inverse(head.inverse.data(), head.dim, head.dim);
    const Eigen::MatrixXd product = forward.cast<double>() * inverse.cast<double>();
    worst = std::max(
        worst, (product - Eigen::MatrixXd::Identity(head.dim, head.dim)).cwiseAbs().maxCoeff());
  }
  return worst;
}

struct LayerResult {
  LayerTransform transform;
  LayerReport report;
};

absl::StatusOr<LayerResult> CalibrateLayer(const LayerDump& dump, const CalibrateOptions& options) {
  const Split split = SplitSequences(dump, options.held_back_share);
  OSCARKV_ASSIGN_OR_RETURN(const LayerMoments moments,
                           AccumulateMoments(dump, split.fitted, options.score.sink_tokens,
                                             options.score.recent_tokens));
  const uint64_t least = 4ull * std::max(dump.shape().k_dim, dump.shape().v_dim);
  if (moments.kv_samples < least) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", dump.layer(), ": ", moments.kv_samples,
                                                   " tokens behind the sinks to fit on, at least ",
                                                   least, " are needed"));
  }
  OSCARKV_ASSIGN_OR_RETURN(const LayerScorer scorer,
                           LayerScorer::Create(dump, split.held_back, options.score));
  LayerResult result;
  LayerReport& report = result.report;
  const Choice k = Choose(Side::kK, moments, scorer, options, &report.k);
  const Choice v = Choose(Side::kV, moments, scorer, options, &report.v);
  result.transform = {k.score.method, v.score.method, k.candidate.Build(k.score.clip_ratio),
                      v.candidate.Build(v.score.clip_ratio)};
  report.k_method = k.score.method;
  report.v_method = v.score.method;
  report.error =
      scorer.BothError(result.transform.k, options.k_bits, result.transform.v, options.v_bits);
  report.naive_error =
      scorer.BothError(NaiveCandidate(dump.shape().k_dim).Build(0.0f), options.k_bits,
                       NaiveCandidate(dump.shape().v_dim).Build(0.0f), options.v_bits);
  report.k_condition = GreatestCondition(k.candidate);
  report.v_condition = GreatestCondition(v.candidate);
  report.inversion_error =
      std::max(InversionError(result.transform.k), InversionError(result.transform.v));
  report.tokens = moments.tokens;
  report.kv_samples = moments.kv_samples;
  report.k_spectrum = MeanSpectrum(moments, &HeadMoments::k);
  report.q_spectrum = MeanSpectrum(moments, &HeadMoments::q);
  report.v_spectrum = MeanSpectrum(moments, &HeadMoments::v);
  return result;
}

// What the workers share.
struct Work {
  absl::Mutex mutex;
  std::vector<absl::StatusOr<LayerResult>> results ABSL_GUARDED_BY(mutex);
  size_t done ABSL_GUARDED_BY(mutex) = 0;
  std::atomic<size_t> next = 0;      // relaxed: only hands out numbers
  std::atomic<bool> failed = false;  // relaxed: others may do one layer more
};

void RunWorker(const std::vector<LayerDump>& dump, const CalibrateOptions& options,
               Progress& progress, Work& work) {
  while (!work.failed.load(std::memory_order_relaxed)) {
    const size_t layer = work.next.fetch_add(1, std::memory_order_relaxed);
    if (layer >= dump.size()) return;
    absl::StatusOr<LayerResult> result = CalibrateLayer(dump[layer], options);
    if (!result.ok()) work.failed.store(true, std::memory_order_relaxed);
    const absl::MutexLock lock(&work.mutex);
    work.results[layer] = std::move(result);
    progress(++work.done, dump.size());
  }
}

}  // namespace

std::optional<Method> ParseMethod(std::string_view name) {
  constexpr std::pair<std::string_view, Method> kNames[] = {{"best", Method::kBest},
                                                            {"identity", Method::kIdentity},
                                                            {"hadamard", Method::kHadamard},
                                                            {"oscar", Method::kOscar},
                                                            {"balanced", Method::kBalanced}};
  for (const auto& [text, method] : kNames) {
    if (text == name) return method;
  }
  return std::nullopt;
}

absl::StatusOr<Calibration> Calibrate(const std::vector<LayerDump>& dump,
                                      const CalibrateOptions& options, Progress progress) {
  if (dump.empty()) return absl::InvalidArgumentError("no layers to calibrate");
  Work work;
  {
    const absl::MutexLock lock(&work.mutex);
    work.results.assign(dump.size(), absl::CancelledError("not reached"));
  }
  const int wanted =
      options.threads > 0 ? options.threads : static_cast<int>(std::thread::hardware_concurrency());
  std::vector<std::thread> workers;
  for (int i = 0; i < std::clamp(wanted, 1, static_cast<int>(dump.size())); ++i) {
    workers.emplace_back([&] { RunWorker(dump, options, progress, work); });
  }
  for (std::thread& worker : workers) worker.join();
  const absl::MutexLock lock(&work.mutex);
  for (const auto& result : work.results) {
    if (!result.ok() && !absl::IsCancelled(result.status())) return result.status();
  }
  std::vector<LayerTransform> transforms;
  std::vector<LayerReport> reports;
  for (auto& result : work.results) {
    transforms.push_back(std::move(result->transform));
    reports.push_back(std::move(result->report));
  }
  OSCARKV_ASSIGN_OR_RETURN(TransformSet set,
                           TransformSet::Create(std::move(transforms), dump[0].shape().kv_heads));
  return Calibration{std::move(set), std::move(reports)};
}

}  // namespace oscarkv::calibrate
