#include "server/core/page_store.h"

#include <algorithm>
#include <cassert>
#include <numeric>
#include <utility>

#include "absl/random/random.h"

#include "kernels/base/status_macros.h"
#include "server/core/lru_policy.h"

namespace oscarkv {
namespace {

void Raise(std::atomic<uint64_t>& counter, uint64_t by = 1) {
  counter.fetch_add(by, std::memory_order_relaxed);
}

// Of a prefix, before it is known whether any of it is there.
constexpr size_t kKeysLookedUpFirst = 16;

uint64_t RandomSeed() {
  absl::BitGen random;
  return absl::Uniform<uint64_t>(random);
}

}  // namespace

// --- Life ---

absl::StatusOr<std::unique_ptr<PageStore>> PageStore::Create(const PageStoreOptions& options,
                                                             std::unique_ptr<MappedTier> tier,
                                                             std::unique_ptr<EvictionPolicy> policy,
                                                             const Clock& clock,
                                                             std::unique_ptr<PageCopies> copies,
                                                             std::unique_ptr<PageArchive> archive) {
  if (tier == nullptr) return absl::InvalidArgumentError("store: a tier is needed");
  if (!(options.leased_share_max >= 0 && options.leased_share_max <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "store: leased_share_max must be between 0 and 1, found ", options.leased_share_max));
  }
  if (!(options.pinned_share_max >= 0 && options.pinned_share_max <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "store: pinned_share_max must be between 0 and 1, found ", options.pinned_share_max));
  }
  if (!(options.reencode_free_share >= 0 && options.reencode_free_share <= 1 &&
        options.wide_tails_share_max >= 0 && options.wide_tails_share_max <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "store: reencode_free_share and wide_tails_share_max must be between 0 and 1, found ",
        options.reencode_free_share, " and ", options.wide_tails_share_max));
  }
  if (options.namespaces_max == 0 || options.tenants_max == 0 ||
      options.evictions_per_put_max == 0 || options.lease_max <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        "store: namespaces_max, tenants_max, evictions_per_put_max and lease_max must be positive");
  }
  if (policy == nullptr) policy = std::make_unique<LruPolicy>();
  return std::unique_ptr<PageStore>(new PageStore(options, std::move(tier), std::move(policy),
                                                  clock, std::move(copies), std::move(archive)));
}

PageStore::PageStore(const PageStoreOptions& options, std::unique_ptr<MappedTier> tier,
                     std::unique_ptr<EvictionPolicy> policy, const Clock& clock,
                     std::unique_ptr<PageCopies> copies, std::unique_ptr<PageArchive> archive)
    : options_(options),
      tier_(std::move(tier)),
      clock_(clock),
      tenants_(options.tenants_max, options.dropped_keys_remembered),
      copies_(std::move(copies)),
      archive_(std::move(archive)),
      archive_queue_(archive_ == nullptr
                         ? nullptr
                         : std::make_unique<ArchiveQueue>(options.archive_queued_max)),
      index_(records_, RandomSeed()),
      eviction_(std::move(policy)),
      ladder_(records_, options.store_wide, options.wide_tails_share_max, tier_->capacity_bytes()),
      leases_({static_cast<uint64_t>(options.leased_share_max *
                                     static_cast<double>(tier_->capacity_bytes())),
               options.leases_max}) {
  if (archive_ != nullptr)
    archive_->OnCorrupt([this](const ArchiveCorruption& page) { OnCorruptArchived(page); });
}

PageStore::~PageStore() { assert(counters_.pins.load() == 0 && counters_.open_puts.load() == 0); }

// --- Namespaces ---

absl::StatusOr<const Namespace*> PageStore::OpenNamespace(const NamespaceSpec& spec, bool create) {
  OSCARKV_RETURN_IF_ERROR(ValidateNamespaceSpec(spec));
  absl::MutexLock lock(&namespaces_mutex_);
  const auto found = by_fingerprint_.find(Fingerprint(spec));
  if (found != by_fingerprint_.end()) return found->second;
  if (!create) {
    return absl::NotFoundError(absl::StrCat("namespace of model ", spec.model,
                                            " with this spec is not open, and not to be made"));
  }
  if (namespaces_.size() >= options_.namespaces_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("namespaces: at most ", options_.namespaces_max, " may be open"));
  }
  OSCARKV_ASSIGN_OR_RETURN(Tenant* const tenant, tenants_.Open(spec.tenant));
  OSCARKV_ASSIGN_OR_RETURN(
      Namespace space, Namespace::Create(spec, static_cast<uint32_t>(namespaces_.size()), tenant));
  {
    const absl::MutexLock tree_lock(&tree_mutex_);
    for (const Tenant* known : tenants_.All()) eviction_.Add(*known);
  }
  namespaces_.push_back(std::make_unique<Namespace>(std::move(space)));
  const Namespace* opened = namespaces_.back().get();
  index_.Reserve(tier_->capacity_bytes() / std::min(opened->page_bytes(Encoding::kWide),
                                                    opened->page_bytes(Encoding::kPacked)));
  by_fingerprint_[opened->fingerprint()] = opened;
  return opened;
}

void PageStore::SetPageTtl(const Namespace& space, absl::Duration ttl) {
  absl::MutexLock lock(&tree_mutex_);
  if (page_ttls_.size() <= space.id())
    page_ttls_.resize(space.id() + size_t{1}, absl::InfiniteDuration());
  page_ttls_[space.id()] = ttl;
  expire_at_ = clock_.Now();
}

const Namespace* PageStore::FindNamespace(std::string_view fingerprint) const {
  absl::ReaderMutexLock lock(&namespaces_mutex_);
  const auto found =
      by_fingerprint_.find(absl::string_view(fingerprint.data(), fingerprint.size()));
  return found == by_fingerprint_.end() ? nullptr : found->second;
}

std::vector<const Namespace*> PageStore::Namespaces() const {
  absl::ReaderMutexLock lock(&namespaces_mutex_);
  std::vector<const Namespace*> spaces;
  spaces.reserve(namespaces_.size());
  for (const auto& space : namespaces_) spaces.push_back(space.get());
  return spaces;
}

// --- Lookup ---

LookupResult PageStore::Lookup(const Namespace& space, const LookupRequest& request) {
  LookupResult result;
  const bool wants_lease = request.lease_session != 0;
  const bool leases = wants_lease && leases_.HasSession(request.lease_session);
  if (wants_lease && !leases) result.lease_status = ItemStatus::kFenced;

  std::vector<LeasedPage> held;
  if (leases) held.reserve(request.keys.size());
  std::array<uint64_t, kItemStatuses> counts{};
  result.pages.reserve(request.keys.size());
  const auto look = [&](const PageProbe& probe, PageRecord* record) {
    const FoundPage page = LookUpOne(probe, record, leases ? &held : nullptr);
    const bool found = page.status == ItemStatus::kOk;
    ++counts[static_cast<size_t>(page.status)];
    if (result.hole == ItemStatus::kOk) {
      result.hole = page.status;
      result.prefix_pages += found ? 1 : 0;
    }
    if (!found && request.mode == LookupMode::kPrefix) return false;
    result.fetch_bytes += page.meta.bytes;
    result.pages.push_back(page);
    return true;
  };
  std::array<PageProbe, PageIndex::kManyMax> probes;
  // Few at first: a prefix that is not there takes no time.
  size_t many = request.mode == LookupMode::kPrefix ? kKeysLookedUpFirst : probes.size();
  bool more = true;
  for (size_t first = 0; more && first < request.keys.size(); first += many, many = probes.size()) {
    many = std::min(many, request.keys.size() - first);
    for (size_t i = 0; i < many; ++i) probes[i] = index_.Probe(space, request.keys[first + i]);
    const auto batch = std::span(probes).first(many);
    index_.ReadMany(batch,
                    [&](size_t i, PageRecord* record) { return more = look(probes[i], record); });
  }
  const uint64_t hits = counts[static_cast<size_t>(ItemStatus::kOk)];
  const uint64_t misses = counts[static_cast<size_t>(ItemStatus::kMiss)];
  const uint64_t keys = std::accumulate(counts.begin(), counts.end(), uint64_t{0});
  Raise(counters_.lookups, keys);
  Raise(counters_.lookup_hits, hits);
  Raise(counters_.lookup_misses, misses);
  Raise(counters_.lookup_evicted, keys - hits - misses);
  if (!held.empty()) GrantLease(space, request, held, &result);
  return result;
}

bool PageStore::Holds(const Namespace& space, std::string_view key) const {
  return index_.Read(index_.Probe(space, key), [](PageRecord&) {});
}

uint32_t PageStore::CountUnseen(const Namespace& space,
                                std::span<const std::string_view> keys) const {
  uint32_t unseen = 0;
  for (const std::string_view key : keys) {
    const PageProbe probe = index_.Probe(space, key);
    const bool held = index_.Read(probe, [](PageRecord&) {});
    if (!held && AbsentStatus(probe) == ItemStatus::kMiss) ++unseen;
  }
  return unseen;
}

FoundPage PageStore::LookUpOne(const PageProbe& probe, PageRecord* record,
                               std::vector<LeasedPage>* held) {
  if (record != nullptr) {
    if (held != nullptr) {
      record->state.fetch_add(page_state::kHold, std::memory_order_acq_rel);
      held->push_back({record->id, record->slot_bytes()});
    }
    return {ItemStatus::kOk, MetaOf(*record)};
  }
  if (archive_ != nullptr) {
    if (const std::optional<ArchivedPage> archived = FindArchived(*probe.space, probe.key)) {
      const uint64_t bytes = probe.space->page_bytes(archived->encoding);
      return {ItemStatus::kOk,
              {archived->encoding, TierKind::kDisk, bytes, archived->first_position}};
    }
  }
  return {AbsentStatus(probe), {}};
}

void PageStore::GrantLease(const Namespace& space, const LookupRequest& request,
                           std::span<const LeasedPage> held, LookupResult* result) {
  const bool bounded = request.lease_duration > absl::ZeroDuration();
  const absl::Duration life =
      bounded ? std::min(request.lease_duration, options_.lease_max) : options_.lease_max;
  const Tenant& tenant = space.tenant();
  const auto own = static_cast<double>(std::min(tier_->capacity_bytes(), tenant.host_bytes_max()));
  const LeaseTable::Grant grant =
      leases_.Add(request.lease_session, held, {clock_.Now(), life},
                  {tenant.id(), static_cast<uint64_t>(options_.leased_share_max * own)});
  result->lease_status = grant.status;
  result->lease = grant.lease;
  if (grant.status == ItemStatus::kOk) {
    result->lease_life = life;
    return;
  }
  for (const LeasedPage& page : held) LetGo(records_.Get(page.page), std::nullopt);
}

// --- Pins ---

PageMeta PageStore::MetaOf(const PageRecord& record) const {
  const bool copied = (record.state.load(std::memory_order_acquire) & page_state::kCopied) != 0;
  return {record.encoding, copied ? TierKind::kGpu : tier_->kind(), record.page_bytes(),
          record.first_position};
}

MutableByteView PageStore::SlotOf(const PageRecord& record) const {
  return tier_->Map({record.slot_offset, record.slot_bytes()});
}

PinnedPage PageStore::MakePinned(PageRecord& record) {
  record.state.fetch_add(page_state::kPin, std::memory_order_acq_rel);
  Raise(counters_.pins);
  PinnedPage page;
  page.store_ = this;
  page.record_ = &record;
  page.layout_ = &record.space->layout(record.encoding);
  page.slot_ = SlotOf(record);
  page.meta_ = MetaOf(record);
  return page;
}

PinnedPage PageStore::PinRecord(PageRecord& record) {
  absl::MutexLock lock(&tree_mutex_);
  return PinRecordLocked(record);
}

PinnedPage PageStore::PinRecordLocked(PageRecord& record) {
  PinnedPage page;
  if (record.in_index) index_.Write(record, [&] { page = MakePinned(record); });
  return page;
}

PinnedCopy PageStore::PinCopy(const PinnedPage& page) const {
  if (copies_ == nullptr) return {};
  PinnedCopy copy = copies_->Pin(*page.record_);
  // The copy may be of the other form: the page was re-encoded since it was pinned.
  return copy && copy.slot().bytes == page.slot_.size() ? copy : PinnedCopy();
}

void PageStore::WantCopies(const Namespace& space, std::span<const std::string_view> keys) {
  if (copies_ == nullptr) return;
  std::vector<PageRecord*> pages;
  for (const std::string_view key : keys)
    index_.Read(index_.Probe(space, key), [&](PageRecord& record) { pages.push_back(&record); });
  copies_->Want(pages, clock_.Now());
}

PinResult PageStore::Pin(const Namespace& space, std::string_view key) {
  PinResult result;
  const PageProbe probe = index_.Probe(space, key);
  const bool found =
      index_.Read(probe, [&](PageRecord& record) { result.page = MakePinned(record); });
  result.status = found ? ItemStatus::kOk : AbsentStatus(probe);
  result.archived = !found && IsArchived(space, key);
  if (!result.archived) CountFetch(result.status, result.page.meta());
  return result;
}

void PageStore::CountFetch(ItemStatus status, const PageMeta& page) {
  if (status == ItemStatus::kOk) {
    const auto depth = static_cast<size_t>(
        std::upper_bound(kHitDepths.begin(), kHitDepths.end(), page.first_position) -
        kHitDepths.begin());
    Raise(counters_.hits_by_tier[static_cast<size_t>(page.tier) - 1][depth]);
  }
  Raise(status == ItemStatus::kOk     ? counters_.fetch_hits
        : status == ItemStatus::kMiss ? counters_.fetch_misses
                                      : counters_.fetch_evicted);
}

void PageStore::Unpin(PageRecord& record, Encoding form) {
  counters_.pins.fetch_sub(1, std::memory_order_relaxed);
  LetGo(record, form);
}

void PageStore::LetGo(PageRecord& record, std::optional<Encoding> form) {
  const uint64_t unit = form.has_value() ? page_state::kPin : page_state::kHold;
  uint64_t state = record.state.load(std::memory_order_acquire);
  while ((state & page_state::kTold) == 0) {
    if (record.state.compare_exchange_weak(state, state - unit, std::memory_order_acq_rel)) return;
  }
  // Somebody wants to know when the last holder is gone. This hold keeps the record until then.
  absl::MutexLock lock(&tree_mutex_);
  LetGoLocked(record, form);
}

void PageStore::LetGoLocked(PageRecord& record, std::optional<Encoding> form) {
  const uint64_t unit = form.has_value() ? page_state::kPin : page_state::kHold;
  // Before the count falls, lest it be the last and another holder of the tree lock frees it.
  if (form.has_value() && *form != record.encoding) LeaveRetiredLocked(record);
  const uint64_t state = record.state.fetch_sub(unit, std::memory_order_acq_rel) - unit;
  if ((state & page_state::kAwaited) != 0 && !page_state::IsLeased(state)) {
    record.state.fetch_and(~page_state::kAwaited, std::memory_order_acq_rel);
    ladder_.Unpark(record);
    RingIfNeededLocked(ladder_.HasDue());
  }
  if (page_state::IsHeld(state)) return;
  if ((state & page_state::kDetached) != 0) {
    --detached_pages_;
    FreeLocked(record);
  } else if ((state & page_state::kParked) != 0) {
    record.state.fetch_and(~page_state::kParked, std::memory_order_acq_rel);
    OfferLocked(record);
  }
}

// --- Recency ---

std::vector<ItemStatus> PageStore::Touch(const Namespace& space,
                                         std::span<const std::string_view> keys,
                                         const RequestTraits& request) {
  struct Found {
    PageRecord* record = nullptr;
    uint64_t hash = 0;
  };
  std::vector<ItemStatus> statuses(keys.size(), ItemStatus::kOk);
  std::vector<Found> found_pages(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    const PageProbe probe = index_.Probe(space, keys[i]);
    const bool found = index_.Read(probe, [&](PageRecord& record) {
      found_pages[i] = {&record, probe.hash};
    });
    if (!found && !IsArchived(space, keys[i])) statuses[i] = AbsentStatus(probe);
  }
  std::vector<UsedPage> used;
  std::vector<PageRecord*> used_records;
  used.reserve(keys.size());
  const absl::Duration now = clock_.Now();
  const uint32_t now_s = NowSeconds();
  {
    absl::MutexLock lock(&tree_mutex_);
    for (size_t i = keys.size(); i-- > 0;) {
      // Looked up before the lock, so that the lock is short: is it still the same page?
      const auto& [record, hash] = found_pages[i];
      if (record == nullptr || !record->in_index || record->space != &space ||
          record->key.view() != keys[i])
        continue;
      used.push_back({record->id, hash});
      used_records.push_back(record);
      record->used_at_s = now_s;
      // What could not be written once may be by the time that it goes.
      if (record->demotion == Demotion::kTried) record->demotion = Demotion::kNone;
      if (!SetResidencyLocked(*record, request.residency)) statuses[i] = ItemStatus::kQuota;
    }
    eviction_.OnUse(space.tenant(), used, request, now);
  }
  if (copies_ != nullptr) copies_->OnUse(used_records, now);
  if (archive_ != nullptr && options_.archive_admission == ArchiveAdmission::kFetched) {
    // Parents first. What is archived already, the writer sees.
    for (size_t i = used_records.size(); i-- > 0;) archive_queue_->Add(used_records[i]);
  }
  return statuses;
}

// --- Sessions and leases ---

SessionId PageStore::OpenSession(std::string_view client_name) {
  return leases_.OpenSession(client_name);
}

bool PageStore::CloseSession(SessionId session) {
  std::vector<PageId> dropped;
  const bool was_open = leases_.CloseSession(session, clock_.Now(), &dropped);
  DropHolds(dropped);
  return was_open;
}

ItemStatus PageStore::ReleaseLease(LeaseId lease) {
  std::vector<PageId> dropped;
  const bool was_there = leases_.Release(lease, clock_.Now(), &dropped);
  DropHolds(dropped);
  return was_there ? ItemStatus::kOk : ItemStatus::kFenced;
}

bool PageStore::LeaseIsLive(LeaseId lease) const { return leases_.Has(lease); }

size_t PageStore::ExpireLeases() {
  std::vector<PageId> dropped;
  const size_t count = leases_.Expire(clock_.Now(), &dropped);
  DropHolds(dropped);
  return count;
}

void PageStore::DropHolds(std::span<const PageId> pages) {
  for (const PageId page : pages) LetGo(records_.Get(page), std::nullopt);
}

// --- Statistics ---

StoreStats PageStore::Stats() const {
  const auto read = [](const Counter& counter) { return counter.load(std::memory_order_relaxed); };
  StoreStats stats;
  StoreCounters& out = stats.counters;
  out.lookups = read(counters_.lookups);
  out.lookup_hits = read(counters_.lookup_hits);
  out.lookup_misses = read(counters_.lookup_misses);
  out.lookup_evicted = read(counters_.lookup_evicted);
  out.fetch_hits = read(counters_.fetch_hits);
  for (size_t tier = 0; tier < kTierKinds; ++tier)
    for (size_t depth = 0; depth < kHitDepthNames.size(); ++depth)
      out.hits_by_tier[tier][depth] = read(counters_.hits_by_tier[tier][depth]);
  stats.scrubbed_pages = read(counters_.scrubbed_pages);
  stats.scrub_pages = read(counters_.scrub_pages);
  out.fetch_misses = read(counters_.fetch_misses);
  out.loaded_pages = read(counters_.loaded_pages);
  for (size_t i = 0; i < kParentLoads; ++i) out.parent_loads[i] = read(counters_.parent_loads[i]);
  out.fetch_evicted = read(counters_.fetch_evicted);
  out.fetch_bytes = read(counters_.fetch_bytes);
  for (size_t i = 0; i < kItemStatuses; ++i) {
    out.puts_by_outcome[i] = read(counters_.puts_by_outcome[i]);
    out.persists_by_outcome[i] = read(counters_.persists_by_outcome[i]);
  }
  out.puts_abandoned = read(counters_.puts_abandoned);
  out.puts_refused = read(counters_.puts_refused);
  out.put_bytes = read(counters_.put_bytes);
  out.corrupt_pages = read(counters_.corrupt_pages);
  out.verified_pages = read(counters_.verified_pages);
  out.moved_pages = read(counters_.moved_pages);
  out.moved_bytes = read(counters_.moved_bytes);
  stats.open_puts = read(counters_.open_puts);

  const LeaseStats leases = leases_.Stats(clock_.Now());
  stats.lease_ages = leases.ages;
  stats.oldest_lease_s = leases.oldest_s;
  out.leases_granted = leases.granted;
  out.leases_refused = leases.refused;
  out.leases_released = leases.released;
  out.leases_expired = leases.expired;
  out.leases_orphaned = leases.orphaned;
  stats.sessions = leases.sessions;
  stats.leases = leases.leases;
  stats.leased_bytes = leases.leased_bytes;
  stats.leasable_bytes = leases.leasable_bytes;
  stats.pins = read(counters_.pins);
  stats.holds = leases.holds;

  if (copies_ != nullptr) {
    stats.tiers.push_back(copies_->Stats());
    stats.copies = copies_->Counters();
  }
  stats.tiers.push_back(tier_->Stats());
  if (archive_ != nullptr) {
    stats.tiers.push_back(archive_->Stats());
    stats.archived = true;
    stats.archive = archive_->Counters();
  }
  stats.index_bytes = index_.memory_bytes() + tenants_.memory_bytes();
  for (const Tenant* tenant : tenants_.All()) {
    stats.tenants.push_back(tenant->Stats());
    if (archive_ != nullptr) stats.tenants.back().disk_bytes = ArchivedBytesOf(*tenant);
  }
  const std::vector<const Namespace*> spaces = Namespaces();
  absl::MutexLock lock(&tree_mutex_);
  out.removed_by_reason = removed_;
  if (archive_ != nullptr) {
    stats.archive.refused_pages = archive_refused_;
    stats.archive.refused_pages[static_cast<size_t>(ArchiveRefusal::kBehind)] +=
        archive_queue_->refused();
  }
  FillLadderStatsLocked(&stats.ladder);
  stats.policy = eviction_.name();
  stats.policy_bytes = eviction_.memory_bytes();
  stats.pinned_bytes = pinned_bytes_;
  out.evicted_bytes = evicted_bytes_;
  stats.pages = pages_;
  stats.detached_pages = detached_pages_;
  stats.index_bytes += records_.memory_bytes() + ladder_.memory_bytes();
  for (const Namespace* space : spaces) {
    const SpacePages pages =
        space->id() < space_pages_.size() ? space_pages_[space->id()] : SpacePages{};
    stats.namespaces.push_back(
        {.fingerprint = space->fingerprint(),
         .namespace_id = space->id(),
         .wide_pages = pages.wide,
         .packed_pages = pages.packed,
         .stored_bytes = pages.wide * space->page_bytes(Encoding::kWide) +
                         pages.packed * space->page_bytes(Encoding::kPacked),
         .wide_equivalent_bytes = (pages.wide + pages.packed) * space->page_bytes(Encoding::kWide),
         .can_pack = ladder_.CodecOf(*space) != nullptr});
  }
  return stats;
}

}  // namespace oscarkv
