// Traces of requests to an engine, as Mooncake publishes them: one JSON object a line with
// timestamp (ms), input_length and output_length (tokens), and hash_ids, one for each 512-token
// block of the prompt; equal ids are equal prefix blocks.
#ifndef OSCARKV_TESTS_BENCH_TRACE_H_
#define OSCARKV_TESTS_BENCH_TRACE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace oscarkv::bench {

inline constexpr uint32_t kBlockTokens = 512;

struct TraceRequest {
  double time_s = 0.0;
  uint32_t input_tokens = 0;
  uint32_t output_tokens = 0;
  std::vector<uint32_t> blocks;  // dense numbers, from 0 in the order of first use
};

// kNotFound, or kInvalidArgument naming the line: not an object with these members, times that go
// back, no block, a block with two different parents.
absl::StatusOr<std::vector<TraceRequest>> ReadTrace(const std::string& path);

uint32_t CountBlocks(const std::vector<TraceRequest>& trace);  // distinct ones

}  // namespace oscarkv::bench

#endif  // OSCARKV_TESTS_BENCH_TRACE_H_
