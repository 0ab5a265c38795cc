// oscarkv bench: a load test of a server.
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "CLI/CLI.hpp"
#include "client/cli/commands.h"
#include "client/cli/load_test.h"
#include "client/cli/progress.h"
#include "client/cli/store_commands.h"
#include "client/cli/store_options.h"
#include "client/cli/text.h"
#include "kernels/base/status_macros.h"

namespace oscarkv::cli {
namespace {

struct Arguments {
  StoreOptions store;
  LoadOptions load;
  uint32_t head_dim = 128;
  std::string dtype = "bf16";
  double seconds = 3.0;
  bool evict = false;
};

// Set by Ctrl-C and SIGTERM: the bench then ends early, and removes its pages all the same.
std::atomic<bool> interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free, "it is set by a signal handler");

void OnSignal(int number) {
  interrupted.store(true, std::memory_order_relaxed);
  signal(number, SIG_DFL);  // a second one ends the program at once
}

void TakeSignals() {
  signal(SIGINT, OnSignal);
  signal(SIGTERM, OnSignal);
}

DType DTypeOf(const std::string& name) {
  if (name == "fp16") return DType::kFp16;
  return name == "fp32" ? DType::kFp32 : DType::kBf16;
}

// A bench must not push a service's pages out by accident.
absl::Status CheckRoom(const client::ServerStats& stats, const LoadTest& test) {
  uint64_t free = 0;
  for (const client::TierUse& tier : stats.tiers) {
    if (tier.tier == "gpu") continue;  // copies of what the others hold
    free += tier.capacity_bytes - std::min(tier.used_bytes, tier.capacity_bytes);
  }
  const uint64_t need = test.working_set_bytes();
  if (need <= free) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("the bench keeps ", BytesText(static_cast<double>(need)),
                   " in the store, which has ", BytesText(static_cast<double>(free)),
                   " free: choose fewer --sequences, --pages or --concurrency, or let it --evict"));
}

double PerSecond(double amount, const PhaseResult& result) {
  return result.seconds > 0.0 ? amount / result.seconds : 0.0;
}

Json PhaseReport(const PhaseResult& result) {
  const auto pages = static_cast<double>(result.pages);
  return {{"phase", std::string(PhaseName(result.phase))},
          {"seconds", result.seconds},
          {"calls", result.calls},
          {"pages", result.pages},
          {"pages_per_s", PerSecond(pages, result)},
          {"wire_gb_per_s", PerSecond(static_cast<double>(result.bytes_wire) * 1e-9, result)},
          {"model_gb_per_s", PerSecond(static_cast<double>(result.bytes_model) * 1e-9, result)},
          {"p50_ms", result.p50_ms},
          {"p99_ms", result.p99_ms},
          {"failed", result.failed}};
}

Json BenchReport(const Arguments& arguments, const LoadTest& test,
                 const std::vector<PhaseResult>& results) {
  const LoadOptions& load = arguments.load;
  Json phases = Json::array();
  for (const PhaseResult& result : results) phases.push_back(PhaseReport(result));
  return {{"server", arguments.store.server},
          {"geometry",
           {{"layers", load.geometry.layers},
            {"kv_heads", load.geometry.kv_heads},
            {"head_dim", load.geometry.k_head_dim},
            {"page_tokens", load.geometry.page_tokens},
            {"dtype", arguments.dtype}}},
          {"encoding", EncodingName(load.wide ? Encoding::kWide : Encoding::kPacked)},
          {"page_bytes", test.page_bytes()},
          {"page_model_bytes", test.page_model_bytes()},
          {"concurrency", load.workers},
          {"pages_a_call", load.pages_a_call},
          {"phases", phases}};
}

void PrintResults(const Json& report) {
  std::cout << absl::StrFormat(
      "%s pages of %d tokens: %s stored, %s in %s; %d a call, %d calls at once\n\n",
      report["encoding"].get<std::string>(), report["geometry"]["page_tokens"].get<uint32_t>(),
      BytesText(report["page_bytes"].get<double>()),
      BytesText(report["page_model_bytes"].get<double>()),
      report["geometry"]["dtype"].get<std::string>(), report["pages_a_call"].get<uint32_t>(),
      report["concurrency"].get<uint32_t>());
  Table table({"PHASE", ">CALLS", ">PAGES/S", ">WIRE GB/S", ">MODEL GB/S", ">P50 MS", ">P99 MS",
               ">FAILED"});
  for (const Json& phase : report["phases"]) {
    const auto number = [&](const char* name, const char* none) {
      const auto value = phase[name].get<double>();
      return value > 0.0 ? absl::StrFormat("%.3f", value) : none;
    };
    table.Add({phase["phase"].get<std::string>(), CountText(phase["calls"].get<uint64_t>()),
               CountText(static_cast<uint64_t>(phase["pages_per_s"].get<double>())),
               number("wire_gb_per_s", "-"), number("model_gb_per_s", "-"), number("p50_ms", "-"),
               number("p99_ms", "-"), CountText(phase["failed"].get<uint64_t>())});
  }
  std::cout << table.Text();
}

std::vector<PhaseResult> RunPhases(LoadTest& test, const LoadOptions& load) {
  std::vector<PhaseResult> results;
  for (const Phase phase : kPhases) {
    if (interrupted.load(std::memory_order_relaxed)) break;
    ProgressBar bar(std::string(PhaseName(phase)), "s");
    const int64_t all = absl::ToInt64Seconds(load.phase_time);
    results.push_back(test.Run(phase, interrupted, [&](absl::Duration gone) {
      bar.Show(static_cast<uint64_t>(std::min(absl::ToInt64Seconds(gone), all)),
               static_cast<uint64_t>(all));
    }));
    bar.Finish();
  }
  return results;
}

absl::Status Run(Arguments arguments) {
  LoadOptions& load = arguments.load;
  load.geometry.k_head_dim = load.geometry.v_head_dim = arguments.head_dim;
  load.geometry.dtype = DTypeOf(arguments.dtype);
  load.phase_time = absl::Seconds(arguments.seconds);
  OSCARKV_RETURN_IF_ERROR(ValidateGeometry(load.geometry));
  OSCARKV_ASSIGN_OR_RETURN(const auto client, MakeClient(arguments.store));
  OSCARKV_ASSIGN_OR_RETURN(const auto stats, GetStats(*client, arguments.store));
  auto test = LoadTest::Create(ToClientOptions(arguments.store), load);
  if (!test.ok()) return FromServer(test.status(), arguments.store);
  if (!arguments.evict) OSCARKV_RETURN_IF_ERROR(CheckRoom(stats, **test));
  TakeSignals();
  const std::vector<PhaseResult> results = RunPhases(**test, load);
  const absl::Status cleaned = (*test)->CleanUp();

  const Json report = BenchReport(arguments, **test, results);
  arguments.store.json ? PrintJson(report) : PrintResults(report);
  for (const PhaseResult& result : results) {
    if (result.failed == 0) continue;
    return FromServer(
        Annotate(result.first_failure,
                 absl::StrCat(result.failed, " calls of ", std::string(PhaseName(result.phase)),
                              " failed, the first")),
        arguments.store);
  }
  if (!cleaned.ok()) return FromServer(cleaned, arguments.store);
  if (interrupted.load(std::memory_order_relaxed))
    return absl::CancelledError("interrupted; the pages of the bench were removed");
  return absl::OkStatus();
}

}  // namespace

void AddBenchCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "bench", "Load a server with random pages: put, lookup, get, get decoded by the server");
  const auto a = std::make_shared<Arguments>();
  Geometry& geometry = a->load.geometry;
  geometry.layers = 32;
  geometry.kv_heads = 8;
  geometry.page_tokens = 64;
  command->add_option("--layers", geometry.layers, "Layers of the model")->capture_default_str();
  command->add_option("--kv-heads", geometry.kv_heads, "KV heads")->capture_default_str();
  command->add_option("--head-dim", a->head_dim, "Of K and of V")->capture_default_str();
  command->add_option("--page-tokens", geometry.page_tokens, "Tokens in a page")
      ->capture_default_str();
  command->add_option("--dtype", a->dtype, "The model's: bf16, fp16 or fp32")
      ->check(CLI::IsMember({"bf16", "fp16", "fp32"}))
      ->capture_default_str();
  command->add_flag("--wide", a->load.wide, "Store pages in the model's dtype, not in 2 bits");
  command->add_option("--pages", a->load.pages_a_call, "Pages in a call")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--concurrency", a->load.workers, "Calls at once, each on its connection")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command
      ->add_option("--sequences", a->load.sequences, "Calls' pages that each worker keeps stored")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  command->add_option("--seconds", a->seconds, "Of each of the four phases")
      ->check(CLI::Range(0.01, 86400.0))
      ->capture_default_str();
  command->add_flag("--evict", a->evict,
                    "Run even when that may push other pages out of the store");
  AddStoreOptions(command, &a->store);
  command->footer(
      "Times are of whole calls, encoding and decoding included. The pages are removed at the "
      "end;\n"
      "an empty namespace and its transform set stay, the same for every run of one geometry.\n"
      "Example:\n  oscarkv bench --concurrency 8 --seconds 10 --json > bench.json");
  command->callback([a] { Report(Run(*a)); });
}

}  // namespace oscarkv::cli
