// The benchmark of the device's kernels, beside the bandwidth that a copy reaches in the same run.
// `./run gpu-bench` runs it, and PyTorch's way of doing the same (tests/gpu/torch_peers.py).
#include "tests/gpu/gpu_bench.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <fstream>

#include "CLI/CLI.hpp"
#include "kernels/device/status.h"
#include "tests/gpu/gpu_cache.h"

namespace oscarkv::testing {
namespace {

constexpr double kRotatedBytes = 600e6;  // many times the second-level cache

}  // namespace

Bench::Bench(const std::string& filter, bool sweeps)
    : filter_(filter), sweeps_(sweeps), stream_(OrDie(device::Stream::Create())) {
  cudaDeviceProp device;
  OrDie(device::ToStatus(cudaGetDeviceProperties(&device, 0), "asking for device 0"));
  copy_ = CopyBandwidth(stream_.get());
  report_ = {{"device", device.name},           {"multiprocessors", device.multiProcessorCount},
             {"copy_tb_per_s", copy_},          {"repeats", kTimedRepeats},
             {"rows", nlohmann::json::array()}, {"transfers", nlohmann::json::array()},
             {"tier", nlohmann::json::array()}};
  std::printf("%s, %d multiprocessors; copy %.2f TB/s, counting reads and writes\n", device.name,
              device.multiProcessorCount, copy_);
  std::printf("%-40s %9s %9s %9s %7s %8s %9s\n", "one layer of Qwen3-8B", "us", "10 %", "90 %",
              "TB/s", "of copy", "floor us");
}

bool Bench::Wants(const std::string& name) const { return std::regex_search(name, filter_); }

Bench::Rotation Bench::RotationFor(const Least& least) {
  const double copies = std::ceil(kRotatedBytes / least.bytes);
  return {.calls = static_cast<size_t>(std::clamp(copies, 4.0, 40.0)),
          .copies = static_cast<size_t>(std::clamp(copies, 1.0, 40.0))};
}

void Bench::Measure(const std::string& name, const Least& least,
                    const std::vector<Enqueue>& calls) {
  const Times times = TimeGraph(stream_.get(), calls);
  const double rate = least.bytes / times.median * 1e-6;
  const double floor = least.bytes / copy_ * 1e-6;
  report_["rows"].push_back({{"name", name},
                             {"us", times.median},
                             {"us_low", times.low},
                             {"us_high", times.high},
                             {"bytes", least.bytes},
                             {"operations", least.operations},
                             {"tb_per_s", rate},
                             {"of_copy", rate / copy_},
                             {"floor_us", floor}});
  std::printf("%-40s %9.1f %9.1f %9.1f %7.2f %6.0f %% %9.1f\n", name.c_str(), times.median,
              times.low, times.high, rate, 100.0 * rate / copy_, floor);
  std::fflush(stdout);
}

}  // namespace oscarkv::testing

int main(int argc, char** argv) try {
  CLI::App app("Times the device's kernels: encode, decode, attend; transfers; the GPU tier",
               "gpu_bench");
  std::string filter = ".";
  bool sweeps = false;
  std::string json;
  app.add_option("--filter", filter, "only workloads in whose names this expression is found")
      ->capture_default_str();
  app.add_flag("--sweep", sweeps, "also other settings than the defaults");
  app.add_option("--json", json, "write every figure to this file");
  CLI11_PARSE(app, argc, argv);
  oscarkv::testing::Bench bench(filter, sweeps);
  oscarkv::testing::BenchCodec(bench);
  oscarkv::testing::BenchAttention(bench);
  oscarkv::testing::BenchTransfers(bench);
  oscarkv::testing::BenchTier(bench);
  const nlohmann::json& report = bench.report();
  if (report["rows"].empty() && report["transfers"].empty() && report["tier"].empty()) {
    std::fprintf(stderr, "gpu_bench: no workload's name holds '%s'\n", filter.c_str());
    return 1;
  }
  if (json.empty()) return 0;
  std::ofstream file(json);
  file << report.dump(2) << "\n";
  if (!file.flush()) {
    std::fprintf(stderr, "gpu_bench: %s could not be written\n", json.c_str());
    return 1;
  }
  return 0;
} catch (const std::exception& error) {  // an expression that is none, for one
  std::fprintf(stderr, "gpu_bench: %s\n", error.what());
  return 1;
}
