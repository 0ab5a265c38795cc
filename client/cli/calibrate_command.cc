#include "client/cli/calibrate_command.h"

#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

#include "CLI/CLI.hpp"
#include "client/cli/code_options.h"
#include "client/cli/commands.h"
#include "client/cli/progress.h"
#include "client/cli/transform_report.h"
#include "kernels/base/sha256.h"
#include "kernels/base/status_macros.h"
#include "kernels/calibrate/calibrate.h"
#include "kernels/codec/transform_file.h"
#include "kernels/safetensors/safetensors.h"

namespace oscarkv::cli {
namespace {

using calibrate::CalibrateOptions;
using calibrate::Calibration;

struct Arguments {
  std::vector<std::string> dump;
  std::string output;
  std::string method = "best";
  bool per_head = false, per_layer = false;
  bool offset = false, no_offset = false;
  CodeOptions codes;
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
  options.k_bits = arguments->codes.k_bits;
  options.v_bits = arguments->codes.v_bits;
  options.score.params = arguments->codes.params_dtype();
  return absl::OkStatus();
}

// Said before the work, not after it.
absl::Status CheckWritable(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (access(folder.empty() ? "." : folder.c_str(), W_OK) == 0) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", path));
}

absl::Status Run(Arguments arguments) {
  OSCARKV_RETURN_IF_ERROR(Resolve(&arguments));
  OSCARKV_ASSIGN_OR_RETURN(const std::vector<calibrate::LayerDump> dump,
                           calibrate::OpenDump(arguments.dump));
  OSCARKV_RETURN_IF_ERROR(CheckWritable(arguments.output));
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
    OSCARKV_ASSIGN_OR_RETURN(const TransformReport parsed, ParseTransformReport(report));
    std::cout << ScoreTable(parsed);
    std::cout << "wrote " << arguments.output << "\nhash  " << hash << "\n";
  }
  for (const std::string& warning : calibrate::Warnings(calibration, arguments.options)) {
    std::cerr << "oscarkv: warning: " << warning << "\n";
  }
  return absl::OkStatus();
}

}  // namespace

// NOLINTNEXTLINE(readability-function-size): a list of options
void AddCalibrateCommand(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("calibrate", "Fit a transform set to a model's dumped Q, K and V");
  const auto a = std::make_shared<Arguments>();
  command
      ->add_option(
          "dump", a->dump,
          "Safetensors files, or folders of them, with layer_<number> in their paths: q, k "
          "(after RoPE) and v, [tokens, heads, head_dim] of F32, F16 or BF16, and seq_lens "
          "(I64) when a file holds several sequences; a layer may have many files")
      ->required();
  command->add_option("-o,--output", a->output, "Transform file to write")->required();
  command
      ->add_option("--method", a->method,
                   "best (all but identity compete, layer by layer), identity, hadamard, oscar or "
                   "balanced (a matrix and its inverse, which weighs K's energy against Q's)")
      ->capture_default_str();
  command->add_option("--model", a->options.model, "A name to keep in the file, for people");
  command
      ->add_flag("--per-head", a->per_head,
                 "Of OSCAR only the form with a rotation for each KV head")
      ->excludes(command->add_flag("--per-layer", a->per_layer,
                                   "Of OSCAR only the form shared by a layer, as published"));
  command->add_flag("--offset", a->offset, "Always subtract the per-head mean")
      ->excludes(command->add_flag("--no-offset", a->no_offset, "Never subtract it"));
  command
      ->add_option("--clip-k", a->options.k_clip,
                   "Clip ratio of K (default: fitted; the paper's is 0.96; 0: none)")
      ->check(CLI::Range(0.0, 1.0));
  command
      ->add_option("--clip-v", a->options.v_clip,
                   "Clip ratio of V (default: fitted; the paper's is 0.92; 0: none)")
      ->check(CLI::Range(0.0, 1.0));
  AddCodeOptions(command, &a->codes);
  AddGroupOption(command, &a->options.score.group);
  command->add_option("--sink-tokens", a->options.score.sink_tokens, "First tokens that stay exact")
      ->capture_default_str();
  command
      ->add_option("--recent-tokens", a->options.score.recent_tokens,
                   "Last tokens that stay exact: what fits and scores are made for")
      ->capture_default_str();
  command->add_option("--held-back", a->options.held_back_share, "Share of the tokens to score on")
      ->check(CLI::Range(0.01, 0.9))
      ->capture_default_str();
  command
      ->add_option("--condition-max", a->options.condition_max,
                   "Greatest condition number of a balanced transform")
      ->check(CLI::Range(1.0, 1e4))
      ->capture_default_str();
  command->add_option("--threads", a->options.threads, "0: one for each core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_flag("--json", a->json, "Print the whole report as JSON");
  command->footer(
      "What a dump is, how to read the table and what to do on a warning: "
      "kernels/calibrate/README.md\n"
      "Example:\n"
      "  oscarkv calibrate DUMP -o m.transform.safetensors --model m\n"
      "  oscarkv calibrate DUMP -o p.safetensors --method oscar --clip-k 0.96 --clip-v 0.92   # as "
      "published");
  command->callback([a] { Report(Run(*a)); });
}

}  // namespace oscarkv::cli
