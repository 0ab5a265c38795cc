// Walks over all pages: List and Verify. Both go by page number, which does not change while a page
// is stored.
#include <algorithm>

#include "server/core/page_store.h"

namespace oscarkv {
namespace {

constexpr uint32_t kPlacesPerCall = 1 << 16;
// In a cursor: memory is done, the rest is the archive's cursor.
constexpr uint64_t kInArchive = uint64_t{1} << 63;

}  // namespace

ListResult PageStore::List(const Namespace& space, uint32_t pages_max, uint64_t cursor) const {
  if ((cursor & kInArchive) != 0) return ListArchive(space, pages_max, cursor & ~kInArchive);
  ListResult result;
  const uint64_t stop = cursor + kPlacesPerCall;
  for (uint64_t place = cursor; place < stop;) {
    absl::MutexLock lock(&tree_mutex_);
    const uint64_t lock_stop = std::min({stop, place + kPlacesPerLock, uint64_t{records_.end()}});
    for (; place < lock_stop && result.pages.size() < pages_max; ++place) {
      const PageRecord& record = records_.Get(static_cast<PageId>(place));
      if (!record.in_index || record.space != &space) continue;
      const std::string_view parent =
          record.parent == kNoPage ? std::string_view() : records_.Get(record.parent).key.view();
      result.pages.push_back({std::string(record.key.view()), std::string(parent), MetaOf(record)});
    }
    result.cursor = place;
    if (place >= records_.end()) {
      result.cursor = archive_ == nullptr ? 0 : kInArchive;
      break;
    }
    if (result.pages.size() >= pages_max) break;
  }
  return result;
}

ListResult PageStore::ListArchive(const Namespace& space, uint32_t pages_max,
                                  uint64_t cursor) const {
  if (archive_ == nullptr) return {};  // a cursor that nobody gave: past the end
  ListResult result = archive_->List(space, pages_max, cursor);
  std::erase_if(result.pages, [&](const ListedPage& page) {
    return Holds(space, page.key) || !IsArchived(space, page.key);
  });
  if (result.cursor != 0) result.cursor |= kInArchive;
  return result;
}

VerifyProgress PageStore::Verify(uint64_t cursor, uint64_t bytes_max) {
  if (cursor == 0) {
    // A slot of the archive is a page of it.
    const uint64_t archived = archive_ == nullptr ? 0 : archive_->Stats().reserved_slots;
    absl::MutexLock lock(&tree_mutex_);
    counters_.scrubbed_pages.store(0, std::memory_order_relaxed);
    counters_.scrub_pages.store(pages_ + archived, std::memory_order_relaxed);
  }
  const VerifyProgress progress = VerifySome(cursor, bytes_max);
  counters_.verified_pages.fetch_add(progress.pages_checked, std::memory_order_relaxed);
  counters_.scrubbed_pages.fetch_add(progress.pages_checked, std::memory_order_relaxed);
  return progress;
}

VerifyProgress PageStore::VerifySome(uint64_t cursor, uint64_t bytes_max) {
  if ((cursor & kInArchive) != 0) {
    if (archive_ == nullptr) return {};
    VerifyProgress archived = archive_->Verify(cursor & ~kInArchive, bytes_max);
    if (archived.cursor != 0) archived.cursor |= kInArchive;
    return archived;
  }
  VerifyProgress progress;
  uint64_t place = cursor;
  const uint64_t stop = cursor + kPlacesPerCall;
  while (place < stop) {
    PinnedPage page;
    {
      absl::MutexLock lock(&tree_mutex_);
      const uint64_t lock_stop = std::min({stop, place + kPlacesPerLock, uint64_t{records_.end()}});
      for (; place < lock_stop && !page; ++place) {
        page = PinRecordLocked(records_.Get(static_cast<PageId>(place)));
      }
      progress.cursor = place >= records_.end() ? 0 : place;
    }
    if (page) {
      ++progress.pages_checked;
      progress.bytes_checked += page.meta().bytes;
      if (!page.VerifyAll(CorruptAt::kScrub).ok()) ++progress.pages_corrupt;
    }
    if (progress.cursor == 0 || progress.bytes_checked >= bytes_max) break;
  }
  if (progress.cursor == 0 && archive_ != nullptr) progress.cursor = kInArchive;
  return progress;
}

}  // namespace oscarkv
