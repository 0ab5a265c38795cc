// The engine of the disk tier: pages in segment files of one directory (FORMAT.md), written in
// batches one behind the other, read with their checksums verified, found again after a crash.
//
//   * A page is durable when Write has said so; after kill -9 at any moment it is whole or absent.
//   * A read returns the bytes that were written for that key under that fingerprint, or an error.
//   * The files never take more than the capacity, which is taken when the store opens.
//   * A full or failing disk makes errors and counts; what is durable stays readable as long as the
//     disk reads.
//
// Room is reclaimed by whole segments. Pages of the segment that goes are dropped, but for those
// that the policy keeps: they are written again, at most `rewritten_share_max` of a segment. So the
// bytes written to the device are at most 1 / (1 - rewritten_share_max) times those of the records,
// and a page's record is at most 4351 bytes longer than its body.
//
// The store has no threads: calls that do I/O are for threads that may wait.
#ifndef OSCARKV_SERVER_TIER_DISK_DISK_STORE_H_
#define OSCARKV_SERVER_TIER_DISK_DISK_STORE_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

#include "server/tier/disk/aligned_buffer.h"
#include "server/tier/disk/block_io.h"
#include "server/tier/disk/disk_catalog.h"
#include "server/tier/disk/disk_directory.h"
#include "server/tier/disk/disk_index.h"
#include "server/tier/disk/format.h"
#include "server/tier/disk/reclaim_policy.h"

namespace oscarkv {

struct DiskStoreOptions {
  DiskDirectoryOptions directory;
  double rewritten_share_max = 0.25;  // of a segment, 0..0.5
  // Memory in which pages are made ready for writing; a page that is larger takes what it needs.
  uint64_t staging_bytes = 16 << 20;
};

// A page to write. Views stay until Write returns. The body is the page followed by its block
// checksums, `checksum_bytes` of them.
struct DiskPut {
  std::string_view fingerprint;  // kFingerprintBytes
  std::string_view key;
  std::string_view parent;  // empty: a root
  uint64_t first_position = 0;
  Encoding encoding = Encoding::kWide;
  ByteView body = {};
  uint32_t checksum_bytes = 0;
  absl::Status status = {};  // out
};

// A page to read. Views and `buffer` stay until Read returns.
struct DiskGet {
  std::string_view fingerprint;
  std::string_view key;
  MutableByteView buffer = {};  // its address a multiple of kIoAlignment; RecordBytes of the body
  absl::Status status = {};     // out; only if OK is what follows the page, in `buffer`
  PageHeader header = {};
  ByteView body = {};
};

// A page that was bad and has been dropped. Views stay until the call returns.
struct DiskCorruption {
  enum class While : uint8_t { kRead, kVerified, kKept };
  std::string_view fingerprint;
  std::string_view key;
  While found = While::kRead;
  Encoding encoding = Encoding::kWide;
  ByteView body;       // if the record's header is that of the page; else empty
  absl::Status error;  // what was found
};

struct DiskPage {
  Encoding encoding = Encoding::kWide;
  uint64_t first_position = 0;
  uint64_t body_bytes = 0;
  uint64_t sequence = 0;  // rises with every page written
};

struct ListedDiskPage {
  std::string key;
  DiskPage page;
};
struct DiskListResult {
  std::vector<ListedDiskPage> pages;
  uint64_t cursor = 0;  // for the next call; 0: this was the last
};

struct DiskVerifyProgress {
  uint64_t pages_checked = 0;
  uint64_t bytes_checked = 0;
  uint64_t pages_corrupt = 0;  // dropped
  uint64_t cursor = 0;
};

struct DiskStoreStats {
  // Now.
  uint64_t capacity_bytes = 0;  // of all segments
  uint64_t live_bytes = 0;      // of records in the index
  uint64_t pages = 0;
  uint64_t segments = 0;
  uint64_t free_segments = 0;
  uint64_t index_bytes = 0;
  // Since the start.
  uint64_t written_pages = 0;       // durable, asked for by the caller
  uint64_t written_body_bytes = 0;  // of them
  uint64_t rewritten_pages = 0;     // kept when their segment was reclaimed
  uint64_t reclaimed_pages = 0;     // dropped when their segment was reclaimed
  uint64_t removed_pages = 0;       // by Forget, or because what they extend was bad
  uint64_t read_pages = 0;
  uint64_t read_body_bytes = 0;
  uint64_t corrupt_pages = 0;     // found bad by a read or by Verify, and dropped
  uint64_t unreadable_pages = 0;  // the device failed to read them; dropped
  uint64_t failed_writes = 0;     // pages that are not there because the device failed
  std::string last_error;         // of the device; empty: none yet
  IoStats io;
  // What opening found.
  uint64_t recovered_pages = 0;
  uint64_t orphan_pages = 0;     // whole, but what they extend is gone; dropped
  uint64_t damaged_headers = 0;  // in tables
  uint64_t segments_made = 0;    // new, or in place of missing ones
  absl::Duration recovery;
  std::string_view backend;
  bool direct = true;
};

// Thread-safe. Calls that write wait for each other; reads and look-ups do not wait for them.
class DiskStore {
 public:
  // The errors of DiskDirectory::Open; kInvalidArgument also for its own options. `policy` null
  // means the oldest segment first, keeping what was read.
  static absl::StatusOr<std::unique_ptr<DiskStore>> Open(
      const DiskStoreOptions& options, std::unique_ptr<BlockIo> io,
      std::unique_ptr<DiskReclaimPolicy> policy = nullptr);
  // No call is under way.
  ~DiskStore() = default;

  // --- In memory only ---

  std::optional<DiskPage> Find(std::string_view fingerprint, std::string_view key) const;
  // Whether each page is there with all that it extends, up to its root: [keys]. O(pages of the
  // chains).
  std::vector<bool> HoldChains(std::string_view fingerprint,
                               std::span<const std::string_view> keys) const;
  // The page and what it extends, up to `pages_max` pages, as far as they are here, superseded or
  // not. By hashes of names: who reads them sees in their headers whether each extends the next.
  std::vector<ListedDiskPage> Ancestry(std::string_view fingerprint, std::string_view key,
                                       size_t pages_max) const;
  // Of the records of pages with this fingerprint.
  uint64_t BytesOf(std::string_view fingerprint) const;
  // The page is about to be written anew, with other bytes: it is not found from now on. It stays
  // on the device until then, or until it is forgotten or its room is reclaimed; so after a crash
  // it is there as it was. Returns whether it was found until now.
  bool Supersede(std::string_view fingerprint, std::string_view key);
  // The page is not found from now on, and removed from the device by the next call that writes.
  // Returns whether it was there.
  bool Forget(std::string_view fingerprint, std::string_view key);
  // The same for the page and all that extends it; returns how many there were. O(pages removed).
  uint64_t ForgetTree(std::string_view fingerprint, std::string_view key);
  // Whether Supersede has hidden the page, and what is on the device is still of before.
  bool HoldsOlder(std::string_view fingerprint, std::string_view key) const;
  // When the page was used last, in seconds of the caller's clock.
  void SetUsedAt(std::string_view fingerprint, std::string_view key, uint32_t seconds);
  // Keys of pages that nobody has used for `unused_s` and that no page extends; of whom nobody has
  // said when they were used, it is now. Looks at a bounded number of places from `cursor` on.
  struct Unused {
    std::vector<std::string> keys;
    uint64_t cursor = 0;
  };
  Unused ListUnused(std::string_view fingerprint, uint32_t now_s, uint32_t unused_s,
                    uint64_t cursor) const;
  // Forgets the page if it is such a one. Returns whether it was, and then the key of the page that
  // it extended, if that is there.
  std::pair<bool, std::string> ForgetUnused(std::string_view fingerprint, std::string_view key,
                                            uint32_t now_s, uint32_t unused_s);
  // Pages of the namespace, superseded ones too, at most `pages_max`; `cursor` 0 starts. Looks at a
  // bounded number of places, so it may return fewer and a cursor.
  DiskListResult List(std::string_view fingerprint, uint32_t pages_max, uint64_t cursor) const;
  DiskStoreStats Stats() const;

  // What the directory keeps besides pages. Thread-safe by itself.
  DiskCatalog& catalog() { return catalog_; }
  const DiskCatalog& catalog() const { return catalog_; }

  // Called before all else.
  void OnCorrupt(std::function<void(const DiskCorruption&)> told) { on_corrupt_ = std::move(told); }

  // --- I/O ---

  // Writes the pages; returns when those with an OK status are durable. One that is there already
  // is OK and not written again. Statuses: kInvalidArgument (sizes; larger than a segment), those
  // of BlockIo when the device failed.
  void Write(std::span<DiskPut> puts);

  // Reads and verifies the pages, many at a time. Statuses: kNotFound; kInvalidArgument (the buffer
  // is too small); kDataLoss (the page was bad and has been dropped; the message says what was
  // found); those of BlockIo when the device failed (dropped too).
  void Read(std::span<DiskGet> gets);

  // Brings removals to the device.
  absl::Status WriteRemovals();

  // Verifies pages from `cursor` on (0 starts), at least one and no more after `bytes_max` bytes.
  // The caller paces.
  DiskVerifyProgress Verify(uint64_t cursor, uint64_t bytes_max);

 private:
  enum class SegmentUse : uint8_t { kFree, kActive, kSealed };
  struct Segment {
    SegmentUse use = SegmentUse::kFree;
    uint64_t generation = 0;
    uint32_t readers = 0;  // reads under way; it does not start anew until they end
  };
  // Where the next page goes in the segment that is written to.
  struct Position {
    uint32_t next_block = kSegmentFrontBlocks;
    uint32_t entries = 0;
    std::array<std::byte, kDiskBlockBytes> table_tail{};  // the table's last block, if in part full
  };
  // A page on its way: written or being written, not yet in the index.
  struct Staged {
    PageHeader header;
    DiskPut* put;  // null: a page that is kept
  };
  struct Removal {
    DiskPlace place;
    uint64_t generation;
  };
  struct Flight;

  DiskStore(const DiskStoreOptions& options, std::unique_ptr<BlockIo> io,
            std::unique_ptr<DiskReclaimPolicy> policy, DiskDirectory directory);

  bool IsUnused(const DiskPlace& place, uint32_t now_s, uint32_t unused_s) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Calls `each` with the live pages of the namespace from `cursor` on, in a part of the index,
  // until it returns false. Where to go on from; 0: all have been looked at.
  uint64_t ForPages(std::string_view fingerprint, uint64_t cursor,
                    absl::FunctionRef<bool(const DiskPlace&)> each) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  using While = DiskCorruption::While;
  // Null when it is not there, or superseded.
  const DiskEntry* FindCurrent(std::string_view fingerprint, std::string_view key) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  // disk_store_open.cc
  absl::Status Recover() ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_, mutex_);
  struct Recovery;

  // disk_store_write.cc
  void WriteLocked(std::span<DiskPut> puts) ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  // Whether the page is to be written; sets its status: why not, or OK.
  bool NeedsWrite(DiskPut& put) const;
  // Makes the batch and the segment ready for one more page.
  absl::Status MakeRoom(uint64_t body_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  bool Fits(uint64_t body_bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  // Adds the page to the batch; `body` may be the staging memory's own.
  void Stage(const PageHeader& page, ByteView body, DiskPut* put)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  // Writes the batch. On an error its pages have failed and the position is as before.
  absl::Status WriteStaged() ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::Status WriteTable(Position& next) ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  // Makes what was written durable and enters it into the index.
  absl::Status Publish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  void Fail(std::vector<Staged>& pages, const absl::Status& status)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::Status WriteRemovalsLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::Status RemoveInTable(uint32_t segment, uint32_t block, std::span<const Removal> removals)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::Status WriteBlock(uint32_t segment, uint64_t offset, MutableByteView block);

  // disk_store_reclaim.cc
  uint64_t body_bytes_max() const;  // what an empty segment holds
  // Time to reclaim a segment, while there is room for what is kept of it.
  bool IsNearlyFull() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  // Seals the segment that is written to, if any, and starts another one.
  absl::Status NextSegment() ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::Status SealActive() ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::Status Activate(uint32_t segment) ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  // Frees a sealed segment, writing again what is to be kept if there is a segment to write to.
  absl::Status Reclaim() ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  // Puts the pages that are kept into the batch, and writes it.
  absl::Status Keep(uint32_t victim) ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  std::optional<uint32_t> FreeSegment() const ABSL_LOCKS_EXCLUDED(mutex_);
  std::optional<uint32_t> Victim() const ABSL_LOCKS_EXCLUDED(mutex_);

  // disk_store.cc
  void ForgetPlace(const DiskPlace& place) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes out what extends the page; returns how many pages.
  uint64_t ForgetDescendants(std::string_view fingerprint, std::string_view key)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Starts a read of the page: its segment gains a reader.
  Flight Begin(const DiskPlace& place) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether the record in `get`'s buffer is that of the page, and whole.
  absl::Status Check(const Flight& flight, DiskGet& get) const;
  // Ends it: counts, and drops the page if its status is an error.
  // Returns whether the page was bad and has been dropped.
  bool End(const Flight& flight, const DiskGet& get, bool device_failed)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void ReadAll(std::span<DiskGet> gets, While why);
  void NoteError(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  uint32_t segment_blocks() const {
    return static_cast<uint32_t>(directory_.segment_bytes() / kDiskBlockBytes);
  }

  const DiskStoreOptions options_;
  const std::unique_ptr<BlockIo> io_;
  const std::unique_ptr<DiskReclaimPolicy> policy_;
  const DiskDirectory directory_;
  DiskCatalog catalog_;
  std::function<void(const DiskCorruption&)> on_corrupt_;

  // The turn to write. Held during I/O: who writes waits for who writes, and nobody else does.
  // Taken before `mutex_`.
  absl::Mutex writer_mutex_;
  std::optional<uint32_t> active_ ABSL_GUARDED_BY(writer_mutex_);
  uint64_t active_generation_ ABSL_GUARDED_BY(writer_mutex_) = 0;
  Position written_ ABSL_GUARDED_BY(writer_mutex_);  // after the last batch
  Position durable_ ABSL_GUARDED_BY(writer_mutex_);  // after the last Publish
  std::vector<Staged> staged_ ABSL_GUARDED_BY(writer_mutex_);
  std::vector<Staged> unpublished_ ABSL_GUARDED_BY(writer_mutex_);
  AlignedBuffer staging_ ABSL_GUARDED_BY(writer_mutex_);
  uint64_t staged_bytes_ ABSL_GUARDED_BY(writer_mutex_) = 0;
  uint64_t next_sequence_ ABSL_GUARDED_BY(writer_mutex_) = 1;
  uint64_t next_generation_ ABSL_GUARDED_BY(writer_mutex_) = 1;

  mutable absl::Mutex mutex_;  // short; no I/O under it
  DiskIndex index_ ABSL_GUARDED_BY(mutex_);
  std::vector<Segment> segments_ ABSL_GUARDED_BY(mutex_);
  std::vector<Removal> removals_ ABSL_GUARDED_BY(mutex_);  // not on the device yet
  DiskStoreStats stats_ ABSL_GUARDED_BY(mutex_);           // its counters
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TIER_DISK_DISK_STORE_H_
