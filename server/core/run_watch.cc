#include "server/core/run_watch.h"

#include <algorithm>

namespace oscarkv {

RunWatch::Place RunWatch::Begin(const Run& run, size_t runs_wanted) {
  if (next_ == runs_.size()) {
    if (runs_.size() < std::clamp(runs_wanted, kRunsMin, kRunsMax))
      runs_.emplace_back();
    else
      next_ = 0;
  }
  const Place place = next_++;
  if (runs_[place].turn != 0) End(runs_[place], run.used_at_s);
  runs_[place] = run;
  runs_[place].counted_until_s = run.used_at_s;
  by_hash_[run.first_key_hash] = place;
  return place;
}

RunWatch::Run* RunWatch::Find(uint64_t first_key_hash) {
  const auto found = by_hash_.find(first_key_hash);
  return found == by_hash_.end() ? nullptr : &runs_[found->second];
}

RunWatch::Run* RunWatch::At(Place place, uint64_t first_key_hash) {
  if (place >= runs_.size()) return nullptr;
  Run& run = runs_[place];
  return run.turn != 0 && run.first_key_hash == first_key_hash ? &run : nullptr;
}

void RunWatch::EndUsed(Run& run, double now_s, double share) {
  model_.AddUse(run.class_id, now_s - run.used_at_s, share);
  End(run, now_s);
}

void RunWatch::End(Run& run, double now_s) {
  Count(run, now_s);
  by_hash_.erase(run.first_key_hash);
  run.turn = 0;
}

void RunWatch::Count(Run& run, double now_s) {
  model_.AddWatch(run.class_id, run.counted_until_s - run.used_at_s, now_s - run.used_at_s);
  run.counted_until_s = now_s;
}

void RunWatch::CountUntil(double now_s, size_t runs_max) {
  for (size_t i = std::min(runs_max, runs_.size()); i > 0; --i) {
    if (next_counted_ >= runs_.size()) next_counted_ = 0;
    Run& run = runs_[next_counted_++];
    if (run.turn != 0) Count(run, now_s);
  }
}

uint64_t RunWatch::memory_bytes() const {
  return runs_.capacity() * sizeof(Run) + by_hash_.capacity() * (sizeof(uint64_t) * 2 + 1);
}

}  // namespace oscarkv
