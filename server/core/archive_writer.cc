#include "server/core/archive_writer.h"

#include <optional>
#include <utility>
#include <vector>

namespace oscarkv {
namespace {

// Of one batch: pinned while they are written.
constexpr uint32_t kPagesMax = 64;

}  // namespace

bool ArchiveWriter::Step(absl::Status* error) {
  const std::optional<std::vector<PageRecord*>> taken = store_.archive_queue_->Take(kPagesMax);
  if (!taken.has_value()) return false;
  std::vector<PinnedPage> pages;
  std::vector<std::string> parents;
  std::vector<ArchiveWrite> writes;
  for (PageRecord* record : *taken) {
    std::string parent;
    PinnedPage page = store_.PinForArchive(*record, &parent);
    // What has rotted is dropped by this, and not written.
    if (!page || !page.VerifyAll().ok()) continue;
    pages.push_back(std::move(page));
    parents.push_back(std::move(parent));
  }
  for (size_t i = 0; i < pages.size(); ++i) {
    const PageRecord& record = *pages[i].record_;
    writes.push_back({.space = record.space,
                      .key = record.key.view(),
                      .parent = parents[i],
                      .first_position = record.first_position,
                      .encoding = record.encoding,
                      .slot = pages[i].slot_});
  }
  store_.archive_->Write(writes);
  for (size_t i = 0; i < pages.size(); ++i) {
    if (!writes[i].status.ok() && error != nullptr) *error = writes[i].status;
    store_.FinishArchiving(*pages[i].record_);
  }
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
