// Key -> page: hash tables of page numbers, sharded so that look-ups seldom meet. A slot of a table
// is the four bytes of a number; keys are compared in the records.
#ifndef OSCARKV_SERVER_CORE_PAGE_INDEX_H_
#define OSCARKV_SERVER_CORE_PAGE_INDEX_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"

#include "server/core/namespace.h"
#include "server/core/page_record.h"

namespace oscarkv {

// A key of a namespace with its hash, which depends on a seed of the process.
struct PageProbe {
  const Namespace* space = nullptr;
  std::string_view key;
  uint64_t hash = 0;
};

// Thread-safe. Callbacks run under the lock of the page's shard: they must be short, and may take
// no lock but those that come after it in the order of server/README.md.
class PageIndex {
 public:
  // `records` is borrowed for the index's life.
  PageIndex(const RecordTable& records, uint64_t seed);

  PageProbe Probe(const Namespace& space, std::string_view key) const {
    return {&space, key, Hash(space, key)};
  }

  // Calls `visit` with the page under a shared lock: counts in its state may rise. False without
  // the call when the page is not there.
  bool Read(const PageProbe& probe, absl::FunctionRef<void(PageRecord&)> visit) const;

  // The same for up to kManyMax pages, in order: `visit` gets the number of the probe, and the page
  // or null, and says whether to go on. At scale each page is several reads of memory that no cache
  // has: they are begun for all pages before the first is waited for, under the shared locks of all
  // their shards.
  static constexpr size_t kManyMax = 128;
  void ReadMany(std::span<const PageProbe> probes,
                absl::FunctionRef<bool(size_t, PageRecord*)> visit) const;

  // The next three: the caller holds the tree lock.

  // Adds a page that is not there.
  void Insert(const PageRecord& record);
  // Removes the page if `condition` holds under the exclusive lock, which keeps its counts from
  // rising; returns whether it did. The page is there.
  bool EraseIf(const PageRecord& record, absl::FunctionRef<bool()> condition);
  // Runs `change` under the exclusive lock of the page's shard.
  void Write(const PageRecord& record, absl::FunctionRef<void()> change);

  // Makes room for `pages` in all, up to a bound, so that tables need not grow while pages come.
  void Reserve(uint64_t pages);

  uint64_t memory_bytes() const;
  uint64_t HashOf(const PageRecord& record) const { return Hash(*record.space, record.key.view()); }

 private:
  // Asks a table to begin reading the records of all pages that may be the probe's.
  struct Candidates {
    uint64_t hash = 0;
  };
  class SharedLocks;

  struct NumberHash {
    using is_transparent = void;
    const PageIndex* index;
    size_t operator()(const Candidates& candidates) const { return candidates.hash; }
    size_t operator()(PageId id) const { return index->HashOf(index->records_.Get(id)); }
    size_t operator()(const PageProbe& probe) const { return probe.hash; }
  };
  struct NumberEqual {
    using is_transparent = void;
    const PageIndex* index;
    bool operator()(PageId left, PageId right) const { return left == right; }
    bool operator()(PageId id, const PageProbe& probe) const {
      const PageRecord& record = index->records_.Get(id);
      return record.space == probe.space && record.key.view() == probe.key;
    }
    bool operator()(const PageProbe& probe, PageId id) const { return (*this)(id, probe); }
    // None is it: so the table goes on to the next.
    bool operator()(PageId id, const Candidates& /*candidates*/) const {
      index->records_.Prefetch(id);
      return false;
    }
    bool operator()(const Candidates& candidates, PageId id) const {
      return (*this)(id, candidates);
    }
  };
  using Numbers = absl::flat_hash_set<PageId, NumberHash, NumberEqual>;
  struct alignas(64) Shard {
    explicit Shard(const PageIndex* index) : numbers(0, NumberHash{index}, NumberEqual{index}) {}
    mutable absl::Mutex mutex;
    Numbers numbers ABSL_GUARDED_BY(mutex);
  };

  uint64_t Hash(const Namespace& space, std::string_view key) const;
  // By the hash's upper bits; the table inside the shard uses the lower ones.
  static uint32_t ShardNumber(uint64_t hash) {
    return static_cast<uint32_t>(hash >> (64 - kShardBits));
  }
  Shard& ShardOf(uint64_t hash) const { return *shards_[ShardNumber(hash)]; }

  static constexpr uint32_t kShardBits = 6;
  static constexpr uint64_t kReservedPagesMax = uint64_t{8} << 20;  // some 80 MiB of tables

  const RecordTable& records_;
  const uint64_t seed_;
  std::vector<std::unique_ptr<Shard>> shards_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_PAGE_INDEX_H_
