// Plain numbers about the store, for metrics and Admin.Stats. Counters count since the start.
#ifndef OSCARKV_SERVER_CORE_STORE_STATS_H_
#define OSCARKV_SERVER_CORE_STORE_STATS_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "proto/wire/item_status.h"
#include "server/core/error_histogram.h"
#include "server/core/eviction_policy.h"
#include "server/core/tier.h"

namespace oscarkv {

// Arrays of puts by outcome are indexed by ItemStatus, whose greatest value this holds.
inline constexpr size_t kItemStatuses = 13;

// Hits are counted by where in its sequence a page is: before each of these positions, and beyond.
inline constexpr std::array<uint64_t, 4> kHitDepths = {1024, 4096, 16384, 65536};
inline constexpr std::array<std::string_view, kHitDepths.size() + 1> kHitDepthNames = {
    "1024", "4096", "16384", "65536", "more"};
inline constexpr size_t kTierKinds = 3;  // TierKind from 1 on

// How old leases are when they end: upper bounds in seconds; one more bucket has none.
inline constexpr std::array<double, 8> kLeaseAges = {0.01, 0.1, 1, 10, 60, 300, 600, 3600};
struct LeaseAges {
  std::array<uint64_t, kLeaseAges.size() + 1> counts{};  // of each bucket by itself
  double sum_s = 0.0;
};

struct NamespaceStats {
  std::string fingerprint;  // 32 raw bytes
  uint32_t namespace_id = 0;
  uint64_t wide_pages = 0;
  uint64_t packed_pages = 0;
  uint64_t stored_bytes = 0;           // of the pages' blocks
  uint64_t wide_equivalent_bytes = 0;  // what the same pages would take if all were WIDE
  bool can_pack = false;  // its WIDE pages can be re-encoded: its transform set is there
};

// What a tenant holds and may hold (TenantQuota); limits are the greatest number where there is
// none.
struct TenantStats {
  std::string name;
  uint64_t host_bytes = 0;  // of slots: pages, those that readers still hold, and puts under way
  uint64_t host_bytes_max = 0;
  uint64_t host_pages = 0;
  uint64_t host_pages_max = 0;
  uint64_t protected_host_bytes = 0;
  uint64_t gpu_bytes = 0;
  uint64_t gpu_bytes_max = 0;
  uint64_t disk_bytes = 0;
  uint64_t disk_bytes_max = 0;
  uint64_t inflight_bytes = 0;
  uint64_t inflight_bytes_max = 0;
  uint64_t pinned_bytes = 0;
  uint64_t evicted_pages = 0;
  uint64_t refused_items = 0;  // for want of quota
};

// What came of bringing back, for a put, a parent that was archived only.
enum class ParentLoad : uint8_t {
  kLoaded = 0,
  kTooLong = 1,  // more pages, or more memory, than is read for one put
  kNoRoom = 2,
  kFailed = 3,  // a page could not be read, was bad, or went meanwhile
};
inline constexpr size_t kParentLoads = 4;

struct StoreCounters {
  // Lookup, in keys looked at: a PREFIX lookup ends at its first hole, which it counts.
  uint64_t lookups = 0;
  uint64_t lookup_hits = 0;
  uint64_t lookup_misses = 0;   // never stored, as far as the store knows
  uint64_t lookup_evicted = 0;  // dropped recently
  // Pin, in pages.
  uint64_t fetch_hits = 0;
  uint64_t fetch_misses = 0;
  uint64_t fetch_evicted = 0;
  uint64_t fetch_bytes = 0;  // of the blocks verified for readers
  // Of fetch_hits: [tier - 1][depth].
  std::array<std::array<uint64_t, kHitDepthNames.size()>, kTierKinds> hits_by_tier{};

  // BeginPut and Commit: the final outcome of each put; kOk is a page stored. A put that was begun
  // and dropped without Commit counts as abandoned.
  std::array<uint64_t, kItemStatuses> puts_by_outcome{};
  uint64_t puts_abandoned = 0;
  uint64_t puts_refused = 0;  // worth less than what would have had to go; among kNoSpace
  uint64_t put_bytes = 0;     // of the pages stored

  std::array<uint64_t, kRemoveReasons> removed_by_reason{};
  uint64_t evicted_bytes = 0;
  uint64_t corrupt_pages = 0;   // found bad when they were to be served, or by Verify
  uint64_t verified_pages = 0;  // by Verify
  uint64_t moved_pages = 0;     // within the tier, to free a region for another slot size
  uint64_t moved_bytes = 0;
  uint64_t loaded_pages = 0;  // brought back from the archive
  // Pages that were to be made durable, once for each time that they were named.
  std::array<uint64_t, kItemStatuses> persists_by_outcome{};
  std::array<uint64_t, kParentLoads> parent_loads{};

  uint64_t leases_granted = 0;
  uint64_t leases_refused = 0;  // for want of leasable bytes
  uint64_t leases_released = 0;
  uint64_t leases_expired = 0;   // at the ceiling
  uint64_t leases_orphaned = 0;  // with their session
};

// Why a page was not re-encoded and stays WIDE.
enum class StaysWide : uint8_t {
  kNonFinite = 0,  // it holds NaN or infinity
  kOverflow = 1,   // a scale or zero point beyond the params' dtype
  kRefused = 2,    // the codec does not take it
};
inline constexpr size_t kStaysWideReasons = 3;

// Of pages re-encoded WIDE -> PACKED (Ladder).
struct LadderStats {
  uint64_t due_pages = 0;      // re-encoded without anybody asking
  uint64_t pressed_pages = 0;  // because memory was short
  uint64_t freed_bytes = 0;    // that their slots became smaller by
  uint64_t cpu_ns = 0;         // of re-encoding, failures included
  uint64_t no_room = 0;        // there was no room for the PACKED form
  uint64_t evicted_ahead = 0;  // pages evicted for room while others could have been re-encoded
  uint64_t retired_slots = 0;  // now: old forms that somebody still reads
  uint64_t retired_bytes = 0;
  std::array<uint64_t, kStaysWideReasons> stays_wide{};
  // Now: WIDE pages that may be re-encoded, by where they stand.
  uint64_t waiting_due = 0, waiting_past = 0, waiting_tail = 0;
  // ||x - x'|| / ||x|| of the K rows and of the V rows of a layer of each re-encoded page.
  ErrorHistogram k_error, v_error;
};

// Of pages copied into a faster tier (PageCopies).
struct CopyCounters {
  uint64_t copied_pages = 0;
  uint64_t copied_bytes = 0;
  uint64_t dropped_pages = 0;  // copies dropped for room
  uint64_t refused_pages = 0;  // not copied, because everything there was in use, or queued
  uint64_t failed_pages = 0;   // whose copy failed, or arrived damaged
};

// Why a page that left memory, or was to be written, was not written to the archive.
enum class ArchiveRefusal : uint8_t {
  kNotWorth = 0,  // unlikely to be used again
  kBehind = 1,    // too many waited
  kQuota = 2,     // its tenant has as much there as it may
  kNoParent = 3,  // what it extends is not there: it would not be found
  kFailed = 4,    // the device did not take it
};
inline constexpr size_t kArchiveRefusals = 5;
const char* ArchiveRefusalName(ArchiveRefusal why);  // as metrics say it

// Of the archive (PageArchive).
struct ArchiveCounters {
  uint64_t written_pages = 0;
  uint64_t written_bytes = 0;         // of them, their checksums included
  uint64_t device_written_bytes = 0;  // all that was written for it
  uint64_t read_pages = 0;
  uint64_t read_bytes = 0;
  uint64_t rewritten_pages = 0;  // kept when room was reclaimed around them
  uint64_t reclaimed_pages = 0;  // dropped for room
  uint64_t removed_pages = 0;    // deleted, or unreachable
  uint64_t corrupt_pages = 0;    // found bad, and dropped
  uint64_t failed_reads = 0;     // pages that the device could not read; dropped
  uint64_t failed_writes = 0;    // pages that the device could not write
  std::array<uint64_t, kArchiveRefusals> refused_pages{};  // not written
  uint64_t catalog_skipped = 0;  // namespaces and transform sets that could not be read
  uint64_t catalog_failed_writes = 0;
};

struct StoreStats {
  StoreCounters counters;
  bool archived = false;  // there is an archive, and what follows is about it
  ArchiveCounters archive;
  CopyCounters copies;
  LadderStats ladder;
  std::vector<NamespaceStats> namespaces;  // in the order of opening
  std::vector<TenantStats> tenants;        // in the order in which they came
  std::vector<TierStats> tiers;            // fastest first
  uint64_t pages = 0;                      // in the index
  uint64_t detached_pages = 0;             // out of the index, their memory held by readers
  std::string_view policy;                 // the eviction policy's name
  uint64_t policy_bytes = 0;               // memory of the eviction policy
  uint64_t pinned_bytes = 0;               // of pages that clients pinned
  uint64_t index_bytes = 0;  // of memory that describes pages, the policy's not included
  uint64_t sessions = 0;
  uint64_t leases = 0;
  uint64_t leased_bytes = 0;    // of distinct pages
  uint64_t leasable_bytes = 0;  // the most that leased_bytes may be
  LeaseAges lease_ages;         // of those that have ended
  double oldest_lease_s = 0.0;  // the age of the oldest there is
  // Of the pass of Verify that began last: what was looked at, of what there was then.
  uint64_t scrubbed_pages = 0;
  uint64_t scrub_pages = 0;
  uint64_t pins = 0;       // PinnedPages, and parents held by PutSlots
  uint64_t holds = 0;      // of leases on pages
  uint64_t open_puts = 0;  // PutSlots
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_STORE_STATS_H_
