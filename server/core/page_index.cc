#include "server/core/page_index.h"

#include <algorithm>
#include <bit>

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

// The shared locks of the shards that probes name, taken in the order of the shards.
class ABSL_SCOPED_LOCKABLE PageIndex::SharedLocks {
 public:
  SharedLocks(const PageIndex& index,
              std::span<const PageProbe> probes) ABSL_NO_THREAD_SAFETY_ANALYSIS : index_(index) {
    static_assert(kShardBits == 6);
    for (const PageProbe& probe : probes) shards_ |= uint64_t{1} << ShardNumber(probe.hash);
    for (uint64_t left = shards_; left != 0; left &= left - 1)
      index_.shards_[static_cast<size_t>(std::countr_zero(left))]->mutex.ReaderLock();
  }
  ~SharedLocks() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    for (uint64_t left = shards_; left != 0; left &= left - 1)
      index_.shards_[static_cast<size_t>(std::countr_zero(left))]->mutex.ReaderUnlock();
  }
  SharedLocks(const SharedLocks&) = delete;
  SharedLocks& operator=(const SharedLocks&) = delete;

 private:
  const PageIndex& index_;
  uint64_t shards_ = 0;  // a bit each
};

void PageIndex::ReadMany(std::span<const PageProbe> probes,
                         absl::FunctionRef<bool(size_t, PageRecord*)> visit) const
    ABSL_NO_THREAD_SAFETY_ANALYSIS {
  const SharedLocks locks(*this, probes);
  for (const PageProbe& probe : probes)
    ShardOf(probe.hash).numbers.prefetch(Candidates{probe.hash});
  for (const PageProbe& probe : probes)
    ShardOf(probe.hash).numbers.contains(Candidates{probe.hash});
  for (size_t i = 0; i < probes.size(); ++i) {
    const Numbers& numbers = ShardOf(probes[i].hash).numbers;
    const auto found = numbers.find(probes[i]);
    if (!visit(i, found == numbers.end() ? nullptr : &records_.Get(*found))) return;
  }
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
