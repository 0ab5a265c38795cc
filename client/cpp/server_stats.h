// What a server says about itself, for operators.
#ifndef OSCARKV_CLIENT_CPP_SERVER_STATS_H_
#define OSCARKV_CLIENT_CPP_SERVER_STATS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "proto/wire/namespace_spec.h"

namespace oscarkv::client {

struct NamespaceUse {
  std::string fingerprint;  // 32 raw bytes
  NamespaceSpec spec;
  uint64_t wide_pages = 0;
  uint64_t packed_pages = 0;
  uint64_t stored_bytes = 0;
  uint64_t model_bytes = 0;  // what the same pages would take in the model's dtype
};

// What a tenant holds and may hold; no limit where it has none.
struct TenantUse {
  std::string name;
  struct Share {
    uint64_t used = 0;
    std::optional<uint64_t> limit;
  };
  Share host_bytes, host_pages, gpu_bytes, disk_bytes, inflight_bytes;
  uint64_t protected_host_bytes = 0;  // that others' pages do not drive out
  uint64_t pinned_bytes = 0;
  uint64_t evicted_pages = 0;
  uint64_t refused_items = 0;  // for want of quota
};

struct TierUse {
  std::string tier;  // "gpu", "host" or "disk"
  uint64_t capacity_bytes = 0;
  uint64_t used_bytes = 0;
  uint64_t leased_bytes = 0;
  std::string degraded;            // why the tier is out of use; empty: it is in use
  uint64_t pinned_host_bytes = 0;  // "gpu": host memory that it copies at full speed
};

struct ServerStats {
  std::string version;
  uint64_t epoch = 0;  // another one after every start
  double uptime_s = 0.0;
  std::vector<NamespaceUse> namespaces;
  std::vector<TierUse> tiers;
  std::vector<TenantUse> tenants;
  uint64_t sessions = 0;
  uint64_t leases = 0;
  uint64_t inflight_bytes = 0;
  std::map<std::string, uint64_t>
      counters;                          // by their Prometheus names: name, or name{label="value"}
  std::map<std::string, double> gauges;  // some of them, by the same names
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_SERVER_STATS_H_
