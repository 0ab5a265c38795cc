// The seam that decides which page goes next. The store tells a policy what happens to pages; the
// policy answers with a victim among the pages that may go. It sees no keys and no bytes, only
// page numbers: small, dense, reused after removal, so that a policy can keep its state in arrays.
//
// A policy for every store passes tests/core/eviction_policy_contract.h.
#ifndef OSCARKV_SERVER_CORE_EVICTION_POLICY_H_
#define OSCARKV_SERVER_CORE_EVICTION_POLICY_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "absl/time/time.h"

#include "kernels/codec/geometry.h"

namespace oscarkv {

// Dense from 0; a number is reused once its page has been removed.
using PageId = uint32_t;
inline constexpr PageId kNoPage = 0xffffffff;

// What a client says of the future of a sequence. Numbers equal oscarkv.v1.Reuse.
enum class ReuseHint : uint8_t {
  kNone = 0,
  kSessionOver = 1,  // nobody goes on from here
  kSingleShot = 2,   // asked once, not part of a conversation
  kWillReturn = 3,   // the session waits for its next request
};
inline constexpr size_t kReuseHints = 4;

// How firmly a page stays. Numbers equal oscarkv.v1.Residency.
enum class Residency : uint8_t {
  kUnspecified = 0,  // as the page is; a new page is kNormal
  kNormal = 1,
  kMayGoFirst = 2,  // goes before every page that is not
  kPinned = 3,      // stays until it is deleted, or used as another; the store does not offer it
};

inline constexpr int kPriorityMax = 2;  // priorities are -kPriorityMax..kPriorityMax

// What is known of the request that stores or uses pages: what its client said, and what the store
// found out. Hints are evidence, not orders; the zero of each field means that nobody said.
struct RequestTraits {
  uint64_t number = 0;         // equal for the pages of one request's put
  uint64_t new_tokens = 0;     // put: of its pages that the store has not seen before
  uint32_t output_tokens = 0;  // that the request generated, or is going to
  ReuseHint reuse = ReuseHint::kNone;
  Residency residency = Residency::kUnspecified;
  int8_t priority = 0;  // one step is worth four times the hits
};

// What a policy may know of a page that is put.
struct PageTraits {
  PageId parent = kNoPage;  // kNoPage: the first page of a sequence, or its parent is not stored
  uint32_t namespace_id = 0;
  uint64_t first_position = 0;
  uint64_t bytes = 0;  // that its removal would free
  Encoding encoding = Encoding::kWide;
  uint64_t key_hash = 0;  // the same whenever the page is put
  bool ends_put = false;  // the last page of its request's put
  RequestTraits request;
  absl::Duration now;  // the store's clock
};

struct UsedPage {
  PageId page = kNoPage;
  uint64_t key_hash = 0;
};

// Why a page left the index.
enum class RemoveReason : uint8_t {
  kEvicted = 0,   // room was needed
  kDeleted = 1,   // Delete or Clear named it, or a page that it extends
  kCorrupt = 2,   // one of its checksums did not hold
  kOrphaned = 3,  // a page that it extends was corrupt
  kExpired = 4,   // nobody used it for the time to live of its namespace
};
inline constexpr size_t kRemoveReasons = 5;

std::string_view RemoveReasonName(RemoveReason reason);

// What UseChance looks ahead.
inline constexpr absl::Duration kUseHorizon = absl::Hours(1);

// Not thread-safe: the store calls under its tree lock. Calls must be quick (O(log pages)), may
// not call back, and allocate only as their state grows with the greatest page number seen.
class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;

  virtual std::string_view name() const = 0;

  // Another of its kind, which knows of nothing yet: for the pages of another tenant.
  virtual std::unique_ptr<EvictionPolicy> NewSibling() const = 0;

  // `page` was stored. It counts as used now, and may not go until SetEvictable says so.
  virtual void OnInsert(PageId page, const PageTraits& traits) = 0;

  // Room is needed for a page that is put, and Victim named a page: whether the new page is worth
  // more. If not, it is refused and the victim stays.
  virtual bool Admits(const PageTraits& traits) = 0;

  // A page was put and did not get in: Admits refused it, or a page that it extends. `traits` as
  // for OnInsert.
  virtual void OnRefuse(const PageTraits& traits) = 0;

  // One fetch or touch used `pages`, given leaf first: the page deepest in its sequence is the
  // first. Pages are in the index; one may appear twice.
  virtual void OnUse(std::span<const UsedPage> pages, const RequestTraits& request,
                     absl::Duration now) = 0;

  // `page` left the index, for `reason`. Its number may come again with OnInsert.
  virtual void OnRemove(PageId page, RemoveReason reason) = 0;

  // Whether `page` may go: it has no cached child, and was not found held by a reader when it was
  // last a victim. Setting what is set already changes nothing.
  virtual void SetEvictable(PageId page, bool evictable) = 0;

  // The evictable page that should go next, or none if no page is evictable. Does not remove it:
  // asked again without other calls, answers the same. The store then calls OnRemove, or
  // SetEvictable(page, false) when it finds the page held.
  virtual std::optional<PageId> Victim(absl::Duration now) = 0;

  // How likely `page`, which is there, is used again within kUseHorizon; nothing when that is not
  // known.
  virtual std::optional<double> UseChance(PageId page, absl::Duration now) const = 0;

  // The same of a page that is put, as Admits is asked.
  virtual std::optional<double> PutChance(const PageTraits& traits) = 0;

  // Of all that the policy remembers.
  virtual uint64_t memory_bytes() const = 0;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_EVICTION_POLICY_H_
