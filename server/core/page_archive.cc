#include "server/core/page_archive.h"

#include <algorithm>
#include <utility>

namespace oscarkv {

std::optional<ArchiveAdmission> ParseArchiveAdmission(std::string_view name) {
  if (name == "all") return ArchiveAdmission::kAll;
  if (name == "fetched") return ArchiveAdmission::kFetched;
  if (name == "worth") return ArchiveAdmission::kWorth;
  return std::nullopt;
}

bool ArchiveQueue::Add(PageRecord* record) {
  absl::MutexLock lock(&mutex_);
  if (records_.size() >= pages_max_) {
    ++refused_;
    return false;
  }
  records_.push_back(record);
  return true;
}

void ArchiveQueue::Persist(PersistTask task) {
  absl::MutexLock lock(&mutex_);
  persists_.push_back(std::move(task));
}

void ArchiveQueue::Nudge() {
  absl::MutexLock lock(&mutex_);
  nudged_ = true;
}

std::optional<std::vector<PageRecord*>> ArchiveQueue::Take(uint32_t pages_max) {
  absl::MutexLock lock(&mutex_);
  if (records_.empty() && !nudged_) return std::nullopt;
  nudged_ = false;
  taken_ = true;
  const size_t count = std::min<size_t>(pages_max, records_.size());
  const auto end = records_.begin() + static_cast<std::ptrdiff_t>(count);
  std::vector<PageRecord*> taken(records_.begin(), end);
  records_.erase(records_.begin(), end);
  return taken;
}

std::vector<PersistTask> ArchiveQueue::TakePersists() {
  absl::MutexLock lock(&mutex_);
  if (!persists_.empty()) taken_ = true;
  return std::exchange(persists_, {});
}

bool ArchiveQueue::Await() {
  absl::MutexLock lock(&mutex_);
  taken_ = false;
  mutex_.Await(absl::Condition(this, &ArchiveQueue::HasWork));
  return !stopped_;
}

void ArchiveQueue::Stop() {
  absl::MutexLock lock(&mutex_);
  stopped_ = true;
}

void ArchiveQueue::AwaitDrained(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  mutex_.AwaitWithDeadline(absl::Condition(this, &ArchiveQueue::IsDrained), deadline);
}

uint64_t ArchiveQueue::refused() const {
  absl::MutexLock lock(&mutex_);
  return refused_;
}

}  // namespace oscarkv
