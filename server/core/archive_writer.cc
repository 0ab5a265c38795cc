#include "server/core/archive_writer.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"

#include "kernels/base/fault_point.h"

namespace oscarkv {
namespace {

// Of one batch: pinned while they are written.
constexpr uint32_t kPagesMax = 64;

// What a batch may add to what tenants have in the archive.
class DiskQuotas {
 public:
  explicit DiskQuotas(absl::FunctionRef<uint64_t(const Tenant&)> held) : held_(held) {}

  bool Take(Tenant& tenant, uint64_t slot_bytes) {
    if (tenant.disk_bytes_max() == Budget::kNoLimit) return true;
    const auto [place, first] = taken_.try_emplace(&tenant, 0);
    if (first) place->second = held_(tenant);
    const uint64_t after = place->second + slot_bytes + PageArchive::kRecordExtraMax;
    if (after > tenant.disk_bytes_max()) {
      tenant.CountRefused();
      return false;
    }
    place->second = after;
    return true;
  }

 private:
  const absl::FunctionRef<uint64_t(const Tenant&)> held_;
  absl::flat_hash_map<const Tenant*, uint64_t> taken_;
};

}  // namespace

bool ArchiveWriter::Step(absl::Status* error) {
  const std::optional<std::vector<PageRecord*>> taken = store_.archive_queue_->Take(kPagesMax);
  if (!taken.has_value()) return false;
  std::vector<PinnedPage> pages;
  std::vector<std::string> parents;
  std::vector<ArchiveWrite> writes;
  const auto held = [this](const Tenant& tenant) { return store_.ArchivedBytesOf(tenant); };
  DiskQuotas quotas(held);
  PageStore::ArchiveRefusals refused{};
  const auto refuse = [&](ArchiveRefusal why) { ++refused[static_cast<size_t>(why)]; };
  // Not a queue of all pages: parents come first, or do not come.
  const bool chosen = store_.options_.archive_admission != ArchiveAdmission::kAll;
  absl::flat_hash_set<std::pair<const Namespace*, std::string>> writing;
  absl::flat_hash_set<PageRecord*> seen;  // a page that was fetched twice waits twice
  for (PageRecord* record : *taken) {
    if (!seen.insert(record).second) continue;
    std::string parent;
    PinnedPage page = store_.PinForArchive(*record, &parent);
    // What has rotted is dropped by this, and not written.
    if (!page || !page.VerifyAll().ok()) continue;
    const Namespace* space = record->space;
    if (chosen && !parent.empty() && !writing.contains({space, parent}) &&
        !store_.IsArchived(*space, parent)) {
      refuse(ArchiveRefusal::kNoParent);
      continue;
    }
    if (!quotas.Take(space->tenant(), page.slot_.size())) {
      refuse(ArchiveRefusal::kQuota);
      continue;
    }
    if (chosen) writing.emplace(space, record->key.view());
    pages.push_back(std::move(page));
    parents.push_back(std::move(parent));
  }
  for (size_t i = 0; i < pages.size(); ++i) {
    const PageRecord& record = *pages[i].record_;
    writes.push_back({.space = record.space,
                      .key = record.key.view(),
                      .parent = parents[i],
                      .first_position = record.first_position,
                      .encoding = pages[i].meta().encoding,
                      .slot = pages[i].slot_});
  }
  FaultPoint("archive.pinned");
  store_.archive_->Write(writes);
  FaultPoint("archive.written");
  for (size_t i = 0; i < pages.size(); ++i) {
    if (!writes[i].status.ok()) {
      refuse(ArchiveRefusal::kFailed);
      if (error != nullptr) *error = writes[i].status;
    }
    store_.FinishArchiving(*pages[i].record_);
  }
  store_.EndDemotions(*taken, refused);
  return true;
}

ArchiveWorker::ArchiveWorker(PageStore& store,
                             absl::AnyInvocable<void(const absl::Status&)> on_error)
    : store_(store), on_error_(std::move(on_error)), thread_([this] { Run(); }) {}

ArchiveWorker::~ArchiveWorker() {
  store_.archive_queue()->Stop();
  thread_.join();
}

void ArchiveWorker::Run() {
  ArchiveWriter writer(store_);
  bool failing = false;
  while (store_.archive_queue()->Await()) {
    absl::Status error;
    writer.Step(&error);
    if (error.ok() == failing) {
      failing = !failing;
      on_error_(error);
    }
  }
}

}  // namespace oscarkv
