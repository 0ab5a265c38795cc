// Calibration: from a dump of a model's Q, K and V to a transform set, chosen layer by layer by
// score.
#ifndef OSCARKV_KERNELS_CALIBRATE_CALIBRATE_H_
#define OSCARKV_KERNELS_CALIBRATE_CALIBRATE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"

#include "kernels/calibrate/dump.h"
#include "kernels/calibrate/score.h"
#include "kernels/codec/transform_set.h"

namespace oscarkv::calibrate {

enum class Method { kBest, kIdentity, kHadamard, kOscar, kBalanced };
std::optional<Method> ParseMethod(std::string_view name);
std::string_view MethodName(Method method);

struct CalibrateOptions {
  Method method = Method::kBest;
  // OSCAR's rotation per KV head or shared by a layer; unset: the better one, or with
  // Method::kOscar the shared one, as published.
  std::optional<bool> per_head;
  // Subtract the per-head mean; unset: the better one, or for published methods asked for by name
  // none.
  std::optional<bool> offset;
  std::optional<float> k_clip;  // unset: fitted, for each head
  std::optional<float> v_clip;
  uint32_t k_bits = 2;
  uint32_t v_bits = 2;
  double condition_max = 30.0;    // of a balanced transform: half-precision products stay accurate
  double held_back_share = 0.15;  // of the tokens, for scoring
  int threads = 0;                // 0: one for each core
  std::string model;              // a name for people, kept in the report
  ScoreOptions score;
};

// One candidate of one side of one layer, with its best clip ratios.
struct Score {
  std::string method;  // "naive", "hadamard", "oscar", "oscar-head+offset", "balanced+offset", ...
  std::vector<float> clip_ratios;  // [kv_heads]; 0: none
  double error = 0.0;  // of attention's output, relative, with only this side through the codec
};

struct LayerReport {
  std::vector<Score> k;  // naive first, then the candidates
  std::vector<Score> v;
  std::string k_method;  // the chosen ones
  std::string v_method;
  double error = 0.0;        // with both sides through the codec
  double naive_error = 0.0;  // the same for plain INT2 at the same bits
  double k_condition = 1.0;  // greatest over heads
  double v_condition = 1.0;
  double inversion_error = 0.0;       // max |T T^-1 - I| as stored
  uint64_t tokens = 0;                // fitted on
  uint64_t kv_samples = 0;            // of them behind the sinks
  uint64_t scored_queries = 0;        // over all query heads
  uint64_t scored_tokens = 0;         // held back
  uint64_t scored_recent_tokens = 0;  // the exact window that was scored with
  // Eigenvalues of the moments that the fit used, mean over heads, descending.
  std::vector<double> k_spectrum;
  std::vector<double> q_spectrum;
  std::vector<double> v_spectrum;
};

struct Calibration {
  TransformSet set;
  std::vector<LayerReport> layers;
};

// Called from worker threads, one call at a time: layers done, layers in all.
using Progress = absl::AnyInvocable<void(size_t, size_t)>;

// kInvalidArgument names the layer: too few samples (at least 4 * head dim behind the sinks),
// non-finite input, a held-back part too short to score, a group that does not divide the head
// dims. Memory: per thread, one layer's moments
// and held-back context, whatever the dump's size.
absl::StatusOr<Calibration> Calibrate(const std::vector<LayerDump>& dump,
                                      const CalibrateOptions& options, Progress progress);

// Everything needed to judge the set, for the transform file (JSON).
std::string ReportJson(const Calibration& calibration, const CalibrateOptions& options);
// What a person should know and do; empty when all is well.
std::vector<std::string> Warnings(const Calibration& calibration, const CalibrateOptions& options);

}  // namespace oscarkv::calibrate

#endif  // OSCARKV_KERNELS_CALIBRATE_CALIBRATE_H_
