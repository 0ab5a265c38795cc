// The precision ladder: bits go before pages do. Keeps the books of pages that are held WIDE and
// may be re-encoded PACKED, and says which of them is next; ReEncoder does the work.
//
//   due     to be re-encoded without anybody asking: the sequence has outgrown the page by the
//           namespace's recent_tokens, or the namespace holds nothing WIDE
//   past    outgrown; stays until memory is short
//   tail    over the last recent_tokens of its sequence, which quality depends on most
//
// Under pressure the pages that are past go first and then tails, of each those that came first. It
// is memory that is short, or what a tenant may hold of it: then that tenant's pages are
// re-encoded, else those of who is furthest above its share. A page that covers one of the first
// sink_tokens positions, and every page of a namespace whose transform set is not there, stays
// WIDE: those have no rung.
#ifndef OSCARKV_SERVER_CORE_LADDER_H_
#define OSCARKV_SERVER_CORE_LADDER_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"

#include "kernels/codec/page_codec.h"
#include "proto/wire/store_wide.h"
#include "server/core/namespace.h"
#include "server/core/page_record.h"
#include "server/core/shelves.h"
#include "server/core/store_stats.h"
#include "server/core/tenant.h"

namespace oscarkv {

// Not thread-safe: the store calls under its tree lock. O(1) each, and O(recent_tokens /
// page_tokens) for OnGrowth while the namespace has tails. Memory: 8 bytes for each page number up
// to the greatest that was WIDE and could be re-encoded.
class Ladder {
 public:
  // `tail_share_max`: of `capacity_bytes`, and of what a tenant may hold, that tails of namespaces
  // with kTail may hold although memory is short; those that came last. `records` is borrowed for
  // the ladder's life.
  Ladder(const RecordTable& records, StoreWide first_mode, double tail_share_max,
         uint64_t capacity_bytes);

  // Both return whether pages of the namespace, those that are there, have to be placed anew: each
  // with Replace, and then each with OnGrowth.
  bool SetMode(const Namespace& space, StoreWide mode);
  // `codec` encodes the namespace's pages PACKED. It must outlive the ladder's use.
  bool SetCodec(const Namespace& space, const PageCodec* codec);
  const PageCodec* CodecOf(const Namespace& space) const;  // null: not yet there
  StoreWide ModeOf(const Namespace& space) const;

  // `record`, in the index and linked to its parent, is new. Returns whether a page became due.
  bool OnEnter(PageRecord& record);
  // The rules have changed: gives the page the rung that a new one would have.
  void Replace(PageRecord& record);
  // `record` ends a sequence, as far as is known: the page that it has outgrown leaves the tail.
  // Returns whether a page became due.
  bool OnGrowth(const PageRecord& record);
  // The page leaves the index, or is PACKED now.
  void OnLeave(PageRecord& record) { Leave(record, Rung::kNone); }
  // It cannot be PACKED, and is not to be tried again.
  void Keep(PageRecord& record) { Leave(record, Rung::kStays); }

  using IsShort = absl::FunctionRef<bool(const Tenant&)>;
  // The page to re-encode next, null for none. It is taken off its list: OnLeave, Keep, PutBack or
  // Park follows.
  PageRecord* Take(IsShort is_short);
  bool WouldTake(IsShort is_short) const { return NextShelf(is_short).has_value(); }
  // Not re-encoded after all, and next in its turn again.
  void PutBack(PageRecord& record);
  // Not before Unpark, or growth, makes it next in its turn again.
  void Park(PageRecord& record);
  void Unpark(PageRecord& record);

  // A tenant did not find room for so much; until it was won, or nothing more can be.
  void Want(const Tenant& tenant, uint64_t bytes);
  bool Wants(const Tenant& tenant) const;
  void OnWon(const Tenant& tenant, uint64_t bytes);
  void ForgetWants();

  bool HasDue() const { return !IsEmpty(kDueShelf); }
  // Whether Take would return a page if memory, or (`tenant`) what it may hold, were short; or did
  // and has not heard of it since.
  bool HasWork(const Tenant* tenant = nullptr) const;
  // The same of the tenant's own pages that were not taken.
  bool HasNextOf(const Tenant& tenant) const;
  uint64_t pages(Rung rung) const { return pages_[static_cast<size_t>(rung)]; }  // not of kNone
  uint64_t memory_bytes() const;

 private:
  // Those that are due, of whomever; those that are parked; and three for each tenant.
  static constexpr ShelfId kDueShelf = 0;
  static constexpr ShelfId kParkedShelf = 1;
  struct Holder {
    const Tenant* tenant = nullptr;
    uint64_t tail_bytes = 0;  // of pages on kTail
    uint64_t wanted = 0;
  };
  struct Space {
    StoreWide mode;
    const PageCodec* codec = nullptr;
    uint64_t tails = 0;
  };

  Space& SpaceOf(const Namespace& space);
  bool MayPack(const PageRecord& record);
  void Place(PageRecord& record);
  void SetRung(PageRecord& record, Rung rung);
  static bool IsTail(Rung rung) { return rung == Rung::kTail || rung == Rung::kLooseTail; }
  Holder& HolderOf(const Tenant& tenant);
  static ShelfId ShelfOf(uint32_t tenant, Rung rung) {
    return 2 + 3 * tenant + (static_cast<uint32_t>(rung) - static_cast<uint32_t>(Rung::kPast));
  }
  static ShelfId ShelfOf(const PageRecord& record);
  bool IsEmpty(ShelfId shelf) const { return shelves_.Front(shelf) == kNoPage; }
  bool HasTooMuchTail(const Holder& holder) const;
  std::optional<ShelfId> NextOf(const Holder& holder) const;
  std::optional<ShelfId> NextShelf(IsShort is_short) const;
  void Leave(PageRecord& record, Rung rung);

  const RecordTable& records_;
  const StoreWide first_mode_;
  const double tail_share_max_;
  const uint64_t capacity_bytes_;
  std::vector<Space> spaces_;    // [namespace id]
  std::vector<Holder> holders_;  // [tenant id]
  Shelves shelves_;
  uint64_t pages_[kRungs] = {};
  uint64_t tail_bytes_ = 0;  // of pages on kTail, of all tenants
  uint64_t under_way_ = 0;   // taken
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_LADDER_H_
