// What the disk tier knows of its pages, in memory: where each lies, by namespace and key, and by
// segment. Pure bookkeeping.
#ifndef OSCARKV_SERVER_TIER_DISK_DISK_INDEX_H_
#define OSCARKV_SERVER_TIER_DISK_DISK_INDEX_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/container/inlined_vector.h"
#include "absl/functional/function_ref.h"

#include "server/core/page_record.h"
#include "server/tier/disk/format.h"

namespace oscarkv {

// An entry of a segment's table.
struct DiskPlace {
  static constexpr uint32_t kNoSegment = 0xffffffff;
  uint32_t segment = kNoSegment;
  uint32_t entry = 0;
  bool is_none() const { return segment == kNoSegment; }
  bool operator==(const DiskPlace&) const = default;
};

// 96 bytes; entries that hold no page (any more) stay as gaps until their segment starts anew.
struct DiskEntry {
  RecordKey key;
  Encoding encoding = Encoding::kWide;
  bool live : 1 = false;           // it is what the index holds for its key
  bool superseded : 1 = false;     // and about to be written anew: not to be found any more
  std::atomic<bool> used = false;  // read since it was written
  // In seconds, as who uses it says (SetUsedAt); 0: nobody has said.
  mutable std::atomic<uint32_t> used_at_s = 0;
  uint32_t space = 0;  // number of its fingerprint
  uint32_t record_block = 0;
  uint32_t body_bytes = 0;
  uint64_t first_position = 0;
  uint64_t sequence = 0;
  // Of a live page that is no root: the hash of its parent's name, and its place among the live
  // pages that extend the same one, whether that is on the disk or not.
  uint64_t parent = 0;
  DiskPlace next_sibling;
  DiskPlace previous_sibling;
};
static_assert(sizeof(DiskEntry) <= 96);

struct DiskSegmentPages {
  std::deque<DiskEntry> entries;  // [place in the table]
  uint32_t live_pages = 0;
  uint64_t live_bytes = 0;  // of records
};

// Thread-compatible; the flag `used` may be set under a lock that others share.
class DiskIndex {
 public:
  explicit DiskIndex(uint32_t segments);

  // Null when the page is not there. Valid until the index changes.
  const DiskPlace* Find(std::string_view fingerprint, std::string_view key) const;
  // The same by the hash of its name, as in DiskEntry::parent.
  const DiskPlace* FindHash(uint64_t hash) const;
  const DiskEntry& At(const DiskPlace& place) const {
    return segments_[place.segment].entries[place.entry];
  }
  DiskEntry& At(const DiskPlace& place) { return segments_[place.segment].entries[place.entry]; }
  std::string_view FingerprintOf(const DiskEntry& entry) const {
    return fingerprints_[entry.space];
  }
  const DiskSegmentPages& segment(uint32_t segment) const { return segments_[segment]; }

  // Appends the page as the next entry of its segment; of two with one key the one with the higher
  // sequence stays. Returns the place of the other, which is still on the device and would come
  // back if this one were removed; none if there was none.
  DiskPlace Append(uint32_t segment, const PageHeader& header);
  // Begins to read what Append is going to look at. Of tables that are in no cache, that is nearly
  // all that it takes.
  void Prefetch(const PageHeader& header);
  // Appends an entry that holds no page.
  void AppendGap(uint32_t segment) { segments_[segment].entries.emplace_back(); }
  // Takes a live page out.
  void Erase(const DiskPlace& place);
  // The live pages that extend the named one, at any distance, what they extend first. Neither the
  // named one need be there, nor those between that were there once.
  std::vector<DiskPlace> Descendants(std::string_view fingerprint, std::string_view key) const;
  // Whether a live page extends the one at `place`.
  bool HasChildren(const DiskPlace& place) const {
    return first_children_.contains(HashOf(NameOf(place)));
  }
  // The live pages whose ancestors are not all live.
  std::vector<DiskPlace> Orphans() const;
  // Takes out all pages of a segment and forgets its entries; returns how many pages it had.
  uint32_t Clear(uint32_t segment);
  // Makes room for this many pages in all.
  void Reserve(uint64_t pages) {
    places_.reserve(pages);
    first_children_.reserve(pages);
  }

  uint64_t pages() const { return places_.size(); }
  uint64_t live_bytes() const { return live_bytes_; }  // of records
  uint64_t LiveBytesOf(std::string_view fingerprint) const;
  uint64_t memory_bytes() const;
  uint64_t holes() const { return holes_.size(); }  // for tests

 private:
  struct Name {
    uint32_t space;
    std::string_view key;
  };
  struct Hash {
    using is_transparent = void;
    const DiskIndex* index;
    size_t operator()(const Name& name) const;
    size_t operator()(uint64_t hash) const { return hash; }
    size_t operator()(const DiskPlace& place) const { return (*this)(index->NameOf(place)); }
  };
  struct Equal {
    using is_transparent = void;
    const DiskIndex* index;
    bool operator()(const DiskPlace& a, const DiskPlace& b) const {
      return a == b || (*this)(a, index->NameOf(b));
    }
    bool operator()(const DiskPlace& place, const Name& name) const {
      const Name other = index->NameOf(place);
      return other.space == name.space && other.key == name.key;
    }
    bool operator()(const Name& name, const DiskPlace& place) const { return (*this)(place, name); }
    bool operator()(const DiskPlace& place, uint64_t hash) const {
      return HashOf(index->NameOf(place)) == hash;
    }
    bool operator()(uint64_t hash, const DiskPlace& place) const { return (*this)(place, hash); }
  };

  Name NameOf(const DiskPlace& place) const {
    const DiskEntry& entry = At(place);
    return {entry.space, entry.key.view()};
  }
  uint32_t NumberOf(std::string_view fingerprint);
  uint32_t FindOrAdd(std::string_view fingerprint);
  static uint64_t HashOf(const Name& name);
  void Link(const DiskPlace& place);
  void Unlink(const DiskPlace& place);
  bool IsExtended(uint64_t name) const {
    return first_children_.contains(name) || holes_below_.contains(name);
  }
  void OpenHole(uint64_t name, uint64_t parent);
  void CloseHole(uint64_t name);
  void CloseHolesUp(uint64_t name);

  std::vector<DiskSegmentPages> segments_;
  std::deque<std::string> fingerprints_;  // [number]
  uint32_t newest_space_ = 0;             // of the page that was appended last
  absl::flat_hash_map<std::string_view, uint32_t> numbers_;
  absl::flat_hash_set<DiskPlace, Hash, Equal> places_;
  absl::flat_hash_map<uint64_t, DiskPlace> first_children_;  // [hash of the parent's name]
  // Pages, no roots, that have gone before what extends them, which a segment that is reclaimed
  // leaves behind: what they extend, and the other way round. All are hashes of names. Through
  // them a deletion finds all that it has to delete.
  absl::flat_hash_map<uint64_t, uint64_t> holes_;
  absl::flat_hash_map<uint64_t, absl::InlinedVector<uint64_t, 1>> holes_below_;
  uint64_t live_bytes_ = 0;
  std::vector<uint64_t> live_bytes_of_;  // [number of a fingerprint]
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TIER_DISK_DISK_INDEX_H_
