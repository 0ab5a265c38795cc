#include "server/core/archive_writer.h"

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"

#include "server/core/archive_batch.h"
#include "server/core/persister.h"

namespace oscarkv {

bool ArchiveWriter::Step(absl::Status* error) {
  std::vector<PersistTask> tasks = store_.archive_queue_->TakePersists();
  if (!tasks.empty()) {
    const absl::Status status = Persister(store_).Run(tasks);
    if (!status.ok() && error != nullptr) *error = status;
  }
  return WriteNext(error) || !tasks.empty();
}

bool ArchiveWriter::WriteNext(absl::Status* error) {
  const std::optional<std::vector<PageRecord*>> taken =
      store_.archive_queue_->Take(ArchiveBatch::kPagesMax);
  if (!taken.has_value()) return false;
  ArchiveBatch batch(store_);
  PageStore::ArchiveRefusals refused{};
  const auto refuse = [&](ArchiveRefusal why) { ++refused[static_cast<size_t>(why)]; };
  // What a page had been before it was put again does not come back, either.
  const auto leave_out = [&](const Namespace& space, std::string_view key, ArchiveRefusal why) {
    refuse(why);
    if (store_.archive_->Forget(space, key)) store_.archive_queue_->Nudge();
  };
  // Not a queue of all pages: parents come first, or do not come.
  const bool chosen = store_.options_.archive_admission != ArchiveAdmission::kAll;
  absl::flat_hash_set<std::pair<const Namespace*, std::string>> writing;
  for (PageRecord* record : *taken) {
    std::string parent;
    PinnedPage page = store_.PinForArchive(*record, &parent);
    if (!page) continue;
    const Namespace* space = record->space;
    if (chosen && !parent.empty() && !writing.contains({space, parent}) &&
        !store_.IsArchived(*space, parent)) {
      leave_out(*space, record->key.view(), ArchiveRefusal::kNoParent);
      continue;
    }
    const std::string key(record->key.view());  // the page may go with the pin
    const ItemStatus added = batch.Add(std::move(page), std::move(parent)).status;
    if (added == ItemStatus::kQuota) leave_out(*space, key, ArchiveRefusal::kQuota);
    if (chosen && added == ItemStatus::kOk) writing.emplace(space, key);
  }
  batch.Write([&](const Namespace&, std::string_view, const absl::Status& status) {
    if (status.ok()) return;
    refuse(ArchiveRefusal::kFailed);
    if (error != nullptr) *error = status;
  });
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
  for (PersistTask& task : store_.archive_queue()->TakePersists())
    std::move(task.done)(absl::UnavailableError("the server ends: nothing is written any more"));
}

}  // namespace oscarkv
