// The archive behind the store: what is written to it, and how pages come back.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "kernels/base/fault_point.h"
#include "server/core/page_store.h"

namespace oscarkv {
namespace {

constexpr uint32_t kPagesPerList = 1024;

}  // namespace

std::optional<ArchivedPage> PageStore::FindArchived(const Namespace& space,
                                                    std::string_view key) const {
  return gone_.Find(space, key, [&] { return archive_->Find(space, key); });
}

bool PageStore::IsArchived(const Namespace& space, std::string_view key) const {
  return archive_ != nullptr && FindArchived(space, key).has_value();
}

void PageStore::ForgetArchived(const Namespace& space, std::string_view key) {
  if (archive_->ForgetTree(space, key) > 0) archive_queue_->Nudge();
}

uint64_t PageStore::ClearArchive(const Namespace& space) {
  uint64_t removed = 0;
  uint64_t cursor = 0;
  do {
    const ListResult part = archive_->List(space, kPagesPerList, cursor);
    for (const ListedPage& page : part.pages) {
      const bool found = IsArchived(space, page.key) && !Holds(space, page.key);
      removed += archive_->Forget(space, page.key) && found ? 1u : 0u;
    }
    cursor = part.cursor;
  } while (cursor != 0);
  archive_queue_->Nudge();
  return removed;
}

// --- Out ---

void PageStore::ArchiveNewForm(PageRecord& record) {
  if (archive_ != nullptr && options_.archive_admission == ArchiveAdmission::kAll)
    archive_queue_->Add(&record);
}

PageRecord* PageStore::FindLocked(const Namespace& space, std::string_view key) {
  PageRecord* found = nullptr;
  index_.Read(index_.Probe(space, key), [&](PageRecord& record) { found = &record; });
  return found;
}

PinnedPage PageStore::PinForArchive(PageRecord& record, std::string* parent) {
  absl::MutexLock lock(&tree_mutex_);
  return PinForArchiveLocked(record, parent);
}

PinnedPage PageStore::PinForArchive(const Namespace& space, std::string_view key,
                                    std::string* parent) {
  absl::MutexLock lock(&tree_mutex_);
  PageRecord* found = FindLocked(space, key);
  return found == nullptr ? PinnedPage() : PinForArchiveLocked(*found, parent);
}

PinnedPage PageStore::PinForArchiveLocked(PageRecord& record, std::string* parent) {
  if (!record.in_index || IsArchived(*record.space, record.key.view())) return {};
  if (record.parent != kNoPage) *parent = records_.Get(record.parent).key.view();
  return PinRecordLocked(record);
}

std::vector<std::string> PageStore::ChainOf(const Namespace& space, std::string_view key,
                                            absl::flat_hash_set<std::string>* seen) {
  std::vector<std::string> chain;  // the page first
  std::string next(key);
  while (!next.empty()) {
    absl::MutexLock lock(&tree_mutex_);
    PageRecord* record = FindLocked(space, next);
    next.clear();
    for (uint32_t steps = 0; record != nullptr; ++steps) {
      if (steps == kPlacesPerLock) {
        next = record->key.view();
        break;
      }
      const auto [place, is_new] = seen->emplace(record->key.view());
      if (!is_new) break;
      chain.push_back(*place);
      record = record->parent == kNoPage ? nullptr : &records_.Get(record->parent);
    }
  }
  std::ranges::reverse(chain);
  return chain;
}

ItemResult PageStore::WhyNotDurable(const Namespace& space, std::string_view key) const {
  if (!Holds(space, key) && !IsArchived(space, key))
    return {AbsentStatus(index_.Probe(space, key)), ""};
  return {ItemStatus::kSkipped, "a page that it extends is not on disk"};
}

uint64_t PageStore::ArchivedBytesOf(const Tenant& tenant) const {
  uint64_t bytes = 0;
  for (const Namespace* space : Namespaces())
    if (&space->tenant() == &tenant) bytes += archive_->BytesOf(*space);
  return bytes;
}

void PageStore::BeginArchiving(const PageRecord& pinned) {
  absl::MutexLock lock(&tree_mutex_);
  archiving_.insert(&pinned);
  if (!pinned.in_index) HideArchiving(pinned);
}

void PageStore::HideArchiving(const PageRecord& record) {
  if (archiving_.contains(&record)) gone_.Add(*record.space, record.key.view());
}

void PageStore::FinishArchiving(const PageRecord& pinned) {
  absl::MutexLock lock(&tree_mutex_);
  archiving_.erase(&pinned);
  if (pinned.in_index) return;
  ForgetArchived(*pinned.space, pinned.key.view());
  gone_.Remove(*pinned.space, pinned.key.view());
}

// --- Back ---

struct PageStore::Loading {
  size_t nth;  // of the keys
  Encoding encoding;
  TierSlot slot;
};

PinResult PageStore::Load(const Namespace& space, std::span<const std::string_view> keys) {
  PinResult result = std::move(
      LoadBatch(space, keys.first(std::min(keys.size(), kPagesPerLoad)), LoadFor::kFetch).front());
  PageMeta found = result.page.meta();
  found.tier = TierKind::kDisk;
  CountFetch(result.status, found);
  return result;
}

std::vector<PinResult> PageStore::LoadBatch(const Namespace& space,
                                            std::span<const std::string_view> keys,
                                            LoadFor what_for) {
  std::vector<PinResult> results(keys.size());
  std::vector<Loading> loading;
  std::vector<ArchiveRead> reads;
  const auto pin = [&](size_t i) {
    index_.Read(index_.Probe(space, keys[i]), [&](PageRecord& record) {
      results[i] = {.status = ItemStatus::kOk, .page = MakePinned(record)};
    });
    return results[i].status == ItemStatus::kOk;
  };
  for (size_t i = 0; i < keys.size(); ++i) {
    const std::string_view key = keys[i];
    if (pin(i)) continue;  // so that no room is made of it
    const std::optional<ArchivedPage> page = FindArchived(space, key);
    if (!page.has_value()) continue;
    // The policy is not asked of pages that come along, either: whoever wants the first is about to
    // ask for them, and one at a time they would come at the price of as many waits for the device.
    const Room room = ReserveSlot(space,
                                  {.namespace_id = space.id(),
                                   .first_position = page->first_position,
                                   .bytes = SlotBytes(space, page->encoding),
                                   .encoding = page->encoding,
                                   .key_hash = index_.Probe(space, key).hash,
                                   .request = {},
                                   .now = clock_.Now()},
                                  Admission::kAlways);
    if (!room.result.ok()) {
      for (PinResult& left : std::span(results).subspan(i)) left.status = room.result.status;
      results[i].message = absl::StrCat("no memory to read it into: ", room.result.message);
      break;
    }
    loading.push_back({i, page->encoding, room.slot});
    reads.push_back({.key = key, .slot = tier_->Map(room.slot)});
  }
  FaultPoint("archive.reserved");
  archive_->Read(space, reads);
  FaultPoint("archive.read");
  for (size_t i = 0; i < reads.size(); ++i) {
    PinResult& result = results[loading[i].nth];
    if (reads[i].status.ok() && reads[i].page.encoding == loading[i].encoding) {
      const bool alone = what_for == LoadFor::kFetch && loading[i].nth == 0;
      result.page = EnterLoaded(space, loading[i], reads[i], alone);
    } else {
      ReleaseSlot(space, loading[i].slot);
      if (absl::IsDataLoss(reads[i].status)) result.status = ItemStatus::kCorrupt;
    }
  }
  for (size_t i = 0; i < keys.size(); ++i) {
    // It may have come by another way.
    if (results[i].page)
      results[i].status = ItemStatus::kOk;
    else
      pin(i);
  }
  return results;
}

PinnedPage PageStore::EnterLoaded(const Namespace& space, const Loading& loading,
                                  const ArchiveRead& read, bool wanted) {
  counters_.loaded_pages.fetch_add(1, std::memory_order_relaxed);
  const PageProbe probe = index_.Probe(space, read.key);
  absl::MutexLock lock(&tree_mutex_);
  PageRecord* parent = read.parent.empty() ? nullptr : FindLocked(space, read.parent);
  const bool there = index_.Read(probe, [](PageRecord&) {});
  // Deleted or replaced while it was read: it may be served, but is not to come back.
  const std::optional<ArchivedPage> archived = FindArchived(space, read.key);
  const bool current = archived.has_value() && archived->stamp == read.page.stamp;
  const bool fits = current && (parent == nullptr ? read.parent.empty()
                                                  : parent->first_position + space.page_tokens() ==
                                                        read.page.first_position);
  PageRecord* record = there || !(fits || wanted) ? nullptr : records_.Allocate();
  if (record == nullptr) {
    ReleaseSlot(space, loading.slot);
    return {};
  }
  FillRecord(*record, {.space = &space,
                       .key = read.key,
                       .first_position = read.page.first_position,
                       .encoding = loading.encoding,
                       .slot = loading.slot});
  if (fits) {
    EnterLocked(*record, parent, probe, {});
    return PinRecordLocked(*record);
  }
  if (current) archive_->SetUsedAt(space, read.key, NowSeconds());
  // What it extends is not in memory: it is served to who wants it, and goes with that pin.
  record->state.store(page_state::kDetached, std::memory_order_release);
  ++detached_pages_;
  return MakePinned(*record);
}

}  // namespace oscarkv
