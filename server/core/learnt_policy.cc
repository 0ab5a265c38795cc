#include "server/core/learnt_policy.h"

#include <algorithm>
#include <cmath>

namespace oscarkv {
namespace {

constexpr double kJudgeEvery = 20.0;  // seconds
constexpr double kMoveEvery = 0.25;
// Runs under watch that are counted at once: bounds the pause.
constexpr size_t kCountedAtOnce = size_t{1} << 14;
// So many puts that went on from one page make it shared by sequences that have nothing else in
// common: a system prompt.
constexpr uint16_t kForksShared = 8;
constexpr int kTurnMax = 1000;
// Nothing is refused, here or by who asks for chances, before so many uses are known: a store that
// was only written to takes all.
constexpr double kUsesToRefuse = 32.0;
constexpr uint32_t kNoSet = 0xffffffff;

}  // namespace

LearntPolicy::LearntPolicy() : watch_(model_) {}

// --- Pages and runs ---

void LearntPolicy::GrowTo(PageId page) {
  if (page < run_of_.size()) return;
  run_of_.resize(page + size_t{1}, kNoRun);
  shelves_.GrowTo(page + 1);
}

LearntPolicy::RunId LearntPolicy::NewRun() {
  RunId id = first_free_;
  if (id == kNoRun) {
    id = static_cast<RunId>(runs_.size());
    runs_.emplace_back();
  } else {
    first_free_ = runs_[id].next_free;
    runs_[id] = {};
  }
  ++live_runs_;
  runs_[id].used_at_s = now_s_;
  return id;
}

void LearntPolicy::Leave(PageId page) {
  const RunId id = run_of_[page];
  run_of_[page] = kNoRun;
  if (--runs_[id].pages > 0) return;
  runs_[id].next_free = first_free_;
  first_free_ = id;
  --live_runs_;
  // Or the run that gets its place would go next, whatever it is worth.
  if (id == going_) going_ = kNoRun;
}

uint8_t LearntPolicy::StandingOf(const RequestTraits& request) {
  if (request.residency == Residency::kMayGoFirst) return 0;
  const int priority = std::clamp<int>(request.priority, -kPriorityMax, kPriorityMax);
  return static_cast<uint8_t>(1 + kPriorityMax + priority);
}

void LearntPolicy::Classify(const RequestTraits& request, uint64_t new_tokens, Run* run) {
  RunTraits traits{.reuse = request.reuse, .kind = run->kind};
  if (run->kind != RunKind::kShared) {
    traits.turn = run->turn;
    traits.new_tokens = new_tokens;
    traits.output_tokens = request.output_tokens;
  }
  run->class_id = model_.ClassOf(traits);
  if (RunWatch::Run* watched = watch_.At(run->watch, run->first_key_hash))
    watched->class_id = run->class_id;
}

void LearntPolicy::Watch(Run* run) {
  if (RunWatch::Run* before = watch_.Find(run->first_key_hash))
    watch_.EndUsed(*before, now_s_, 1.0);
  run->watch = watch_.Begin({.first_key_hash = run->first_key_hash,
                             .used_at_s = run->used_at_s,
                             .turn = run->turn,
                             .class_id = run->class_id},
                            live_runs_);
}

// --- Puts ---

LearntPolicy::Put& LearntPolicy::PutOf(const PageTraits& traits, const RunWatch::Run* watched) {
  Put& put = puts_[traits.request.number % kPutsKnown];
  if (traits.request.number != 0 && put.request == traits.request.number) return put;
  put = {.request = traits.request.number};
  if (watched != nullptr) {
    put.turn = static_cast<uint16_t>(std::min<uint32_t>(watched->turn + 1, kTurnMax));
  } else if (traits.parent != kNoPage) {
    const Run& above = RunOf(traits.parent);
    const bool counted = above.kind == RunKind::kUsed && !above.extended;
    if (above.kind != RunKind::kShared)
      put.turn = static_cast<uint16_t>(std::min(above.turn + (counted ? 0 : 1), kTurnMax));
  }
  if (traits.parent != kNoPage) Extend(traits.parent, traits);
  return put;
}

void LearntPolicy::Extend(PageId page, const PageTraits& traits) {
  Run* run = &RunOf(page);
  if (run->fork != page) {
    if (run->forks < kForksShared) {
      run->fork = page;
      run->forks = 1;
    }
  } else if (run->forks < kForksShared) {
    ++run->forks;
  }
  // What this request used, it used to store this.
  while (run->kind == RunKind::kUsed && !run->extended) {
    run->extended = true;
    Classify(traits.request, traits.request.new_tokens, run);
    if (run->above == kNoPage || run_of_[run->above] == kNoRun) break;
    run = &RunOf(run->above);
  }
  run->extended = true;
}

ReuseModel::ClassId LearntPolicy::ClassOfPut(const PageTraits& traits, const Put& put,
                                             RunKind* kind) {
  *kind = traits.ends_put ? RunKind::kEnd : RunKind::kNew;
  return model_.ClassOf({.reuse = traits.request.reuse,
                         .kind = *kind,
                         .turn = put.turn,
                         .new_tokens = traits.request.new_tokens,
                         .output_tokens = traits.request.output_tokens});
}

void LearntPolicy::OnInsert(PageId page, const PageTraits& traits) {
  Advance(traits.now);
  GrowTo(page);
  RunWatch::Run* watched = watch_.Find(traits.key_hash);
  const Put& put = PutOf(traits, watched);
  if (watched != nullptr) watch_.EndUsed(*watched, now_s_, 1.0);
  RunKind kind = RunKind::kNew;
  const ReuseModel::ClassId class_id = ClassOfPut(traits, put, &kind);
  if (traits.parent != kNoPage && traits.request.number != 0) {
    Run& above = RunOf(traits.parent);
    if (above.request == traits.request.number && above.class_id == class_id) {
      ++above.pages;
      run_of_[page] = run_of_[traits.parent];
      return;
    }
  }
  const RunId id = NewRun();
  Run& run = runs_[id];
  run.request = traits.request.number;
  run.first_key_hash = traits.key_hash;
  run.first = page;
  run.pages = 1;
  run.turn = put.turn;
  run.class_id = class_id;
  run.kind = kind;
  run.standing = StandingOf(traits.request);
  run_of_[page] = id;
  Watch(&run);
}

ReuseModel::ClassId LearntPolicy::ClassOfNewPut(const PageTraits& traits) {
  RunKind kind = RunKind::kNew;
  return ClassOfPut(traits, PutOf(traits, watch_.Find(traits.key_hash)), &kind);
}

bool LearntPolicy::Admits(const PageTraits& traits) {
  Advance(traits.now);
  const std::optional<ShelfId> least = shelves_.Least();
  if (!least.has_value() || model_.uses() < kUsesToRefuse) return true;
  const ReuseModel::ClassId class_id = ClassOfNewPut(traits);
  const auto& [least_class, least_standing] = sets_[*least / ReuseModel::kAges];
  return Score(class_id, StandingOf(traits.request), 0) >=
         Score(least_class, least_standing, *least % ReuseModel::kAges);
}

void LearntPolicy::OnRefuse(const PageTraits& traits) {
  Advance(traits.now);
  RunWatch::Run* watched = watch_.Find(traits.key_hash);
  Put& put = PutOf(traits, watched);
  if (watched != nullptr) watch_.EndUsed(*watched, now_s_, 1.0);
  RunKind kind = RunKind::kNew;
  const ReuseModel::ClassId class_id = ClassOfPut(traits, put, &kind);
  // One page stands for all that go the same way, as in a run.
  if (class_id == put.refused) return;
  put.refused = class_id;
  watch_.Begin({.first_key_hash = traits.key_hash,
                .used_at_s = now_s_,
                .turn = put.turn,
                .class_id = class_id},
               live_runs_);
}

// --- Uses ---

void LearntPolicy::OnUse(std::span<const UsedPage> pages, const RequestTraits& request,
                         absl::Duration now) {
  Advance(now);
  RunId current = kNoRun;
  RunId old_id = kNoRun;
  uint32_t old_used = 0;  // pages of the old run met in a row
  bool above_fork = false;
  uint16_t turn = 0;
  for (const auto& [page, hash] : pages) {
    if (run_of_[page] == current) continue;
    if (run_of_[page] != old_id) {
      old_id = run_of_[page];
      old_used = 0;
      above_fork = false;
    }
    Run old = runs_[old_id];
    ++old_used;
    above_fork = above_fork || old.fork == page;
    if (old.first == page) {
      if (RunWatch::Run* watched = watch_.Find(hash)) {
        const double share = old_used / static_cast<double>(old.pages + old_used - 1);
        watch_.EndUsed(*watched, now_s_, share);
      }
    }
    const bool shared = old.kind == RunKind::kShared || (above_fork && old.forks >= kForksShared);
    const RunKind kind = shared ? RunKind::kShared : RunKind::kUsed;
    const uint8_t standing = request.residency == Residency::kUnspecified && request.priority == 0
                                 ? old.standing
                                 : StandingOf(request);
    if (current == kNoRun || runs_[current].kind != kind || runs_[current].standing != standing) {
      if (current != kNoRun) {
        runs_[current].above = page;
        Watch(&runs_[current]);
      }
      if (turn == 0) turn = static_cast<uint16_t>(std::min(old.turn + 1, kTurnMax));
      current = NewRun();
      Run& run = runs_[current];
      run.kind = kind;
      run.turn = turn;
      run.standing = standing;
      Classify(request, request.new_tokens, &run);
    }
    Run& run = runs_[current];
    ++run.pages;
    run.first = page;
    run.first_key_hash = hash;
    if (old.fork == page && old.forks > run.forks) {
      run.fork = page;
      run.forks = old.forks;
    }
    const bool evictable = shelves_.Holds(page);
    if (evictable) shelves_.Take(page);
    Leave(page);
    if (runs_[old_id].pages == 0) old_id = kNoRun;
    run_of_[page] = current;
    if (evictable) shelves_.Put(page, ShelfOf(runs_[current]));
  }
  if (current != kNoRun) Watch(&runs_[current]);
}

void LearntPolicy::OnRemove(PageId page, RemoveReason /*reason*/) {
  SetEvictable(page, false);
  Leave(page);
}

// --- Order ---

void LearntPolicy::SetEvictable(PageId page, bool evictable) {
  if (evictable == shelves_.Holds(page)) return;
  if (!evictable) return shelves_.Take(page);
  const ShelfId shelf = ShelfOf(RunOf(page));
  // A run goes page by page, and whole before the next of its age.
  if (run_of_[page] == going_)
    shelves_.PutFirst(page, shelf);
  else
    shelves_.Put(page, shelf);
}

ShelfId LearntPolicy::FirstShelf(ReuseModel::ClassId class_id, uint8_t standing) {
  if (class_id >= shelf_sets_.size()) {
    std::array<uint32_t, kStandings> none;
    none.fill(kNoSet);
    shelf_sets_.resize(class_id + size_t{1}, none);
  }
  uint32_t& set = shelf_sets_[class_id][standing];
  if (set == kNoSet) {
    set = static_cast<uint32_t>(sets_.size());
    sets_.emplace_back(class_id, standing);
    shelves_.Add(ReuseModel::kAges);
    ranked_ = false;
  }
  return set * ReuseModel::kAges;
}

ShelfId LearntPolicy::ShelfOf(const Run& run) {
  const auto age = static_cast<ShelfId>(ReuseModel::AgeOf(now_s_ - run.used_at_s));
  return FirstShelf(run.class_id, run.standing) + age;
}

double LearntPolicy::Score(ReuseModel::ClassId class_id, uint8_t standing, size_t age) const {
  const double worth = model_.Worth(class_id, age);
  if (standing == 0) return worth * 1e-15;  // below all that may stay
  return std::ldexp(worth, 2 * (standing - 1 - kPriorityMax));
}

void LearntPolicy::Rank() {
  std::vector<double> scores;
  scores.reserve(shelves_.size());
  for (const auto& [class_id, standing] : sets_)
    for (size_t age = 0; age < ReuseModel::kAges; ++age)
      scores.push_back(Score(class_id, standing, age));
  shelves_.Rank(scores);
  ranked_ = true;
}

void LearntPolicy::MoveOn() {
  moved_at_s_ = now_s_;
  std::optional<ShelfId> shelf = shelves_.Least();
  while (shelf.has_value()) {
    const size_t age = *shelf % ReuseModel::kAges;
    for (;;) {
      const PageId page = shelves_.Front(*shelf);
      if (page == kNoPage) break;
      const ShelfId now_on = ShelfOf(RunOf(page));
      if (now_on % ReuseModel::kAges == age) break;
      shelves_.Take(page);
      shelves_.Put(page, now_on);
    }
    shelf = shelves_.After(*shelf);
  }
}

std::optional<PageId> LearntPolicy::Victim(absl::Duration now) {
  Advance(now);
  if (now_s_ - judged_at_s_ >= kJudgeEvery) {
    watch_.CountUntil(now_s_, kCountedAtOnce);
    model_.Refresh(now_s_ - judged_at_s_);
    judged_at_s_ = now_s_;
    ranked_ = false;
  }
  if (now_s_ - moved_at_s_ >= kMoveEvery) MoveOn();
  if (!ranked_) Rank();
  const std::optional<ShelfId> least = shelves_.Least();
  if (!least.has_value()) return std::nullopt;
  const PageId page = shelves_.Front(*least);
  going_ = run_of_[page];
  return page;
}

std::optional<double> LearntPolicy::UseChance(PageId page, absl::Duration now) const {
  if (model_.uses() < kUsesToRefuse) return std::nullopt;
  const Run& run = runs_[run_of_[page]];
  return model_.Chance(run.class_id, ReuseModel::AgeOf(absl::ToDoubleSeconds(now) - run.used_at_s));
}

std::optional<double> LearntPolicy::PutChance(const PageTraits& traits) {
  if (model_.uses() < kUsesToRefuse) return std::nullopt;
  Advance(traits.now);
  return model_.Chance(ClassOfNewPut(traits), 0);
}

uint64_t LearntPolicy::memory_bytes() const {
  return sizeof(*this) + model_.memory_bytes() + watch_.memory_bytes() + shelves_.memory_bytes() +
         run_of_.capacity() * sizeof(RunId) + runs_.capacity() * sizeof(Run) +
         shelf_sets_.capacity() * sizeof(shelf_sets_[0]) + sets_.capacity() * sizeof(sets_[0]);
}

}  // namespace oscarkv
