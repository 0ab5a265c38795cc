// Lists of pages, ordered among each other by a score: what a policy of classes evicts from.
#ifndef OSCARKV_SERVER_CORE_SHELVES_H_
#define OSCARKV_SERVER_CORE_SHELVES_H_

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "server/core/eviction_policy.h"

namespace oscarkv {

using ShelfId = uint32_t;

// A page lies on one shelf or on none. Not thread-safe. O(1) each, but for Rank. 8 bytes for each
// page number up to the greatest seen, 20 a shelf.
class Shelves {
 public:
  // Adds shelves at the end, empty; Rank has to follow before the next Least.
  void Add(uint32_t count);
  ShelfId size() const { return static_cast<ShelfId>(ends_.size()); }

  void GrowTo(PageId pages);  // page numbers below it may be used
  bool Holds(PageId page) const { return links_[page].next != kNone; }
  // Behind all pages that lie there. `page` lies nowhere.
  void Put(PageId page, ShelfId shelf);
  void PutFirst(PageId page, ShelfId shelf);  // before them
  void Take(PageId page);                     // it lies somewhere
  // The page that has lain there longest; kNoPage when there is none.
  PageId Front(ShelfId shelf) const;

  // The order of the shelves from now on: by score [shelf], the least first. O(shelves log
  // shelves).
  void Rank(std::span<const double> scores);
  // The least shelf that is not empty.
  std::optional<ShelfId> Least() const { return FirstFrom(0); }
  // The next that is not empty after `shelf` in the order.
  std::optional<ShelfId> After(ShelfId shelf) const { return FirstFrom(ranks_[shelf] + 1); }

  uint64_t memory_bytes() const;

 private:
  // A list is a ring through an end that belongs to the shelf. Numbers of links: pages, and ends
  // with the upper bit set.
  static constexpr uint32_t kNone = 0xffffffff;
  static constexpr uint32_t kEnd = 0x80000000;
  struct Link {
    uint32_t previous = kNone;
    uint32_t next = kNone;
  };

  Link& At(uint32_t number) {
    return (number & kEnd) != 0 ? ends_[number & ~kEnd] : links_[number];
  }
  bool IsEmpty(ShelfId shelf) const { return ends_[shelf].next == (kEnd | shelf); }
  void Mark(uint32_t rank);
  void Unmark(uint32_t rank);
  std::optional<ShelfId> FirstFrom(uint32_t rank) const;

  std::vector<Link> links_;        // [page]
  std::vector<Link> ends_;         // [shelf]
  std::vector<uint32_t> ranks_;    // [shelf]
  std::vector<ShelfId> by_rank_;   // [rank]
  std::vector<uint64_t> filled_;   // a bit a rank: its shelf is not empty
  std::vector<uint64_t> summary_;  // a bit a word of filled_: it is not zero
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_SHELVES_H_
