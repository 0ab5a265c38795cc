// What the store knows of one page, in memory bounded and stated: 96 bytes, and its checksums lie
// beside its blocks in the tier's slot. Records have numbers (PageId) and stable addresses, and are
// reused, never returned to the heap.
#ifndef OSCARKV_SERVER_CORE_PAGE_RECORD_H_
#define OSCARKV_SERVER_CORE_PAGE_RECORD_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>

#include "kernels/codec/geometry.h"
#include "server/core/eviction_policy.h"
#include "server/core/namespace.h"

namespace oscarkv {

// A key of up to 32 bytes in place, a longer one on the heap.
class RecordKey {
 public:
  RecordKey() = default;
  ~RecordKey() { Clear(); }
  RecordKey(const RecordKey&) = delete;
  RecordKey& operator=(const RecordKey&) = delete;

  void Assign(std::string_view key);  // up to 255 bytes
  void Clear();
  std::string_view view() const { return {on_heap() ? heap() : bytes_.data(), size_}; }

 private:
  static constexpr size_t kInPlaceBytes = 32;
  bool on_heap() const { return size_ > kInPlaceBytes; }
  char* heap() const;  // the address that bytes_ holds

  std::array<char, kInPlaceBytes> bytes_{};
  uint8_t size_ = 0;
};

// PageRecord::state packs who holds the page with what has happened to it, so that the last holder
// learns both in one step:
//   bits  0..27  pins: readers and writers of the slot's bytes. The slot may not move or change; a
//                page that is re-encoded gets another, and the old one stays for them.
//   bits 28..55  holds: leases. The page may not be dropped for room, nor re-encoded; it may move.
//   bit 59       awaited: the ladder waits for the last lease to end.
//   bit 60       retired: somebody reads bytes that the page had before it was re-encoded.
//   bit 61       copied: a copy lies in a faster tier. Changes under the lock of PageCopies, and
//                while the page is in the index or pinned.
//   bit 62       parked: the policy was told that the page may not go, because a holder was met.
//   bit 63       detached: out of the index; the last holder frees it.
// Counts rise only under the page's shard lock, or from a count that is not zero. The other flags
// change only under the tree lock, and rise only by compare-exchange or while the shard lock keeps
// counts from rising. A holder that sees a flag lets go under the tree lock. All operations are
// acquire-release: what a holder did with the slot comes before its reuse.
namespace page_state {
inline constexpr uint64_t kPin = 1;
inline constexpr uint64_t kHold = uint64_t{1} << 28;
inline constexpr uint64_t kPinsMask = kHold - 1;
inline constexpr uint64_t kHoldersMask = (uint64_t{1} << 56) - 1;
inline constexpr uint64_t kAwaited = uint64_t{1} << 59;
inline constexpr uint64_t kRetired = uint64_t{1} << 60;
inline constexpr uint64_t kCopied = uint64_t{1} << 61;
inline constexpr uint64_t kParked = uint64_t{1} << 62;
inline constexpr uint64_t kDetached = uint64_t{1} << 63;

// Whoever lets go of a page with one of these does so under the tree lock.
inline constexpr uint64_t kTold = kAwaited | kRetired | kParked | kDetached;

inline bool IsHeld(uint64_t state) { return (state & kHoldersMask) != 0; }
inline uint64_t Pins(uint64_t state) { return state & kPinsMask; }
inline bool IsLeased(uint64_t state) { return (state & kHoldersMask & ~kPinsMask) != 0; }
}  // namespace page_state

// Where a page stands on the ladder (ladder.h).
enum class Rung : uint8_t {
  kNone = 0,       // PACKED, or not to be re-encoded
  kDue = 1,        // to be re-encoded now
  kPast = 2,       // its sequence has outgrown it; when memory is short
  kLooseTail = 3,  // near the end of its sequence; when memory is short
  kTail = 4,       // the same; when memory is short and there are many
  kStays = 5,      // could not be re-encoded
};
inline constexpr uint32_t kRungs = 6;

// Where a page stands that is written to the archive before it leaves memory.
enum class Demotion : uint8_t {
  kNone = 0,
  kQueued = 1,  // to be written, since what extends it is to be
  kWaits = 2,   // the same, and it was to go: it may not before it was its turn
  kTried = 3,   // it had its turn and is not archived: it goes as it is
};

struct PageRecord {
  // Constant while the page is in the index or held.
  RecordKey key;
  // Changes once, from WIDE to PACKED, under the locks of slot_offset; who pinned the page before
  // reads on in the slot of then.
  std::atomic<Encoding> encoding{Encoding::kWide};
  PageId id = kNoPage;
  const Namespace* space = nullptr;
  uint64_t first_position = 0;

  std::atomic<uint64_t> state{0};

  // Written under the tree lock and the page's shard lock, read under either.
  uint64_t slot_offset = 0;

  // Guarded by the tree lock.
  bool in_index = false;
  bool pinned = false;  // by its client (Residency): not offered to the policy
  Rung rung = Rung::kNone;
  Demotion demotion = Demotion::kNone;
  PageId parent = kNoPage;
  PageId first_child = kNoPage;
  PageId next_sibling = kNoPage;  // of a free record: the next free one
  PageId previous_sibling = kNoPage;
  uint32_t used_at_s = 0;  // by the store's clock: stored, fetched or touched last

  uint64_t page_bytes() const { return space->page_bytes(encoding); }
  uint64_t crc_bytes() const { return uint64_t{space->spec().geometry.blocks()} * 4; }
  uint64_t slot_bytes() const { return slot_bytes(encoding); }
  uint64_t slot_bytes(Encoding form) const { return space->page_bytes(form) + crc_bytes(); }
};
static_assert(sizeof(PageRecord) <= 96);

// Records by number. Get may be called by any thread for a page that it found in the index or
// holds; everything else is guarded by the tree lock.
class RecordTable {
 public:
  RecordTable();
  ~RecordTable();
  RecordTable(const RecordTable&) = delete;
  RecordTable& operator=(const RecordTable&) = delete;

  PageRecord& Get(PageId id) const {
    return chunks_[id >> kChunkBits].load(std::memory_order_acquire)[id & (kChunkRecords - 1)];
  }
  // Begins to read the record's memory. The number has been given out at some time.
  void Prefetch(PageId id) const {
    const auto* record = reinterpret_cast<const char*>(&Get(id));
    __builtin_prefetch(record);
    __builtin_prefetch(record + sizeof(PageRecord) - 1);
  }
  // Null when the table is full (64 M pages).
  PageRecord* Allocate();
  // `record` is out of the index and not held.
  void Free(PageRecord& record);

  // Numbers below it have been given out at some time.
  PageId end() const { return end_; }
  uint64_t memory_bytes() const;

 private:
  static constexpr uint32_t kChunkBits = 12;
  static constexpr uint32_t kChunkRecords = 1u << kChunkBits;
  static constexpr uint32_t kChunksMax = 1u << 14;

  // Written once each; readers need no lock.
  std::unique_ptr<std::atomic<PageRecord*>[]> chunks_;
  PageId end_ = 0;
  PageId first_free_ = kNoPage;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_PAGE_RECORD_H_
