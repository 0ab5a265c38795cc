// What /metrics shows, gathered when it is asked for: the parts of the server know nothing of
// Prometheus.
#ifndef OSCARKV_SERVER_METRICS_COLLECTOR_H_
#define OSCARKV_SERVER_METRICS_COLLECTOR_H_

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include "kernels/base/latency_histogram.h"
#include "server/core/store_stats.h"

namespace oscarkv {

struct CallCount {
  std::string method;
  std::string code;  // gRPC's name: "OK", "UNAVAILABLE"
  uint64_t count = 0;
};

struct CallLatency {
  std::string method;
  LatencyHistogram::Snapshot latency;
};

struct NamespaceLabels {
  std::string fingerprint;  // hexadecimal, its first 12 digits
  std::string model;
  std::string tenant;
};

// Transfers of pages by one path in one direction.
struct TransferUse {
  std::string path;
  std::string direction;
  uint64_t bytes = 0;
  LatencyHistogram::Snapshot duration;
};

// What is done with the GPU tier's copies without host memory.
struct PeerUse {
  uint64_t held_bytes = 0;    // that clients of the host read in place
  uint64_t holds_lost = 0;    // since the start
  uint64_t staged_bytes = 0;  // of pages on their way
  uint64_t peers = 0;         // workers' GPUs that copies can be sent to
  uint64_t peers_ended = 0;   // since the start
};

// What clients of the same host do with the server's memory.
struct SharedMemoryUse {
  uint64_t connections = 0;
  uint64_t mapped_bytes = 0;   // of pages that they read in place
  uint64_t staging_bytes = 0;  // that they have for pushes
  uint64_t revoked = 0;        // since the start
};

// A moment of the whole server.
struct ServerSnapshot {
  std::string version;
  double uptime_s = 0.0;
  StoreStats store;
  std::vector<NamespaceLabels> namespaces;  // as store.namespaces
  uint64_t inflight_bytes = 0;
  std::vector<CallCount> calls;
  std::vector<CallLatency> latencies;
  std::vector<TransferUse> transfers;
  PeerUse peers;
  SharedMemoryUse shared_memory;
};

// Thread-safe as far as `take` is.
class Collector final : public prometheus::Collectable {
 public:
  explicit Collector(std::function<ServerSnapshot()> take) : take_(std::move(take)) {}
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const std::function<ServerSnapshot()> take_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_METRICS_COLLECTOR_H_
