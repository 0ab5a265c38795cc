// oscarkv stat: what a server holds and what became of it.
#include <iostream>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "CLI/CLI.hpp"
#include "client/cli/commands.h"
#include "client/cli/stats_report.h"
#include "client/cli/store_commands.h"
#include "client/cli/store_options.h"
#include "client/cli/text.h"
#include "kernels/base/status_macros.h"

namespace oscarkv::cli {
namespace {

void PrintStats(const client::ServerStats& stats, const StoreOptions& options) {
  const Traffic traffic = TrafficOf(stats);
  std::cout << absl::StrFormat("oscarkvd %s at %s, up %s\nsessions %d, leases %d, %s in flight\n\n",
                               stats.version, options.server, DurationText(stats.uptime_s),
                               stats.sessions, stats.leases,
                               BytesText(static_cast<double>(stats.inflight_bytes)));
  std::cout << TiersTable(stats) << "\n" << NamespacesTable(stats) << "\n";
  if (!stats.tenants.empty()) std::cout << TenantsTable(stats) << "\n";
  const auto keys = static_cast<double>(traffic.lookup_keys);
  std::cout << absl::StrFormat("lookups  %s keys: %s hits (%s), %s misses, %s evicted before\n",
                               CountText(traffic.lookup_keys), CountText(traffic.lookup_hits),
                               PercentText(static_cast<double>(traffic.lookup_hits), keys),
                               CountText(traffic.lookup_misses), CountText(traffic.lookup_evicted));
  std::cout << absl::StrFormat("fetches  %s pages, %s; %s misses, %s evicted before\n",
                               CountText(traffic.fetch_pages),
                               BytesText(static_cast<double>(traffic.fetch_bytes)),
                               CountText(traffic.fetch_misses), CountText(traffic.fetch_evicted));
  std::cout << absl::StrFormat("puts     %s; evicted %s\n",
                               BytesText(static_cast<double>(traffic.put_bytes)),
                               BytesText(static_cast<double>(traffic.evicted_bytes)));
  if (traffic.corrupt_pages > 0)
    std::cout << CountText(traffic.corrupt_pages) << " pages were dropped as corrupt\n";
}

absl::Status Run(const StoreOptions& options) {
  OSCARKV_ASSIGN_OR_RETURN(const auto client, MakeClient(options));
  OSCARKV_ASSIGN_OR_RETURN(const client::ServerStats stats, GetStats(*client, options));
  if (options.json) {
    PrintJson(StatsReport(stats, options.server));
  } else {
    PrintStats(stats, options);
  }
  return absl::OkStatus();
}

}  // namespace

void AddStatCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand("stat", "What a server holds: tiers, namespaces, hits");
  const auto options = std::make_shared<StoreOptions>();
  AddStoreOptions(command, options.get());
  command->footer(
      "Example:\n"
      "  oscarkv stat --server unix:/run/oscarkv.sock --json | jq '.tiers[0].used_bytes'");
  command->callback([options] { Report(Run(*options)); });
}

}  // namespace oscarkv::cli
