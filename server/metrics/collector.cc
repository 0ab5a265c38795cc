#include "server/metrics/collector.h"

#include <algorithm>
#include <limits>

#include "server/core/budget.h"
#include "server/core/counters.h"

namespace oscarkv {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

using Labels = std::vector<ClientMetric::Label>;

MetricFamily Family(std::string name, std::string help, MetricType type) {
  MetricFamily family;
  family.name = std::move(name);
  family.help = std::move(help);
  family.type = type;
  return family;
}

void AddGauge(MetricFamily* family, Labels labels, double value) {
  ClientMetric metric;
  metric.label = std::move(labels);
  metric.gauge.value = value;
  family->metric.push_back(std::move(metric));
}

void AddCounter(MetricFamily* family, Labels labels, uint64_t value) {
  ClientMetric metric;
  metric.label = std::move(labels);
  metric.counter.value = static_cast<double>(value);
  family->metric.push_back(std::move(metric));
}

// Histograms of the parts count each bucket by itself; Prometheus wants sums.
template <typename Bounds, typename Counts>
void AddHistogram(MetricFamily* family, Labels labels, const Bounds& bounds, const Counts& counts,
                  double sum) {
  ClientMetric metric;
  metric.label = std::move(labels);
  metric.histogram.sample_sum = sum;
  for (size_t i = 0; i < counts.size(); ++i) {
    metric.histogram.sample_count += counts[i];
    const bool last = i == bounds.size();
    metric.histogram.bucket.push_back({metric.histogram.sample_count,
                                       last ? std::numeric_limits<double>::infinity() : bounds[i]});
  }
  family->metric.push_back(std::move(metric));
}

void AddHistogram(MetricFamily* family, Labels labels, const LatencyHistogram::Snapshot& taken) {
  AddHistogram(family, std::move(labels), LatencyHistogram::kBounds, taken.counts, taken.sum_s);
}

MetricFamily OneGauge(std::string name, std::string help, double value) {
  MetricFamily family = Family(std::move(name), std::move(help), MetricType::Gauge);
  AddGauge(&family, {}, value);
  return family;
}

MetricFamily OneCounter(std::string name, std::string help, uint64_t value) {
  MetricFamily family = Family(std::move(name), std::move(help), MetricType::Counter);
  AddCounter(&family, {}, value);
  return family;
}

void CollectCounters(const StoreStats& stats, std::vector<MetricFamily>* families) {
  for (const NamedCounter& counter : NamedCounters(stats)) {
    if (families->empty() || families->back().name != counter.name) {
      families->push_back(
          Family(std::string(counter.name), std::string(counter.help), MetricType::Counter));
    }
    Labels labels;
    if (!counter.label.empty())
      labels.push_back({std::string(counter.label), std::string(counter.value_of_label)});
    if (!counter.second_label.empty())
      labels.push_back({std::string(counter.second_label), std::string(counter.value_of_second)});
    AddCounter(&families->back(), std::move(labels), counter.value);
  }
}

void CollectNamespaces(const ServerSnapshot& snapshot, std::vector<MetricFamily>* families) {
  MetricFamily pages = Family("oscarkv_pages", "Pages held, by encoding", MetricType::Gauge);
  MetricFamily stored =
      Family("oscarkv_stored_bytes", "Bytes of the pages held, as stored", MetricType::Gauge);
  MetricFamily wide =
      Family("oscarkv_wide_equivalent_bytes",
             "Bytes the pages held would take in the model's dtype", MetricType::Gauge);
  MetricFamily can_pack =
      Family("oscarkv_namespace_can_pack",
             "Whether WIDE pages of the namespace can be re-encoded, 0 or 1; without its transform "
             "set they stay WIDE",
             MetricType::Gauge);
  for (size_t i = 0; i < snapshot.store.namespaces.size() && i < snapshot.namespaces.size(); ++i) {
    const NamespaceStats& stats = snapshot.store.namespaces[i];
    const NamespaceLabels& names = snapshot.namespaces[i];
    const Labels labels = {
        {"namespace", names.fingerprint}, {"model", names.model}, {"tenant", names.tenant}};
    for (const auto& [encoding, count] :
         {std::pair("wide", stats.wide_pages), std::pair("packed", stats.packed_pages)}) {
      Labels with_encoding = labels;
      with_encoding.push_back({"encoding", encoding});
      AddGauge(&pages, std::move(with_encoding), static_cast<double>(count));
    }
    AddGauge(&stored, labels, static_cast<double>(stats.stored_bytes));
    AddGauge(&wide, labels, static_cast<double>(stats.wide_equivalent_bytes));
    AddGauge(&can_pack, labels, stats.can_pack ? 1.0 : 0.0);
  }
  families->push_back(std::move(pages));
  families->push_back(std::move(stored));
  families->push_back(std::move(wide));
  families->push_back(std::move(can_pack));
}

void CollectLadder(const LadderStats& stats, std::vector<MetricFamily>* families) {
  MetricFamily waiting = Family("oscarkv_wide_pages_waiting",
                                "WIDE pages that may be re-encoded, by where they stand: due, past "
                                "their sequence's tail, or in it",
                                MetricType::Gauge);
  AddGauge(&waiting, {{"stage", "due"}}, static_cast<double>(stats.waiting_due));
  AddGauge(&waiting, {{"stage", "past"}}, static_cast<double>(stats.waiting_past));
  AddGauge(&waiting, {{"stage", "tail"}}, static_cast<double>(stats.waiting_tail));
  families->push_back(std::move(waiting));
  families->push_back(OneGauge("oscarkv_reencode_retired_bytes",
                               "Bytes of pages as they were before they were re-encoded, which "
                               "somebody still reads",
                               static_cast<double>(stats.retired_bytes)));
  MetricFamily cpu =
      Family("oscarkv_reencode_cpu_seconds_total", "CPU time of re-encoding", MetricType::Counter);
  cpu.metric.emplace_back();
  cpu.metric.back().counter.value = static_cast<double>(stats.cpu_ns) * 1e-9;
  families->push_back(std::move(cpu));
  MetricFamily error = Family("oscarkv_reencode_relative_error",
                              "What re-encoding changes the K and V rows of a page by, relative to "
                              "their norm; of one layer of each page",
                              MetricType::Histogram);
  for (const auto& [side, histogram] :
       {std::pair("k", &stats.k_error), std::pair("v", &stats.v_error)}) {
    AddHistogram(&error, {{"side", side}}, ErrorHistogram::kBounds, histogram->counts,
                 histogram->sum);
  }
  families->push_back(std::move(error));
}

void AddPeers(const PeerUse& peers, std::vector<MetricFamily>* families) {
  families->push_back(OneGauge("oscarkv_gpu_held_bytes",
                               "Bytes of copies in GPU memory that clients read in place",
                               static_cast<double>(peers.held_bytes)));
  families->push_back(OneCounter("oscarkv_gpu_holds_lost_total",
                                 "Holds on copies that ended before their readers had done",
                                 peers.holds_lost));
  families->push_back(OneGauge("oscarkv_gpu_staged_bytes",
                               "GPU memory of pages on their way to and from workers' GPUs",
                               static_cast<double>(peers.staged_bytes)));
  families->push_back(OneGauge("oscarkv_nccl_peers", "Workers' GPUs that copies can be sent to",
                               static_cast<double>(peers.peers)));
  families->push_back(OneCounter("oscarkv_nccl_peers_ended_total",
                                 "Peers that broke, or ended with their session",
                                 peers.peers_ended));
}

void AddSharedMemory(const SharedMemoryUse& use, std::vector<MetricFamily>* families) {
  families->push_back(OneGauge("oscarkv_shm_connections",
                               "Connections of clients of the same host to shared memory",
                               static_cast<double>(use.connections)));
  families->push_back(OneGauge("oscarkv_shm_mapped_bytes",
                               "Bytes of pages in host memory that clients read in place",
                               static_cast<double>(use.mapped_bytes)));
  families->push_back(OneGauge("oscarkv_shm_staging_bytes",
                               "Memory that clients share with the server for their pushes",
                               static_cast<double>(use.staging_bytes)));
  families->push_back(
      OneCounter("oscarkv_shm_revoked_total",
                 "Times that pages were taken back from a client that read them for "
                 "longer than a lease may last",
                 use.revoked));
}

struct TenantGauge {
  const char* name;
  const char* help;
  uint64_t TenantStats::*value;
  TierKind tier = TierKind::kHost;  // without it there is no such thing
};
constexpr TenantGauge kTenantGauges[] = {
    {"oscarkv_tenant_host_bytes", "Host memory that a tenant holds", &TenantStats::host_bytes},
    {"oscarkv_tenant_host_pages", "Pages in host memory that a tenant holds",
     &TenantStats::host_pages},
    {"oscarkv_tenant_gpu_bytes", "GPU memory that copies of a tenant's pages take",
     &TenantStats::gpu_bytes, TierKind::kGpu},
    {"oscarkv_tenant_gpu_limit_bytes", "GPU memory that copies of a tenant's pages may take",
     &TenantStats::gpu_bytes_max, TierKind::kGpu},
    {"oscarkv_tenant_disk_bytes", "Bytes of the disk tier that a tenant holds",
     &TenantStats::disk_bytes, TierKind::kDisk},
    {"oscarkv_tenant_inflight_bytes", "Bytes of a tenant's puts and gets under way",
     &TenantStats::inflight_bytes},
    {"oscarkv_tenant_host_limit_bytes", "Host memory that a tenant may hold",
     &TenantStats::host_bytes_max},
    {"oscarkv_tenant_host_limit_pages", "Pages in host memory that a tenant may hold",
     &TenantStats::host_pages_max},
    {"oscarkv_tenant_disk_limit_bytes", "Bytes of the disk tier that a tenant may hold",
     &TenantStats::disk_bytes_max, TierKind::kDisk},
    {"oscarkv_tenant_inflight_limit_bytes",
     "Bytes of puts and gets that a tenant may have under way", &TenantStats::inflight_bytes_max},
    {"oscarkv_tenant_protected_bytes", "Host memory of a tenant that others never drive out",
     &TenantStats::protected_host_bytes},
};

// A limit that is none has no sample.
void CollectTenants(const StoreStats& stats, std::vector<MetricFamily>* families) {
  for (const TenantGauge& gauge : kTenantGauges) {
    const auto is_its = [&](const TierStats& tier) { return tier.kind == gauge.tier; };
    if (std::none_of(stats.tiers.begin(), stats.tiers.end(), is_its)) continue;
    MetricFamily family = Family(gauge.name, gauge.help, MetricType::Gauge);
    for (const TenantStats& tenant : stats.tenants) {
      const uint64_t value = tenant.*gauge.value;
      if (value != Budget::kNoLimit)
        AddGauge(&family, {{"tenant", tenant.name}}, static_cast<double>(value));
    }
    families->push_back(std::move(family));
  }
  MetricFamily evicted = Family("oscarkv_tenant_evicted_pages_total", "Pages of a tenant evicted",
                                MetricType::Counter);
  MetricFamily refused =
      Family("oscarkv_tenant_refused_items_total",
             "Pages of a tenant not stored, fetched or copied to a tier for want of its quota",
             MetricType::Counter);
  for (const TenantStats& tenant : stats.tenants) {
    AddCounter(&evicted, {{"tenant", tenant.name}}, tenant.evicted_pages);
    AddCounter(&refused, {{"tenant", tenant.name}}, tenant.refused_items);
  }
  families->push_back(std::move(evicted));
  families->push_back(std::move(refused));
}

void CollectTiers(const StoreStats& stats, std::vector<MetricFamily>* families) {
  MetricFamily capacity =
      Family("oscarkv_tier_capacity_bytes", "Bytes a tier may hold", MetricType::Gauge);
  MetricFamily used =
      Family("oscarkv_tier_used_bytes", "Bytes of a tier in use", MetricType::Gauge);
  MetricFamily stranded =
      Family("oscarkv_tier_stranded_bytes",
             "Bytes of a tier that are free but bound to another page size", MetricType::Gauge);
  MetricFamily degraded =
      Family("oscarkv_tier_degraded", "Whether a tier is out of use, 0 or 1; Admin.Stats says why",
             MetricType::Gauge);
  for (const TierStats& tier : stats.tiers) {
    const Labels labels = {{"tier", std::string(TierKindName(tier.kind))}};
    AddGauge(&capacity, labels, static_cast<double>(tier.capacity_bytes));
    AddGauge(&used, labels, static_cast<double>(tier.used_bytes));
    AddGauge(&stranded, labels, static_cast<double>(tier.stranded_bytes));
    AddGauge(&degraded, labels, tier.degraded.empty() ? 0.0 : 1.0);
    if (tier.kind != TierKind::kGpu) continue;
    families->push_back(OneGauge("oscarkv_gpu_tier_pinned_host_bytes",
                                 "Host memory that the GPU tier copies at the bus's full speed",
                                 static_cast<double>(tier.pinned_host_bytes)));
  }
  families->push_back(std::move(capacity));
  families->push_back(std::move(used));
  families->push_back(std::move(stranded));
  families->push_back(std::move(degraded));
}

void CollectCalls(const ServerSnapshot& snapshot, std::vector<MetricFamily>* families) {
  MetricFamily calls = Family("oscarkv_calls_total", "Calls ended, by method and gRPC status code",
                              MetricType::Counter);
  for (const CallCount& call : snapshot.calls) {
    AddCounter(&calls, {{"method", call.method}, {"code", call.code}}, call.count);
  }
  families->push_back(std::move(calls));
  MetricFamily latency = Family("oscarkv_call_duration_seconds",
                                "From the start of a call to its end", MetricType::Histogram);
  for (const CallLatency& call : snapshot.latencies)
    AddHistogram(&latency, {{"method", call.method}}, call.latency);
  families->push_back(std::move(latency));
}

void CollectTransfers(const ServerSnapshot& snapshot, std::vector<MetricFamily>* families) {
  MetricFamily bytes = Family("oscarkv_transfer_bytes_total",
                              "Bytes of pages moved, by path (grpc, shm, nccl, ipc) and direction "
                              "(fetch: to clients, push: from them)",
                              MetricType::Counter);
  MetricFamily duration =
      Family("oscarkv_transfer_duration_seconds",
             "From the start of a transfer to its end; by shm, how long a client read",
             MetricType::Histogram);
  for (const TransferUse& use : snapshot.transfers) {
    const Labels labels = {{"path", use.path}, {"direction", use.direction}};
    AddCounter(&bytes, labels, use.bytes);
    AddHistogram(&duration, labels, use.duration);
  }
  families->push_back(std::move(bytes));
  families->push_back(std::move(duration));
}

}  // namespace

std::vector<MetricFamily> Collector::Collect() const {
  const ServerSnapshot snapshot = take_();
  const StoreStats& store = snapshot.store;
  std::vector<MetricFamily> families;
  CollectCounters(store, &families);
  CollectNamespaces(snapshot, &families);
  CollectTiers(store, &families);
  CollectTenants(store, &families);
  CollectLadder(store.ladder, &families);
  CollectCalls(snapshot, &families);
  CollectTransfers(snapshot, &families);
  families.push_back(OneGauge("oscarkv_index_bytes", "Memory that describes pages",
                              static_cast<double>(store.index_bytes)));
  MetricFamily policy =
      Family("oscarkv_eviction_policy_bytes",
             "Memory of the eviction policy, which the label names", MetricType::Gauge);
  AddGauge(&policy, {{"policy", std::string(store.policy)}},
           static_cast<double>(store.policy_bytes));
  families.push_back(std::move(policy));
  families.push_back(OneGauge("oscarkv_pinned_bytes", "Bytes of pages that clients pinned",
                              static_cast<double>(store.pinned_bytes)));
  families.push_back(
      OneGauge("oscarkv_sessions", "Sessions open", static_cast<double>(store.sessions)));
  families.push_back(OneGauge("oscarkv_leases", "Leases held", static_cast<double>(store.leases)));
  families.push_back(OneGauge("oscarkv_oldest_lease_seconds",
                              "The age of the oldest lease held; 0 when there is none",
                              store.oldest_lease_s));
  MetricFamily ages = Family("oscarkv_lease_age_seconds", "How old leases were when they ended",
                             MetricType::Histogram);
  AddHistogram(&ages, {}, kLeaseAges, store.lease_ages.counts, store.lease_ages.sum_s);
  families.push_back(std::move(ages));
  families.push_back(OneGauge("oscarkv_scrubbed_pages",
                              "Pages that the scrub that began last has looked at",
                              static_cast<double>(store.scrubbed_pages)));
  families.push_back(OneGauge("oscarkv_scrub_pages", "Pages that there were when it began",
                              static_cast<double>(store.scrub_pages)));
  if (store.archived) {
    const ArchiveCounters& disk = store.archive;
    const double written = static_cast<double>(disk.written_bytes);
    families.push_back(OneGauge(
        "oscarkv_disk_write_amplification_ratio",
        "Bytes written to the disk's files for each byte of the pages written; 0 before the first",
        written == 0.0 ? 0.0 : static_cast<double>(disk.device_written_bytes) / written));
    const auto hits = static_cast<double>(store.counters.loaded_pages);
    families.push_back(OneGauge(
        "oscarkv_disk_written_bytes_per_hit",
        "Bytes of the pages written to disk for each page that a fetch brought back; 0 before the "
        "first",
        hits == 0.0 ? 0.0 : written / hits));
  }
  families.push_back(OneGauge("oscarkv_leased_bytes", "Bytes of leased pages",
                              static_cast<double>(store.leased_bytes)));
  families.push_back(OneGauge("oscarkv_inflight_bytes", "Bytes of puts and gets under way",
                              static_cast<double>(snapshot.inflight_bytes)));
  for (const TierStats& tier : store.tiers)
    if (tier.kind == TierKind::kGpu) AddPeers(snapshot.peers, &families);
  AddSharedMemory(snapshot.shared_memory, &families);
  families.push_back(
      OneGauge("oscarkv_uptime_seconds", "Since the server started", snapshot.uptime_s));
  MetricFamily build = Family("oscarkv_build_info", "The version that runs", MetricType::Gauge);
  AddGauge(&build, {{"version", snapshot.version}}, 1.0);
  families.push_back(std::move(build));
  return families;
}

}  // namespace oscarkv
