#include "client/cli/calibrate_command.h"

#include <algorithm>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "CLI/CLI.hpp"
#include "client/cli/commands.h"
#include "client/cli/progress.h"
#include "kernels/base/sha256.h"
#include "kernels/base/status_macros.h"
#include "kernels/calibrate/calibrate.h"
#include "kernels/codec/transform_file.h"
#include "kernels/safetensors/safetensors.h"

namespace oscarkv::cli {
namespace {

using calibrate::CalibrateOptions;
using calibrate::Calibration;
using calibrate::LayerReport;
using calibrate::Score;

struct Arguments {
  std::vector<std::string> dump;
  std::string output;
  std::string method = "best";
  bool per_head = false, per_layer = false;
  bool offset = false, no_offset = false;
  float k_clip = -1.0f, v_clip = -1.0f;
  std::string params = "fp16";
  bool json = false;
  CalibrateOptions options;
};

absl::Status Resolve(Arguments* arguments) {
  CalibrateOptions& options = arguments->options;
  const auto method = calibrate::ParseMethod(arguments->method);
  if (!method) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--method must be best, identity, hadamard, oscar or balanced, found ", arguments->method));
  }
  options.method = *method;
  if (arguments->per_head || arguments->per_layer) options.per_head = arguments->per_head;
  if (arguments->offset || arguments->no_offset) options.offset = arguments->offset;
  if (arguments->k_clip >= 0.0f) options.k_clip = arguments->k_clip;
  if (arguments->v_clip >= 0.0f) options.v_clip = arguments->v_clip;
  options.score.params = arguments->params == "fp32" ? ParamsDType::kFp32 : ParamsDType::kFp16;
  return absl::OkStatus();
}

const Score* FindScore(const std::vector<Score>& scores, const std::string& method) {
  for (const Score& score : scores) {
    if (score.method == method) return &score;
  }
  return nullptr;
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0.0;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

// Every method beside naive INT2: the median over layers of the error of attention's output, and
// how often it was chosen.
void PrintSide(const char* side, const Calibration& calibration,
               std::vector<Score> LayerReport::*scores, std::string LayerReport::*chosen) {
  std::cout << absl::StrFormat("\n%-2s %-22s %12s %8s %8s\n", side, "method", "error", "clip",
                               "layers");
  for (const Score& first : calibration.layers[0].*scores) {
    std::vector<double> errors, clips;
    size_t times = 0;
    for (const LayerReport& layer : calibration.layers) {
      if (const Score* score = FindScore(layer.*scores, first.method)) {
        errors.push_back(score->error);
        for (const float ratio : score->clip_ratios)
          clips.push_back(ratio > 0.0f ? static_cast<double>(ratio) : 1.0);
      }
      times += layer.*chosen == first.method ? size_t{1} : size_t{0};
    }
    const double clip = Median(clips);
    std::cout << absl::StrFormat("   %-22s %12.5f %8s %8s\n", first.method, Median(errors),
                                 clip < 1.0 ? absl::StrFormat("%.3f", clip) : "none",
                                 times > 0 ? absl::StrCat(times) : "");
  }
}

void PrintTable(const Calibration& calibration) {
  std::cout << "Error of attention's output on held-back tokens, relative, median over layers "
               "(sinks and recent window "
               "exact).\nThe first row of each side is plain INT2; `layers`: how often a method "
               "was the best.\n";
  PrintSide("K", calibration, &LayerReport::k, &LayerReport::k_method);
  PrintSide("V", calibration, &LayerReport::v, &LayerReport::v_method);
  std::vector<double> both, naive, condition;
  for (const LayerReport& layer : calibration.layers) {
    both.push_back(layer.error);
    naive.push_back(layer.naive_error);
    condition.push_back(std::max(layer.k_condition, layer.v_condition));
  }
  std::cout << absl::StrFormat(
      "\nK and V together: %.5f chosen, %.5f naive (medians; worst layer %.5f); condition numbers "
      "%.1f median, %.1f most\n",
      Median(both), Median(naive), *std::max_element(both.begin(), both.end()), Median(condition),
      *std::max_element(condition.begin(), condition.end()));
}

absl::Status Run(Arguments arguments) {
  OSCARKV_RETURN_IF_ERROR(Resolve(&arguments));
  OSCARKV_ASSIGN_OR_RETURN(const std::vector<calibrate::LayerDump> dump,
                           calibrate::OpenDump(arguments.dump));
  ProgressBar bar("calibrating", "layers");
  OSCARKV_ASSIGN_OR_RETURN(
      const Calibration calibration,
      calibrate::Calibrate(dump, arguments.options,
                           [&](size_t done, size_t all) { bar.Show(done, all); }));
  bar.Finish();
  const std::string report = calibrate::ReportJson(calibration, arguments.options);
  const std::string file = SerializeTransformFile(calibration.set, report);
  OSCARKV_RETURN_IF_ERROR(WriteFileAtomically(arguments.output, AsBytes(file)));
  const std::string hash = absl::BytesToHexString(Sha256Of(AsBytes(file)));
  if (arguments.json) {
    std::cout << report << "\n";
  } else {
    PrintTable(calibration);
    std::cout << "wrote " << arguments.output << "\nhash  " << hash << "\n";
  }
  for (const std::string& warning : calibrate::Warnings(calibration, arguments.options)) {
    std::cerr << "oscarkv: warning: " << warning << "\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddCalibrateCommand(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("calibrate", "Fit a transform set to a model's dumped Q, K and V");
  const auto a = std::make_shared<Arguments>();
  command
      ->add_option("dump", a->dump,
                   "layer_<number>*.safetensors with q, k, v (and seq_lens), or folders of them")
      ->required();
  command->add_option("-o,--output", a->output, "Transform file to write")->required();
  command->add_option("--method", a->method, "best, identity, hadamard, oscar, balanced")
      ->capture_default_str();
  command
      ->add_flag("--per-head", a->per_head,
                 "A rotation for each KV head where OSCAR has one a layer")
      ->excludes(command->add_flag("--per-layer", a->per_layer,
                                   "OSCAR's rotation shared by a layer, as published"));
  command->add_flag("--offset", a->offset, "Always subtract the per-head mean")
      ->excludes(command->add_flag("--no-offset", a->no_offset, "Never subtract it"));
  command->add_option("--clip-k", a->k_clip,
                      "Clip ratio of K (default: fitted; the paper's is 0.96; 0: none)");
  command->add_option("--clip-v", a->v_clip,
                      "Clip ratio of V (default: fitted; the paper's is 0.92; 0: none)");
  command->add_option("--k-bits", a->options.k_bits, "Bits of K codes")
      ->check(CLI::IsMember({2, 4}))
      ->capture_default_str();
  command->add_option("--v-bits", a->options.v_bits, "Bits of V codes")
      ->check(CLI::IsMember({2, 4}))
      ->capture_default_str();
  command
      ->add_option("--group", a->options.score.group,
                   "Elements that share a scale: 16, 32, 64; 0: the head dim")
      ->check(CLI::IsMember({0, 16, 32, 64}))
      ->capture_default_str();
  command->add_option("--params", a->params, "Scale and zero as fp16 or fp32")
      ->check(CLI::IsMember({"fp16", "fp32"}));
  command->add_option("--sink-tokens", a->options.score.sink_tokens, "First tokens that stay exact")
      ->capture_default_str();
  command
      ->add_option("--recent-tokens", a->options.score.recent_tokens, "Last tokens that stay exact")
      ->capture_default_str();
  command->add_option("--held-back", a->options.held_back_share, "Share of the tokens to score on")
      ->check(CLI::Range(0.01, 0.9))
      ->capture_default_str();
  command->add_option("--condition-max", a->options.condition_max, "Of a balanced transform")
      ->check(CLI::Range(1.0, 1e4))
      ->capture_default_str();
  command->add_option("--threads", a->options.threads, "0: one for each core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_flag("--json", a->json, "Print the whole report as JSON");
  command->callback([a] { Report(Run(*a)); });
}

}  // namespace oscarkv::cli
