#include "server/core/archive_batch.h"

#include <utility>

#include "absl/strings/str_cat.h"

#include "kernels/base/fault_point.h"

namespace oscarkv {

bool ArchiveBatch::TakeQuota(Tenant& tenant, uint64_t slot_bytes) {
  if (tenant.disk_bytes_max() == Budget::kNoLimit) return true;
  const auto [place, first] = bytes_.try_emplace(&tenant, 0);
  if (first) place->second = store_.ArchivedBytesOf(tenant);
  const uint64_t after = place->second + slot_bytes + PageArchive::kRecordExtraMax;
  if (after > tenant.disk_bytes_max()) {
    tenant.CountRefused();
    return false;
  }
  place->second = after;
  return true;
}

ItemResult ArchiveBatch::Add(PinnedPage page, std::string parent) {
  if (!page || records_.contains(page.record_)) return {};
  // What has rotted is dropped by this, and not written.
  if (const absl::Status sound = page.VerifyAll(CorruptAt::kMove); !sound.ok())
    return {ItemStatus::kCorrupt, std::string(sound.message())};
  Tenant& tenant = page.record_->space->tenant();
  if (!TakeQuota(tenant, page.slot_.size())) {
    return {ItemStatus::kQuota, absl::StrCat("the tenant may hold ", tenant.disk_bytes_max(),
                                             " bytes on disk, and holds ", bytes_.at(&tenant),
                                             " with those on their way")};
  }
  records_.insert(page.record_);
  pages_.push_back(std::move(page));
  parents_.push_back(std::move(parent));
  return {};
}

void ArchiveBatch::Write(
    absl::FunctionRef<void(const Namespace&, std::string_view key, const absl::Status&)> each) {
  std::vector<ArchiveWrite> writes;
  writes.reserve(pages_.size());
  for (size_t i = 0; i < pages_.size(); ++i) {
    const PageRecord& record = *pages_[i].record_;
    writes.push_back({.space = record.space,
                      .key = record.key.view(),
                      .parent = parents_[i],
                      .first_position = record.first_position,
                      .encoding = pages_[i].meta().encoding,
                      .slot = pages_[i].slot_});
  }
  for (const PinnedPage& page : pages_) store_.BeginArchiving(*page.record_);
  FaultPoint("archive.pinned");
  store_.archive_->Write(writes);
  FaultPoint("archive.written");
  for (size_t i = 0; i < pages_.size(); ++i) {
    each(*writes[i].space, writes[i].key, writes[i].status);
    store_.FinishArchiving(*pages_[i].record_);
  }
  pages_.clear();
  parents_.clear();
  records_.clear();
  bytes_.clear();
}

}  // namespace oscarkv
