#include "server/tier/disk/disk_index.h"

#include <cassert>

#include "absl/hash/hash.h"
#include "absl/strings/string_view.h"

namespace oscarkv {

DiskIndex::DiskIndex(uint32_t segments)
    : segments_(segments), places_(0, Hash{this}, Equal{this}) {}

uint64_t DiskIndex::HashOf(const Name& name) {
  return absl::HashOf(name.space, absl::string_view(name.key.data(), name.key.size()));
}

size_t DiskIndex::Hash::operator()(const Name& name) const { return HashOf(name); }

uint32_t DiskIndex::NumberOf(std::string_view fingerprint) {
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
  DiskPlace older;
  if (const auto other = places_.find(Name{entry.space, header.key}); other != places_.end()) {
    if (At(*other).sequence > entry.sequence) return place;
    older = *other;
    Erase(older);
  }
  entry.live = true;
  places_.insert(place);
  if (!header.parent.empty()) {
    entry.parent = HashOf({entry.space, header.parent});
    Link(place);
  }
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
  places_.erase(places_.find(NameOf(copy)));
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
  } else {
    first_children_[entry.parent] = entry.next_sibling;
  }
  entry.next_sibling = entry.previous_sibling = DiskPlace{};
}

std::vector<DiskPlace> DiskIndex::Descendants(std::string_view fingerprint,
                                              std::string_view key) const {
  std::vector<DiskPlace> found;
  const auto number = numbers_.find(fingerprint);
  if (number == numbers_.end()) return found;
  const auto add_children = [&](const Name& parent) {
    const auto first = first_children_.find(HashOf(parent));
    DiskPlace child = first == first_children_.end() ? DiskPlace{} : first->second;
    for (; !child.is_none(); child = At(child).next_sibling) found.push_back(child);
  };
  add_children({number->second, key});
  // Pages that extend each other in a circle, which only a confused client writes, end too.
  for (size_t i = 0; i < found.size() && found.size() <= places_.size(); ++i)
    add_children(NameOf(found[i]));
  return found;
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
                   first_children_.capacity() * (sizeof(uint64_t) + sizeof(DiskPlace) + 1);
  for (const DiskSegmentPages& pages : segments_) bytes += pages.entries.size() * sizeof(DiskEntry);
  return bytes;
}

}  // namespace oscarkv
