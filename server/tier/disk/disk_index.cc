#include "server/tier/disk/disk_index.h"

#include <algorithm>
#include <cassert>

#include "absl/hash/hash.h"
#include "absl/strings/string_view.h"

namespace oscarkv {
namespace {

// So far ahead of a walk over entries, what is going to be looked up of them is prefetched.
constexpr uint32_t kEntriesAhead = 16;

}  // namespace

DiskIndex::DiskIndex(uint32_t segments)
    : segments_(segments), places_(0, Hash{this}, Equal{this}) {}

uint64_t DiskIndex::HashOf(const Name& name) {
  return absl::HashOf(name.space, absl::string_view(name.key.data(), name.key.size()));
}

size_t DiskIndex::Hash::operator()(const Name& name) const { return HashOf(name); }

uint32_t DiskIndex::NumberOf(std::string_view fingerprint) {
  if (newest_space_ < fingerprints_.size() && fingerprints_[newest_space_] == fingerprint)
    return newest_space_;
  newest_space_ = FindOrAdd(fingerprint);
  return newest_space_;
}

uint32_t DiskIndex::FindOrAdd(std::string_view fingerprint) {
  if (const auto found = numbers_.find(fingerprint); found != numbers_.end()) return found->second;
  const auto number = static_cast<uint32_t>(fingerprints_.size());
  fingerprints_.emplace_back(fingerprint);
  numbers_[fingerprints_.back()] = number;
  live_bytes_of_.push_back(0);
  return number;
}

const DiskPlace* DiskIndex::Find(std::string_view fingerprint, std::string_view key) const {
  const auto number = numbers_.find(fingerprint);
  if (number == numbers_.end()) return nullptr;
  const auto place = places_.find(Name{number->second, key});
  return place == places_.end() ? nullptr : &*place;
}

const DiskPlace* DiskIndex::FindHash(uint64_t hash) const {
  const auto place = places_.find(hash);
  return place == places_.end() ? nullptr : &*place;
}

void DiskIndex::Prefetch(const PageHeader& header) {
  const uint32_t space = NumberOf(header.fingerprint);
  places_.prefetch(HashOf({space, header.key}));
  if (!header.parent.empty()) first_children_.prefetch(HashOf({space, header.parent}));
}

DiskPlace DiskIndex::Append(uint32_t segment, const PageHeader& header) {
  DiskSegmentPages& pages = segments_[segment];
  const DiskPlace place{segment, static_cast<uint32_t>(pages.entries.size())};
  DiskEntry& entry = pages.entries.emplace_back();
  entry.key.Assign(header.key);
  entry.encoding = header.encoding;
  entry.space = NumberOf(header.fingerprint);
  entry.record_block = header.record_block;
  entry.body_bytes = header.body_bytes;
  entry.first_position = header.first_position;
  entry.sequence = header.sequence;
  // In one step where there is no other, which is nearly always.
  DiskPlace older;
  if (const auto [other, is_new] = places_.insert(place); !is_new) {
    if (At(*other).sequence > entry.sequence) return place;
    older = *other;
  }
  if (!header.parent.empty()) {
    entry.parent = HashOf({entry.space, header.parent});
    Link(place);  // before the older one goes: if what they extend is a hole, it stays open
  }
  if (!older.is_none()) {
    Erase(older);
    places_.insert(place);
  }
  entry.live = true;
  if (!holes_.empty()) CloseHole(HashOf({entry.space, header.key}));
  ++pages.live_pages;
  pages.live_bytes += RecordBytes(entry.body_bytes);
  live_bytes_ += RecordBytes(entry.body_bytes);
  live_bytes_of_[entry.space] += RecordBytes(entry.body_bytes);
  return older;
}

uint64_t DiskIndex::LiveBytesOf(std::string_view fingerprint) const {
  const auto number = numbers_.find(fingerprint);
  return number == numbers_.end() ? 0 : live_bytes_of_[number->second];
}

void DiskIndex::Erase(const DiskPlace& place) {
  const DiskPlace copy = place;  // it may be the table's own
  DiskSegmentPages& pages = segments_[copy.segment];
  DiskEntry& entry = pages.entries[copy.entry];
  assert(entry.live);
  const uint64_t name = HashOf(NameOf(copy));
  places_.erase(places_.find(NameOf(copy)));
  if (entry.parent != 0 && IsExtended(name)) OpenHole(name, entry.parent);
  Unlink(copy);
  entry.live = false;
  --pages.live_pages;
  pages.live_bytes -= RecordBytes(entry.body_bytes);
  live_bytes_ -= RecordBytes(entry.body_bytes);
  live_bytes_of_[entry.space] -= RecordBytes(entry.body_bytes);
}

void DiskIndex::Link(const DiskPlace& place) {
  DiskEntry& entry = At(place);
  DiskPlace& first = first_children_[entry.parent];
  entry.next_sibling = first;
  if (!first.is_none()) At(first).previous_sibling = place;
  first = place;
}

void DiskIndex::Unlink(const DiskPlace& place) {
  DiskEntry& entry = At(place);
  if (entry.parent == 0) return;
  if (!entry.next_sibling.is_none())
    At(entry.next_sibling).previous_sibling = entry.previous_sibling;
  if (!entry.previous_sibling.is_none()) {
    At(entry.previous_sibling).next_sibling = entry.next_sibling;
  } else if (entry.next_sibling.is_none()) {
    first_children_.erase(entry.parent);
    if (!holes_.empty()) CloseHolesUp(entry.parent);
  } else {
    first_children_[entry.parent] = entry.next_sibling;
  }
  entry.next_sibling = entry.previous_sibling = DiskPlace{};
}

void DiskIndex::OpenHole(uint64_t name, uint64_t parent) {
  holes_[name] = parent;
  holes_below_[parent].push_back(name);
}

void DiskIndex::CloseHole(uint64_t name) {
  const auto hole = holes_.find(name);
  if (hole == holes_.end()) return;
  const auto below = holes_below_.find(hole->second);
  below->second.erase(std::ranges::find(below->second, name));
  if (below->second.empty()) holes_below_.erase(below);
  holes_.erase(hole);
}

// Those that nothing extends any more: this one and what it extends, as far as they are holes.
void DiskIndex::CloseHolesUp(uint64_t name) {
  for (auto hole = holes_.find(name); hole != holes_.end() && !IsExtended(name);
       hole = holes_.find(name)) {
    const uint64_t parent = hole->second;
    CloseHole(name);
    name = parent;
  }
}

std::vector<DiskPlace> DiskIndex::Descendants(std::string_view fingerprint,
                                              std::string_view key) const {
  std::vector<DiskPlace> found;
  const auto number = numbers_.find(fingerprint);
  if (number == numbers_.end()) return found;
  std::vector<uint64_t> holes;
  const auto add_children = [&](uint64_t name) {
    const auto first = first_children_.find(name);
    DiskPlace child = first == first_children_.end() ? DiskPlace{} : first->second;
    for (; !child.is_none(); child = At(child).next_sibling) found.push_back(child);
    const auto below = holes_below_.find(name);
    if (below != holes_below_.end())
      holes.insert(holes.end(), below->second.begin(), below->second.end());
  };
  add_children(HashOf({number->second, key}));
  // Pages that extend each other in a circle, which only a confused client writes, end too.
  for (size_t page = 0, hole = 0; (page < found.size() || hole < holes.size()) &&
                                  found.size() <= places_.size() && holes.size() <= holes_.size();)
    add_children(page < found.size() ? HashOf(NameOf(found[page++])) : holes[hole++]);
  return found;
}

std::vector<DiskPlace> DiskIndex::Orphans() const {
  enum class Reach : uint8_t { kUnknown, kOnPath, kWhole, kCut };
  std::vector<std::vector<Reach>> reach(segments_.size());
  for (size_t segment = 0; segment < segments_.size(); ++segment)
    reach[segment].resize(segments_[segment].entries.size());
  const auto reach_of = [&](const DiskPlace& place) -> Reach& {
    return reach[place.segment][place.entry];
  };
  std::vector<DiskPlace> orphans;
  std::vector<DiskPlace> path;
  for (uint32_t segment = 0; segment < segments_.size(); ++segment) {
    const std::deque<DiskEntry>& entries = segments_[segment].entries;
    for (uint32_t entry = 0; entry < entries.size(); ++entry) {
      if (entry + kEntriesAhead < entries.size())
        places_.prefetch(entries[entry + kEntriesAhead].parent);
      if (!entries[entry].live) continue;
      // Up to a root, a hole, what is known, or to the path itself: a page that is its own ancestor
      // is none.
      path.clear();
      Reach found = Reach::kUnknown;
      for (DiskPlace at{segment, entry}; found == Reach::kUnknown;) {
        Reach& here = reach_of(at);
        if (here != Reach::kUnknown) {
          found = here == Reach::kWhole ? Reach::kWhole : Reach::kCut;
          break;
        }
        here = Reach::kOnPath;
        path.push_back(at);
        const uint64_t parent = At(at).parent;
        const DiskPlace* next = parent == 0 ? nullptr : FindHash(parent);
        if (next == nullptr)
          found = parent == 0 ? Reach::kWhole : Reach::kCut;
        else
          at = *next;
      }
      for (const DiskPlace& at : path) reach_of(at) = found;
      if (found == Reach::kCut) orphans.insert(orphans.end(), path.begin(), path.end());
    }
  }
  return orphans;
}

uint32_t DiskIndex::Clear(uint32_t segment) {
  DiskSegmentPages& pages = segments_[segment];
  const uint32_t had = pages.live_pages;
  for (uint32_t entry = 0; entry < pages.entries.size(); ++entry)
    if (pages.entries[entry].live) Erase({segment, entry});
  pages.entries.clear();
  return had;
}

uint64_t DiskIndex::memory_bytes() const {
  uint64_t bytes = places_.capacity() * (sizeof(DiskPlace) + 1) +
                   first_children_.capacity() * (sizeof(uint64_t) + sizeof(DiskPlace) + 1) +
                   holes_.capacity() * (2 * sizeof(uint64_t) + 1) +
                   holes_below_.capacity() * (sizeof(*holes_below_.begin()) + 1);
  for (const DiskSegmentPages& pages : segments_) bytes += pages.entries.size() * sizeof(DiskEntry);
  return bytes;
}

}  // namespace oscarkv
