#include "server/tier/disk/disk_archive.h"

#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"

namespace oscarkv {
namespace {

constexpr size_t kIdleBuffersMax = 4;

ArchivedPage ArchivedPageOf(const DiskPage& page) {
  return {page.encoding, page.first_position, page.sequence};
}

}  // namespace

std::optional<ArchivedPage> DiskArchive::Find(const Namespace& space, std::string_view key) const {
  const std::optional<DiskPage> page = store_->Find(space.fingerprint(), key);
  if (!page.has_value()) return std::nullopt;
  return ArchivedPageOf(*page);
}

std::vector<ArchivedAncestor> DiskArchive::Ancestry(const Namespace& space, std::string_view key,
                                                    size_t pages_max) const {
  std::vector<ArchivedAncestor> ancestors;
  for (ListedDiskPage& found : store_->Ancestry(space.fingerprint(), key, pages_max))
    ancestors.push_back({std::move(found.key), ArchivedPageOf(found.page)});
  return ancestors;
}

std::vector<bool> DiskArchive::HoldChains(const Namespace& space,
                                          std::span<const std::string_view> keys) const {
  return store_->HoldChains(space.fingerprint(), keys);
}

bool DiskArchive::Supersede(const Namespace& space, std::string_view key) {
  return store_->Supersede(space.fingerprint(), key);
}

void DiskArchive::OnCorrupt(std::function<void(const ArchiveCorruption&)> told) {
  store_->OnCorrupt([told = std::move(told)](const DiskCorruption& page) {
    constexpr CorruptAt kAt[] = {CorruptAt::kServe, CorruptAt::kScrub, CorruptAt::kMove};
    told({.fingerprint = page.fingerprint,
          .key = page.key,
          .at = kAt[static_cast<size_t>(page.found)],
          .encoding = page.encoding,
          .slot = page.body,
          .error = page.error});
  });
}

PageArchive::Unused DiskArchive::ListUnused(const Namespace& space, uint32_t now_s,
                                            uint32_t unused_s, uint64_t cursor) const {
  DiskStore::Unused unused = store_->ListUnused(space.fingerprint(), now_s, unused_s, cursor);
  return {std::move(unused.keys), unused.cursor};
}

bool DiskArchive::Forget(const Namespace& space, std::string_view key) {
  return store_->Forget(space.fingerprint(), key);
}

uint64_t DiskArchive::ForgetTree(const Namespace& space, std::string_view key) {
  return store_->ForgetTree(space.fingerprint(), key);
}

ListResult DiskArchive::List(const Namespace& space, uint32_t pages_max, uint64_t cursor) const {
  ListResult result;
  DiskListResult part = store_->List(space.fingerprint(), pages_max, cursor);
  for (ListedDiskPage& page : part.pages) {
    result.pages.push_back({std::move(page.key),
                            "",
                            {page.page.encoding, TierKind::kDisk,
                             space.page_bytes(page.page.encoding), page.page.first_position}});
  }
  result.cursor = part.cursor;
  return result;
}

TierStats DiskArchive::Stats() const {
  const DiskStoreStats stats = store_->Stats();
  TierStats tier;
  tier.kind = TierKind::kDisk;
  tier.capacity_bytes = stats.capacity_bytes;
  tier.used_bytes = stats.live_bytes;
  tier.reserved_slots = stats.pages;
  tier.free_bytes = stats.free_segments * (stats.capacity_bytes / stats.segments);
  tier.failed_reserves = stats.failed_writes;
  return tier;
}

ArchiveCounters DiskArchive::Counters() const {
  const DiskStoreStats stats = store_->Stats();
  const CatalogStats catalog = store_->catalog().Stats();
  return {.written_pages = stats.written_pages,
          .written_bytes = stats.written_body_bytes,
          .device_written_bytes = stats.io.written_bytes,
          .read_pages = stats.read_pages,
          .read_bytes = stats.read_body_bytes,
          .rewritten_pages = stats.rewritten_pages,
          .reclaimed_pages = stats.reclaimed_pages,
          .removed_pages = stats.removed_pages,
          .corrupt_pages = stats.corrupt_pages,
          .failed_reads = stats.unreadable_pages,
          .failed_writes = stats.failed_writes,
          .catalog_skipped = catalog.skipped,
          .catalog_failed_writes = catalog.failed_writes};
}

void DiskArchive::Write(std::span<ArchiveWrite> writes) {
  std::vector<DiskPut> puts;
  puts.reserve(writes.size());
  for (const ArchiveWrite& write : writes) {
    puts.push_back({.fingerprint = write.space->fingerprint(),
                    .key = write.key,
                    .parent = write.parent,
                    .first_position = write.first_position,
                    .encoding = write.encoding,
                    .body = write.slot,
                    .checksum_bytes = static_cast<uint32_t>(
                        write.slot.size() - write.space->page_bytes(write.encoding))});
  }
  store_->Write(puts);
  for (size_t i = 0; i < writes.size(); ++i) writes[i].status = std::move(puts[i].status);
}

void DiskArchive::Read(const Namespace& space, std::span<ArchiveRead> reads) {
  uint64_t bytes = 0;
  for (const ArchiveRead& read : reads) bytes += RecordBytes(read.slot.size());
  AlignedBuffer buffer = TakeBuffer(bytes);
  std::vector<DiskGet> gets;
  gets.reserve(reads.size());
  uint64_t at = 0;
  for (const ArchiveRead& read : reads) {
    const uint64_t record_bytes = RecordBytes(read.slot.size());
    gets.push_back({.fingerprint = space.fingerprint(),
                    .key = read.key,
                    .buffer = buffer.bytes().subspan(at, record_bytes)});
    at += record_bytes;
  }
  store_->Read(gets);
  for (size_t i = 0; i < reads.size(); ++i) {
    ArchiveRead& read = reads[i];
    const DiskGet& get = gets[i];
    read.status = get.status;
    if (!read.status.ok()) continue;
    if (get.body.size() != read.slot.size()) {
      // Replaced by its other encoding since the caller asked.
      read.status = absl::NotFoundError(absl::StrCat(
          "a page of ", read.slot.size(), " bytes was expected, found ", get.body.size()));
      continue;
    }
    std::memcpy(read.slot.data(), get.body.data(), get.body.size());
    read.parent = std::string(get.header.parent);
    read.page = {get.header.encoding, get.header.first_position, get.header.sequence};
  }
  ReturnBuffer(std::move(buffer));
}

VerifyProgress DiskArchive::Verify(uint64_t cursor, uint64_t bytes_max) {
  const DiskVerifyProgress progress = store_->Verify(cursor, bytes_max);
  return {.cursor = progress.cursor,
          .pages_checked = progress.pages_checked,
          .pages_corrupt = progress.pages_corrupt,
          .bytes_checked = progress.bytes_checked};
}

AlignedBuffer DiskArchive::TakeBuffer(uint64_t bytes) {
  AlignedBuffer buffer;
  {
    absl::MutexLock lock(&mutex_);
    if (!idle_.empty()) {
      buffer = std::move(idle_.back());
      idle_.pop_back();
    }
  }
  buffer.Grow(bytes);
  return buffer;
}

void DiskArchive::ReturnBuffer(AlignedBuffer buffer) {
  absl::MutexLock lock(&mutex_);
  if (idle_.size() < kIdleBuffersMax) idle_.push_back(std::move(buffer));
}

}  // namespace oscarkv
