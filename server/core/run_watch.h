// Which runs of pages are under watch: when they were used last, and what they were. A run is
// known by the key of its first page, so that it is recognised when it is stored anew after it was
// dropped. Bounded: the run watched longest makes place, and counts as not seen further.
#ifndef OSCARKV_SERVER_CORE_RUN_WATCH_H_
#define OSCARKV_SERVER_CORE_RUN_WATCH_H_

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"

#include "server/core/eviction_policy.h"
#include "server/core/reuse_model.h"

namespace oscarkv {

// Not thread-safe. 32 bytes a run, and 10 to 18 of hash table.
class RunWatch {
 public:
  struct Run {
    uint64_t first_key_hash = 0;
    double used_at_s = 0.0;
    double counted_until_s = 0.0;  // of the time under watch
    uint32_t turn = 0;             // of its session; 0: the place is free
    ReuseModel::ClassId class_id = 0;
  };
  // A place may have been given to another run: what it holds is asked by place and hash.
  using Place = uint32_t;
  static constexpr Place kNowhere = 0xffffffff;

  static constexpr size_t kRunsMin = size_t{1} << 14;
  static constexpr size_t kRunsMax = size_t{1} << 18;

  // `model` is borrowed; it is told how long runs were under watch.
  explicit RunWatch(ReuseModel& model) : model_(model) {}

  // Begins to watch a run that nobody watches. There is place for `runs_wanted`, within the limits.
  Place Begin(const Run& run, size_t runs_wanted);
  // The run that is watched under this hash; null when there is none. Valid until Begin.
  Run* Find(uint64_t first_key_hash);
  Run* At(Place place, uint64_t first_key_hash);
  // The run was used again at `now_s`, or `share` of it: ends its watch.
  void EndUsed(Run& run, double now_s, double share);
  // Tells the model of the time until `now_s`, of at most `runs_max` runs, which take turns.
  void CountUntil(double now_s, size_t runs_max);

  size_t runs() const { return by_hash_.size(); }
  uint64_t memory_bytes() const;

 private:
  void Count(Run& run, double now_s);
  void End(Run& run, double now_s);

  ReuseModel& model_;
  std::vector<Run> runs_;  // a ring once it has its size
  Place next_ = 0;
  absl::flat_hash_map<uint64_t, Place> by_hash_;
  size_t next_counted_ = 0;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_RUN_WATCH_H_
