// Replays a trace through the store itself: the server's index, tree, puts and policy objects, over
// pages of a few bytes.
#ifndef OSCARKV_TESTS_BENCH_TRACE_REPLAY_H_
#define OSCARKV_TESTS_BENCH_TRACE_REPLAY_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "server/core/page_store.h"
#include "tests/bench/trace.h"

namespace oscarkv::bench {

struct ReplayOptions {
  std::string policy = "learnt";  // or "lru"
  uint64_t capacity_pages = 0;    // with a ladder: WIDE ones
  // kBlockTokens, where every block of the trace is a page, the last and partial one too; or a
  // divisor of it, where only whole pages are stored, as engines do.
  uint32_t page_tokens = kBlockTokens;
  // What becomes of pages, all of which are put WIDE: "kept" so, or re-encoded PACKED, at a seventh
  // of the bytes, by the precision ladder: "never", "tail", "until_pressure" (StoreWide). The
  // re-encoder keeps up with the puts. Empty: pages of one size.
  std::string ladder = {};
  // Pages that a disk tier behind memory has room for; 0: none. Not with a ladder. What is written:
  // "all" (of what is put), "fetched", or "worth" (ArchiveAdmission), the writer keeping up.
  uint64_t disk_pages = 0;
  std::string admit = "all";
  double chance_min = kArchiveChanceMin;  // PageStoreOptions::archive_chance_min
  // Clients say whether the session comes back, as a look ahead in the trace knows it; this share
  // of them says the opposite.
  bool hints = false;
  double wrong_hints = 0.0;
  uint64_t seed = 1;
};

// In blocks of the trace. A hit is a block that is reached through an unbroken run of stored ones.
struct HitCount {
  double blocks = 0;
  double hits = 0;
  double disk_hits = 0;  // of hits, brought back from disk
  double percent() const { return blocks == 0 ? 0.0 : 100.0 * hits / blocks; }
  void Add(const HitCount& other) {
    blocks += other.blocks;
    hits += other.hits;
    disk_hits += other.disk_hits;
  }
};

struct ReplayResult {
  HitCount whole;
  HitCount second_half;  // the requests of the second half of the trace's time
  uint64_t evicted_pages = 0;
  uint64_t refused_pages = 0;
  uint64_t reencoded_pages = 0;
  uint64_t evicted_ahead = 0;  // while others could have been re-encoded
  uint64_t disk_written_pages = 0;
  std::array<uint64_t, kArchiveRefusals> disk_refused_pages{};  // [ArchiveRefusal]
  uint64_t policy_bytes = 0;  // what the policy remembers, at the end
  double seconds = 0.0;       // of the replay
};

// kInvalidArgument: an option out of range.
absl::StatusOr<ReplayResult> Replay(const std::vector<TraceRequest>& trace,
                                    const ReplayOptions& options);

// The most that any policy could hit: the block used again latest goes first, a new one at once if
// it is that block. (A block is used whenever a block behind it is, so no prefix gets a hole.)
ReplayResult ReplayOptimum(const std::vector<TraceRequest>& trace, uint64_t capacity_blocks);

}  // namespace oscarkv::bench

#endif  // OSCARKV_TESTS_BENCH_TRACE_REPLAY_H_
