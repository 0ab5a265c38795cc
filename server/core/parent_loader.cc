#include "server/core/parent_loader.h"

#include <algorithm>
#include <utility>

namespace oscarkv {
namespace {

// Looked for in one hold of the archive's lock.
constexpr size_t kPagesPerLook = 64;

}  // namespace

ParentLoader::ParentLoader(PageStore& store, const Namespace& space, std::string_view parent)
    : store_(store), space_(space), parent_(parent) {
  const uint64_t bytes_max = static_cast<uint64_t>(
      kShareMax * static_cast<double>(
                      std::min(store.tier_->capacity_bytes(), space.tenant().host_bytes_max())));
  std::string from(parent);
  for (bool more = true; more;) {
    std::vector<ArchivedAncestor> found = store.archive_->Ancestry(space, from, kPagesPerLook);
    more = found.size() == kPagesPerLook;
    // The one that a look starts from was the last of the look before.
    for (size_t i = left_.empty() ? 0 : 1; i < found.size(); ++i) {
      // This one does not go while the rest comes.
      store.index_.Read(store.index_.Probe(space, found[i].key),
                        [&](PageRecord& record) { last_ = store.MakePinned(record); });
      if (last_) return;
      bytes_left_ += space.page_bytes(found[i].page.encoding);
      left_.push_back(std::move(found[i]));
      too_long_ = left_.size() > kPagesMax || bytes_left_ > bytes_max;
      if (too_long_) return;
    }
    if (more) from = left_.back().key;
  }
}

bool ParentLoader::Step() {
  if (too_long_) return End(ParentLoad::kTooLong);
  const size_t count = std::min(left_.size(), PageStore::kPagesPerLoad);
  std::vector<std::string_view> keys;
  for (size_t i = 0; i < count; ++i) keys.push_back(left_[left_.size() - 1 - i].key);
  // It has come or gone by another way.
  if (keys.empty())
    return End(store_.Holds(space_, parent_) ? ParentLoad::kLoaded : ParentLoad::kFailed);
  std::vector<PinResult> loaded = store_.LoadBatch(space_, keys, PageStore::LoadFor::kParent);
  for (const PinResult& page : loaded) {
    busy_ = page.status == ItemStatus::kBusy;
    if (busy_ || page.status == ItemStatus::kNoSpace || page.status == ItemStatus::kQuota)
      return End(ParentLoad::kNoRoom);
    if (page.status != ItemStatus::kOk) return End(ParentLoad::kFailed);
  }
  last_ = std::move(loaded.back().page);
  for (size_t i = 0; i < count; ++i) {
    bytes_left_ -= space_.page_bytes(left_.back().page.encoding);
    left_.pop_back();
  }
  return !left_.empty() || End(ParentLoad::kLoaded);
}

bool ParentLoader::End(ParentLoad outcome) {
  store_.counters_.parent_loads[static_cast<size_t>(outcome)].fetch_add(1,
                                                                        std::memory_order_relaxed);
  left_.clear();
  return false;
}

}  // namespace oscarkv
