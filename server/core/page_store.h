// The store: pages by namespace and key, in a tier's memory. It keeps the first promise of the
// design: a read returns the bytes that were written for that key under that fingerprint, or an
// honest miss.
//
//   * A page is visible only after all of its bytes have come and every block's checksum was
//     verified; it is verified again before any byte is served.
//   * A page never changes once visible; the first writer wins.
//   * Memory in use by a reader (a PinnedPage) is not reused while the reader lives.
//   * Every page's parent is in the index, so a prefix has no holes: eviction takes leaves only,
//   and
//     a page that is deleted or found corrupt takes the pages that extend it along.
//   * Bytes held never pass the tier's capacity; when nothing can go, a put is told kNO_SPACE.
//
// How it works inside (index, tree, lock order) is in server/README.md.
#ifndef OSCARKV_SERVER_CORE_PAGE_STORE_H_
#define OSCARKV_SERVER_CORE_PAGE_STORE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "proto/wire/item_status.h"
#include "proto/wire/namespace_spec.h"
#include "server/core/clock.h"
#include "server/core/eviction_policy.h"
#include "server/core/namespace.h"
#include "server/core/page_handles.h"
#include "server/core/store_stats.h"
#include "server/core/tier.h"

namespace oscarkv {

struct PageStoreOptions {
  uint32_t namespaces_max = 1024;
  absl::Duration lease_max = absl::Minutes(10);  // the ceiling of a lease's life
  double leased_share_max = 0.5;                 // of the tier's bytes, 0..1
  uint32_t dropped_keys_remembered = 1 << 18;    // to tell kEvicted from kMiss; 8 bytes each
  uint32_t evictions_per_put_max = 4096;         // bounds the work of one BeginPut
};

// Thread-safe. No call blocks on anything but short locks; none waits for a client or for time.
class PageStore {
 public:
  // kInvalidArgument when an option is out of range. `policy` null means least recently used.
  // `clock` is borrowed for the store's life.
  static absl::StatusOr<std::unique_ptr<PageStore>> Create(const PageStoreOptions& options,
                                                           std::unique_ptr<Tier> tier,
                                                           std::unique_ptr<EvictionPolicy> policy,
                                                           const Clock& clock);
  // All PutSlots and PinnedPages have been destroyed before.
  ~PageStore();
  PageStore(const PageStore&) = delete;
  PageStore& operator=(const PageStore&) = delete;

  // --- Namespaces. They live as long as the store. ---

  // The namespace of `spec`; makes it when there is none and `create`.
  //   kInvalidArgument    the spec does not validate.
  //   kNotFound           it is not open, and not `create`.
  //   kResourceExhausted  namespaces_max are open.
  absl::StatusOr<const Namespace*> OpenNamespace(const NamespaceSpec& spec, bool create);
  // Null when no namespace has this fingerprint (32 raw bytes).
  const Namespace* FindNamespace(std::string_view fingerprint) const;
  std::vector<const Namespace*> Namespaces() const;  // in the order of opening

  // --- Pages. `space` is of this store. Keys that are not 16..64 bytes are kMiss, or kInvalid in a
  // put. A key twice in one batch is looked at, or acted on, twice; for puts see BeginPut. ---

  // Which pages are there. Does not refresh recency. A lease that is granted covers exactly the
  // pages found kOk: nothing can go between the look and the lease. O(keys).
  LookupResult Lookup(const Namespace& space, const LookupRequest& request);

  // Starts the put of one page. Other puts of the same key may be under way: the first to Commit
  // wins, so a writer that stalls holds up nobody. Puts of a batch are begun in order, each after
  // its parent's Commit.
  //   kOk        the slot is there: write the bytes, then Commit.
  //   kExists    the key is stored with the same checksums, position and parent; success, nothing
  //              to send. So is a key stored in the other encoding, at the same position and
  //              parent: precision is the store's business, and the bytes cannot be compared.
  //   kConflict  the key is stored with other checksums, position or parent. It stays as it is.
  //   kSkipped   the parent is not stored.
  //   kInvalid   key or parent not 16..64 bytes, or the parent is the key itself; not the
  //              namespace's page size; not one checksum a block; PACKED where the namespace has no
  //              transform set, or below its sink_tokens; first_position is not the parent's plus
  //              page_tokens.
  //   kNoSpace   everything is held by readers, or has children that are; or the bound on evictions
  //              was met before a fitting slot was free (try again).
  BeginPutResult BeginPut(const Namespace& space, const PutItem& item);

  // Holds a page for reading. Does not refresh recency by itself: a fetch calls Touch once.
  PinResult Pin(const Namespace& space, std::string_view key);

  // One use of `keys`, given in the order of the sequence: refreshes recency, the last key first,
  // so that of equal pages the deepest goes first. Keys that are not stored are skipped: kMiss,
  // kEvicted or kCorrupt in the result, [keys].
  std::vector<ItemStatus> Touch(const Namespace& space, std::span<const std::string_view> keys);

  // Removes the pages and everything that extends them, whoever reads them: their memory comes back
  // when the last reader lets go. kOk, kMiss, kEvicted or kCorrupt, [keys].
  std::vector<ItemStatus> Delete(const Namespace& space, std::span<const std::string_view> keys);

  // Pages of the namespace, at most `pages_max`, in no meaningful order. `cursor` 0 starts. Every
  // page that is there from the first call to the last is listed once. A call looks at a bounded
  // number of places, so it may return fewer pages than asked for and a cursor.
  ListResult List(const Namespace& space, uint32_t pages_max, uint64_t cursor) const;

  // Removes every page of the namespace that is not held by a lease or a transfer.
  ClearResult Clear(const Namespace& space);

  // --- Sessions and leases ---

  SessionId OpenSession(std::string_view client_name);
  // Ends the session and its leases. Returns whether it was open.
  bool CloseSession(SessionId session);
  // kOk, or kFenced when there is no such lease (any more).
  ItemStatus ReleaseLease(LeaseId lease);
  bool LeaseIsLive(LeaseId lease) const;
  // Ends the leases that have reached their time. The server calls it from time to time; the store
  // itself does when it wants room. Returns how many ended.
  size_t ExpireLeases();

  // --- Care ---

  // Verifies whole pages from `cursor` on (0 starts), at least one and no more after `bytes_max`
  // bytes. Bad pages are dropped with what extends them, and counted. The caller paces: it calls
  // again after bytes_checked / bytes_per_second.
  VerifyProgress Verify(uint64_t cursor, uint64_t bytes_max);

  StoreStats Stats() const;

 private:
  friend class PutSlot;
  friend class PinnedPage;
  class Impl;
  explicit PageStore(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_PAGE_STORE_H_
