#include "client/cli/top_frame.h"

#include <algorithm>

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
      "",
  };
  for (const TierUse& tier : stats.tiers) lines.push_back(TierLine(tier));
  if (const uint64_t corrupt = TrafficOf(stats).corrupt_pages; corrupt > 0)
    lines.push_back(CountText(corrupt) + " pages were dropped as corrupt");
  lines.emplace_back();
  for (const auto line : absl::StrSplit(NamespacesTable(stats), '\n', absl::SkipEmpty()))
    lines.emplace_back(line);
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
          {"pages", PagesOf(stats)},
          {"sessions", stats.sessions},
          {"leases", stats.leases}};
}

}  // namespace oscarkv::cli
