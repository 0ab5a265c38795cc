#include "client/cli/transform_command.h"

#include <algorithm>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

#include "CLI/CLI.hpp"
#include "client/cli/commands.h"
#include "client/cli/transform_python.h"
#include "client/cli/transform_remove.h"
#include "client/cli/transform_report.h"
#include "kernels/base/sha256.h"
#include "kernels/base/status_macros.h"
#include "kernels/calibrate/inspect.h"
#include "kernels/codec/transform_file.h"
#include "kernels/safetensors/safetensors.h"

namespace oscarkv::cli {
namespace {

using calibrate::SideFacts;
using nlohmann::ordered_json;

struct ShowArguments {
  std::string file;
  std::string plot;
  std::string python = "python3";
  bool json = false;
};

struct ImportArguments {
  std::vector<std::string> files;
  std::string output;
  uint32_t kv_heads = 0;
  std::optional<double> k_clip, v_clip;
  std::string python = "python3";
};

// One side of one layer: what the file says and what looking at its matrices tells.
struct SideView {
  const char* side;
  const std::string& method;
  const std::vector<SideTransform>& heads;
  SideFacts facts;

  std::vector<double> ClipRatios() const {
    std::vector<double> ratios;
    for (const SideTransform& head : heads) ratios.push_back(static_cast<double>(head.clip_ratio));
    return ratios;
  }
  bool HasOffset() const {
    return std::any_of(heads.begin(), heads.end(), [](const SideTransform& head) {
      return std::any_of(head.offset.begin(), head.offset.end(), [](float x) { return x != 0.0f; });
    });
  }
};

std::vector<SideView> SidesOf(const LayerTransform& layer) {
  return {{"k", layer.k_method, layer.k, calibrate::Inspect(layer.k)},
          {"v", layer.v_method, layer.v, calibrate::Inspect(layer.v)}};
}

void PrintJson(const ShowArguments& arguments, const TransformSet& set, const std::string& hash,
               const std::string& report_text) {
  ordered_json layers = ordered_json::array();
  for (uint32_t layer = 0; layer < set.layers(); ++layer) {
    ordered_json entry;
    for (const SideView& side : SidesOf(set.layer(layer))) {
      entry[side.side] = {{"method", side.method},
                          {"transforms", side.heads.size()},
                          {"offset", side.HasOffset()},
                          {"clip_ratios", side.ClipRatios()},
                          {"condition", side.facts.condition},
                          {"inversion_error", side.facts.inversion_error}};
    }
    layers.push_back(std::move(entry));
  }
  const ordered_json all = {{"file", arguments.file},
                            {"sha256", hash},
                            {"kv_heads", set.kv_heads()},
                            {"k_head_dim", set.k_head_dim()},
                            {"v_head_dim", set.v_head_dim()},
                            {"layers", std::move(layers)},
                            {"report", ordered_json::parse(report_text)}};
  std::cout << all.dump(-1, ' ', false, ordered_json::error_handler_t::replace) << "\n";
}

// "6,963" or, where layers differ, "6,963 to 7,001".
std::string CountRange(const TransformReport& report, uint64_t ReportedLayer::*count) {
  const auto [least, most] = std::minmax_element(
      report.layers.begin(), report.layers.end(),
      [&](const ReportedLayer& a, const ReportedLayer& b) { return a.*count < b.*count; });
  return (*least).*count == (*most).*count ? absl::StrCat((*least).*count)
                                           : absl::StrCat((*least).*count, " to ", (*most).*count);
}

void PrintHead(const ShowArguments& arguments, const TransformSet& set, const std::string& hash,
               const TransformReport& report) {
  std::cout << arguments.file << "\n  sha256  " << hash << "\n";
  if (!report.model.empty()) std::cout << "  model   " << report.model << "\n";
  std::cout << absl::StrFormat("  %d layers, %d KV heads, head dims %d of K and %d of V\n",
                               set.layers(), set.kv_heads(), set.k_head_dim(), set.v_head_dim());
  for (const std::string& note : report.notes) std::cout << "  " << note << "\n";
  if (!report.scored()) {
    std::cout << "  no scores: nobody compared it with other transforms on the model's tokens; "
                 "`oscarkv calibrate` does\n";
    return;
  }
  std::cout << absl::StrFormat(
      "  fitted by --method %s for K in %d and V in %d bits, groups of %s, %s params; sinks %d, "
      "recent window %d\n",
      report.method, report.k_bits, report.v_bits,
      report.group == 0 ? "the head dim" : absl::StrCat(report.group), report.params,
      report.sink_tokens, report.recent_tokens);
  std::cout << "  on " << CountRange(report, &ReportedLayer::tokens) << " tokens ("
            << CountRange(report, &ReportedLayer::kv_samples) << " behind the sinks), scored on "
            << CountRange(report, &ReportedLayer::scored_tokens)
            << " held back with a recent window of "
            << CountRange(report, &ReportedLayer::scored_recent_tokens) << "\n";
}

// cond: condition number; |TT'-1|: inversion error.
void PrintLayers(const TransformSet& set, const TransformReport& report) {
  std::cout << absl::StrFormat("\n%5s", "layer");
  for (const char* side : {"K", "V"})
    std::cout << absl::StrFormat("  %-18s %-13s %6s", side, "clip", "cond");
  std::cout << absl::StrFormat(" %9s", "inversion");
  if (report.scored()) std::cout << absl::StrFormat(" %9s %9s", "error", "naive");
  std::cout << "\n";
  for (uint32_t layer = 0; layer < set.layers(); ++layer) {
    std::cout << absl::StrFormat("%5d", layer);
    double inversion = 0.0;
    for (const SideView& side : SidesOf(set.layer(layer))) {
      std::cout << absl::StrFormat("  %-18s %-13s %6.1f", side.method, ClipRange(side.ClipRatios()),
                                   side.facts.condition);
      inversion = std::max(inversion, side.facts.inversion_error);
    }
    std::cout << absl::StrFormat(" %9.1e", inversion);
    if (report.scored() && layer < report.layers.size()) {
      std::cout << absl::StrFormat(" %9.5f %9.5f", report.layers[layer].error,
                                   report.layers[layer].naive_error);
    }
    std::cout << "\n";
  }
}

absl::Status Show(const ShowArguments& arguments) {
  OSCARKV_ASSIGN_OR_RETURN(const auto file, MappedFile::Open(arguments.file));
  absl::StatusOr<TransformSet> set = ParseTransformFile(file->bytes());
  if (!set.ok()) return Annotate(set.status(), arguments.file);
  OSCARKV_ASSIGN_OR_RETURN(const std::string report_text, TransformFileReport(file->bytes()));
  absl::StatusOr<TransformReport> report = ParseTransformReport(report_text);
  if (!report.ok()) return Annotate(report.status(), arguments.file);
  const std::string hash = absl::BytesToHexString(Sha256Of(file->bytes()));
  if (arguments.json) {
    PrintJson(arguments, *set, hash, report_text);
  } else {
    PrintHead(arguments, *set, hash, *report);
    PrintLayers(*set, *report);
    if (report->scored()) std::cout << "\n" << ScoreTable(*report);
  }
  for (const std::string& warning : report->warnings) {
    std::cerr << "oscarkv: warning: " << warning << "\n";
  }
  if (arguments.plot.empty()) return absl::OkStatus();
  return RunPythonModule(arguments.python, "oscarkv.plot_transform",
                         {arguments.file, arguments.plot});
}

absl::Status Import(const ImportArguments& arguments) {
  std::vector<std::string> words = arguments.files;
  words.insert(words.end(), {"-o", arguments.output});
  if (arguments.kv_heads > 0) {
    words.insert(words.end(), {"--kv-heads", absl::StrCat(arguments.kv_heads)});
  }
  if (arguments.k_clip) words.insert(words.end(), {"--clip-k", absl::StrCat(*arguments.k_clip)});
  if (arguments.v_clip) words.insert(words.end(), {"--clip-v", absl::StrCat(*arguments.v_clip)});
  return RunPythonModule(arguments.python, "oscarkv.import_pt", words);
}

void AddShow(CLI::App& transform) {
  CLI::App* command = transform.add_subcommand(
      "show",
      "What is in a transform file: methods, clip ratios, condition numbers, scores, warnings");
  const auto a = std::make_shared<ShowArguments>();
  command->add_option("file", a->file, "Transform file")->required();
  command->add_flag("--json", a->json, "Print it all, the report included, as JSON");
  command->add_option("--plot", a->plot,
                      "Also draw it as a PNG, by `python3 -m oscarkv.plot_transform FILE OUT.png`");
  command->add_option("--python", a->python, "The Python that has the package oscarkv")
      ->capture_default_str();
  command->footer("Example:\n  oscarkv transform show m.transform.safetensors --plot m.png");
  command->callback([a] { Report(Show(*a)); });
}

void AddImport(CLI::App& transform) {
  CLI::App* command = transform.add_subcommand(
      "import",
      "Make a transform file of OSCAR's published rotations (.pt), without executing what is in "
      "them");
  const auto a = std::make_shared<ImportArguments>();
  command
      ->add_option("files", a->files,
                   "k_rotation_*.pt and v_rotation_*.pt; which is which their objective says. A "
                   "side without a file gets the Hadamard rotation")
      ->required()
      ->expected(1, 2);
  command->add_option("-o,--output", a->output, "Transform file to write")->required();
  command->add_option("--kv-heads", a->kv_heads,
                      "KV heads of the model (files of one rotation a layer do not say)");
  command
      ->add_option("--clip-k", a->k_clip, "Clip ratio of K, 0: none (default: 0.96, as published)")
      ->check(CLI::Range(0.0, 1.0));
  command
      ->add_option("--clip-v", a->v_clip, "Clip ratio of V, 0: none (default: 0.92, as published)")
      ->check(CLI::Range(0.0, 1.0));
  command->add_option("--python", a->python, "The Python that has the package oscarkv")
      ->capture_default_str();
  command->footer(
      "Example:\n"
      "  oscarkv transform import k_rotation_qqt_r_h_pbr.pt v_rotation_sst_r_h_pbr.pt --kv-heads 8 "
      "-o m.safetensors");
  command->callback([a] { Report(Import(*a)); });
}

}  // namespace

void AddTransformCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "transform",
      "Look into a transform file, import one from elsewhere, or have a server forget one");
  command->require_subcommand(1);
  AddShow(*command);
  AddImport(*command);
  AddTransformRemove(*command);
}

}  // namespace oscarkv::cli
