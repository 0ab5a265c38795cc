// The seam between the store and the tier behind its memory: pages are written to it while they are
// in memory, found there when they are not any more, also after a restart, and brought back when
// they are fetched. The interface belongs to the store; the archive on disk is in server/tier/disk.
#ifndef OSCARKV_SERVER_CORE_PAGE_ARCHIVE_H_
#define OSCARKV_SERVER_CORE_PAGE_ARCHIVE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "server/core/catalog.h"
#include "server/core/corrupt_page.h"
#include "server/core/namespace.h"
#include "server/core/page_handles.h"
#include "server/core/page_record.h"
#include "server/core/store_stats.h"

namespace oscarkv {

// Which pages are written to the archive: each as it is stored; those that are fetched; or those
// that have to leave memory and are worth it, by what the policy knows of their use.
enum class ArchiveAdmission : uint8_t { kAll, kFetched, kWorth };

// "all", "fetched", "worth"
std::optional<ArchiveAdmission> ParseArchiveAdmission(std::string_view name);

struct ArchivedPage {
  Encoding encoding = Encoding::kWide;
  uint64_t first_position = 0;
  uint64_t stamp = 0;  // another one each time that the page is written
};

struct ArchivedAncestor {
  std::string key;
  ArchivedPage page;
};

// Views stay until the call returns. `slot` is the page's blocks followed by their checksums.
struct ArchiveWrite {
  const Namespace* space = nullptr;
  std::string_view key;
  std::string_view parent;  // empty: a root
  uint64_t first_position = 0;
  Encoding encoding = Encoding::kWide;
  ByteView slot = {};
  absl::Status status = {};  // out
};
struct ArchiveRead {
  std::string_view key;
  MutableByteView slot = {};  // where to, as long as the page's slot is
  absl::Status status = {};   // out; if OK, what follows is there
  std::string parent = {};
  ArchivedPage page = {};
};

// A page of the archive that is not what was written. Views stay until the call returns.
struct ArchiveCorruption {
  std::string_view fingerprint;
  std::string_view key;
  CorruptAt at = CorruptAt::kServe;
  Encoding encoding = Encoding::kWide;
  ByteView slot;       // what lay there, as far as it looks like a page; else empty
  absl::Status error;  // what is wrong
};

// Thread-safe.
class PageArchive {
 public:
  virtual ~PageArchive() = default;

  // Who is told of each page that is found to be bad, on any thread. Called before all else.
  virtual void OnCorrupt(std::function<void(const ArchiveCorruption&)> told) = 0;

  // --- In memory: no call takes but a short lock of the archive's own, under which it calls
  // nobody. ---

  virtual std::optional<ArchivedPage> Find(const Namespace& space, std::string_view key) const = 0;
  // Whether each page is there with all that it extends, up to its root: [keys]. All of that is
  // durable. O(pages of the chains).
  virtual std::vector<bool> HoldChains(const Namespace& space,
                                       std::span<const std::string_view> keys) const = 0;
  // The page and what it extends, its parent next, at most `pages_max` in all, as far as they are
  // archived; pages that Supersede has hidden stand among them. Whether each extends the next is
  // sure only when it has been read.
  virtual std::vector<ArchivedAncestor> Ancestry(const Namespace& space, std::string_view key,
                                                 size_t pages_max) const = 0;
  // That the namespace's pages take, with what describes them: at most kRecordExtraMax a page.
  static constexpr uint64_t kRecordExtraMax = 4351;
  virtual uint64_t BytesOf(const Namespace& space) const = 0;
  // The page is about to have other bytes, which may be written: it is not found from now on. What
  // is on the device stays until then, or until it is forgotten, so that after a crash the page is
  // there as it was. Returns whether it was there.
  virtual bool Supersede(const Namespace& space, std::string_view key) = 0;
  // Whether it has hidden the page, and what is there is of before.
  virtual bool HoldsOlder(const Namespace& space, std::string_view key) const = 0;
  // When the page was used last, in seconds of the store's clock.
  virtual void SetUsedAt(const Namespace& space, std::string_view key, uint32_t seconds) = 0;
  // Keys of pages that nobody has used for `unused_s` and that no archived page extends; of whom
  // nobody has said when they were used, it is now. `cursor` 0 starts, and ends. Looks at a bounded
  // number of pages.
  struct Unused {
    std::vector<std::string> keys;
    uint64_t cursor = 0;
  };
  virtual Unused ListUnused(const Namespace& space, uint32_t now_s, uint32_t unused_s,
                            uint64_t cursor) const = 0;
  // Forgets the page if it is such a one. Returns whether it was, and then the key of the page that
  // it extended, if that is there.
  virtual std::pair<bool, std::string> ForgetUnused(const Namespace& space, std::string_view key,
                                                    uint32_t now_s, uint32_t unused_s) = 0;
  // The page is not found from now on; the device learns of it with a later Write. Returns whether
  // it was there.
  virtual bool Forget(const Namespace& space, std::string_view key) = 0;
  // The same for the page and all that extends it; returns how many there were. O(pages removed).
  virtual uint64_t ForgetTree(const Namespace& space, std::string_view key) = 0;
  // Pages of the namespace, superseded ones too, without their parents. See PageStore::List. Pages
  // may be forgotten between calls.
  virtual ListResult List(const Namespace& space, uint32_t pages_max, uint64_t cursor) const = 0;
  virtual TierStats Stats() const = 0;
  virtual ArchiveCounters Counters() const = 0;
  // Null when it keeps nothing but pages.
  virtual Catalog* catalog() = 0;

  // --- These wait for the device. ---

  // Pages with an OK status are durable, and so are removals from before, if the device works. One
  // that is there already is OK.
  virtual void Write(std::span<ArchiveWrite> writes) = 0;
  // Reads and verifies. kNotFound; anything else: the page was bad, and is gone with what extends
  // it, or the device failed.
  virtual void Read(const Namespace& space, std::span<ArchiveRead> reads) = 0;
  // See PageStore::Verify.
  virtual VerifyProgress Verify(uint64_t cursor, uint64_t bytes_max) = 0;
};

// Pages that somebody waits for to be durable.
struct PersistTask {
  const Namespace* space = nullptr;
  std::vector<std::string> keys;
  absl::Time deadline;  // what is not durable then is kBusy
  // Called once, by the writer: [keys]. kUnavailable: the writer has stopped.
  absl::AnyInvocable<void(absl::StatusOr<std::vector<ItemResult>>) &&> done;
};

// Pages that wait to be written, first in, first out, and before them those that somebody waits
// for. Thread-safe; calls nobody under its lock.
class ArchiveQueue {
 public:
  explicit ArchiveQueue(uint32_t pages_max) : pages_max_(pages_max) {}

  // When full, the page is let go of, and counted: false.
  bool Add(PageRecord* record);
  void Persist(PersistTask task);
  // Removals wait to be written.
  void Nudge();
  // Up to `pages_max` records, which may hold another page by now, or none. Empty if only removals
  // wait, nothing if nothing does.
  std::optional<std::vector<PageRecord*>> Take(uint32_t pages_max);
  // All that wait.
  std::vector<PersistTask> TakePersists();
  // Until there is something to take, or Stop was called; false then.
  bool Await();
  void Stop();
  // Until nothing waits and what was taken has been dealt with (the taker awaits again), or the
  // deadline.
  void AwaitDrained(absl::Time deadline);
  uint64_t refused() const;

 private:
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopped_ || nudged_ || !records_.empty() || !persists_.empty();
  }
  bool IsDrained() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !taken_ && !nudged_ && records_.empty() && persists_.empty();
  }

  const uint32_t pages_max_;
  mutable absl::Mutex mutex_;
  std::deque<PageRecord*> records_ ABSL_GUARDED_BY(mutex_);
  std::vector<PersistTask> persists_ ABSL_GUARDED_BY(mutex_);
  uint64_t refused_ ABSL_GUARDED_BY(mutex_) = 0;
  bool nudged_ ABSL_GUARDED_BY(mutex_) = false;
  bool taken_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_PAGE_ARCHIVE_H_
