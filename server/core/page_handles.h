// What the store hands out: a page being written (PutSlot), a page being read (PinnedPage), and the
// plain structs of its calls.
#ifndef OSCARKV_SERVER_CORE_PAGE_HANDLES_H_
#define OSCARKV_SERVER_CORE_PAGE_HANDLES_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "kernels/base/bytes.h"
#include "kernels/codec/page_layout.h"
#include "proto/wire/item_status.h"
#include "server/core/corrupt_page.h"
#include "server/core/eviction_policy.h"
#include "server/core/namespace.h"
#include "server/core/tier.h"

namespace oscarkv {

class PageStore;
class PutSlot;
struct PageRecord;

// The outcome of one item of a batch.
struct ItemResult {
  ItemStatus status = ItemStatus::kOk;
  std::string message;  // for people: what was expected, what was found; empty when kOk

  bool ok() const { return status == ItemStatus::kOk; }
};

struct PageMeta {
  Encoding encoding = Encoding::kWide;
  TierKind tier = TierKind::kHost;
  uint64_t bytes = 0;           // of the page as stored
  uint64_t first_position = 0;  // absolute position of the page's first token
};

// --- Put ---

// One page to store. Borrowed for the call of BeginPut only.
struct PutItem {
  std::string_view key;     // 16..64 bytes
  std::string_view parent;  // the key of the page before; empty for the first page of a sequence
  uint64_t first_position = 0;
  Encoding encoding = Encoding::kWide;
  uint64_t bytes = 0;                    // must be the namespace's page size for this encoding
  std::span<const uint32_t> block_crcs;  // [layers * kv_heads], layer-major; CRC32C of each block
  RequestTraits request = {};            // of the put that the page is part of
  bool ends_put = false;                 // the last page of it
  // Of the page `parent`, where that is not stored yet but will be, by a Commit before this page's:
  // then it is looked for. Another page's slot, or an empty one, says nothing.
  const PutSlot* open_parent = nullptr;
};

// A reserved page buffer that nobody else sees, until Commit makes it a page. Destroyed without a
// Commit, its memory returns to the tier at once. Holds the parent's page (a pin), so that making
// room for a page never drops the page it extends.
//
// Move-only; used by one thread at a time, any thread. The store must outlive it.
class PutSlot {
 public:
  PutSlot() = default;
  PutSlot(PutSlot&& other) noexcept { *this = std::move(other); }
  PutSlot& operator=(PutSlot&& other) noexcept;
  ~PutSlot() { Reset(); }

  explicit operator bool() const { return store_ != nullptr; }

  // The page's bytes, to be written in any order: as many as PutItem::bytes. Undefined content at
  // first. Valid until Commit or destruction.
  MutableByteView bytes() const {
    return store_ == nullptr ? MutableByteView() : memory_.first(space_->page_bytes(encoding_));
  }

  // The first `bytes` of them are written, and stay as they are from here on: what of the page that
  // makes whole is verified now, while it is at hand, and not again in Commit.
  void Filled(uint64_t bytes);

  // Verifies every block against the checksums of the PutItem, clears the padding between blocks,
  // and makes the page visible, atomically. Empties this slot, whatever the outcome:
  //   kOk        stored.
  //   kCorrupt   a block does not have its checksum; the message says which.
  //   kExists    meanwhile another put stored the same key with the same checksums (or in the other
  //              encoding, see PageStore::BeginPut); success, this slot's bytes are dropped.
  //   kConflict  meanwhile another put stored the same key with different bytes; that one stays.
  //   kSkipped   meanwhile the parent was deleted or found corrupt.
  //   kInvalid   the slot is empty.
  ItemResult Commit();

 private:
  friend class PageStore;
  void Reset();

  PageStore* store_ = nullptr;  // null: empty
  const Namespace* space_ = nullptr;
  PageRecord* parent_ = nullptr;  // pinned; null for the first page of a sequence
  Encoding parent_form_ = Encoding::kWide;
  bool parent_open_ = false;  // not stored when this was begun: pinned in Commit
  std::string key_;
  std::string parent_key_;
  uint64_t first_position_ = 0;
  Encoding encoding_ = Encoding::kWide;
  RequestTraits request_;
  bool ends_put_ = false;
  TierSlot slot_;
  MutableByteView memory_;  // the page's blocks, then its checksums
  uint32_t layers_verified_ = 0;
  absl::Status sound_;  // what was found of them
};

struct BeginPutResult {
  ItemResult result;  // kOk: `slot` is there
  PutSlot slot;
};

// --- Read ---

// A page held for reading. Its memory stays, unmoved and unchanged, until destruction: eviction,
// Delete, Clear, re-encoding, the end of a lease or of a session, found corruption and clocks do
// not touch it.
//
// Move-only; used by one thread at a time, any thread. The store must outlive it.
class PinnedPage {
 public:
  PinnedPage() = default;
  PinnedPage(PinnedPage&& other) noexcept { *this = std::move(other); }
  PinnedPage& operator=(PinnedPage&& other) noexcept;
  ~PinnedPage() { Reset(); }

  explicit operator bool() const { return record_ != nullptr; }
  void Reset();

  const PageMeta& meta() const { return meta_; }
  const PageLayout& layout() const { return *layout_; }
  // The checksums that the producer gave: [layers * kv_heads], layer-major.
  std::span<const uint32_t> block_crcs() const;

  // The only way to the bytes: verifies the blocks of `layers` x `heads` against their checksums
  // (and their padding against zero), and returns the bytes of the whole page, of which those
  // blocks may be used. Verifies anew in every call; call it for what is about to be sent. O(bytes
  // of the blocks).
  //   kDataLoss         a block is bad, named in the message; report kCorrupt. The page has been
  //                     counted, and dropped from the store with every page that extends it: but
  //                     it stays where these bytes are no longer it, having been re-encoded.
  //   kInvalidArgument  the ranges are empty or pass the end of the page.
  absl::StatusOr<ByteView> Verified(BlockRange layers, BlockRange heads);
  absl::StatusOr<ByteView> VerifiedPage();  // all blocks

  // The page where it lies, for a reader that maps the tier's memory and verifies what it reads:
  // meta().bytes of blocks, then their checksums, 4 bytes each. Counts the page as fetched.
  ByteView Unverified() const;

 private:
  friend class ArchiveBatch;
  friend class CopyMover;
  friend class PageStore;
  friend class ReEncoder;
  // Verified without counting bytes as fetched: what the store itself reads.
  absl::Status Verify(BlockRange layers, BlockRange heads, CorruptAt at) const;
  absl::Status VerifyAll(CorruptAt at) const;

  PageStore* store_ = nullptr;
  PageRecord* record_ = nullptr;
  const PageLayout* layout_ = nullptr;
  MutableByteView slot_;  // the page's blocks, then its checksums
  PageMeta meta_;
};

struct PinResult {
  // kOk, kMiss, kEvicted, kCorrupt (found so recently); of Load also why there is no memory for it.
  ItemStatus status = ItemStatus::kMiss;
  PinnedPage page;           // there when kOk
  bool archived = false;     // not in memory, but the archive has it: Load brings it back
  std::string message = "";  // of Load, where there is no memory for it
};

// --- Lookup, sessions and leases ---

using SessionId = uint64_t;  // 0 is none
using LeaseId = uint64_t;    // 0 is none

enum class LookupMode : uint8_t {
  kPrefix = 0,  // the leading keys that are present, up to the first hole
  kEach = 1,    // every key by itself
};

struct LookupRequest {
  std::span<const std::string_view> keys;
  LookupMode mode = LookupMode::kPrefix;
  SessionId lease_session = 0;  // not 0: lease the pages found, for this session
  absl::Duration lease_duration = absl::ZeroDuration();  // 0, or over the ceiling: the ceiling
};

struct FoundPage {
  ItemStatus status = ItemStatus::kMiss;  // kOk, kMiss, kEvicted, kCorrupt
  PageMeta meta;                          // when kOk
};

struct LookupResult {
  uint32_t prefix_pages = 0;     // leading keys present
  std::vector<FoundPage> pages;  // kPrefix: the leading keys present; kEach: every key
  // What is wrong with the first key that is not present; kOk when every key is.
  ItemStatus hole = ItemStatus::kOk;
  uint64_t fetch_bytes = 0;  // of the pages found, as stored
  LeaseId lease = 0;         // holds the pages found; 0 when none was asked for, found or granted
  absl::Duration lease_life = absl::ZeroDuration();
  // kOk: granted, not asked for, or nothing found. kFenced: no such session. kNoSpace: the share of
  // memory that may be leased is taken.
  ItemStatus lease_status = ItemStatus::kOk;
};

// --- List, Clear, Verify ---

struct ListedPage {
  std::string key;
  std::string parent;  // empty for the first page of a sequence
  PageMeta meta;
};

struct ListResult {
  std::vector<ListedPage> pages;
  uint64_t cursor = 0;  // where to go on; 0: no more
};

struct ClearResult {
  uint64_t removed = 0;
  uint64_t kept = 0;  // pages under lease or in transfer, and the pages those extend
};

struct VerifyProgress {
  uint64_t cursor = 0;         // where to go on; 0: done
  uint64_t pages_checked = 0;  // in this step
  uint64_t pages_corrupt = 0;
  uint64_t bytes_checked = 0;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_PAGE_HANDLES_H_
