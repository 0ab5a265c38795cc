#include "server/core/gone_pages.h"

namespace oscarkv {

void GonePages::Add(const Namespace& space, std::string_view key) {
  const absl::MutexLock lock(&mutex_);
  pages_.emplace(&space, key);
  changes_.fetch_add(1, std::memory_order_release);
  count_.store(pages_.size(), std::memory_order_release);
}

void GonePages::Remove(const Namespace& space, std::string_view key) {
  const absl::MutexLock lock(&mutex_);
  if (pages_.erase(std::pair(&space, std::string(key))) == 0) return;
  changes_.fetch_add(1, std::memory_order_release);
  count_.store(pages_.size(), std::memory_order_release);
}

bool GonePages::Contains(const Namespace& space, std::string_view key) const {
  if (count_.load(std::memory_order_acquire) == 0) return false;
  const absl::MutexLock lock(&mutex_);
  return pages_.contains(std::pair(&space, std::string(key)));
}

std::optional<ArchivedPage> GonePages::Find(
    const Namespace& space, std::string_view key,
    absl::FunctionRef<std::optional<ArchivedPage>()> find) const {
  for (;;) {
    const uint64_t changes = changes_.load(std::memory_order_acquire);
    const std::optional<ArchivedPage> found = find();
    if (!found.has_value() || Contains(space, key)) return std::nullopt;
    if (changes_.load(std::memory_order_acquire) == changes) return found;
  }
}

}  // namespace oscarkv
