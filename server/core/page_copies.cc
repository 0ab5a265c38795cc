#include "server/core/page_copies.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

#include "server/core/tenant.h"

namespace oscarkv {
namespace {

constexpr uint32_t kDropsPerMoveMax = 256;

}  // namespace

absl::StatusOr<std::unique_ptr<PageCopies>> PageCopies::Create(
    const PageCopiesOptions& options, absl::StatusOr<std::unique_ptr<CopiedTier>> tier) {
  const uint32_t uses = options.uses_remembered;
  if (uses == 0 || (uses & (uses - 1)) != 0 || options.queued_max == 0 ||
      options.window <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("copies: window and queued_max must be positive, uses_remembered a power of "
                     "two; found ",
                     absl::FormatDuration(options.window), ", ", options.queued_max, ", ", uses));
  }
  std::string degraded(tier.status().message());
  return std::unique_ptr<PageCopies>(
      new PageCopies(options, tier.ok() ? *std::move(tier) : nullptr, std::move(degraded)));
}

PageCopies::PageCopies(const PageCopiesOptions& options, std::unique_ptr<CopiedTier> tier,
                       std::string degraded)
    : options_(options),
      tier_(std::move(tier)),
      uses_(options.uses_remembered),
      degraded_(std::move(degraded)) {}

// --- For the store ---

void PageCopies::OnUse(std::span<PageRecord* const> pages, absl::Duration now) {
  absl::MutexLock lock(&mutex_);
  if (!degraded_.empty()) return;
  std::vector<PageRecord*> again;
  for (PageRecord* page : pages) {
    const auto found = entries_.find(page);
    if (found == entries_.end()) {
      if (UsedAgain(page->id, now)) again.push_back(page);
      continue;
    }
    Entry& entry = found->second;
    if (entry.state == State::kCopied) {
      by_use_.erase({entry.last_use, page->first_position, page});
      by_use_.insert({now, page->first_position, page});
    }
    entry.last_use = now;
  }
  // The first page of a sequence is of use without the second, and not the other way round.
  for (size_t i = again.size(); i-- > 0;) Queue(*again[i], now);
}

void PageCopies::Want(std::span<PageRecord* const> pages, absl::Duration now) {
  absl::MutexLock lock(&mutex_);
  if (!degraded_.empty()) return;
  for (PageRecord* page : pages) Queue(*page, now);
}

void PageCopies::Queue(PageRecord& page, absl::Duration now) {
  if (queue_.size() >= options_.queued_max) {
    ++counters_.refused_pages;
  } else if (const auto [entry, added] = entries_.try_emplace(&page); added) {
    entry->second.last_use = now;
    queue_.push_back(&page);
  }
}

bool PageCopies::UsedAgain(PageId page, absl::Duration now) {
  Use& use = uses_[page & (options_.uses_remembered - 1)];
  const bool again = use.page == page && now - use.time <= options_.window;
  use = {page, now};
  return again;
}

void PageCopies::OnRemove(PageRecord& page) {
  absl::MutexLock lock(&mutex_);
  const auto found = entries_.find(&page);
  if (found != entries_.end()) Erase(found);
}

PinnedCopy PageCopies::Pin(PageRecord& page) const {
  absl::MutexLock lock(&mutex_);
  const auto found = entries_.find(&page);
  if (found == entries_.end() || found->second.state != State::kCopied) return {};
  return PinnedCopy(found->second.slot);
}

TierStats PageCopies::Stats() const {
  TierStats stats;
  stats.kind = TierKind::kGpu;
  if (tier_ != nullptr) stats = tier_->Stats();
  absl::MutexLock lock(&mutex_);
  stats.degraded = degraded_;
  return stats;
}

std::string PageCopies::degraded() const {
  absl::MutexLock lock(&mutex_);
  return degraded_;
}

CopyCounters PageCopies::Counters() const {
  absl::MutexLock lock(&mutex_);
  return counters_;
}

// --- For the mover ---

bool PageCopies::AwaitQueued() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &PageCopies::HasWork));
  return !stopped_;
}

void PageCopies::Stop() {
  absl::MutexLock lock(&mutex_);
  stopped_ = true;
}

bool PageCopies::stopped() const {
  absl::MutexLock lock(&mutex_);
  return stopped_;
}

PageRecord* PageCopies::TakeQueued() {
  absl::MutexLock lock(&mutex_);
  while (!queue_.empty()) {
    PageRecord* const page = queue_.front();
    queue_.pop_front();
    const auto found = entries_.find(page);
    if (found == entries_.end() || found->second.state != State::kQueued) continue;
    found->second.state = State::kMoving;
    return page;
  }
  return nullptr;
}

bool PageCopies::IsMoving(PageRecord& page) const {
  const auto found = entries_.find(&page);
  return found != entries_.end() && found->second.state == State::kMoving;
}

absl::StatusOr<TierSlot> PageCopies::Reserve(PageRecord& page, uint64_t bytes, absl::Duration now) {
  absl::MutexLock lock(&mutex_);
  if (!IsMoving(page)) return absl::NotFoundError("the page has left the store");
  // The page is pinned, so its tenant is the one that has the copy.
  Tenant& tenant = page.space->tenant();
  if (!tenant.gpu().Take(bytes)) {
    tenant.CountRefused();
    return absl::ResourceExhaustedError(
        absl::StrCat("tenant '", absl::CHexEscape(tenant.name()), "' has ", tenant.gpu().taken(),
                     " bytes of copies, and may have ", tenant.gpu().most()));
  }
  absl::StatusOr<TierSlot> slot = tier_->Reserve(bytes);
  for (uint32_t drops = 0; absl::IsResourceExhausted(slot.status()) && drops < kDropsPerMoveMax;
       ++drops) {
    if (!DropOne(now)) break;
    slot = tier_->Reserve(bytes);
  }
  if (!slot.ok()) tenant.gpu().GiveBack(bytes);
  return slot;
}

bool PageCopies::DropOne(absl::Duration now) {
  for (const Place& place : by_use_) {
    if (now - place.last_use <= options_.window) return false;
    const auto found = entries_.find(place.page);
    if (found->second.slot.use_count() > 1) continue;  // somebody reads it
    Erase(found);
    ++counters_.dropped_pages;
    return true;
  }
  return false;
}

void PageCopies::Publish(PageRecord& page, const TierSlot& slot) {
  const auto release = [tier = tier_.get(), tenant = &page.space->tenant()](const TierSlot* held) {
    tier->Release(*held);
    tenant->gpu().GiveBack(held->bytes);
    std::default_delete<const TierSlot>()(held);
  };
  std::shared_ptr<const TierSlot> held(std::make_unique<TierSlot>(slot).release(), release);
  absl::MutexLock lock(&mutex_);
  // Re-encoded since the move began, it is another's: OnRemove comes, or has come, after the
  // change.
  if (!IsMoving(page) || slot.bytes != page.slot_bytes()) return;
  Entry& entry = entries_.find(&page)->second;
  entry.state = State::kCopied;
  entry.slot = std::move(held);
  by_use_.insert({entry.last_use, page.first_position, &page});
  page.state.fetch_or(page_state::kCopied, std::memory_order_acq_rel);
  ++counters_.copied_pages;
  counters_.copied_bytes += slot.bytes;
}

void PageCopies::GiveUp(PageRecord& page, std::optional<TierSlot> slot, Ending why) {
  if (slot.has_value()) {  // then the page is pinned
    tier_->Release(*slot);
    page.space->tenant().gpu().GiveBack(slot->bytes);
  }
  absl::MutexLock lock(&mutex_);
  if (IsMoving(page)) entries_.erase(&page);
  if (why == Ending::kRefused) ++counters_.refused_pages;
  if (why == Ending::kFailed) ++counters_.failed_pages;
}

void PageCopies::Degrade(const absl::Status& why) {
  absl::MutexLock lock(&mutex_);
  if (!degraded_.empty()) return;
  degraded_ = std::string(why.message());
  while (!entries_.empty()) Erase(entries_.begin());
  queue_.clear();
}

void PageCopies::Erase(Entries::iterator entry) {
  // While there is an entry, its record is that page's.
  if (entry->second.state == State::kCopied) {
    PageRecord* const page = entry->first;
    page->state.fetch_and(~page_state::kCopied, std::memory_order_acq_rel);
    by_use_.erase({entry->second.last_use, page->first_position, page});
  }
  entries_.erase(entry);
}

}  // namespace oscarkv
