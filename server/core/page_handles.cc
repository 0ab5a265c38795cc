#include "server/core/page_handles.h"

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "server/core/block_check.h"
#include "server/core/page_store.h"

namespace oscarkv {

// --- PutSlot ---

PutSlot& PutSlot::operator=(PutSlot&& other) noexcept {
  if (this == &other) return *this;
  Reset();
  store_ = std::exchange(other.store_, nullptr);
  space_ = other.space_;
  parent_ = std::exchange(other.parent_, nullptr);
  parent_form_ = other.parent_form_;
  parent_open_ = other.parent_open_;
  key_ = std::move(other.key_);
  parent_key_ = std::move(other.parent_key_);
  first_position_ = other.first_position_;
  encoding_ = other.encoding_;
  request_ = other.request_;
  ends_put_ = other.ends_put_;
  slot_ = other.slot_;
  memory_ = std::exchange(other.memory_, {});
  layers_verified_ = other.layers_verified_;
  sound_ = std::move(other.sound_);
  return *this;
}

void PutSlot::Reset() {
  if (store_ == nullptr) return;
  store_->counters_.puts_abandoned.fetch_add(1, std::memory_order_relaxed);
  store_->Abandon(*this);
}

void PutSlot::Filled(uint64_t bytes) {
  if (store_ == nullptr) return;
  const PageLayout& layout = space_->layout(encoding_);
  const Geometry& geometry = layout.geometry();
  uint32_t whole = layers_verified_;
  while (whole < geometry.layers &&
         layout.block_offset(whole, 0) + geometry.kv_heads * layout.block(whole).stride <= bytes)
    ++whole;
  const BlockRange layers = {layers_verified_, whole - layers_verified_};
  layers_verified_ = whole;
  if (!sound_.ok()) return;
  ClearPadding(layout, memory_, layers);
  sound_ =
      CheckBlocks(layout, memory_, CrcsBehind(memory_, layout), layers, {0, geometry.kv_heads});
}

ItemResult PutSlot::Commit() {
  if (store_ == nullptr) return {ItemStatus::kInvalid, "commit of an empty put"};
  return store_->Commit(*this);
}

// --- PinnedPage ---

PinnedPage& PinnedPage::operator=(PinnedPage&& other) noexcept {
  if (this == &other) return *this;
  Reset();
  store_ = other.store_;
  record_ = std::exchange(other.record_, nullptr);
  layout_ = other.layout_;
  slot_ = other.slot_;
  meta_ = other.meta_;
  return *this;
}

void PinnedPage::Reset() {
  if (record_ == nullptr) return;
  store_->Unpin(*record_, meta_.encoding);
  record_ = nullptr;
}

std::span<const uint32_t> PinnedPage::block_crcs() const { return CrcsBehind(slot_, *layout_); }

absl::StatusOr<ByteView> PinnedPage::VerifiedPage() {
  const Geometry& geometry = layout_->geometry();
  return Verified({0, geometry.layers}, {0, geometry.kv_heads});
}

absl::StatusOr<ByteView> PinnedPage::Verified(BlockRange layers, BlockRange heads) {
  OSCARKV_RETURN_IF_ERROR(Verify(layers, heads, CorruptAt::kServe));
  store_->counters_.fetch_bytes.fetch_add(layout_->range_bytes(layers, heads),
                                          std::memory_order_relaxed);
  return ByteView(slot_.first(meta_.bytes));
}

ByteView PinnedPage::Unverified() const {
  store_->counters_.fetch_bytes.fetch_add(meta_.bytes, std::memory_order_relaxed);
  return slot_.first(meta_.bytes + block_crcs().size_bytes());
}

absl::Status PinnedPage::VerifyAll(CorruptAt at) const {
  const Geometry& geometry = layout_->geometry();
  return Verify({0, geometry.layers}, {0, geometry.kv_heads}, at);
}

absl::Status PinnedPage::Verify(BlockRange layers, BlockRange heads, CorruptAt at) const {
  const Geometry& geometry = layout_->geometry();
  const auto fits = [](BlockRange range, uint32_t count) {
    return range.count > 0 && range.first < count && range.count <= count - range.first;
  };
  if (!fits(layers, geometry.layers) || !fits(heads, geometry.kv_heads)) {
    return absl::InvalidArgumentError(
        absl::StrCat("layers from ", layers.first, ", ", layers.count, " of them, and heads from ",
                     heads.first, ", ", heads.count, " of them, of a page with ", geometry.layers,
                     " layers and ", geometry.kv_heads, " heads"));
  }
  const absl::Status sound = CheckBlocks(*layout_, slot_, block_crcs(), layers, heads);
  if (!sound.ok() && store_->DropCorrupt(*record_, meta_.encoding)) {
    store_->TellCorrupt(record_->space->fingerprint(), record_->key.view(), TierKind::kHost, at,
                        sound);
  }
  return Annotate(sound, "the stored page is corrupt");
}

}  // namespace oscarkv
