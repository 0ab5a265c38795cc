#include "client/cli/stats_report.h"

#include "absl/strings/str_cat.h"

#include "client/cli/store_options.h"

namespace oscarkv::cli {

using client::NamespaceUse;
using client::ServerStats;
using client::TenantUse;
using client::TierUse;

namespace {

// The share of the model's bytes that a namespace saves.
double Saving(const NamespaceUse& space) {
  return 1.0 - static_cast<double>(space.stored_bytes) / static_cast<double>(space.model_bytes);
}

}  // namespace

Traffic TrafficOf(const ServerStats& stats) {
  const auto counter = [&](const char* name) {
    const auto found = stats.counters.find(name);
    return found == stats.counters.end() ? uint64_t{0} : found->second;
  };
  // Of the counters with this name, sums by the value of one of their labels.
  const auto by_label = [&](const std::string& name, const std::string& label) {
    std::map<std::string, uint64_t> sums;
    const std::string head = label + "=\"";
    for (auto at = stats.counters.lower_bound(name + "{");
         at != stats.counters.end() && at->first.starts_with(name + "{"); ++at) {
      const size_t begin = at->first.find(head);
      if (begin == std::string::npos) continue;
      const size_t value = begin + head.size();
      sums[at->first.substr(value, at->first.find('"', value) - value)] += at->second;
    }
    return sums;
  };
  return {.lookup_keys = counter("oscarkv_lookup_keys_total"),
          .lookup_hits = counter("oscarkv_lookup_hits_total"),
          .lookup_misses = counter("oscarkv_lookup_misses_total"),
          .lookup_evicted = counter("oscarkv_lookup_evicted_total"),
          .fetch_pages = counter("oscarkv_fetch_hits_total"),
          .fetch_misses = counter("oscarkv_fetch_misses_total"),
          .fetch_evicted = counter("oscarkv_fetch_evicted_total"),
          .fetch_bytes = counter("oscarkv_fetch_bytes_total"),
          .put_bytes = counter("oscarkv_put_bytes_total"),
          .evicted_bytes = counter("oscarkv_evicted_bytes_total"),
          .corrupt_pages = counter("oscarkv_corrupt_pages_total"),
          .hits_by_tier = by_label("oscarkv_hit_pages_total", "tier"),
          .removed_by_reason = by_label("oscarkv_removed_pages_total", "reason"),
          .reencoded_by_cause = by_label("oscarkv_reencoded_pages_total", "cause"),
          .evicted_ahead = counter("oscarkv_evicted_ahead_pages_total"),
          .disk_written_bytes = counter("oscarkv_disk_written_bytes_total"),
          .disk_device_written_bytes = counter("oscarkv_disk_device_written_bytes_total"),
          .scrubbed_pages = counter("oscarkv_verified_pages_total")};
}

uint64_t PagesOf(const ServerStats& stats) {
  uint64_t pages = 0;
  for (const NamespaceUse& space : stats.namespaces) pages += space.wide_pages + space.packed_pages;
  return pages;
}

std::string TiersTable(const ServerStats& stats) {
  Table table({"TIER", ">USED", ">CAPACITY", ">FULL", ">LEASED"});
  for (const TierUse& tier : stats.tiers) {
    const auto used = static_cast<double>(tier.used_bytes);
    const auto capacity = static_cast<double>(tier.capacity_bytes);
    table.Add({tier.tier, BytesText(used), BytesText(capacity), PercentText(used, capacity),
               BytesText(static_cast<double>(tier.leased_bytes))});
  }
  std::string text = table.Text();
  for (const TierUse& tier : stats.tiers) {
    if (!tier.degraded.empty())
      absl::StrAppend(&text, tier.tier, ": DEGRADED, ", Printable(tier.degraded), "\n");
  }
  return text;
}

std::string NamespacesTable(const ServerStats& stats) {
  if (stats.namespaces.empty()) return "no namespaces\n";
  Table table({"NAMESPACE", "MODEL", ">WIDE", ">PACKED", ">STORED", ">AS MODEL", ">SAVED"});
  for (const NamespaceUse& space : stats.namespaces) {
    const auto model = static_cast<double>(space.model_bytes);
    table.Add({ShortName(space.fingerprint), Printable(space.spec.model),
               CountText(space.wide_pages), CountText(space.packed_pages),
               BytesText(static_cast<double>(space.stored_bytes)), BytesText(model),
               space.model_bytes > 0 ? PercentText(Saving(space), 1.0) : "-"});
  }
  return table.Text();
}

namespace {

// "12 MB of 4 GB", or "12 MB" where there is no limit.
std::string ShareText(const TenantUse::Share& share, std::string (*text)(uint64_t)) {
  return share.limit ? absl::StrCat(text(share.used), " of ", text(*share.limit))
                     : text(share.used);
}

std::string Bytes(uint64_t bytes) { return BytesText(static_cast<double>(bytes)); }

}  // namespace

std::string TenantsTable(const ServerStats& stats) {
  if (stats.tenants.empty()) return "";
  Table table({"TENANT", ">HOST", ">PROTECTED", ">PAGES", ">GPU", ">DISK", ">IN FLIGHT", ">EVICTED",
               ">REFUSED"});
  for (const TenantUse& tenant : stats.tenants) {
    table.Add({Printable(tenant.name), ShareText(tenant.host_bytes, Bytes),
               Bytes(tenant.protected_host_bytes), ShareText(tenant.host_pages, CountText),
               ShareText(tenant.gpu_bytes, Bytes), ShareText(tenant.disk_bytes, Bytes),
               ShareText(tenant.inflight_bytes, Bytes), CountText(tenant.evicted_pages),
               CountText(tenant.refused_items)});
  }
  return table.Text();
}

Json TenantsReport(const ServerStats& stats) {
  const auto share = [](const TenantUse::Share& of) {
    return Json{{"used", of.used}, {"limit", of.limit ? Json(*of.limit) : Json(nullptr)}};
  };
  Json tenants = Json::array();
  for (const TenantUse& tenant : stats.tenants) {
    tenants.push_back({{"name", tenant.name},
                       {"host_bytes", share(tenant.host_bytes)},
                       {"host_pages", share(tenant.host_pages)},
                       {"protected_host_bytes", tenant.protected_host_bytes},
                       {"gpu_bytes", share(tenant.gpu_bytes)},
                       {"disk_bytes", share(tenant.disk_bytes)},
                       {"inflight_bytes", share(tenant.inflight_bytes)},
                       {"pinned_bytes", tenant.pinned_bytes},
                       {"evicted_pages", tenant.evicted_pages},
                       {"refused_items", tenant.refused_items}});
  }
  return tenants;
}

Json NamespaceReport(const NamespaceUse& space) {
  const Geometry& geometry = space.spec.geometry;
  const CodecSpec& codec = space.spec.codec;
  Json bits = Json::array();
  for (const LayerBits& layer : codec.bits) bits.push_back({{"k", layer.k}, {"v", layer.v}});
  return {{"fingerprint", Hex(space.fingerprint)},
          {"tenant", space.spec.tenant},
          {"model", space.spec.model},
          {"model_revision", space.spec.model_revision},
          {"hash_scheme", space.spec.hash_scheme},
          {"geometry",
           {{"layers", geometry.layers},
            {"kv_heads", geometry.kv_heads},
            {"k_head_dim", geometry.k_head_dim},
            {"v_head_dim", geometry.v_head_dim},
            {"page_tokens", geometry.page_tokens},
            {"dtype", DTypeName(geometry.dtype)}}},
          {"codec",
           {{"bits", bits},
            {"group", codec.group},
            {"sink_tokens", codec.sink_tokens},
            {"recent_tokens", codec.recent_tokens},
            {"transform_hash", Hex(codec.transform_hash)}}},
          {"wide_pages", space.wide_pages},
          {"packed_pages", space.packed_pages},
          {"stored_bytes", space.stored_bytes},
          {"model_bytes", space.model_bytes},
          {"saving", space.model_bytes > 0 ? Json(Saving(space)) : Json(nullptr)}};
}

Json StatsReport(const ServerStats& stats, const std::string& server) {
  Json tiers = Json::array();
  for (const TierUse& tier : stats.tiers) {
    tiers.push_back({{"tier", tier.tier},
                     {"used_bytes", tier.used_bytes},
                     {"capacity_bytes", tier.capacity_bytes},
                     {"leased_bytes", tier.leased_bytes},
                     {"degraded", tier.degraded},
                     {"pinned_host_bytes", tier.pinned_host_bytes}});
  }
  Json namespaces = Json::array();
  for (const NamespaceUse& space : stats.namespaces) namespaces.push_back(NamespaceReport(space));
  const Traffic traffic = TrafficOf(stats);
  const double hit_rate =
      static_cast<double>(traffic.lookup_hits) / static_cast<double>(traffic.lookup_keys);
  return {{"server", server},
          {"version", stats.version},
          {"epoch", absl::StrCat(stats.epoch)},  // beyond what JSON readers hold in a number
          {"uptime_s", stats.uptime_s},
          {"sessions", stats.sessions},
          {"leases", stats.leases},
          {"inflight_bytes", stats.inflight_bytes},
          {"tiers", tiers},
          {"namespaces", namespaces},
          {"tenants", TenantsReport(stats)},
          {"lookup",
           {{"keys", traffic.lookup_keys},
            {"hits", traffic.lookup_hits},
            {"misses", traffic.lookup_misses},
            {"evicted", traffic.lookup_evicted},
            {"hit_rate", traffic.lookup_keys > 0 ? Json(hit_rate) : Json(nullptr)}}},
          {"fetch",
           {{"pages", traffic.fetch_pages},
            {"misses", traffic.fetch_misses},
            {"evicted", traffic.fetch_evicted},
            {"bytes", traffic.fetch_bytes}}},
          {"put", {{"bytes", traffic.put_bytes}}},
          {"counters", stats.counters}};
}

}  // namespace oscarkv::cli
