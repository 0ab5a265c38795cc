// A server's statistics as tables and as JSON.
#ifndef OSCARKV_CLIENT_CLI_STATS_REPORT_H_
#define OSCARKV_CLIENT_CLI_STATS_REPORT_H_

#include <cstdint>
#include <map>
#include <string>

#include "client/cli/text.h"
#include "client/cpp/server_stats.h"

namespace oscarkv::cli {

// The counters that the commands show; all of them grow.
struct Traffic {
  uint64_t lookup_keys = 0, lookup_hits = 0, lookup_misses = 0, lookup_evicted = 0;
  uint64_t fetch_pages = 0, fetch_misses = 0, fetch_evicted = 0, fetch_bytes = 0;
  uint64_t put_bytes = 0, evicted_bytes = 0, corrupt_pages = 0;
  // Fetched, by the fastest tier that had them; removed, by reason; re-encoded, by cause.
  std::map<std::string, uint64_t> hits_by_tier, removed_by_reason, reencoded_by_cause;
  uint64_t evicted_ahead = 0;
  uint64_t disk_written_bytes = 0, disk_device_written_bytes = 0;
  uint64_t scrubbed_pages = 0;
};
Traffic TrafficOf(const client::ServerStats& stats);

uint64_t PagesOf(const client::ServerStats& stats);

std::string TiersTable(const client::ServerStats& stats);
std::string NamespacesTable(
    const client::ServerStats& stats);  // "no namespaces" when there are none

std::string TenantsTable(const client::ServerStats& stats);  // empty when there are none

Json TenantsReport(const client::ServerStats& stats);
Json NamespaceReport(const client::NamespaceUse& space);
Json StatsReport(const client::ServerStats& stats, const std::string& server);

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_STATS_REPORT_H_
