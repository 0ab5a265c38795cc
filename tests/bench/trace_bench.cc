// Replays a trace as often as asked and says what was hit; tests/bench/trace.py makes tables of it.
//
//   trace_bench FILE < JOBS > RESULTS
//
// JOBS is a JSON list of objects with policy ("lru", "learnt", "optimum"), pages, and optionally
// page_tokens, ladder ("kept", "never", "tail", "until_pressure"), hints (bool), wrong_hints
// (0..1), seed, disk_pages with admit ("all", "fetched", "worth") and chance. RESULTS is the same
// list, each object with hits_percent, second_half_percent, evicted, refused, reencoded,
// evicted_ahead, policy_bytes, seconds.
#include <cstdio>
#include <iostream>
#include <iterator>
#include <string>

#include "nlohmann/json.hpp"

#include "tests/bench/trace.h"
#include "tests/bench/trace_replay.h"

namespace oscarkv::bench {
namespace {

absl::StatusOr<ReplayResult> RunJob(const std::vector<TraceRequest>& trace,
                                    const nlohmann::json& job) {
  const ReplayOptions options{.policy = job.value("policy", ""),
                              .capacity_pages = job.value("pages", uint64_t{0}),
                              .page_tokens = job.value("page_tokens", kBlockTokens),
                              .ladder = job.value("ladder", ""),
                              .disk_pages = job.value("disk_pages", uint64_t{0}),
                              .admit = job.value("admit", "all"),
                              .chance_min = job.value("chance", kArchiveChanceMin),
                              .hints = job.value("hints", false),
                              .wrong_hints = job.value("wrong_hints", 0.0),
                              .seed = job.value("seed", uint64_t{1})};
  if (options.policy == "optimum") return ReplayOptimum(trace, options.capacity_pages);
  return Replay(trace, options);
}

int Main(const std::string& path) {
  const auto trace = ReadTrace(path);
  if (!trace.ok()) {
    std::fprintf(stderr, "trace_bench: %s\n", std::string(trace.status().message()).c_str());
    return 1;
  }
  const std::string text{std::istreambuf_iterator<char>(std::cin),
                         std::istreambuf_iterator<char>()};
  nlohmann::json jobs = nlohmann::json::parse(text, nullptr, false);
  if (!jobs.is_array()) {
    std::fprintf(stderr, "trace_bench: expected a JSON list of jobs on standard input\n");
    return 1;
  }
  for (nlohmann::json& job : jobs) {
    const auto result = RunJob(*trace, job);
    if (!result.ok()) {
      std::fprintf(stderr, "trace_bench: %s\n", std::string(result.status().message()).c_str());
      return 1;
    }
    job["hits_percent"] = result->whole.percent();
    job["second_half_percent"] = result->second_half.percent();
    job["evicted"] = result->evicted_pages;
    job["refused"] = result->refused_pages;
    job["reencoded"] = result->reencoded_pages;
    job["evicted_ahead"] = result->evicted_ahead;
    job["disk_hits"] = result->whole.disk_hits;
    job["blocks"] = result->whole.blocks;
    job["second_half_disk_hits"] = result->second_half.disk_hits;
    job["disk_written"] = result->disk_written_pages;
    for (size_t why = 0; why < kArchiveRefusals; ++why)
      job["disk_refused"][ArchiveRefusalName(static_cast<ArchiveRefusal>(why))] =
          result->disk_refused_pages[why];
    job["policy_bytes"] = result->policy_bytes;
    job["seconds"] = result->seconds;
  }
  std::printf("%s\n", jobs.dump(1).c_str());
  return 0;
}

}  // namespace
}  // namespace oscarkv::bench

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: trace_bench FILE < JOBS > RESULTS\n");
    return 2;
  }
  return oscarkv::bench::Main(argv[1]);
}
