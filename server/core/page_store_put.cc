// Putting a page: BeginPut, Commit, and what happens when the key is stored already.
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"

#include "kernels/base/status_macros.h"
#include "proto/wire/page_key.h"
#include "server/core/block_check.h"
#include "server/core/page_store.h"

namespace oscarkv {
namespace {

// Keys in messages: enough to find them.
std::string Shown(std::string_view key) {
  const std::string_view head = key.substr(0, 8);
  return absl::StrCat("key ", absl::BytesToHexString(absl::string_view(head.data(), head.size())),
                      key.size() > head.size() ? ".." : "");
}

std::string PinnedFull(std::string_view key) {
  return absl::StrCat(Shown(key), ": to be pinned, but the share of pinned pages is full");
}

ItemResult Invalid(std::string_view key, std::string_view message) {
  return {ItemStatus::kInvalid,
          absl::StrCat(Shown(key), ": ", absl::string_view(message.data(), message.size()))};
}

}  // namespace

struct PageStore::Claim {
  std::string_view key;
  std::string_view parent;
  uint64_t first_position;
  Encoding encoding;
  ByteView crcs;  // as in a slot: u32 each
};

ItemResult PageStore::CheckItem(const Namespace& space, const PutItem& item) const {
  if (const absl::Status key = ValidateKey(item.key); !key.ok())
    return {ItemStatus::kInvalid, absl::StrCat(key.message())};
  if (!item.parent.empty()) {
    if (const absl::Status parent = ValidateKey(item.parent); !parent.ok())
      return Invalid(item.key, absl::StrCat("parent: ", parent.message()));
    if (item.parent == item.key) return Invalid(item.key, "is its own parent");
  }
  if (!space.holds(item.encoding))
    return Invalid(item.key, "PACKED, but the namespace has no transform set: it holds WIDE pages");
  const CodecSpec& codec = space.spec().codec;
  if (item.encoding == Encoding::kPacked && item.first_position < codec.sink_tokens) {
    return Invalid(item.key, absl::StrCat("PACKED at position ", item.first_position,
                                          ", but pages that cover a position below ",
                                          codec.sink_tokens, " (sink_tokens) are WIDE"));
  }
  if (item.bytes != space.page_bytes(item.encoding)) {
    return Invalid(item.key,
                   absl::StrCat("expected ", space.page_bytes(item.encoding),
                                " bytes (the namespace's page size), found ", item.bytes));
  }
  if (item.block_crcs.size() != space.spec().geometry.blocks()) {
    return Invalid(item.key, absl::StrCat("expected ", space.spec().geometry.blocks(),
                                          " block checksums, found ", item.block_crcs.size()));
  }
  return {};
}

ItemResult PageStore::CompareStored(const PageProbe& probe, const Claim& claim) {
  ItemResult result{ItemStatus::kMiss, ""};
  PinnedPage suspect;
  index_.Read(probe, [&](PageRecord& record) {
    // While a page is in the index its parent is too, and both are constant.
    const std::string_view parent =
        record.parent == kNoPage ? std::string_view() : records_.Get(record.parent).key.view();
    if (record.first_position != claim.first_position || parent != claim.parent) {
      result = {ItemStatus::kConflict,
                absl::StrCat(Shown(claim.key), ": is stored at position ", record.first_position,
                             parent == claim.parent ? "" : " with another parent", ", found ",
                             claim.first_position)};
    } else if (record.encoding != claim.encoding) {
      result = {ItemStatus::kExists, "stored in the other encoding"};
    } else if (const MutableByteView slot = SlotOf(record);
               std::memcmp(slot.data() + record.page_bytes(), claim.crcs.data(),
                           claim.crcs.size()) == 0) {
      result = {ItemStatus::kExists, ""};
    } else {
      suspect = MakePinned(record);
    }
  });
  if (!suspect) return result;
  // Either the writer's bytes differ, or the stored checksums have rotted: then there is no page.
  if (!suspect.VerifyAll(CorruptAt::kPut).ok()) return {ItemStatus::kMiss, ""};
  return {ItemStatus::kConflict,
          absl::StrCat(Shown(claim.key), ": is stored with other block checksums")};
}

ItemResult PageStore::PinParent(const Namespace& space, const PutItem& item, PinnedParent* parent) {
  if (item.parent.empty()) return {};
  const auto misplaced = [&item](uint64_t expected) {
    return Invalid(item.key, absl::StrCat("first_position must be the parent's plus page_tokens, ",
                                          expected, ", found ", item.first_position));
  };
  // An open one is pinned when it is stored.
  if (const PutSlot* open = item.open_parent; open != nullptr && open->store_ != nullptr &&
                                              open->space_ == &space && open->key_ == item.parent) {
    const uint64_t follows = open->first_position_ + space.page_tokens();
    return follows == item.first_position ? ItemResult() : misplaced(follows);
  }
  uint64_t expected = 0;
  const bool found = index_.Read(index_.Probe(space, item.parent), [&](PageRecord& record) {
    expected = record.first_position + space.page_tokens();
    if (expected != item.first_position) return;
    record.state.fetch_add(page_state::kPin, std::memory_order_acq_rel);
    *parent = {&record, record.encoding};
  });
  if (!found) {
    return {ItemStatus::kSkipped,
            absl::StrCat(Shown(item.key), ": its parent, ", Shown(item.parent), ", is ",
                         IsArchived(space, item.parent) ? "on disk only" : "not stored")};
  }
  if (parent->record == nullptr) return misplaced(expected);
  counters_.pins.fetch_add(1, std::memory_order_relaxed);
  return {};
}

bool PageStore::ParentIsArchived(const Namespace& space, const PutItem& item) const {
  if (archive_ == nullptr || item.parent.empty() || Holds(space, item.key) ||
      Holds(space, item.parent))
    return false;
  const std::optional<ArchivedPage> parent = FindArchived(space, item.parent);
  return parent.has_value() &&
         parent->first_position + space.page_tokens() == item.first_position &&
         CheckItem(space, item).ok();
}

PageTraits PageStore::TraitsOf(const PageProbe& probe, const PutItem& item) const {
  return {.namespace_id = probe.space->id(),
          .first_position = item.first_position,
          .bytes = item.bytes + item.block_crcs.size_bytes(),
          .encoding = item.encoding,
          .key_hash = probe.hash,
          .ends_put = item.ends_put,
          .request = item.request,
          .now = clock_.Now()};
}

void PageStore::RefusePage(const Namespace& space, const PageTraits& page) {
  absl::MutexLock lock(&tree_mutex_);
  eviction_.OnRefuse(space.tenant(), page);
  space.tenant().dropped().Remember(page.key_hash, ItemStatus::kEvicted);
}

BeginPutResult PageStore::BeginPut(const Namespace& space, const PutItem& item) {
  BeginPutResult out;
  const auto finish = [&](ItemResult result) {
    CountPut(result.status);
    out.result = std::move(result);
    return std::move(out);
  };
  if (ItemResult checked = CheckItem(space, item); !checked.ok()) return finish(std::move(checked));
  const ByteView crcs = std::as_bytes(item.block_crcs);
  const PageProbe probe = index_.Probe(space, item.key);
  ItemResult stored =
      CompareStored(probe, {item.key, item.parent, item.first_position, item.encoding, crcs});
  if (stored.status != ItemStatus::kMiss) return finish(std::move(stored));

  PageTraits traits = TraitsOf(probe, item);
  PinnedParent parent;
  if (ItemResult pinned = PinParent(space, item, &parent); !pinned.ok()) {
    // Behind a page that was refused or dropped, this one is too; any other parent is unknown.
    if (pinned.status == ItemStatus::kSkipped &&
        AbsentStatus(index_.Probe(space, item.parent)) == ItemStatus::kEvicted)
      RefusePage(space, traits);
    return finish(std::move(pinned));
  }
  if (parent.record != nullptr) traits.parent = parent.record->id;
  if (item.request.residency == Residency::kPinned && !MayPin(space.tenant(), traits.bytes)) {
    if (parent.record != nullptr) Unpin(*parent.record, parent.form);
    return finish({ItemStatus::kQuota, PinnedFull(item.key)});
  }
  const Room room = ReserveSlot(space, traits, Admission::kByPolicy);
  if (!room.result.ok()) {
    if (room.refused) {
      RefusePage(space, traits);
      counters_.puts_refused.fetch_add(1, std::memory_order_relaxed);
    }
    if (parent.record != nullptr) Unpin(*parent.record, parent.form);
    return finish({room.result.status, absl::StrCat(Shown(item.key), ": ", room.result.message)});
  }
  counters_.open_puts.fetch_add(1, std::memory_order_relaxed);
  PutSlot& put = out.slot;
  put.store_ = this;
  put.space_ = &space;
  put.parent_ = parent.record;
  put.parent_form_ = parent.form;
  put.parent_open_ = parent.record == nullptr && !item.parent.empty();
  put.key_ = std::string(item.key);
  put.parent_key_ = std::string(item.parent);
  put.first_position_ = item.first_position;
  put.encoding_ = item.encoding;
  put.request_ = item.request;
  put.ends_put_ = item.ends_put;
  put.slot_ = room.slot;
  put.memory_ = tier_->Map(room.slot);
  std::memcpy(put.memory_.data() + item.bytes, crcs.data(), crcs.size());
  return out;
}

ItemResult PageStore::Commit(PutSlot& slot) {
  const MutableByteView page = slot.bytes();
  const ByteView crcs = slot.memory_.subspan(page.size());
  slot.Filled(page.size());
  ItemResult result;
  if (const absl::Status& sound = slot.sound_; !sound.ok()) {
    result = {ItemStatus::kCorrupt, absl::StrCat(Shown(slot.key_), ": ", sound.message())};
    TellCorrupt(slot.space_->fingerprint(), slot.key_, TierKind::kHost, CorruptAt::kPut, sound);
  }
  if (result.ok() && std::exchange(slot.parent_open_, false)) {
    PinnedParent parent;
    result = PinParent(*slot.space_,
                       {.key = slot.key_,
                        .parent = slot.parent_key_,
                        .first_position = slot.first_position_,
                        .block_crcs = {}},
                       &parent);
    slot.parent_ = parent.record;
    slot.parent_form_ = parent.form;
  }
  const PageProbe probe = index_.Probe(*slot.space_, slot.key_);
  while (result.ok()) {
    ItemResult stored = CompareStored(
        probe, {slot.key_, slot.parent_key_, slot.first_position_, slot.encoding_, crcs});
    if (stored.status != ItemStatus::kMiss) {
      result = std::move(stored);
      break;
    }
    const ItemStatus inserted = InsertPage(slot, probe);
    if (inserted == ItemStatus::kBusy) continue;  // stored since the comparison: compare again
    if (inserted == ItemStatus::kSkipped) {
      result = {inserted, absl::StrCat(Shown(slot.key_), ": its parent, ", Shown(slot.parent_key_),
                                       ", is gone")};
    } else if (inserted == ItemStatus::kQuota) {
      result = {inserted, PinnedFull(slot.key_)};
    } else if (inserted != ItemStatus::kOk) {
      result = {inserted, absl::StrCat(Shown(slot.key_), ": the table of pages is full")};
    }
    break;
  }
  CountPut(result.status);
  if (result.ok()) counters_.put_bytes.fetch_add(page.size(), std::memory_order_relaxed);
  Abandon(slot);
  return result;
}

ItemStatus PageStore::InsertPage(PutSlot& slot, const PageProbe& probe) {
  absl::MutexLock lock(&tree_mutex_);
  if (slot.parent_ != nullptr && !slot.parent_->in_index) return ItemStatus::kSkipped;
  const bool pin = slot.request_.residency == Residency::kPinned;
  if (pin && !MayPinLocked(slot.space_->tenant(), slot.slot_.bytes)) return ItemStatus::kQuota;
  if (index_.Read(probe, [](PageRecord&) {})) return ItemStatus::kBusy;
  PageRecord* record = records_.Allocate();
  if (record == nullptr) return ItemStatus::kNoSpace;
  FillRecord(*record, {slot.space_, slot.key_, slot.first_position_, slot.encoding_, slot.slot_});
  // The bytes on disk may be others; these are the page's now. It is written again whatever pages
  // are written: until then a crash leaves it as it was.
  const bool replaces = archive_ != nullptr && archive_->Supersede(*slot.space_, slot.key_);
  EnterLocked(*record, slot.parent_, probe, {slot.ends_put_, slot.request_});
  if (replaces) {
    if (!archive_queue_->Add(record) && archive_->Forget(*slot.space_, slot.key_))
      archive_queue_->Nudge();
  } else if (record->rung != Rung::kDue) {
    ArchiveNewForm(*record);  // what is about to be re-encoded is written as it is then
  }
  slot.slot_ = {};  // now the record's
  slot.memory_ = {};
  return ItemStatus::kOk;
}

void PageStore::FillRecord(PageRecord& record, const NewPage& page) {
  record.key.Assign(page.key);
  record.encoding = page.encoding;
  record.space = page.space;
  record.first_position = page.first_position;
  record.slot_offset = page.slot.offset;
}

void PageStore::EnterLocked(PageRecord& record, PageRecord* parent, const PageProbe& probe,
                            const Arrival& arrival) {
  record.in_index = true;
  LinkLocked(record, parent);
  const PageTraits traits{.parent = record.parent,
                          .namespace_id = record.space->id(),
                          .first_position = record.first_position,
                          .bytes = record.slot_bytes(),
                          .encoding = record.encoding,
                          .key_hash = probe.hash,
                          .ends_put = arrival.ends_put,
                          .request = arrival.request,
                          .now = clock_.Now()};
  eviction_.OnInsert(record.space->tenant(), record.id, traits);
  record.used_at_s = NowSeconds();
  SetResidencyLocked(record, arrival.request.residency);
  OfferLocked(record);
  tier_->SetOwner({record.slot_offset, record.slot_bytes()}, record.id);
  record.space->tenant().dropped().Forget(probe.hash);
  const uint32_t space = record.space->id();
  if (space_pages_.size() <= space) space_pages_.resize(space + size_t{1});
  SpacePages& pages = space_pages_[space];
  ++(record.encoding == Encoding::kWide ? pages.wide : pages.packed);
  ++pages_;
  index_.Insert(record);
  RingIfNeededLocked(ladder_.OnEnter(record));
}

void PageStore::LinkLocked(PageRecord& record, PageRecord* parent) {
  if (parent == nullptr) return;
  record.parent = parent->id;
  record.next_sibling = parent->first_child;
  if (parent->first_child != kNoPage)
    records_.Get(parent->first_child).previous_sibling = record.id;
  else
    eviction_.SetEvictable(parent->space->tenant(), parent->id, false);
  parent->first_child = record.id;
}

// Gives back all that the slot holds, and empties it.
void PageStore::Abandon(PutSlot& slot) {
  if (!slot.memory_.empty()) ReleaseSlot(*slot.space_, slot.slot_);
  if (slot.parent_ != nullptr) Unpin(*slot.parent_, slot.parent_form_);
  counters_.open_puts.fetch_sub(1, std::memory_order_relaxed);
  slot.store_ = nullptr;
  slot.parent_ = nullptr;
  slot.memory_ = {};
}

void PageStore::CountPut(ItemStatus status) {
  counters_.puts_by_outcome[static_cast<size_t>(status)].fetch_add(1, std::memory_order_relaxed);
}

}  // namespace oscarkv
