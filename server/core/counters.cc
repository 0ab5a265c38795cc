#include "server/core/counters.h"

#include <utility>

namespace oscarkv {

const char* ArchiveRefusalName(ArchiveRefusal why) {
  constexpr const char* kNames[kArchiveRefusals] = {"not_worth", "behind", "quota", "no_parent",
                                                    "failed"};
  return kNames[static_cast<size_t>(why)];
}

namespace {

void AddArchive(const StoreStats& stats, std::vector<NamedCounter>* counters) {
  const ArchiveCounters& a = stats.archive;
  const std::pair<std::pair<const char*, const char*>, uint64_t> named[] = {
      {{"oscarkv_disk_written_pages_total", "Pages written to disk, durably"}, a.written_pages},
      {{"oscarkv_disk_written_bytes_total", "Bytes of the pages written to disk"}, a.written_bytes},
      {{"oscarkv_disk_device_written_bytes_total",
        "Bytes written to the disk's files, whatever for"},
       a.device_written_bytes},
      {{"oscarkv_disk_read_pages_total", "Pages read from disk and found sound"}, a.read_pages},
      {{"oscarkv_disk_read_bytes_total", "Bytes of the pages read from disk"}, a.read_bytes},
      {{"oscarkv_disk_loaded_pages_total", "Pages brought from disk into memory to be fetched"},
       stats.counters.loaded_pages},
      {{"oscarkv_disk_rewritten_pages_total",
        "Pages on disk that were written again because room was reclaimed around them"},
       a.rewritten_pages},
      {{"oscarkv_disk_reclaimed_pages_total", "Pages on disk dropped for room"}, a.reclaimed_pages},
      {{"oscarkv_disk_removed_pages_total",
        "Pages on disk that were deleted, replaced, or extended a page that was"},
       a.removed_pages},
      {{"oscarkv_disk_corrupt_pages_total", "Pages on disk found bad, and dropped"},
       a.corrupt_pages},
      {{"oscarkv_disk_failed_reads_total", "Pages that the disk could not read; dropped"},
       a.failed_reads},
      {{"oscarkv_disk_failed_writes_total", "Pages that the disk could not write"},
       a.failed_writes},
      {{"oscarkv_disk_catalog_skipped_total",
        "Namespaces and transform sets on disk that were damaged or another server's"},
       a.catalog_skipped},
      {{"oscarkv_disk_catalog_failed_writes_total",
        "Namespaces and transform sets that could not be written to disk"},
       a.catalog_failed_writes},
  };
  for (const auto& [name, value] : named)
    counters->push_back({name.first, name.second, "", "", value});
  for (size_t reason = 0; reason < kArchiveRefusals; ++reason) {
    counters->push_back({"oscarkv_disk_refused_pages_total",
                         "Pages that were not written to disk, by reason", "reason",
                         ArchiveRefusalName(static_cast<ArchiveRefusal>(reason)),
                         a.refused_pages[reason]});
  }
  for (size_t status = 1; status < kItemStatuses; ++status) {
    counters->push_back({"oscarkv_persisted_pages_total",
                         "Pages that clients wanted durable, by outcome", "outcome",
                         ItemStatusName(static_cast<ItemStatus>(status)),
                         stats.counters.persists_by_outcome[status]});
  }
  constexpr const char* kParentLoadNames[kParentLoads] = {"loaded", "too_long", "no_room",
                                                          "failed"};
  for (size_t i = 0; i < kParentLoads; ++i) {
    counters->push_back({"oscarkv_disk_parent_loads_total",
                         "Puts whose parent was on disk only, by what came of bringing it and what "
                         "it extends into memory; the put is SKIPPED unless it was loaded, or BUSY "
                         "where room is being made",
                         "outcome", kParentLoadNames[i], stats.counters.parent_loads[i]});
  }
}

// Of the tiers that there are.
void AddHits(const StoreStats& stats, std::vector<NamedCounter>* counters) {
  for (const TierStats& tier : stats.tiers) {
    const auto& hits = stats.counters.hits_by_tier[static_cast<size_t>(tier.kind) - 1];
    for (size_t depth = 0; depth < hits.size(); ++depth) {
      counters->push_back({"oscarkv_hit_pages_total",
                           "Pages fetched, by the fastest tier that had them and by their place in "
                           "the sequence: before that position",
                           "tier", TierKindName(tier.kind), hits[depth], "depth",
                           kHitDepthNames[depth]});
    }
  }
}

void AddLadder(const LadderStats& ladder, std::vector<NamedCounter>* counters) {
  constexpr const char* kPages = "oscarkv_reencoded_pages_total";
  constexpr const char* kPagesHelp = "WIDE pages re-encoded PACKED, by what asked for it";
  counters->insert(
      counters->end(),
      {{kPages, kPagesHelp, "cause", "outgrown", ladder.due_pages},
       {kPages, kPagesHelp, "cause", "pressure", ladder.pressed_pages},
       {"oscarkv_reencode_freed_bytes_total", "Bytes that re-encoded pages became smaller by", "",
        "", ladder.freed_bytes},
       {"oscarkv_reencode_no_room_total",
        "Times that there was no room for the PACKED form of a page", "", "", ladder.no_room},
       {"oscarkv_evicted_ahead_pages_total",
        "Pages evicted while WIDE ones could have been re-encoded instead", "", "",
        ladder.evicted_ahead}});
  constexpr const char* kReasons[kStaysWideReasons] = {"nonfinite", "overflow", "refused"};
  for (size_t reason = 0; reason < kStaysWideReasons; ++reason) {
    counters->push_back({"oscarkv_reencode_failed_pages_total",
                         "Pages that could not be re-encoded and stay WIDE, by reason", "reason",
                         kReasons[reason], ladder.stays_wide[reason]});
  }
}

}  // namespace

std::vector<NamedCounter> NamedCounters(const StoreStats& stats) {
  const StoreCounters& c = stats.counters;
  std::vector<NamedCounter> counters = {
      {"oscarkv_lookup_keys_total", "Keys looked at by lookups", "", "", c.lookups},
      {"oscarkv_lookup_hits_total", "Keys that lookups found", "", "", c.lookup_hits},
      {"oscarkv_lookup_misses_total",
       "Keys that lookups did not find, never stored as far as the server knows", "", "",
       c.lookup_misses},
      {"oscarkv_lookup_evicted_total",
       "Keys that lookups did not find because they were dropped recently", "", "",
       c.lookup_evicted},
      {"oscarkv_fetch_hits_total", "Pages fetched", "", "", c.fetch_hits},
      {"oscarkv_fetch_misses_total", "Pages asked for and not there", "", "", c.fetch_misses},
      {"oscarkv_fetch_evicted_total", "Pages asked for that were dropped recently", "", "",
       c.fetch_evicted},
      {"oscarkv_fetch_bytes_total", "Bytes of the blocks fetched, as stored", "", "",
       c.fetch_bytes},
      {"oscarkv_put_bytes_total", "Bytes of the pages stored", "", "", c.put_bytes},
      {"oscarkv_puts_abandoned_total", "Puts that broke off before their page was whole", "", "",
       c.puts_abandoned},
      {"oscarkv_puts_refused_total",
       "Pages not stored because what would have had to go was worth more", "", "", c.puts_refused},
      {"oscarkv_evicted_bytes_total", "Bytes of the pages evicted", "", "", c.evicted_bytes},
      {"oscarkv_corrupt_pages_total",
       "Pages dropped because a checksum did not hold, or found bad in bytes that re-encoding "
       "had replaced",
       "", "", c.corrupt_pages},
      {"oscarkv_verified_pages_total", "Pages verified by scrubbing", "", "", c.verified_pages},
      {"oscarkv_moved_pages_total", "Pages moved within a tier to free room for another page size",
       "", "", c.moved_pages},
      {"oscarkv_leases_granted_total", "Leases granted", "", "", c.leases_granted},
      {"oscarkv_leases_refused_total", "Leases refused because the leasable share was taken", "",
       "", c.leases_refused},
      {"oscarkv_leases_released_total", "Leases released by their holder", "", "",
       c.leases_released},
      {"oscarkv_leases_expired_total", "Leases ended at the ceiling", "", "", c.leases_expired},
      {"oscarkv_leases_orphaned_total", "Leases ended with their session", "", "",
       c.leases_orphaned},
  };
  if (!stats.tiers.empty() && stats.tiers.front().kind == TierKind::kGpu) {
    const CopyCounters& copies = stats.copies;
    counters.insert(counters.end(),
                    {{"oscarkv_gpu_tier_copied_pages_total", "Pages copied into the GPU tier", "",
                      "", copies.copied_pages},
                     {"oscarkv_gpu_tier_copied_bytes_total",
                      "Bytes of the pages copied into the GPU tier", "", "", copies.copied_bytes},
                     {"oscarkv_gpu_tier_dropped_pages_total",
                      "Copies dropped to make room in the GPU tier", "", "", copies.dropped_pages},
                     {"oscarkv_gpu_tier_refused_pages_total",
                      "Pages not copied because all of the GPU tier was in use, or the queue full",
                      "", "", copies.refused_pages},
                     {"oscarkv_gpu_tier_failed_pages_total",
                      "Pages whose copy failed or arrived damaged, which no reader saw", "", "",
                      copies.failed_pages}});
  }
  if (stats.archived) AddArchive(stats, &counters);
  AddHits(stats, &counters);
  AddLadder(stats.ladder, &counters);
  for (size_t status = 1; status < kItemStatuses; ++status) {
    counters.push_back({"oscarkv_puts_total", "Pages put, by outcome", "outcome",
                        ItemStatusName(static_cast<ItemStatus>(status)),
                        c.puts_by_outcome[status]});
  }
  for (size_t reason = 0; reason < kRemoveReasons; ++reason) {
    counters.push_back({"oscarkv_removed_pages_total", "Pages removed, by reason", "reason",
                        RemoveReasonName(static_cast<RemoveReason>(reason)),
                        c.removed_by_reason[reason]});
  }
  return counters;
}

}  // namespace oscarkv
