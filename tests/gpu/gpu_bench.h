// What a file of benchmarks of the device is given: it measures workloads by name.
#ifndef OSCARKV_TESTS_GPU_GPU_BENCH_H_
#define OSCARKV_TESTS_GPU_GPU_BENCH_H_

#include <regex>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"

#include "kernels/device/stream.h"
#include "tests/gpu/gpu_timing.h"

namespace oscarkv::testing {

// One call of a workload: the least it must do.
struct Least {
  double bytes = 0;       // read and written, each once
  double operations = 0;  // multiplications and additions that tensor cores can take
};

// Prints a line for each workload as it is measured. Not thread-safe.
class Bench {
 public:
  // Measures the copy bandwidth first. Workloads whose names `filter` is not found in are left out.
  // `sweeps`: also what helps to choose defaults.
  Bench(const std::string& filter, bool sweeps);

  // Whether the workload is asked for: to be tried before anything is set up for it.
  bool Wants(const std::string& name) const;
  bool sweeps() const { return sweeps_; }
  // Names are stable: "encode/tokens:65536". tests/gpu/torch_peers.py measures the same names.
  void Measure(const std::string& name, const Least& least, const std::vector<Enqueue>& calls);

  // For what is not measured by Measure: a row among `section`'s.
  void AddRow(const std::string& section, const nlohmann::json& row) {
    report_[section].push_back(row);
  }

  // How many calls make one graph, and of how many copies of the memory they work on.
  struct Rotation {
    size_t calls;
    size_t copies;
  };
  static Rotation RotationFor(const Least& least);

  // Device, copy bandwidth, and a row for each workload: "rows" of Measure, "transfers", "tier".
  const nlohmann::json& report() const { return report_; }

 private:
  std::regex filter_;
  bool sweeps_;
  device::Stream stream_;
  double copy_ = 0;
  nlohmann::json report_;
};

void BenchAttention(Bench& bench);
void BenchCodec(Bench& bench);
void BenchTier(Bench& bench);
void BenchTransfers(Bench& bench);

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_GPU_GPU_BENCH_H_
