#include "server/core/shelves.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace oscarkv {
namespace {

constexpr uint32_t kWordBits = 64;

// The first bit set in `words` from `bit` on; words.size() * 64 when there is none.
uint32_t FirstBit(const std::vector<uint64_t>& words, uint32_t bit) {
  for (uint32_t word = bit / kWordBits; word < words.size(); ++word) {
    uint64_t bits = words[word];
    if (word == bit / kWordBits) bits &= ~uint64_t{0} << (bit % kWordBits);
    if (bits != 0) return word * kWordBits + static_cast<uint32_t>(std::countr_zero(bits));
  }
  return static_cast<uint32_t>(words.size()) * kWordBits;
}

}  // namespace

void Shelves::Add(uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t end = kEnd | size();
    ends_.push_back({end, end});
    ranks_.push_back(static_cast<uint32_t>(by_rank_.size()));
    by_rank_.push_back(end & ~kEnd);
  }
  filled_.resize((by_rank_.size() + kWordBits - 1) / kWordBits);
  summary_.resize((filled_.size() + kWordBits - 1) / kWordBits);
}

void Shelves::GrowTo(PageId pages) {
  if (pages > links_.size()) links_.resize(pages);
}

void Shelves::Put(PageId page, ShelfId shelf) {
  if (IsEmpty(shelf)) Mark(ranks_[shelf]);
  Link& end = ends_[shelf];
  links_[page] = {end.previous, kEnd | shelf};
  At(end.previous).next = page;
  end.previous = page;
}

void Shelves::PutFirst(PageId page, ShelfId shelf) {
  if (IsEmpty(shelf)) Mark(ranks_[shelf]);
  Link& end = ends_[shelf];
  links_[page] = {kEnd | shelf, end.next};
  At(end.next).previous = page;
  end.next = page;
}

void Shelves::Take(PageId page) {
  const Link link = links_[page];
  At(link.previous).next = link.next;
  At(link.next).previous = link.previous;
  links_[page] = {};
  if (link.previous == link.next && (link.next & kEnd) != 0) Unmark(ranks_[link.next & ~kEnd]);
}

PageId Shelves::Front(ShelfId shelf) const { return IsEmpty(shelf) ? kNoPage : ends_[shelf].next; }

void Shelves::Rank(std::span<const double> scores) {
  std::iota(by_rank_.begin(), by_rank_.end(), 0);
  std::sort(by_rank_.begin(), by_rank_.end(), [scores](ShelfId left, ShelfId right) {
    return scores[left] != scores[right] ? scores[left] < scores[right] : left < right;
  });
  std::fill(filled_.begin(), filled_.end(), 0);
  std::fill(summary_.begin(), summary_.end(), 0);
  for (uint32_t rank = 0; rank < by_rank_.size(); ++rank) {
    ranks_[by_rank_[rank]] = rank;
    if (!IsEmpty(by_rank_[rank])) Mark(rank);
  }
}

void Shelves::Mark(uint32_t rank) {
  const uint32_t word = rank / kWordBits;
  filled_[word] |= uint64_t{1} << (rank % kWordBits);
  summary_[word / kWordBits] |= uint64_t{1} << (word % kWordBits);
}

void Shelves::Unmark(uint32_t rank) {
  const uint32_t word = rank / kWordBits;
  filled_[word] &= ~(uint64_t{1} << (rank % kWordBits));
  if (filled_[word] == 0) summary_[word / kWordBits] &= ~(uint64_t{1} << (word % kWordBits));
}

std::optional<ShelfId> Shelves::FirstFrom(uint32_t rank) const {
  if (rank >= by_rank_.size()) return std::nullopt;
  const uint32_t word = rank / kWordBits;
  const uint64_t here = filled_[word] & (~uint64_t{0} << (rank % kWordBits));
  if (here != 0) return by_rank_[word * kWordBits + static_cast<uint32_t>(std::countr_zero(here))];
  const uint32_t later = FirstBit(summary_, word + 1);
  if (later >= filled_.size()) return std::nullopt;
  return by_rank_[FirstBit(filled_, later * kWordBits)];
}

uint64_t Shelves::memory_bytes() const {
  return (links_.capacity() + ends_.capacity()) * sizeof(Link) +
         (ranks_.capacity() + by_rank_.capacity()) * sizeof(uint32_t) +
         (filled_.capacity() + summary_.capacity()) * sizeof(uint64_t);
}

}  // namespace oscarkv
