#include "server/core/page_index.h"

#include <algorithm>

#include "absl/hash/hash.h"
#include "absl/strings/string_view.h"

namespace oscarkv {

PageIndex::PageIndex(const RecordTable& records, uint64_t seed) : records_(records), seed_(seed) {
  for (uint32_t i = 0; i < (1u << kShardBits); ++i)
    shards_.push_back(std::make_unique<Shard>(this));
}

uint64_t PageIndex::Hash(const Namespace& space, std::string_view key) const {
  return absl::HashOf(seed_, space.id(), absl::string_view(key.data(), key.size()));
}

bool PageIndex::Read(const PageProbe& probe, absl::FunctionRef<void(PageRecord&)> visit) const {
  const Shard& shard = ShardOf(probe.hash);
  absl::ReaderMutexLock lock(&shard.mutex);
  const auto found = shard.numbers.find(probe);
  if (found == shard.numbers.end()) return false;
  visit(records_.Get(*found));
  return true;
}

void PageIndex::Insert(const PageRecord& record) {
  Shard& shard = ShardOf(HashOf(record));
  absl::MutexLock lock(&shard.mutex);
  shard.numbers.insert(record.id);
}

bool PageIndex::EraseIf(const PageRecord& record, absl::FunctionRef<bool()> condition) {
  Shard& shard = ShardOf(HashOf(record));
  absl::MutexLock lock(&shard.mutex);
  if (!condition()) return false;
  shard.numbers.erase(record.id);
  return true;
}

void PageIndex::Write(const PageRecord& record, absl::FunctionRef<void()> change) {
  Shard& shard = ShardOf(HashOf(record));
  absl::MutexLock lock(&shard.mutex);
  change();
}

void PageIndex::Reserve(uint64_t pages) {
  // Shards fill unevenly: a sixteenth more.
  const uint64_t bounded = std::min(pages, kReservedPagesMax);
  const uint64_t each = (bounded + bounded / 16) >> kShardBits;
  for (const auto& shard : shards_) {
    absl::MutexLock lock(&shard->mutex);
    if (shard->numbers.capacity() < each) shard->numbers.reserve(each);
  }
}

uint64_t PageIndex::memory_bytes() const {
  uint64_t bytes = 0;
  for (const auto& shard : shards_) {
    absl::ReaderMutexLock lock(&shard->mutex);
    // A number and a control byte a slot.
    bytes += sizeof(Shard) + shard->numbers.capacity() * (sizeof(PageId) + 1);
  }
  return bytes;
}

}  // namespace oscarkv
