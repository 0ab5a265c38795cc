// A load test of a server: synthetic pages put, looked up and fetched by workers that run at once.
#ifndef OSCARKV_CLIENT_CLI_LOAD_TEST_H_
#define OSCARKV_CLIENT_CLI_LOAD_TEST_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "client/cpp/client.h"
#include "kernels/codec/geometry.h"

namespace oscarkv::cli {

struct LoadOptions {
  Geometry geometry;
  bool wide = false;          // pages in the model's dtype instead of 2 bits
  uint32_t workers = 2;       // each with a connection of its own
  uint32_t pages_a_call = 8;  // a sequence is as long as a call
  uint32_t sequences = 4;     // that a worker keeps in the store
  absl::Duration phase_time = absl::Seconds(3);
};

enum class Phase { kPut, kLookup, kGet, kGetDecoded };
inline constexpr Phase kPhases[] = {Phase::kPut, Phase::kLookup, Phase::kGet, Phase::kGetDecoded};
std::string_view PhaseName(Phase phase);  // "put", "lookup", "get", "get-decoded"

struct PhaseResult {
  Phase phase = Phase::kPut;
  double seconds = 0.0;
  uint64_t calls = 0;  // that succeeded, as all that follows
  uint64_t pages = 0;
  uint64_t bytes_wire = 0;   // of pages
  uint64_t bytes_model = 0;  // the same pages in the model's dtype
  double p50_ms = 0.0, p99_ms = 0.0;
  uint64_t failed = 0;
  absl::Status first_failure;
};

// The namespace is the same for every run of one geometry; each run's keys are its own.
class LoadTest {
 public:
  // Makes the namespace, and K and V at random. The statuses of Client::OpenNamespace, or the
  // store's error.
  static absl::StatusOr<std::unique_ptr<LoadTest>> Create(const client::ClientOptions& store,
                                                          const LoadOptions& options);
  // Removes the pages if CleanUp did not.
  ~LoadTest();

  uint64_t page_bytes() const;        // as stored
  uint64_t page_model_bytes() const;  // in the model's dtype
  uint64_t working_set_bytes() const;

  // Phases run in the order of kPhases, kPut first. `progress` gets the time gone by, from one
  // thread. Every worker makes one call at least. Ends early when `stop` becomes true, and for a
  // worker whose call the store does not answer.
  PhaseResult Run(Phase phase, const std::atomic<bool>& stop,
                  absl::FunctionRef<void(absl::Duration)> progress);
  absl::Status CleanUp();

 private:
  class Worker;
  explicit LoadTest(const LoadOptions& options);

  const LoadOptions options_;
  std::vector<std::byte> values_;  // K, then V, of a pool of tokens that pages are drawn from
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_LOAD_TEST_H_
