// Sessions and the leases that live within them: who holds which pages, and until when. Pure
// bookkeeping; the store takes and drops the holds on pages.
#ifndef OSCARKV_SERVER_CORE_LEASE_TABLE_H_
#define OSCARKV_SERVER_CORE_LEASE_TABLE_H_

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/random/random.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "proto/wire/item_status.h"
#include "server/core/eviction_policy.h"
#include "server/core/page_handles.h"
#include "server/core/store_stats.h"

namespace oscarkv {

struct LeasedPage {
  PageId page = kNoPage;
  uint64_t bytes = 0;
};

struct LeaseOwner {
  uint32_t tenant = 0;                                               // its number
  uint64_t leased_bytes_max = std::numeric_limits<uint64_t>::max();  // of distinct pages
};

struct LeaseStats {
  uint64_t sessions = 0;
  uint64_t leases = 0;
  uint64_t leased_bytes = 0;    // of distinct pages
  uint64_t leasable_bytes = 0;  // the most that leased_bytes may be
  uint64_t holds = 0;
  uint64_t granted = 0;
  uint64_t refused = 0;
  uint64_t released = 0;
  uint64_t expired = 0;
  uint64_t orphaned = 0;
  LeaseAges ages;         // of those that have ended
  double oldest_s = 0.0;  // the age of the oldest there is
};

// Thread-safe. Its lock is the last in the order: it calls nobody.
class LeaseTable {
 public:
  struct Limits {
    uint64_t leased_bytes_max = 0;  // of distinct pages
    uint64_t leases_max = 1 << 16;
  };
  explicit LeaseTable(const Limits& limits) : limits_(limits) {}

  // Identifiers are random, so that one client cannot guess another's.
  SessionId OpenSession(std::string_view client_name);
  bool HasSession(SessionId session) const;

  // A lease of `pages`, all of one tenant, on each of which the caller has put a hold, of that
  // `time`. kOk with the lease; kFenced when there is no such session; kNoSpace when a limit is
  // met: the table's, or the tenant's. Unless kOk the caller keeps its holds.
  struct Grant {
    ItemStatus status = ItemStatus::kOk;
    LeaseId lease = 0;
  };
  struct Time {
    absl::Duration begin;
    absl::Duration life;
  };
  Grant Add(SessionId session, std::span<const LeasedPage> pages, const Time& time,
            const LeaseOwner& owner = {});

  bool Has(LeaseId lease) const;

  // The next three append the pages whose holds the caller has now to drop, one entry a hold.
  bool Release(LeaseId lease, absl::Duration now, std::vector<PageId>* dropped);
  bool CloseSession(SessionId session, absl::Duration now, std::vector<PageId>* dropped);
  size_t Expire(absl::Duration now, std::vector<PageId>* dropped);

  // O(leases).
  LeaseStats Stats(absl::Duration now) const;

 private:
  struct Session {
    std::string client_name;
    absl::flat_hash_set<LeaseId> leases;
  };
  struct Lease {
    SessionId session = 0;
    uint32_t tenant = 0;
    Time time;
    std::vector<LeasedPage> pages;
  };
  struct Held {
    uint64_t bytes = 0;
    uint32_t holds = 0;
  };

  uint64_t NewId() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // It was granted, and ends.
  void CountAge(LeaseId lease, absl::Duration now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Removes the lease from every table but its session's.
  void Drop(LeaseId lease, std::vector<PageId>* dropped) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Limits limits_;
  mutable absl::Mutex mutex_;
  absl::BitGen random_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<SessionId, Session> sessions_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<LeaseId, Lease> leases_ ABSL_GUARDED_BY(mutex_);
  absl::btree_set<std::pair<absl::Duration, LeaseId>> by_end_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<PageId, Held> held_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint64_t> leased_bytes_ ABSL_GUARDED_BY(mutex_);  // [tenant], of distinct pages
  LeaseStats stats_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_LEASE_TABLE_H_
