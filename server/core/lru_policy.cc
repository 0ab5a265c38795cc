#include "server/core/lru_policy.h"

namespace oscarkv {

void LruPolicy::OnInsert(PageId page, const PageTraits& traits) {
  if (page >= last_use_.size()) {
    last_use_.resize(page + size_t{1});
    positions_.resize(page + size_t{1}, kNotInHeap);
  }
  last_use_[page] = Stamp(kStays, traits.request.residency);
}

uint64_t LruPolicy::Stamp(uint64_t before, Residency residency) {
  const bool stays = residency == Residency::kUnspecified ? (before & kStays) != 0
                                                          : residency != Residency::kMayGoFirst;
  return ++tick_ | (stays ? kStays : 0);
}

void LruPolicy::OnUse(std::span<const UsedPage> pages, const RequestTraits& request,
                      absl::Duration /*now*/) {
  for (const auto& [page, hash] : pages) {
    last_use_[page] = Stamp(last_use_[page], request.residency);
    if (positions_[page] == kNotInHeap) continue;
    SiftUp(positions_[page]);
    SiftDown(positions_[page]);
  }
}

void LruPolicy::OnRemove(PageId page, RemoveReason /*reason*/) { SetEvictable(page, false); }

void LruPolicy::SetEvictable(PageId page, bool evictable) {
  const uint32_t position = positions_[page];
  if (evictable == (position != kNotInHeap)) return;
  if (evictable) {
    heap_.push_back(page);
    SiftUp(static_cast<uint32_t>(heap_.size() - 1));
    return;
  }
  positions_[page] = kNotInHeap;
  const PageId last = heap_.back();
  heap_.pop_back();
  if (last == page) return;
  Place(position, last);
  SiftUp(position);
  SiftDown(positions_[last]);
}

std::optional<PageId> LruPolicy::Victim(absl::Duration /*now*/) {
  if (heap_.empty()) return std::nullopt;
  return heap_.front();
}

uint64_t LruPolicy::memory_bytes() const {
  return last_use_.capacity() * sizeof(uint64_t) + positions_.capacity() * sizeof(uint32_t) +
         heap_.capacity() * sizeof(PageId);
}

void LruPolicy::Place(uint32_t position, PageId page) {
  heap_[position] = page;
  positions_[page] = position;
}

void LruPolicy::SiftUp(uint32_t position) {
  const PageId page = heap_[position];
  while (position > 0) {
    const uint32_t above = (position - 1) / 2;
    if (last_use_[heap_[above]] <= last_use_[page]) break;
    Place(position, heap_[above]);
    position = above;
  }
  Place(position, page);
}

void LruPolicy::SiftDown(uint32_t position) {
  const PageId page = heap_[position];
  const auto count = static_cast<uint32_t>(heap_.size());
  for (;;) {
    uint32_t below = 2 * position + 1;
    if (below >= count) break;
    if (below + 1 < count && last_use_[heap_[below + 1]] < last_use_[heap_[below]]) ++below;
    if (last_use_[heap_[below]] >= last_use_[page]) break;
    Place(position, heap_[below]);
    position = below;
  }
  Place(position, page);
}

}  // namespace oscarkv
