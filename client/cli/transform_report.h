// The report that calibration leaves in a transform file, read back and printed for people.
#ifndef OSCARKV_CLIENT_CLI_TRANSFORM_REPORT_H_
#define OSCARKV_CLIENT_CLI_TRANSFORM_REPORT_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace oscarkv::cli {

struct ReportedScore {
  std::string method;
  double error = 0.0;
  std::vector<double> clip_ratios;  // one a KV head; 0: none
};

struct ReportedLayer {
  std::string k_method, v_method;
  double error = 0.0;
  double naive_error = 0.0;
  uint64_t tokens = 0;
  uint64_t kv_samples = 0;
  uint64_t scored_tokens = 0;
  uint64_t scored_recent_tokens = 0;
  std::vector<ReportedScore> k, v;  // naive first
};

struct TransformReport {
  std::string model, method, params;
  uint64_t k_bits = 0, v_bits = 0;
  uint64_t group = 0;
  uint64_t sink_tokens = 0, recent_tokens = 0;
  std::vector<ReportedLayer> layers;
  std::vector<std::string> notes;
  std::vector<std::string> warnings;

  // False for transforms that nobody scored (imported ones).
  bool scored() const { return !layers.empty() && !layers[0].k.empty() && !layers[0].v.empty(); }
};

// What is not there stays empty; kInvalidArgument naming the field when it is of another kind.
absl::StatusOr<TransformReport> ParseTransformReport(std::string_view json);

// Every method of K and V beside naive INT2: median error over layers, median clip ratio, how often
// it was chosen. `report` is scored.
std::string ScoreTable(const TransformReport& report);

// 0 for none.
double Median(std::vector<double> values);
// "0.914", "0.91-0.95" or "none", of clip ratios.
std::string ClipRange(const std::vector<double>& ratios);

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_TRANSFORM_REPORT_H_
