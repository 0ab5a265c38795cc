// What calibration found, for the transform file and for people.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

#include "kernels/calibrate/calibrate.h"

namespace oscarkv::calibrate {
namespace {

using nlohmann::ordered_json;

// Above this relative error of attention's output a layer is named: on the models measured,
// generation suffers there.
constexpr double kLayerErrorMax = 0.10;
// A balanced transform beyond this wants its half-precision products checked.
constexpr double kConditionMax = 15.0;
// Tokens fitted on for each channel of a head: below this, moments are noise in good part.
constexpr uint64_t kSamplesPerChannel = 16;

ordered_json ScoresJson(const std::vector<Score>& scores) {
  ordered_json list = ordered_json::array();
  for (const Score& score : scores) {
    list.push_back(
        {{"method", score.method}, {"clip_ratios", score.clip_ratios}, {"error", score.error}});
  }
  return list;
}

std::string LayerList(const std::vector<size_t>& layers) {
  std::string text;
  for (size_t i = 0; i < layers.size() && i < 8; ++i)
    absl::StrAppend(&text, i > 0 ? ", " : "", layers[i]);
  if (layers.size() > 8) absl::StrAppend(&text, " and ", layers.size() - 8, " more");
  return text;
}

}  // namespace

std::string ReportJson(const Calibration& calibration, const CalibrateOptions& options) {
  ordered_json report;
  if (!options.model.empty()) report["model"] = options.model;
  report["method"] = MethodName(options.method);
  report["k_bits"] = options.k_bits;
  report["v_bits"] = options.v_bits;
  report["group"] = options.score.group;
  report["params"] = options.score.params == ParamsDType::kFp16 ? "fp16" : "fp32";
  report["sink_tokens"] = options.score.sink_tokens;
  report["recent_tokens"] = options.score.recent_tokens;
  report["condition_max"] = options.condition_max;
  report["held_back_share"] = options.held_back_share;
  report["layers"] = ordered_json::array();
  for (const LayerReport& layer : calibration.layers) {
    report["layers"].push_back({{"k_method", layer.k_method},
                                {"v_method", layer.v_method},
                                {"error", layer.error},
                                {"naive_error", layer.naive_error},
                                {"k_condition", layer.k_condition},
                                {"v_condition", layer.v_condition},
                                {"inversion_error", layer.inversion_error},
                                {"tokens", layer.tokens},
                                {"kv_samples", layer.kv_samples},
                                {"scored_tokens", layer.scored_tokens},
                                {"scored_queries", layer.scored_queries},
                                {"scored_recent_tokens", layer.scored_recent_tokens},
                                {"k_scores", ScoresJson(layer.k)},
                                {"v_scores", ScoresJson(layer.v)},
                                {"k_spectrum", layer.k_spectrum},
                                {"q_spectrum", layer.q_spectrum},
                                {"v_spectrum", layer.v_spectrum}});
  }
  report["warnings"] = Warnings(calibration, options);
  // A model's name is the user's text: what is no UTF-8 in it is replaced.
  return report.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

std::vector<std::string> Warnings(const Calibration& calibration, const CalibrateOptions& options) {
  std::vector<size_t> poor, no_better, ill_conditioned, few_samples;
  uint64_t recent = options.score.recent_tokens;
  for (size_t i = 0; i < calibration.layers.size(); ++i) {
    const LayerReport& layer = calibration.layers[i];
    if (!(layer.error <= kLayerErrorMax)) poor.push_back(i);
    if (!(layer.error < layer.naive_error)) no_better.push_back(i);
    if (std::max(layer.k_condition, layer.v_condition) > kConditionMax)
      ill_conditioned.push_back(i);
    const size_t channels = std::max(layer.k_spectrum.size(), layer.v_spectrum.size());
    if (layer.kv_samples < kSamplesPerChannel * channels) few_samples.push_back(i);
    recent = std::min(recent, layer.scored_recent_tokens);
  }
  std::vector<std::string> warnings;
  if (!poor.empty()) {
    const char* advice = options.k_bits == 2
                             ? "try --k-bits 4 or a longer recent window (--recent-tokens)"
                             : "try a longer recent window (--recent-tokens)";
    warnings.push_back(
        absl::StrFormat("the error of attention's output is above %.0f %% in layers %s: %s",
                        kLayerErrorMax * 100, LayerList(poor), advice));
  }
  if (!no_better.empty()) {
    warnings.push_back(
        absl::StrCat("no better than naive quantisation in layers ", LayerList(no_better),
                     ": check the dump (post-RoPE K, the right heads) or use --method best"));
  }
  if (!ill_conditioned.empty()) {
    warnings.push_back(absl::StrCat("condition numbers above ", kConditionMax, " in layers ",
                                    LayerList(ill_conditioned),
                                    ": compare half-precision decoding with fp32 before serving"));
  }
  if (!few_samples.empty()) {
    warnings.push_back(absl::StrCat("fitted on fewer than ", kSamplesPerChannel,
                                    " tokens a channel in layers ", LayerList(few_samples),
                                    ": dump several thousand tokens behind the sinks"));
  }
  if (recent < options.score.recent_tokens) {
    warnings.push_back(absl::StrCat("the held-back sequences are too short for a recent window of ",
                                    options.score.recent_tokens, ": scored with ", recent,
                                    "; dump longer sequences, or say --recent-tokens ", recent));
  }
  return warnings;
}

}  // namespace oscarkv::calibrate
