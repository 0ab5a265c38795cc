// Copies of stored pages in a tier that is faster than their own. A copy is a copy: the page stays
// where it is, so a copy that goes loses nothing, and who cannot read copies never needs one.
//
//   queued --> moving --> copied        a page that leaves the store, or a move that fails,
//     |          |          |           ends each of them
//     +----------+----------+--> none
//
// A page is queued at its second use within a window, or when somebody wants it to be. A full tier
// makes room by dropping the copy that was least recently used, if it was not used for as long as
// the window: what is in steady use is not driven out by what is.
//
// This class keeps the books; CopyMover moves the bytes.
#ifndef OSCARKV_SERVER_CORE_PAGE_COPIES_H_
#define OSCARKV_SERVER_CORE_PAGE_COPIES_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "server/core/page_record.h"
#include "server/core/store_stats.h"
#include "server/core/tier.h"

namespace oscarkv {

struct PageCopiesOptions {
  absl::Duration window = absl::Seconds(60);
  uint32_t queued_max = 1 << 16;       // pages; beyond it uses queue nothing
  uint32_t uses_remembered = 1 << 16;  // a power of two; 16 bytes each
};

// A copy held for reading: its slot stays until destruction, whatever becomes of the page. The
// store must outlive it. Shared freely between threads.
class PinnedCopy {
 public:
  PinnedCopy() = default;
  explicit operator bool() const { return slot_ != nullptr; }
  const TierSlot& slot() const { return *slot_; }  // of the page's blocks, then its checksums

 private:
  friend class PageCopies;
  explicit PinnedCopy(std::shared_ptr<const TierSlot> slot) : slot_(std::move(slot)) {}
  std::shared_ptr<const TierSlot> slot_;
};

// Thread-safe. Takes no lock but its own and, under it, the tier's.
class PageCopies {
 public:
  // An error in the place of the tier: there is none, and Stats says why. kInvalidArgument when
  // the options are out of range.
  static absl::StatusOr<std::unique_ptr<PageCopies>> Create(
      const PageCopiesOptions& options, absl::StatusOr<std::unique_ptr<CopiedTier>> tier);

  // --- For the store. Records are in the index or pinned. ---

  // One use of `pages`, the deepest first. Records may have left the index since they were looked
  // up, or be reused: then another page counts as used, which does no harm.
  void OnUse(std::span<PageRecord* const> pages, absl::Duration now);
  // Queues those of `pages` that have no copy, whether they were used or not, the first of them
  // first. Of records as OnUse.
  void Want(std::span<PageRecord* const> pages, absl::Duration now);
  // `page` leaves the index. Called under the tree lock, before the record is free for reuse.
  void OnRemove(PageRecord& page);
  // Empty when there is no copy.
  PinnedCopy Pin(PageRecord& page) const;

  TierStats Stats() const;
  std::string degraded() const;  // why the tier is out of use; empty: it is in use
  CopyCounters Counters() const;

  // --- For the mover, one thread. ---

  // Until a page is queued or Stop was called; false then.
  bool AwaitQueued();
  void Stop();
  bool stopped() const;
  // The page that was queued first, now moving; null when none is queued. It may leave the store at
  // any time: then Reserve and Publish say so.
  PageRecord* TakeQueued();
  // A slot for the copy of a page that is moving; drops copies for it. kNotFound when the page has
  // left the store, kResourceExhausted when all there is is in use.
  absl::StatusOr<TierSlot> Reserve(PageRecord& page, uint64_t bytes, absl::Duration now);
  // The slot holds a sound copy of the page, which the caller pins. If the page has left the store
  // meanwhile, the slot is released.
  void Publish(PageRecord& page, const TierSlot& slot);
  // The move came to nothing. `slot`, if there is one, is released.
  enum class Ending : uint8_t { kGone, kRefused, kFailed };
  void GiveUp(PageRecord& page, std::optional<TierSlot> slot, Ending why);
  // The tier is out of use from now on: every copy is gone.
  void Degrade(const absl::Status& why);

  // Null when there is none.
  CopiedTier* tier() const { return tier_.get(); }

 private:
  enum class State : uint8_t { kQueued, kMoving, kCopied };
  struct Entry {
    State state = State::kQueued;
    std::shared_ptr<const TierSlot> slot;  // kCopied; released with the last that holds it
    absl::Duration last_use;
  };
  // Copied pages, those that may go first at the front: of equal use, the deepest in its sequence.
  struct Place {
    absl::Duration last_use;
    uint64_t first_position = 0;
    PageRecord* page = nullptr;
    bool operator<(const Place& other) const {
      if (last_use != other.last_use) return last_use < other.last_use;
      if (first_position != other.first_position) return first_position > other.first_position;
      return std::less<>()(page, other.page);
    }
  };
  struct Use {
    PageId page = kNoPage;
    absl::Duration time;
  };
  using Entries = absl::flat_hash_map<PageRecord*, Entry>;

  PageCopies(const PageCopiesOptions& options, std::unique_ptr<CopiedTier> tier,
             std::string degraded);

  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopped_ || !queue_.empty(); }
  // Whether this use of a page without an entry is its second within the window.
  bool UsedAgain(PageId page, absl::Duration now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Queue(PageRecord& page, absl::Duration now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsMoving(PageRecord& page) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Drops the copy that may go first; false when none may.
  bool DropOne(absl::Duration now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Erase(Entries::iterator entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const PageCopiesOptions options_;
  const std::unique_ptr<CopiedTier> tier_;

  mutable absl::Mutex mutex_;
  Entries entries_ ABSL_GUARDED_BY(mutex_);
  absl::btree_set<Place> by_use_ ABSL_GUARDED_BY(mutex_);
  // May name pages that have no entry any more, or are further on.
  std::deque<PageRecord*> queue_ ABSL_GUARDED_BY(mutex_);
  std::vector<Use> uses_ ABSL_GUARDED_BY(mutex_);  // by page number; a newer use takes the place
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::string degraded_ ABSL_GUARDED_BY(mutex_);
  CopyCounters counters_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_PAGE_COPIES_H_
