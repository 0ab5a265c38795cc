#include "server/core/lease_table.h"

#include <algorithm>
#include <utility>

namespace oscarkv {

uint64_t LeaseTable::NewId() {
  for (;;) {
    const uint64_t id = absl::Uniform<uint64_t>(random_);
    if (id != 0 && !sessions_.contains(id) && !leases_.contains(id)) return id;
  }
}

SessionId LeaseTable::OpenSession(std::string_view client_name) {
  absl::MutexLock lock(&mutex_);
  const SessionId session = NewId();
  sessions_[session].client_name = std::string(client_name);
  return session;
}

bool LeaseTable::HasSession(SessionId session) const {
  absl::ReaderMutexLock lock(&mutex_);
  return sessions_.contains(session);
}

LeaseTable::Grant LeaseTable::Add(SessionId session, std::span<const LeasedPage> pages,
                                  const Time& time, const LeaseOwner& lease_owner) {
  absl::MutexLock lock(&mutex_);
  const auto owner = sessions_.find(session);
  if (owner == sessions_.end()) return {ItemStatus::kFenced, 0};
  if (lease_owner.tenant >= leased_bytes_.size())
    leased_bytes_.resize(lease_owner.tenant + size_t{1});
  uint64_t& of_tenant = leased_bytes_[lease_owner.tenant];
  // A page counts once however many leases hold it, or a popular prefix would use up the share.
  for (const LeasedPage& page : pages) {
    Held& held = held_[page.page];
    if (held.holds++ > 0) continue;
    held.bytes = page.bytes;
    stats_.leased_bytes += page.bytes;
    of_tenant += page.bytes;
  }
  const LeaseId id = NewId();
  leases_[id] = Lease{session, lease_owner.tenant, time, {pages.begin(), pages.end()}};
  by_end_.insert({time.begin + time.life, id});
  stats_.holds += pages.size();
  if (stats_.leased_bytes > limits_.leased_bytes_max || of_tenant > lease_owner.leased_bytes_max ||
      leases_.size() > limits_.leases_max) {
    std::vector<PageId> kept_by_caller;
    Drop(id, &kept_by_caller);
    ++stats_.refused;
    return {ItemStatus::kNoSpace, 0};
  }
  owner->second.leases.insert(id);
  ++stats_.granted;
  return {ItemStatus::kOk, id};
}

bool LeaseTable::Has(LeaseId lease) const {
  absl::ReaderMutexLock lock(&mutex_);
  return leases_.contains(lease);
}

void LeaseTable::CountAge(LeaseId lease, absl::Duration now) {
  const double age_s = absl::ToDoubleSeconds(now - leases_[lease].time.begin);
  ++stats_.ages.counts[static_cast<size_t>(
      std::lower_bound(kLeaseAges.begin(), kLeaseAges.end(), age_s) - kLeaseAges.begin())];
  stats_.ages.sum_s += age_s;
}

void LeaseTable::Drop(LeaseId lease, std::vector<PageId>* dropped) {
  const auto found = leases_.find(lease);
  for (const LeasedPage& page : found->second.pages) {
    dropped->push_back(page.page);
    const auto held = held_.find(page.page);
    if (--held->second.holds == 0) {
      stats_.leased_bytes -= held->second.bytes;
      leased_bytes_[found->second.tenant] -= held->second.bytes;
      held_.erase(held);
    }
  }
  stats_.holds -= found->second.pages.size();
  by_end_.erase({found->second.time.begin + found->second.time.life, lease});
  leases_.erase(found);
}

bool LeaseTable::Release(LeaseId lease, absl::Duration now, std::vector<PageId>* dropped) {
  absl::MutexLock lock(&mutex_);
  const auto found = leases_.find(lease);
  if (found == leases_.end()) return false;
  sessions_[found->second.session].leases.erase(lease);
  CountAge(lease, now);
  Drop(lease, dropped);
  ++stats_.released;
  return true;
}

bool LeaseTable::CloseSession(SessionId session, absl::Duration now, std::vector<PageId>* dropped) {
  absl::MutexLock lock(&mutex_);
  const auto found = sessions_.find(session);
  if (found == sessions_.end()) return false;
  for (const LeaseId lease : found->second.leases) {
    CountAge(lease, now);
    Drop(lease, dropped);
    ++stats_.orphaned;
  }
  sessions_.erase(found);
  return true;
}

size_t LeaseTable::Expire(absl::Duration now, std::vector<PageId>* dropped) {
  absl::MutexLock lock(&mutex_);
  size_t count = 0;
  for (; !by_end_.empty() && by_end_.begin()->first <= now; ++count) {
    const LeaseId lease = by_end_.begin()->second;
    sessions_[leases_[lease].session].leases.erase(lease);
    CountAge(lease, now);
    Drop(lease, dropped);
  }
  stats_.expired += count;
  return count;
}

LeaseStats LeaseTable::Stats(absl::Duration now) const {
  absl::ReaderMutexLock lock(&mutex_);
  LeaseStats stats = stats_;
  stats.sessions = sessions_.size();
  for (const auto& [id, lease] : leases_)
    stats.oldest_s = std::max(stats.oldest_s, absl::ToDoubleSeconds(now - lease.time.begin));
  stats.leases = leases_.size();
  stats.leasable_bytes = limits_.leased_bytes_max;
  return stats;
}

}  // namespace oscarkv
