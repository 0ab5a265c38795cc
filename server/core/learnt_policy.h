// The policy that traces chose: keeps what is learnt to earn most hits per second of memory held.
//
// Pages used together go together. A *run* is consecutive pages last used by one request, of one
// class (reuse_model.h); it goes from its end, page by page. Each run is worth what the model says
// for its class and its age, and the run worth least goes first, unless the page that wants room is
// worth less still: then that page is refused, once enough uses are known to judge by.
//
// Runs are watched until they are used again, whether their pages are still there or not (a refused
// page is watched too), or what is learnt would depend on what was kept.
#ifndef OSCARKV_SERVER_CORE_LEARNT_POLICY_H_
#define OSCARKV_SERVER_CORE_LEARNT_POLICY_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "server/core/eviction_policy.h"
#include "server/core/reuse_model.h"
#include "server/core/run_watch.h"
#include "server/core/shelves.h"

namespace oscarkv {

// The evictable pages lie on shelves: one for each class, standing (may go first, priorities) and
// age bin, each a list in the order in which pages came. Shelves have a rank by worth, and a bitmap
// over ranks names the least. So every call is O(1) a page, but for two that are paid for by time
// passing: pages move to the shelf of the next age when they reach it (at most 31 times), and every
// 20 s of use the model and the ranks are worked out anew, in time that grows with the classes
// seen, not with the pages.
//
// Memory: 12 bytes a page, 64 a run (of at least one page, mostly of dozens), some 50 for each run
// under watch: as many as there are runs, at least 16 Ki and at most 256 Ki. Up to 4 MB beside.
class LearntPolicy final : public EvictionPolicy {
 public:
  LearntPolicy();

  std::string_view name() const override { return "learnt"; }
  std::unique_ptr<EvictionPolicy> NewSibling() const override {
    return std::make_unique<LearntPolicy>();
  }
  void OnInsert(PageId page, const PageTraits& traits) override;
  bool Admits(const PageTraits& traits) override;
  void OnRefuse(const PageTraits& traits) override;
  void OnUse(std::span<const UsedPage> pages, const RequestTraits& request,
             absl::Duration now) override;
  void OnRemove(PageId page, RemoveReason reason) override;
  void SetEvictable(PageId page, bool evictable) override;
  std::optional<PageId> Victim(absl::Duration now) override;
  std::optional<double> UseChance(PageId page, absl::Duration now) const override;
  std::optional<double> PutChance(const PageTraits& traits) override;
  uint64_t memory_bytes() const override;

  // For tests.
  const RunWatch& watch() const { return watch_; }

 private:
  using RunId = uint32_t;
  static constexpr RunId kNoRun = 0xffffffff;
  // How firmly a run stays, whatever it is worth: may go first, or one of the priorities.
  static constexpr uint32_t kStandings = 2 + 2 * kPriorityMax;
  static constexpr uint32_t kPutsKnown = 64;

  struct Run {
    double used_at_s = 0.0;
    uint64_t request = 0;         // whose put stored it; 0: it was used
    uint64_t first_key_hash = 0;  // of the page nearest to the root
    PageId first = kNoPage;
    PageId above = kNoPage;  // the page that the first one extends, used by the same request
    PageId fork = kNoPage;   // the page that most puts went on from
    uint32_t pages = 0;      // that are there; 0: the place is free
    RunId next_free = kNoRun;
    RunWatch::Place watch = RunWatch::kNowhere;
    uint16_t turn = 1;
    uint16_t forks = 0;  // puts that went on from `fork`
    ReuseModel::ClassId class_id = 0;
    RunKind kind = RunKind::kNew;
    uint8_t standing = 0;
    bool extended = false;  // a put went on from it
  };
  // A put under way, so that its pages need not be told apart one by one.
  struct Put {
    uint64_t request = 0;
    uint16_t turn = 1;
    ReuseModel::ClassId refused = 0xffff;  // the class of its last page that was refused
  };

  void Advance(absl::Duration now) { now_s_ = absl::ToDoubleSeconds(now); }
  void GrowTo(PageId page);
  Run& RunOf(PageId page) { return runs_[run_of_[page]]; }
  RunId NewRun();
  void Leave(PageId page);  // its run

  // What is known of the put that `traits` belongs to; at its first page, found out.
  Put& PutOf(const PageTraits& traits, const RunWatch::Run* watched);
  // A put goes on from `page`.
  void Extend(PageId page, const PageTraits& traits);
  void Classify(const RequestTraits& request, uint64_t new_tokens, Run* run);
  ReuseModel::ClassId ClassOfNewPut(const PageTraits& traits);
  ReuseModel::ClassId ClassOfPut(const PageTraits& traits, const Put& put, RunKind* kind);
  static uint8_t StandingOf(const RequestTraits& request);
  void Watch(Run* run);

  ShelfId ShelfOf(const Run& run);
  ShelfId FirstShelf(ReuseModel::ClassId class_id, uint8_t standing);  // of age 0; makes it
  double Score(ReuseModel::ClassId class_id, uint8_t standing, size_t age) const;
  void Reshelve(PageId page);
  void Rank();
  void MoveOn();  // pages that have reached the next age

  ReuseModel model_;
  RunWatch watch_;
  Shelves shelves_;
  double now_s_ = 0.0;
  RunId going_ = kNoRun;  // whose page Victim named last
  double judged_at_s_ = 0.0;
  double moved_at_s_ = 0.0;
  bool ranked_ = true;
  std::vector<RunId> run_of_;  // [page]
  std::vector<Run> runs_;
  RunId first_free_ = kNoRun;
  size_t live_runs_ = 0;
  std::vector<std::array<uint32_t, kStandings>> shelf_sets_;   // [class]
  std::vector<std::pair<ReuseModel::ClassId, uint8_t>> sets_;  // what each set of shelves is for
  std::array<Put, kPutsKnown> puts_{};                         // [request number modulo]
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_LEARNT_POLICY_H_
