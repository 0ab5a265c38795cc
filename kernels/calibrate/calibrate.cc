#include "kernels/calibrate/calibrate.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <span>
#include <thread>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

#include "kernels/base/status_macros.h"
#include "kernels/calibrate/candidates.h"
#include "kernels/calibrate/inspect.h"
#include "kernels/calibrate/moments.h"
#include "kernels/calibrate/split.h"

namespace oscarkv::calibrate {
namespace {

// The errors of a head's rows at several clip ratios.
using ErrorsOf = absl::FunctionRef<std::vector<double>(std::span<const float>)>;

struct Clip {
  float ratio = 0.0f;
  double error = 0.0;
};

// The ratio that ClipIndex maps to `index`; 0 (no clip) for the last.
float RatioOf(uint32_t index, uint32_t dim) {
  return index + 1 >= dim ? 0.0f : (static_cast<float>(index) + 0.5f) / static_cast<float>(dim);
}

void KeepLeast(std::span<const float> ratios, ErrorsOf errors_of, Clip* best) {
  const std::vector<double> errors = errors_of(ratios);
  for (size_t i = 0; i < ratios.size(); ++i) {
    if (errors[i] < best->error) *best = {ratios[i], errors[i]};
  }
}

// Finds the clip of least error: the error is flat around its least, so a coarse look and one
// refinement serve. Codes of 4 bits want milder clips.
Clip FitClip(uint32_t dim, uint32_t bits, const std::optional<float>& fixed, ErrorsOf errors_of) {
  if (fixed.has_value()) return {*fixed, errors_of(std::span(&*fixed, 1))[0]};
  const auto index_of = [dim](double share) {
    return static_cast<uint32_t>(std::min(share * dim, dim - 1.0));
  };
  std::vector<float> ratios = {0.0f};
  if (bits == 2) {
    for (const double share : {0.94, 0.88, 0.82}) ratios.push_back(RatioOf(index_of(share), dim));
  } else {
    for (const double share : {0.98, 0.94}) ratios.push_back(RatioOf(index_of(share), dim));
  }
  Clip best{0.0f, std::numeric_limits<double>::infinity()};
  KeepLeast(ratios, errors_of, &best);
  const uint32_t centre = ClipIndex(best.ratio, dim);
  const uint32_t step = std::max(1u, dim * (bits == 2 ? 3 : 2) / 100);
  ratios.clear();
  ratios.push_back(RatioOf(centre - std::min(step, centre), dim));
  if (centre + step < dim - 1) ratios.push_back(RatioOf(centre + step, dim));
  KeepLeast(ratios, errors_of, &best);
  return best;
}

struct Choice {
  std::vector<SideTransform> heads;
  Score score;
};

// What one side of a layer is scored by.
struct SideContext {
  Side side;
  const LayerScorer& scorer;
  const CalibrateOptions& options;
  uint32_t kv_heads;

  Choice Fit(const Candidate& candidate, const std::optional<float>& fixed_clip) const {
    const uint32_t bits = side == Side::kK ? options.k_bits : options.v_bits;
    Choice choice{candidate.Build(kv_heads), {candidate.method, {}, 0.0}};
    for (uint32_t head = 0; head < kv_heads; ++head) {
      SideTransform& transform = choice.heads[head];
      const Clip clip =
          FitClip(transform.dim, bits, fixed_clip, [&](std::span<const float> ratios) {
            return side == Side::kK ? scorer.KErrors(head, transform, bits, ratios)
                                    : scorer.VErrors(head, transform, bits, ratios);
          });
      transform.clip_ratio = clip.ratio;
      choice.score.clip_ratios.push_back(clip.ratio);
      choice.score.error += clip.error;
    }
    return choice;
  }
};

// One transform for all heads says the same as equal ones.
void ShareIfEqual(std::vector<SideTransform>* heads) {
  for (const SideTransform& head : *heads) {
    const SideTransform& first = heads->front();
    if (head.forward != first.forward || head.inverse != first.inverse ||
        head.offset != first.offset || head.clip_ratio != first.clip_ratio) {
      return;
    }
  }
  heads->resize(1);
}

// Scores every candidate of one side and keeps the best.
Choice Choose(const SideContext& context, const LayerMoments& moments, std::vector<Score>* table) {
  const bool is_k = context.side == Side::kK;
  const auto dim = static_cast<uint32_t>((is_k ? moments.heads[0].k : moments.heads[0].v).rows());
  table->push_back(context.Fit(NaiveCandidate(dim), 0.0f).score);
  Choice best;
  for (const Candidate& candidate : MakeCandidates(context.side, moments, context.options)) {
    Choice choice = context.Fit(candidate, is_k ? context.options.k_clip : context.options.v_clip);
    table->push_back(choice.score);
    if (best.heads.empty() || choice.score.error < best.score.error) best = std::move(choice);
  }
  ShareIfEqual(&best.heads);
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

struct LayerResult {
  LayerTransform transform;
  LayerReport report;
};

absl::StatusOr<LayerMoments> FitMoments(const LayerDump& dump, const Split& split,
                                        const CalibrateOptions& options) {
  const uint64_t least = 4ull * std::max(dump.shape().k_dim, dump.shape().v_dim);
  uint64_t samples = 0;
  for (const Sequence& sequence : split.fitted) {
    samples += sequence.tokens - std::min(sequence.tokens, options.score.sink_tokens);
  }
  if (samples < least) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", dump.layer(), ": ", samples,
                                                   " tokens behind the sinks to fit on, at least ",
                                                   least, " are needed: dump more text"));
  }
  for (const HeldBack& part : split.held_back) {
    OSCARKV_RETURN_IF_ERROR(dump.CheckFinite(part.sequence, 0, part.sequence.tokens));
  }
  return AccumulateMoments(dump, split.fitted, options.score.sink_tokens,
                           options.score.recent_tokens);
}

absl::StatusOr<LayerResult> CalibrateLayer(const LayerDump& dump, const CalibrateOptions& options) {
  const Split split =
      SplitSequences(dump.sequences(), {.held_back_share = options.held_back_share,
                                        .sink_tokens = options.score.sink_tokens,
                                        .context_tokens = options.score.context_tokens});
  OSCARKV_ASSIGN_OR_RETURN(const LayerMoments moments, FitMoments(dump, split, options));
  OSCARKV_ASSIGN_OR_RETURN(const LayerScorer scorer,
                           LayerScorer::Create(dump, split.held_back, options.score));
  const DumpShape& shape = dump.shape();
  LayerResult result;
  LayerReport& report = result.report;
  Choice k = Choose({Side::kK, scorer, options, shape.kv_heads}, moments, &report.k);
  Choice v = Choose({Side::kV, scorer, options, shape.kv_heads}, moments, &report.v);
  report.k_method = k.score.method;
  report.v_method = v.score.method;
  result.transform = {report.k_method, report.v_method, std::move(k.heads), std::move(v.heads)};
  const LayerTransform& chosen = result.transform;
  report.error = scorer.BothError(chosen.k, options.k_bits, chosen.v, options.v_bits);
  report.naive_error = scorer.BothError(NaiveCandidate(shape.k_dim).Build(1), options.k_bits,
                                        NaiveCandidate(shape.v_dim).Build(1), options.v_bits);
  const SideFacts k_facts = Inspect(chosen.k);
  const SideFacts v_facts = Inspect(chosen.v);
  report.k_condition = k_facts.condition;
  report.v_condition = v_facts.condition;
  report.inversion_error = std::max(k_facts.inversion_error, v_facts.inversion_error);
  report.tokens = moments.tokens;
  report.kv_samples = moments.kv_samples;
  report.scored_queries = scorer.queries();
  for (const HeldBack& part : split.held_back) report.scored_tokens += part.tokens;
  report.scored_recent_tokens = scorer.recent_tokens();
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

constexpr std::pair<std::string_view, Method> kMethodNames[] = {{"best", Method::kBest},
                                                                {"identity", Method::kIdentity},
                                                                {"hadamard", Method::kHadamard},
                                                                {"oscar", Method::kOscar},
                                                                {"balanced", Method::kBalanced}};

}  // namespace

std::optional<Method> ParseMethod(std::string_view name) {
  for (const auto& [text, method] : kMethodNames) {
    if (text == name) return method;
  }
  return std::nullopt;
}

std::string_view MethodName(Method method) {
  for (const auto& [text, value] : kMethodNames) {
    if (value == method) return text;
  }
  return "unknown";
}

absl::StatusOr<Calibration> Calibrate(const std::vector<LayerDump>& dump,
                                      const CalibrateOptions& options, Progress progress) {
  if (dump.empty()) return absl::InvalidArgumentError("no layers to calibrate");
  const DumpShape& shape = dump[0].shape();
  if (const uint32_t group = options.score.group;
      group != 0 && (shape.k_dim % group != 0 || shape.v_dim % group != 0)) {
    return absl::InvalidArgumentError(absl::StrCat("a group of ", group,
                                                   " does not divide the head dims ", shape.k_dim,
                                                   " and ", shape.v_dim));
  }
  Work work;
  {
    const absl::MutexLock lock(&work.mutex);
    work.results.assign(dump.size(), absl::CancelledError("not reached"));
  }
  const int wanted =
      options.threads > 0 ? options.threads : static_cast<int>(std::thread::hardware_concurrency());
  std::vector<std::jthread> workers;
  for (int i = 0; i < std::clamp(wanted, 1, static_cast<int>(dump.size())); ++i) {
    workers.emplace_back([&] { RunWorker(dump, options, progress, work); });
  }
  for (std::jthread& worker : workers) worker.join();
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
