// Look-ups of many keys by a few clients at once, alone or while others fetch pages. Beside them,
// the same of small fetches from peers that do nothing else: what the machine itself takes.
#ifndef OSCARKV_TESTS_BENCH_TRANSFER_LOOKUPS_H_
#define OSCARKV_TESTS_BENCH_TRANSFER_LOOKUPS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace oscarkv::bench {

struct LookupPlan {
  std::string peer = "ours";
  std::string endpoint;
  std::string bulk_peer = "ours";
  std::string bulk_endpoint;  // empty: `endpoint`
  uint32_t keys = 128;        // a call
  uint32_t clients = 1;       // each with a connection and a thread of its own
  uint32_t bulk = 0;          // clients that fetch pages of 1 MiB, 16 a call, meanwhile
  double seconds = 2.0;
};

// Prints one JSON object.
absl::Status MeasureLookups(const LookupPlan& plan);

}  // namespace oscarkv::bench

#endif  // OSCARKV_TESTS_BENCH_TRANSFER_LOOKUPS_H_
