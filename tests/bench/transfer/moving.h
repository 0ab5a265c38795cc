// Pages moved by one peer, or by two of them by turns.
#ifndef OSCARKV_TESTS_BENCH_TRANSFER_MOVING_H_
#define OSCARKV_TESTS_BENCH_TRANSFER_MOVING_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "tests/bench/transfer/transfer_peer.h"

namespace oscarkv::bench {

// A peer by its name: ours, bare, raw, redis or memcpy.
absl::StatusOr<std::unique_ptr<TransferPeer>> Connect(const std::string& peer,
                                                      const PeerOptions& options);

struct Plan {
  std::string peer;
  PeerOptions options;
  // Empty, or what the peer is held against, at its endpoint: the two have turns of `seconds`.
  std::string beside;
  std::string beside_endpoint;
  uint32_t turns = 15;
  std::vector<uint32_t> connections = {1, 2};
  std::vector<uint32_t> batches = {1, 16};
  std::vector<std::string> works = {"get", "put"};
  double seconds = 0.5;
  uint64_t set_bytes = 192 << 20;
};

// Prints a JSON object for each of works x connections x batches.
absl::Status Measure(const Plan& plan);

}  // namespace oscarkv::bench

#endif  // OSCARKV_TESTS_BENCH_TRANSFER_MOVING_H_
