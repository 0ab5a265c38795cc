#include "client/cli/top_frame.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"

#include "client/cli/stats_report.h"

namespace oscarkv::cli {

using client::ServerStats;
using client::TierUse;

Rates RatesBetween(const std::optional<ServerStats>& before, const ServerStats& now) {
  Rates rates;
  rates.since_start = !before || before->epoch != now.epoch;
  rates.seconds = now.uptime_s - (rates.since_start ? 0.0 : before->uptime_s);
  const Traffic first = rates.since_start ? Traffic() : TrafficOf(*before);
  const Traffic last = TrafficOf(now);
  // Two looks within the same instant have no rates.
  const double per_s = rates.seconds > 0.0 ? 1.0 / rates.seconds : 0.0;
  const auto grown = [&](uint64_t Traffic::*counter) {
    return static_cast<double>(last.*counter - first.*counter);
  };
  rates.lookup_keys = grown(&Traffic::lookup_keys) * per_s;
  rates.fetch_pages = grown(&Traffic::fetch_pages) * per_s;
  rates.bytes_in = grown(&Traffic::put_bytes) * per_s;
  rates.bytes_out = grown(&Traffic::fetch_bytes) * per_s;
  rates.evicted_bytes = grown(&Traffic::evicted_bytes) * per_s;
  const auto grown_by = [&](std::map<std::string, uint64_t> Traffic::*counters) {
    std::map<std::string, double> by_label;
    for (const auto& [label, count] : last.*counters) {
      const auto before_it = (first.*counters).find(label);
      const uint64_t known = before_it == (first.*counters).end() ? 0 : before_it->second;
      by_label[label] = static_cast<double>(count - known) * per_s;
    }
    return by_label;
  };
  rates.hits_by_tier = grown_by(&Traffic::hits_by_tier);
  rates.removed_by_reason = grown_by(&Traffic::removed_by_reason);
  rates.reencoded_by_cause = grown_by(&Traffic::reencoded_by_cause);
  rates.scrubbed_pages = grown(&Traffic::scrubbed_pages) * per_s;
  if (last.lookup_keys > first.lookup_keys)
    rates.hit_rate = grown(&Traffic::lookup_hits) / grown(&Traffic::lookup_keys);
  return rates;
}

namespace {

constexpr size_t kBarWidth = 30;

std::string TierLine(const TierUse& tier) {
  if (!tier.degraded.empty())
    return absl::StrFormat("%-5s DEGRADED: %s", tier.tier, Printable(tier.degraded));
  const auto used = static_cast<double>(tier.used_bytes);
  const auto capacity = static_cast<double>(tier.capacity_bytes);
  const double share = capacity > 0.0 ? std::clamp(used / capacity, 0.0, 1.0) : 0.0;
  const auto filled = static_cast<size_t>(share * static_cast<double>(kBarWidth));
  return absl::StrFormat("%-5s [%s%s] %7s  %s of %s, leased %s", tier.tier,
                         std::string(filled, '#'), std::string(kBarWidth - filled, '.'),
                         PercentText(used, capacity), BytesText(used), BytesText(capacity),
                         BytesText(static_cast<double>(tier.leased_bytes)));
}

// "gpu 12, host 300"; "-" when all are 0.
std::string ByLabel(const std::map<std::string, double>& rates) {
  std::string text;
  for (const auto& [label, rate] : rates)
    if (rate > 0.0)
      absl::StrAppendFormat(&text, "%s%s %.4g", text.empty() ? "" : ", ", label, rate);
  return text.empty() ? "-" : text;
}

// What the store has done to itself since its start.
std::vector<std::string> StoreLines(const ServerStats& stats) {
  const Traffic traffic = TrafficOf(stats);
  std::vector<std::string> lines;
  const auto gauge = [&](const char* name) {
    const auto found = stats.gauges.find(name);
    return found == stats.gauges.end() ? 0.0 : found->second;
  };
  lines.push_back(absl::StrFormat(
      "memory that describes pages %s, of the eviction policy %s; oldest lease %s",
      BytesText(gauge("oscarkv_index_bytes")), BytesText(gauge("oscarkv_eviction_policy_bytes")),
      DurationText(gauge("oscarkv_oldest_lease_seconds"))));
  if (const double k = gauge("oscarkv_reencode_relative_error{side=\"k\"}"); k > 0.0) {
    lines.push_back(absl::StrFormat("re-encoding: relative error of K %.3f, of V %.3f", k,
                                    gauge("oscarkv_reencode_relative_error{side=\"v\"}")));
  }
  if (const double pages = gauge("oscarkv_scrub_pages"); pages > 0.0) {
    const double done = gauge("oscarkv_scrubbed_pages");
    lines.push_back(absl::StrFormat("the last scrub: %s of %s pages",
                                    CountText(static_cast<uint64_t>(done)),
                                    CountText(static_cast<uint64_t>(pages))));
  }
  if (traffic.evicted_ahead > 0) {
    lines.push_back(CountText(traffic.evicted_ahead) +
                    " pages were evicted before WIDE ones could be re-encoded");
  }
  if (traffic.disk_written_bytes > 0) {
    lines.push_back(absl::StrFormat("disk: %.3f bytes written for each byte of pages",
                                    static_cast<double>(traffic.disk_device_written_bytes) /
                                        static_cast<double>(traffic.disk_written_bytes)));
  }
  if (traffic.corrupt_pages > 0)
    lines.push_back(CountText(traffic.corrupt_pages) + " pages were dropped as corrupt");
  return lines;
}

}  // namespace

std::vector<std::string> Frame(const ServerStats& stats, const Rates& rates,
                               const std::string& server) {
  const std::string hit_rate = rates.hit_rate ? PercentText(*rates.hit_rate, 1.0) : "-";
  std::vector<std::string> lines = {
      absl::StrFormat("oscarkvd %s at %s, up %s", stats.version, server,
                      DurationText(stats.uptime_s)),
      absl::StrFormat("sessions %d, leases %d, %s in flight, %s pages held", stats.sessions,
                      stats.leases, BytesText(static_cast<double>(stats.inflight_bytes)),
                      CountText(PagesOf(stats))),
      "",
      rates.since_start ? "since its start" : absl::StrFormat("in the last %.1f s", rates.seconds),
      absl::StrFormat("  hit rate   %10s    of %.0f keys/s", hit_rate, rates.lookup_keys),
      absl::StrFormat("  bytes in   %10s/s", BytesText(rates.bytes_in)),
      absl::StrFormat("  bytes out  %10s/s  %.0f pages/s", BytesText(rates.bytes_out),
                      rates.fetch_pages),
      absl::StrFormat("  evicted    %10s/s", BytesText(rates.evicted_bytes)),
      absl::StrFormat("  pages/s    hit: %s; removed: %s; re-encoded: %s; scrubbed: %.4g",
                      ByLabel(rates.hits_by_tier), ByLabel(rates.removed_by_reason),
                      ByLabel(rates.reencoded_by_cause), rates.scrubbed_pages),
      "",
  };
  for (const TierUse& tier : stats.tiers) lines.push_back(TierLine(tier));
  for (std::string& line : StoreLines(stats)) lines.push_back(std::move(line));
  for (const std::string& table : {NamespacesTable(stats), TenantsTable(stats)}) {
    if (!table.empty()) lines.emplace_back();
    for (const auto line : absl::StrSplit(table, '\n', absl::SkipEmpty())) lines.emplace_back(line);
  }
  return lines;
}

Json FrameReport(const ServerStats& stats, const Rates& rates, const std::string& server) {
  return {{"server", server},
          {"uptime_s", stats.uptime_s},
          {"seconds", rates.seconds},
          {"since_start", rates.since_start},
          {"hit_rate", rates.hit_rate ? Json(*rates.hit_rate) : Json(nullptr)},
          {"lookup_keys_per_s", rates.lookup_keys},
          {"fetch_pages_per_s", rates.fetch_pages},
          {"bytes_in_per_s", rates.bytes_in},
          {"bytes_out_per_s", rates.bytes_out},
          {"evicted_bytes_per_s", rates.evicted_bytes},
          {"hit_pages_per_s", rates.hits_by_tier},
          {"removed_pages_per_s", rates.removed_by_reason},
          {"reencoded_pages_per_s", rates.reencoded_by_cause},
          {"scrubbed_pages_per_s", rates.scrubbed_pages},
          {"evicted_ahead_pages", TrafficOf(stats).evicted_ahead},
          {"gauges", stats.gauges},
          {"tenants", TenantsReport(stats)},
          {"pages", PagesOf(stats)},
          {"sessions", stats.sessions},
          {"leases", stats.leases}};
}

}  // namespace oscarkv::cli
