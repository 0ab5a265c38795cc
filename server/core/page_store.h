// The store: pages by namespace and key, in a tier's memory. It keeps the first promise of the
// design: a read returns the bytes that were written for that key under that fingerprint, or an
// honest miss.
//
//   * A page is visible only after all of its bytes have come and every block's checksum was
//     verified; it is verified again before any byte is served.
//   * A page never changes once visible; the first writer wins.
//   * Memory in use by a reader (a PinnedPage) is not reused while the reader lives.
//   * Every page's parent is in the index, so a prefix has no holes: eviction takes leaves only,
//     and a page that is deleted or found corrupt takes the pages that extend it along.
//   * Bits go before pages do: no page goes for a put while WIDE pages are being re-encoded.
//   * Bytes held never pass the tier's capacity; when nothing can go, a put is told kNO_SPACE.
//
// How it works inside (index, tree, lock order) is in server/README.md.
#ifndef OSCARKV_SERVER_CORE_PAGE_STORE_H_
#define OSCARKV_SERVER_CORE_PAGE_STORE_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "proto/wire/item_status.h"
#include "proto/wire/namespace_spec.h"
#include "server/core/bell.h"
#include "server/core/clock.h"
#include "server/core/corrupt_page.h"
#include "server/core/eviction_policy.h"
#include "server/core/fair_eviction.h"
#include "server/core/gone_pages.h"
#include "server/core/ladder.h"
#include "server/core/lease_table.h"
#include "server/core/namespace.h"
#include "server/core/page_archive.h"
#include "server/core/page_copies.h"
#include "server/core/page_handles.h"
#include "server/core/page_index.h"
#include "server/core/page_record.h"
#include "server/core/store_stats.h"
#include "server/core/tenant.h"
#include "server/core/tier.h"

namespace oscarkv {

// Chosen on the first half of a trace of conversations.
inline constexpr double kArchiveChanceMin = 0.2;

struct PageStoreOptions {
  uint32_t namespaces_max = 1024;
  uint32_t tenants_max = 64;  // each has some 4 MB of the policy's, and what it remembers of keys
  absl::Duration lease_max = absl::Minutes(10);  // the ceiling of a lease's life
  double leased_share_max = 0.5;  // of the tier's bytes, and of what a tenant may hold; 0..1
  uint32_t leases_max = 1 << 16;
  double pinned_share_max = 0.25;  // likewise, that clients may pin
  uint32_t dropped_keys_remembered = 1
                                     << 18;  // to tell kEvicted from kMiss; 8 bytes each, a tenant
  uint32_t evictions_per_put_max = 4096;     // bounds the work of one BeginPut
  ArchiveAdmission archive_admission = ArchiveAdmission::kAll;
  // Least chance of use within kUseHorizon that makes a page worth a write, 0..1.
  double archive_chance_min = kArchiveChanceMin;
  uint32_t archive_queued_max =
      1 << 16;  // pages that wait to be written; beyond it, none are added
  StoreWide store_wide = StoreWide::kTail;  // of namespaces that nobody said otherwise of
  // Memory is short when less than this share of the tier is free, 0..1: WIDE pages are re-encoded
  // ahead of need.
  double reencode_free_share = 0.1;
  double wide_tails_share_max = 0.1;  // of the tier's bytes, 0..1: see Ladder
  OnCorruptPage on_corrupt = {};      // may be null
};

// Thread-safe. No call blocks on anything but short locks; none waits for a client or for time.
class PageStore {
 public:
  // kInvalidArgument when an option is out of range. `policy` null means least recently used; it is
  // of the first tenant, and each other one has a sibling of it.
  // `copies` null that pages are not copied into a faster tier; otherwise a CopyMover has to run.
  // `archive` null that pages are in memory only; otherwise an ArchiveWriter has to run. A
  // ReEncoder has to run for WIDE pages to become PACKED (SetCodec). `clock` is borrowed for the
  // store's life.
  static absl::StatusOr<std::unique_ptr<PageStore>> Create(
      const PageStoreOptions& options, std::unique_ptr<MappedTier> tier,
      std::unique_ptr<EvictionPolicy> policy, const Clock& clock,
      std::unique_ptr<PageCopies> copies = nullptr, std::unique_ptr<PageArchive> archive = nullptr);
  // All PutSlots and PinnedPages have been destroyed before.
  ~PageStore();
  PageStore(const PageStore&) = delete;
  PageStore& operator=(const PageStore&) = delete;

  // --- Namespaces. They live as long as the store. ---

  // The namespace of `spec`; makes it when there is none and `create`.
  //   kInvalidArgument    the spec does not validate.
  //   kNotFound           it is not open, and not `create`.
  //   kResourceExhausted  namespaces_max are open, or tenants_max have some.
  absl::StatusOr<const Namespace*> OpenNamespace(const NamespaceSpec& spec, bool create);
  // Pages of `space` that nobody used for `ttl` are dropped when ExpirePages comes by. Infinite at
  // first.
  void SetPageTtl(const Namespace& space, absl::Duration ttl);
  // For how long pages that are put WIDE stay so.
  void SetStoreWide(const Namespace& space, StoreWide mode);
  // From now on WIDE pages of the namespace, those that are there too, may be re-encoded with
  // `codec` (not null), which the caller keeps for as long as a ReEncoder runs. O(pages) the first
  // time.
  void SetCodec(const Namespace& space, const PageCodec* codec);
  // Null when no namespace has this fingerprint (32 raw bytes).
  const Namespace* FindNamespace(std::string_view fingerprint) const;
  std::vector<const Namespace*> Namespaces() const;  // in the order of opening

  // --- Pages. `space` is of this store. Keys that are not 16..64 bytes are kMiss, or kInvalid in a
  // put. A key twice in one batch is looked at, or acted on, twice; for puts see BeginPut. ---

  // Whether the page is there: counts as nothing, changes nothing.
  bool Holds(const Namespace& space, std::string_view key) const;

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
  //   kSkipped   the parent is not in memory; see ParentIsArchived.
  //   kQuota     to be pinned, but the share of pinned pages is full; or the tenant holds as much
  //              as it may, and none of it may go. The message says which limit, what was asked
  //              for, and what is held.
  //   kInvalid   key or parent not 16..64 bytes, or the parent is the key itself; not the
  //              namespace's page size; not one checksum a block; PACKED where the namespace has no
  //              transform set, or below its sink_tokens; first_position is not the parent's plus
  //              page_tokens.
  //   kNoSpace   everything is held by readers, or has children that are; or all that could go is
  //              worth more than this page (the policy refuses it); or the bound on evictions was
  //              met before a fitting slot was free (try again).
  //   kBusy      there is no room yet: WIDE pages are being re-encoded, which makes some. Try again
  //              a little later.
  BeginPutResult BeginPut(const Namespace& space, const PutItem& item);

  // Whether BeginPut would be told kSkipped although the parent is stored, in the archive: a
  // ParentLoader brings it back. Counts as nothing, changes nothing.
  bool ParentIsArchived(const Namespace& space, const PutItem& item) const;

  // How many of the keys are neither stored nor remembered as dropped: what RequestTraits wants to
  // know of a put before it begins. Counts as nothing, changes nothing.
  uint32_t CountUnseen(const Namespace& space, std::span<const std::string_view> keys) const;

  // Holds a page for reading. Does not refresh recency by itself: a fetch calls Touch once.
  PinResult Pin(const Namespace& space, std::string_view key);

  // Pins the first of `keys`, which Pin has found to be archived, after reading it into memory,
  // and with it as many of those that follow as are archived too and make one batch. A page whose
  // parent is in memory is back in the store from here on; the first is served in any case. kBusy,
  // kNoSpace, kQuota: there is no memory to read it into, as in BeginPut. Waits for the device, so
  // it is for threads that may.
  PinResult Load(const Namespace& space, std::span<const std::string_view> keys);
  // Read at once by Load: enough to keep a device busy, and little of anybody's memory.
  static constexpr size_t kPagesPerLoad = 16;

  // One use of `keys`, given in the order of the sequence: refreshes recency, the last key first,
  // so that of equal pages the deepest goes first. Keys that are not stored are skipped: kMiss,
  // kEvicted or kCorrupt in the result, [keys]; kQuota where a page is used but cannot be pinned.
  std::vector<ItemStatus> Touch(const Namespace& space, std::span<const std::string_view> keys,
                                const RequestTraits& request = {});

  // Removes the pages and everything that extends them, whoever reads them: their memory comes back
  // when the last reader lets go. kOk, kMiss, kEvicted or kCorrupt, [keys].
  std::vector<ItemStatus> Delete(const Namespace& space, std::span<const std::string_view> keys);

  // Pages of the namespace, at most `pages_max`, in no meaningful order; those that are archived
  // only come without their parents. `cursor` 0 starts. Every page that is there from the first
  // call to the last is listed once. A call looks at a bounded number of places: fewer may come.
  ListResult List(const Namespace& space, uint32_t pages_max, uint64_t cursor) const;

  // Removes every page of the namespace that is not held by a lease or a transfer.
  ClearResult Clear(const Namespace& space);

  // The page's copy in a faster tier; empty when there is none. The bytes are as good as that
  // tier's memory: who reads them verifies them (`page` has the checksums).
  PinnedCopy PinCopy(const PinnedPage& page) const;
  // Has those of the pages that are stored copied to the faster tier, used again or not, the first
  // of them first.
  void WantCopies(const Namespace& space, std::span<const std::string_view> keys);

  // --- Sessions and leases ---

  SessionId OpenSession(std::string_view client_name);
  bool HasSession(SessionId session) const { return leases_.HasSession(session); }
  // Ends the session and its leases. Returns whether it was open.
  bool CloseSession(SessionId session);
  // kOk, or kFenced when there is no such lease (any more).
  ItemStatus ReleaseLease(LeaseId lease);
  bool LeaseIsLive(LeaseId lease) const;
  // Ends the leases that have reached their time. The server calls it from time to time; the store
  // itself does when it wants room. Returns how many ended.
  size_t ExpireLeases();

  // --- Tenants ---

  // What each tenant may hold, from now on. Those that hold more give up bits first, for some
  // seconds, where WIDE pages can be re-encoded; then let pages go, in their policy's order and no
  // more than needed, at once; what is held by readers then goes with EnforceQuotas.
  void SetQuotas(TenantQuotas quotas);
  // Evicts what tenants hold beyond their quotas, as far as it may go. Returns how many pages went.
  // The server calls it from time to time.
  size_t EnforceQuotas();

  // --- Care ---

  // Drops pages past their namespace's time to live, leaves first, that nobody holds; returns how
  // many. The server calls it often; it looks at all pages every sixteenth of the least time to
  // live, within 1 s and 1 min.
  size_t ExpirePages();

  // Verifies whole pages, those in memory and then those archived, from `cursor` on (0 starts), at
  // least one and no more after `bytes_max` bytes. Bad pages are dropped with what extends them,
  // and counted. The caller paces: it calls again after bytes_checked / bytes_per_second.
  VerifyProgress Verify(uint64_t cursor, uint64_t bytes_max);

  // With ArchiveAdmission::kWorth, has pages in memory that are worth it written, before the store
  // goes. Returns when they are, or at the deadline. An ArchiveWriter runs.
  void ArchiveWorthy(absl::Time deadline);

  StoreStats Stats() const;

  // Null when pages are not copied.
  PageCopies* copies() const { return copies_.get(); }
  // Null when there is no archive. ArchiveQueue::Persist has pages written at once, with those that
  // they extend, whatever archive_admission says: kOk when all of them are durable. kMiss,
  // kEvicted, kCorrupt: the page is not stored. kNoSpace: the device did not take it. kQuota: its
  // tenant has as much there as it may. kBusy: the time was up. kSkipped: a page that it extends is
  // not durable. The message says more.
  ArchiveQueue* archive_queue() const { return archive_queue_.get(); }
  // Rings when there is something to re-encode.
  Bell& reencode_bell() { return reencode_bell_; }

 private:
  friend class ArchiveBatch;
  friend class ArchiveWriter;
  friend class CopyMover;
  friend class ParentLoader;
  friend class Persister;
  friend class PutSlot;
  friend class ReEncoder;
  friend class PinnedPage;

  // Places of the record table that are looked at in one hold of the tree lock.
  static constexpr uint32_t kPlacesPerLock = 4096;

  // Counters that several threads raise; relaxed, for each is complete in itself.
  using Counter = std::atomic<uint64_t>;
  struct Counters {
    Counter lookups{0}, lookup_hits{0}, lookup_misses{0}, lookup_evicted{0};
    std::array<std::array<Counter, kHitDepthNames.size()>, kTierKinds> hits_by_tier{};
    Counter scrubbed_pages{0}, scrub_pages{0};
    Counter fetch_hits{0}, fetch_misses{0}, fetch_evicted{0}, fetch_bytes{0};
    std::array<Counter, kItemStatuses> puts_by_outcome{};
    Counter puts_abandoned{0}, puts_refused{0}, put_bytes{0}, open_puts{0};
    Counter corrupt_pages{0}, verified_pages{0}, moved_pages{0}, moved_bytes{0};
    Counter loaded_pages{0};
    std::array<Counter, kItemStatuses> persists_by_outcome{};
    std::array<Counter, kParentLoads> parent_loads{};
    Counter pins{0};
  };
  struct SpacePages {
    uint64_t wide = 0;
    uint64_t packed = 0;
  };

  PageStore(const PageStoreOptions& options, std::unique_ptr<MappedTier> tier,
            std::unique_ptr<EvictionPolicy> policy, const Clock& clock,
            std::unique_ptr<PageCopies> copies, std::unique_ptr<PageArchive> archive);

  // page_store.cc
  // Under the lock of its shard; `record` null when the page is not there. Puts a hold on it when
  // it is and `held` is not null.
  FoundPage LookUpOne(const PageProbe& probe, PageRecord* record, std::vector<LeasedPage>* held);
  void GrantLease(const Namespace& space, const LookupRequest& request,
                  std::span<const LeasedPage> held, LookupResult* result);
  PageMeta MetaOf(const PageRecord& record) const;
  MutableByteView SlotOf(const PageRecord& record) const;
  PinnedPage MakePinned(PageRecord& record);
  // Whatever page the record holds now; empty when none.
  PinnedPage PinRecord(PageRecord& record) ABSL_LOCKS_EXCLUDED(tree_mutex_);
  PinnedPage PinRecordLocked(PageRecord& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  ItemStatus AbsentStatus(const PageProbe& probe) const {
    return probe.space->tenant().dropped().Find(probe.hash);
  }
  // A slot that ReserveSlot gave, back to the tier and to its tenant.
  void ReleaseSlot(const Namespace& space, const TierSlot& slot);
  // `form`: the page's when it was pinned.
  void Unpin(PageRecord& record, Encoding form);
  void DropHolds(std::span<const PageId> pages);
  // `page`: what was found, when kOk.
  void CountFetch(ItemStatus status, const PageMeta& page);
  // Lets go of a pin of the page's `form`, or (null) of a hold; the last holder of a detached page
  // frees it.
  void LetGo(PageRecord& record, std::optional<Encoding> form) ABSL_LOCKS_EXCLUDED(tree_mutex_);
  void LetGoLocked(PageRecord& record, std::optional<Encoding> form)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);

  // page_store_put.cc
  ItemResult CheckItem(const Namespace& space, const PutItem& item) const;
  struct Claim;  // what a put says of its page
  // Compares with the page stored under the key: kExists, kConflict, or kMiss when there is none
  // (a stored page that proves corrupt is dropped).
  ItemResult CompareStored(const PageProbe& probe, const Claim& claim);
  PageTraits TraitsOf(const PageProbe& probe, const PutItem& item) const;
  struct PinnedParent {
    PageRecord* record = nullptr;  // null for the first page of a sequence
    Encoding form = Encoding::kWide;
  };
  ItemResult PinParent(const Namespace& space, const PutItem& item, PinnedParent* parent);
  ItemResult Commit(PutSlot& slot);
  // kOk; kSkipped when the parent is gone; kBusy when the key was stored meanwhile; kNoSpace when
  // there are as many pages as there can be.
  ItemStatus InsertPage(PutSlot& slot, const PageProbe& probe) ABSL_LOCKS_EXCLUDED(tree_mutex_);
  // Tells the policy and the memory of dropped keys that a page did not get in.
  void RefusePage(const Namespace& space, const PageTraits& page) ABSL_LOCKS_EXCLUDED(tree_mutex_);
  void LinkLocked(PageRecord& record, PageRecord* parent)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  // What a record is filled with.
  struct NewPage {
    const Namespace* space;
    std::string_view key;
    uint64_t first_position;
    Encoding encoding;
    TierSlot slot;
  };
  // What brought it.
  struct Arrival {
    bool ends_put = false;
    RequestTraits request = {};
  };
  static void FillRecord(PageRecord& record, const NewPage& page);
  // Makes the page, which is not stored, visible.
  void EnterLocked(PageRecord& record, PageRecord* parent, const PageProbe& probe,
                   const Arrival& arrival) ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  void Abandon(PutSlot& slot);
  void CountPut(ItemStatus status);

  // page_store_scan.cc
  VerifyProgress VerifySome(uint64_t cursor, uint64_t bytes_max);
  ListResult ListArchive(const Namespace& space, uint32_t pages_max, uint64_t cursor) const;

  // page_store_archive.cc
  std::optional<ArchivedPage> FindArchived(const Namespace& space, std::string_view key) const;
  bool IsArchived(const Namespace& space, std::string_view key) const;
  // With what extends it.
  void ForgetArchived(const Namespace& space, std::string_view key);
  // The page has the form that it is going to keep: it is written, if all are.
  void ArchiveNewForm(PageRecord& record);
  // The page in memory, which stays as long as the lock is held; null: it is not there.
  PageRecord* FindLocked(const Namespace& space, std::string_view key)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  // Empty when the page has gone, or is archived. `parent` becomes the parent's key.
  PinnedPage PinForArchive(PageRecord& record, std::string* parent)
      ABSL_LOCKS_EXCLUDED(tree_mutex_);
  PinnedPage PinForArchive(const Namespace& space, std::string_view key, std::string* parent)
      ABSL_LOCKS_EXCLUDED(tree_mutex_);
  PinnedPage PinForArchiveLocked(PageRecord& record, std::string* parent)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  // The pages in memory from the page's root to itself, but for those in `seen`, which has them
  // afterwards.
  std::vector<std::string> ChainOf(const Namespace& space, std::string_view key,
                                   absl::flat_hash_set<std::string>* seen)
      ABSL_LOCKS_EXCLUDED(tree_mutex_);
  // What became of a page that was to be durable and is not, when writing it is not why.
  ItemResult WhyNotDurable(const Namespace& space, std::string_view key) const;

  // page_store_demotion.cc
  // Whether pages are written as they leave memory.
  bool DemotesPages() const;
  // Whether a page that is put is going to be written: then memory takes it, worth it or not.
  bool WillBeArchived(const Tenant& tenant, const PageTraits& put)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  // Whether `victim`, which is not held, stays until it was written: it is worth it, and neither
  // archived nor was tried. What it extends is written before it.
  bool AwaitsArchiving(PageRecord& victim, absl::Duration now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  bool IsWorthWriting(const PageRecord& record, absl::Duration now) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  // The page waits to be written, behind those of what it extends that are not archived either.
  // False when too many wait.
  bool QueueDemotion(PageRecord& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  // It has been its turn: it may go.
  void EndDemotionLocked(PageRecord& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  void LeaveDemotionLocked(PageRecord& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  // What the writer took has had its turn; `refused` of it were not written.
  using ArchiveRefusals = std::array<uint64_t, kArchiveRefusals>;
  void EndDemotions(std::span<PageRecord* const> records, const ArchiveRefusals& refused)
      ABSL_LOCKS_EXCLUDED(tree_mutex_);

  // What the tenant's pages take in the archive.
  uint64_t ArchivedBytesOf(const Tenant& tenant) const ABSL_LOCKS_EXCLUDED(namespaces_mutex_);
  // The page, which may have been removed, is written from here on.
  void BeginArchiving(const PageRecord& pinned) ABSL_LOCKS_EXCLUDED(tree_mutex_);
  // It is removed, perhaps while it is written: then nobody finds it in the archive, which cannot
  // forget what it does not have yet.
  void HideArchiving(const PageRecord& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  // It was written, or could not be.
  void FinishArchiving(const PageRecord& pinned) ABSL_LOCKS_EXCLUDED(tree_mutex_);
  // Returns how many pages were archived only.
  uint64_t ClearArchive(const Namespace& space);
  struct Loading;
  // Who wants pages back: readers, the first of them in any case, or the put of a page that extends
  // them all, root first.
  enum class LoadFor : uint8_t { kFetch, kParent };
  // Reads those of `keys` into memory that are archived and not there, as far as there is room, in
  // one batch. [keys], as Pin and Load say. Waits for the device.
  std::vector<PinResult> LoadBatch(const Namespace& space, std::span<const std::string_view> keys,
                                   LoadFor what_for);
  // Takes the slot over. Empty when the page is there already, or cannot be entered and is not
  // `wanted`.
  PinnedPage EnterLoaded(const Namespace& space, const Loading& loading, const ArchiveRead& read,
                         bool wanted) ABSL_LOCKS_EXCLUDED(tree_mutex_);

  // page_store_ladder.cc
  void Replace(const Namespace& space) ABSL_LOCKS_EXCLUDED(tree_mutex_);
  // Whether host memory is short, or what the tenant may hold of it.
  bool IsShortLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  bool IsShortLocked(const Tenant& tenant) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  // Wakes the re-encoder when it has something to do. `due`: a page has become due.
  void RingIfNeededLocked(bool due) ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  // A WIDE page to re-encode, pinned, with its codec; empty when there is nothing to do.
  struct WidePage {
    PinnedPage page;
    const PageCodec* codec = nullptr;
  };
  WidePage TakeWide() ABSL_LOCKS_EXCLUDED(tree_mutex_);
  // There was no room of `bytes`, or (`tenant`) none that it may hold.
  void CallForReEncoding(uint64_t bytes, const Tenant* tenant) ABSL_LOCKS_EXCLUDED(tree_mutex_);
  // Whether pages, or (`tenant`) its pages, can be re-encoded if memory is short. Wakes who does.
  bool MayShrink(const Tenant* tenant) ABSL_LOCKS_EXCLUDED(tree_mutex_);
  // Whether a page of `asker` that finds no room, or (`own_only`) none that it may hold, is to come
  // again, because re-encoding makes some: as long as it gets on. Nobody waits for it because of
  // others who hold more than their shares.
  bool BitsGoFirst(const Tenant& asker, bool own_only) ABSL_LOCKS_EXCLUDED(tree_mutex_);
  // Room for the PACKED form of a page that was taken. It counts as its tenant's only when the page
  // has it.
  absl::StatusOr<TierSlot> ReservePacked(const PinnedPage& wide) ABSL_LOCKS_EXCLUDED(tree_mutex_);
  // The page has the bytes in `packed` from now on, whose readers keep those that they have.
  // Returns whether it has: not when it left the store, or is leased, meanwhile; the slot is
  // released then.
  bool SwapForm(const PinnedPage& wide, const TierSlot& packed) ABSL_LOCKS_EXCLUDED(tree_mutex_);
  // The page that was taken stays WIDE: for good, or until there is room for its PACKED form.
  void KeepWide(const PinnedPage& wide, std::optional<StaysWide> why)
      ABSL_LOCKS_EXCLUDED(tree_mutex_);
  void ParkLeasedLocked(PageRecord& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  // One reader of the form that the page had before lets go of it.
  void LeaveRetiredLocked(PageRecord& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  void FillLadderStatsLocked(LadderStats* stats) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);

  // page_store_room.cc
  // Makes room for a page that is put; for one that somebody waits for, the policy is not asked
  // whether it is worth it.
  enum class Admission : uint8_t { kByPolicy, kAlways };
  struct Room {
    ItemResult result = {};  // kOk: `slot` is there; kNoSpace, kQuota
    TierSlot slot = {};
    bool refused = false;  // by the policy
  };
  Room ReserveSlot(const Namespace& space, const PageTraits& page, Admission admission)
      ABSL_LOCKS_EXCLUDED(tree_mutex_);
  // Whose pages go, for what.
  struct Eviction {
    Tenant& asker;
    bool own_only = false;               // only pages of the asker
    const PageTraits* judged = nullptr;  // null: not to be judged by the policy
    const Namespace* page_of = nullptr;  // of a page whose bringer can be told to come again
    bool re_encodes = false;             // for the PACKED form of a page
  };
  enum class Evicted : uint8_t { kEnough, kSome, kNone, kRefused };
  // Evicts pages until `enough` says so, in one hold of the tree lock, within `work_left` steps,
  // which it takes from it. kNone: nothing may go. kRefused: what would have to go is worth more
  // than the page.
  Evicted EvictSome(const Eviction& eviction, uint32_t* work_left, absl::FunctionRef<bool()> enough)
      ABSL_LOCKS_EXCLUDED(tree_mutex_);
  // Takes a slot from the tenant's quota, for which its own pages go if they have to.
  Room TakeQuota(const Eviction& eviction, uint64_t bytes, uint32_t* work_left)
      ABSL_LOCKS_EXCLUDED(tree_mutex_);
  static uint64_t SlotBytes(const Namespace& space, Encoding form);
  bool CanShrinkRegionOf(const Namespace& space) const;  // of its WIDE pages: see MappedTier
  // Whether what is free is enough to re-encode WIDE pages with, and for tenants within their
  // protected shares; or there are none to re-encode.
  bool LeavesRoomWhileBitsGo(const Namespace& space) ABSL_LOCKS_EXCLUDED(tree_mutex_);
  // Whether room to re-encode its pages is kept, for when its transform set comes.
  bool KeepsRoomForCodec(const Namespace& space) const ABSL_LOCKS_EXCLUDED(tree_mutex_);
  // Takes it from the tier.
  Room ReserveInTier(const Eviction& eviction, uint64_t bytes, uint32_t* work_left)
      ABSL_LOCKS_EXCLUDED(tree_mutex_);
  // Moves pages so that a region of the tier can serve slots of `bytes`; returns whether it did.
  bool FreeRegion(uint64_t bytes) ABSL_LOCKS_EXCLUDED(tree_mutex_);
  bool MovePage(PageId page) ABSL_LOCKS_EXCLUDED(tree_mutex_);

  // page_store_remove.cc
  // Removes a page without children. With kEvicted only if nobody holds it; returns whether it did.
  bool RemoveLocked(PageRecord& record, RemoveReason reason)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  void UnlinkLocked(PageRecord& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  void FreeLocked(PageRecord& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  // Removes `root`, which the caller pins, and all that extends it. False when somebody else has.
  bool RemoveTree(PageRecord& root, RemoveReason root_reason, RemoveReason below_reason)
      ABSL_LOCKS_EXCLUDED(tree_mutex_);
  bool DropCorrupt(PageRecord& pinned, Encoding bad);  // false: somebody else has
  void TellCorrupt(std::string_view fingerprint, std::string_view key, TierKind tier, CorruptAt at,
                   const absl::Status& error) const;
  void OnCorruptArchived(const ArchiveCorruption& page) ABSL_LOCKS_EXCLUDED(tree_mutex_);
  // Which block of it is bad; OK: none that is known.
  absl::Status BadBlockIn(const ArchiveCorruption& page) const;
  // Tells the policy whether the page may go.
  void OfferLocked(const PageRecord& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  bool MayPin(Tenant& tenant, uint64_t slot_bytes) const ABSL_LOCKS_EXCLUDED(tree_mutex_);
  // Of the whole memory, and of what the tenant may hold.
  bool MayPinLocked(Tenant& tenant, uint64_t slot_bytes) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  // Pins or unpins the page as `residency` says; false when it may not be pinned.
  bool SetResidencyLocked(PageRecord& record, Residency residency)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(tree_mutex_);
  // Of pages that are archived only; returns how many. `ttls`: [namespace id].
  uint64_t ExpireArchived(std::span<const absl::Duration> ttls) ABSL_LOCKS_EXCLUDED(tree_mutex_);
  // Removes, leaves first, what `removable` says, in short holds of the tree lock.
  uint64_t Sweep(absl::FunctionRef<bool(const PageRecord&)> removable, RemoveReason reason)
      ABSL_LOCKS_EXCLUDED(tree_mutex_);
  uint32_t NowSeconds() const { return static_cast<uint32_t>(clock_.Now() / absl::Seconds(1)); }
  bool IsLeaf(const PageRecord& record) const { return record.first_child == kNoPage; }

  // Constant after construction.
  const PageStoreOptions options_;
  const std::unique_ptr<MappedTier> tier_;
  const Clock& clock_;
  TenantTable tenants_;                         // copies give back to it what they took
  const std::unique_ptr<PageCopies> copies_;    // null: none. Reads the tier's memory: goes first
  const std::unique_ptr<PageArchive> archive_;  // null: none
  const std::unique_ptr<ArchiveQueue> archive_queue_;

  // Guards the namespaces; taken with no other lock.
  mutable absl::Mutex namespaces_mutex_;
  std::vector<std::unique_ptr<Namespace>> namespaces_ ABSL_GUARDED_BY(namespaces_mutex_);
  absl::flat_hash_map<std::string, const Namespace*> by_fingerprint_
      ABSL_GUARDED_BY(namespaces_mutex_);

  // The tree lock: which pages there are, who extends whom, and in which order they go. Taken
  // before a shard's lock, never after.
  mutable absl::Mutex tree_mutex_;
  RecordTable records_;  // Get by any thread; the rest under the tree lock
  PageIndex index_;      // locks itself; changed under the tree lock
  FairEviction eviction_ ABSL_GUARDED_BY(tree_mutex_);
  std::vector<SpacePages> space_pages_ ABSL_GUARDED_BY(tree_mutex_);    // [namespace id]
  std::vector<absl::Duration> page_ttls_ ABSL_GUARDED_BY(tree_mutex_);  // [namespace id]
  absl::Duration expire_at_ ABSL_GUARDED_BY(tree_mutex_);               // the next look at them
  uint64_t pages_ ABSL_GUARDED_BY(tree_mutex_) = 0;
  uint64_t pinned_bytes_ ABSL_GUARDED_BY(tree_mutex_) = 0;
  uint64_t detached_pages_ ABSL_GUARDED_BY(tree_mutex_) = 0;
  std::array<uint64_t, kRemoveReasons> removed_ ABSL_GUARDED_BY(tree_mutex_){};
  uint64_t evicted_bytes_ ABSL_GUARDED_BY(tree_mutex_) = 0;
  bool moving_ ABSL_GUARDED_BY(tree_mutex_) = false;  // an evacuation is under way
  Ladder ladder_ ABSL_GUARDED_BY(tree_mutex_);
  uint64_t demoting_pages_ ABSL_GUARDED_BY(tree_mutex_) = 0;  // that wait (Demotion::kWaits)
  ArchiveRefusals archive_refused_ ABSL_GUARDED_BY(tree_mutex_){};
  absl::flat_hash_set<const PageRecord*> archiving_ ABSL_GUARDED_BY(tree_mutex_);
  GonePages gone_;  // while they were written to the archive, until it has forgotten them
  // Slots of WIDE pages that were re-encoded while somebody read them, until the last has ended.
  struct Retired {
    TierSlot slot;
    uint64_t pins = 0;
  };
  absl::flat_hash_map<PageId, Retired> retired_ ABSL_GUARDED_BY(tree_mutex_);
  uint64_t retired_bytes_ ABSL_GUARDED_BY(tree_mutex_) = 0;
  // By the clock, in nanoseconds; relaxed: it orders nothing.
  std::atomic<int64_t> quotas_set_at_{0};
  uint64_t wanted_bytes_ ABSL_GUARDED_BY(tree_mutex_) = 0;  // that were not free when asked for
  // Since when a put waits for room and no page has been re-encoded; none: not at all.
  std::optional<absl::Duration> stalled_since_ ABSL_GUARDED_BY(tree_mutex_);
  LadderStats ladder_stats_ ABSL_GUARDED_BY(tree_mutex_);  // those that count since the start
  Bell reencode_bell_;

  LeaseTable leases_;
  mutable Counters counters_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_PAGE_STORE_H_
