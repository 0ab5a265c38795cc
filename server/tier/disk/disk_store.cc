#include "server/tier/disk/disk_store.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

#include "kernels/base/checksum.h"
#include "kernels/base/status_macros.h"

namespace oscarkv {
namespace {

constexpr uint32_t kPlacesPerCall = 1 << 16;

// A cursor is the place to go on from, its segment above its entry; 0 is the start.
uint64_t CursorOf(const DiskPlace& place) { return uint64_t{place.segment} << 32 | place.entry; }
DiskPlace PlaceOf(uint64_t cursor) {
  return {static_cast<uint32_t>(cursor >> 32), static_cast<uint32_t>(cursor)};
}

std::string Name(std::string_view key) {
  return absl::StrCat("page ", absl::BytesToHexString(absl::string_view(key.data(), key.size())));
}

DiskPage PageOf(const DiskEntry& entry) {
  return {entry.encoding, entry.first_position, entry.body_bytes, entry.sequence};
}

}  // namespace

// A read under way: what the index said when it began.
struct DiskStore::Flight {
  DiskPlace place;
  uint64_t generation = 0;
  uint64_t sequence = 0;
  uint32_t record_block = 0;
  uint64_t record_bytes = 0;
};

DiskStore::DiskStore(const DiskStoreOptions& options, std::unique_ptr<BlockIo> io,
                     std::unique_ptr<DiskReclaimPolicy> policy, DiskDirectory directory)
    : options_(options),
      io_(std::move(io)),
      policy_(std::move(policy)),
      directory_(std::move(directory)),
      catalog_({.path = options.directory.path,
                .id = directory_.id(),
                .bytes_max = options.directory.catalog_bytes},
               *io_),
      staging_(options.staging_bytes),
      index_(directory_.segments()),
      segments_(directory_.segments()) {}

std::optional<DiskPage> DiskStore::Find(std::string_view fingerprint, std::string_view key) const {
  absl::ReaderMutexLock lock(&mutex_);
  const DiskEntry* entry = FindCurrent(fingerprint, key);
  return entry == nullptr ? std::nullopt : std::optional(PageOf(*entry));
}

const DiskEntry* DiskStore::FindCurrent(std::string_view fingerprint, std::string_view key) const {
  const DiskPlace* place = index_.Find(fingerprint, key);
  return place == nullptr || index_.At(*place).superseded ? nullptr : &index_.At(*place);
}

std::vector<ListedDiskPage> DiskStore::Ancestry(std::string_view fingerprint, std::string_view key,
                                                size_t pages_max) const {
  std::vector<ListedDiskPage> pages;
  absl::ReaderMutexLock lock(&mutex_);
  const DiskPlace* place = index_.Find(fingerprint, key);
  while (place != nullptr && pages.size() < pages_max) {
    const DiskEntry& entry = index_.At(*place);
    pages.push_back({std::string(entry.key.view()), PageOf(entry)});
    place = entry.parent == 0 ? nullptr : index_.FindHash(entry.parent);
  }
  return pages;
}

uint64_t DiskStore::BytesOf(std::string_view fingerprint) const {
  absl::ReaderMutexLock lock(&mutex_);
  return index_.LiveBytesOf(fingerprint);
}

std::vector<bool> DiskStore::HoldChains(std::string_view fingerprint,
                                        std::span<const std::string_view> keys) const {
  std::vector<bool> whole;
  absl::flat_hash_map<const DiskEntry*, bool> known;
  absl::ReaderMutexLock lock(&mutex_);
  for (const std::string_view key : keys) {
    std::vector<const DiskEntry*> chain;
    const DiskPlace* place = index_.Find(fingerprint, key);
    bool is_whole = false;
    while (place != nullptr && !index_.At(*place).superseded) {
      is_whole = false;
      const DiskEntry& entry = index_.At(*place);
      // Pages in a circle, which only a confused client writes, have no root.
      const auto [found, is_new] = known.try_emplace(&entry, false);
      is_whole = is_new ? entry.parent == 0 : found->second;
      if (!is_new) break;
      chain.push_back(&entry);
      if (entry.parent == 0) break;
      place = index_.FindHash(entry.parent);
    }
    for (const DiskEntry* entry : chain) known[entry] = is_whole;
    whole.push_back(is_whole);
  }
  return whole;
}

bool DiskStore::Supersede(std::string_view fingerprint, std::string_view key) {
  absl::MutexLock lock(&mutex_);
  if (FindCurrent(fingerprint, key) == nullptr) return false;
  index_.At(*index_.Find(fingerprint, key)).superseded = true;
  return true;
}

bool DiskStore::Forget(std::string_view fingerprint, std::string_view key) {
  absl::MutexLock lock(&mutex_);
  const DiskPlace* place = index_.Find(fingerprint, key);
  if (place == nullptr) return false;
  ForgetPlace(*place);
  return true;
}

void DiskStore::ForgetPlace(const DiskPlace& place) {
  removals_.push_back({place, segments_[place.segment].generation});
  index_.Erase(place);
  ++stats_.removed_pages;
}

uint64_t DiskStore::ForgetDescendants(std::string_view fingerprint, std::string_view key) {
  uint64_t forgotten = 0;
  const std::vector<DiskPlace> places = index_.Descendants(fingerprint, key);
  for (auto place = places.rbegin(); place != places.rend(); ++place) {  // so that no hole opens
    if (!index_.At(*place).live) continue;
    ForgetPlace(*place);
    ++forgotten;
  }
  return forgotten;
}

uint64_t DiskStore::ForgetTree(std::string_view fingerprint, std::string_view key) {
  absl::MutexLock lock(&mutex_);
  const uint64_t below = ForgetDescendants(fingerprint, key);
  const DiskPlace* place = index_.Find(fingerprint, key);
  if (place == nullptr) return below;
  ForgetPlace(*place);
  return below + 1;
}

bool DiskStore::HoldsOlder(std::string_view fingerprint, std::string_view key) const {
  absl::ReaderMutexLock lock(&mutex_);
  const DiskPlace* place = index_.Find(fingerprint, key);
  return place != nullptr && index_.At(*place).superseded;
}

// --- Time ---

void DiskStore::SetUsedAt(std::string_view fingerprint, std::string_view key, uint32_t seconds) {
  absl::ReaderMutexLock lock(&mutex_);
  if (const DiskEntry* entry = FindCurrent(fingerprint, key); entry != nullptr)
    entry->used_at_s.store(std::max(seconds, 1u), std::memory_order_relaxed);
}

bool DiskStore::IsUnused(const DiskPlace& place, uint32_t now_s, uint32_t unused_s) const {
  const DiskEntry& entry = index_.At(place);
  // Relaxed: it is a time, and orders nothing.
  const uint32_t used_at_s = entry.used_at_s.load(std::memory_order_relaxed);
  if (used_at_s == 0) entry.used_at_s.store(std::max(now_s, 1u), std::memory_order_relaxed);
  return used_at_s != 0 && now_s >= used_at_s && now_s - used_at_s >= unused_s &&
         !index_.HasChildren(place);
}

uint64_t DiskStore::ForPages(std::string_view fingerprint, uint64_t cursor,
                             absl::FunctionRef<bool(const DiskPlace&)> each) const {
  DiskPlace place = PlaceOf(cursor);
  bool more = true;
  for (uint32_t looked = 0; place.segment < segments_.size(); ++looked) {
    if (place.entry >= index_.segment(place.segment).entries.size()) {
      place = {place.segment + 1, 0};
      continue;
    }
    if (looked >= kPlacesPerCall || !more) return CursorOf(place);
    const DiskEntry& entry = index_.At(place);
    if (entry.live && index_.FingerprintOf(entry) == fingerprint) more = each(place);
    ++place.entry;
  }
  return 0;
}

DiskStore::Unused DiskStore::ListUnused(std::string_view fingerprint, uint32_t now_s,
                                        uint32_t unused_s, uint64_t cursor) const {
  Unused unused;
  absl::ReaderMutexLock lock(&mutex_);
  const auto add = [&](const DiskPlace& place) ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    if (IsUnused(place, now_s, unused_s)) unused.keys.emplace_back(index_.At(place).key.view());
    return true;
  };
  unused.cursor = ForPages(fingerprint, cursor, add);
  return unused;
}

std::pair<bool, std::string> DiskStore::ForgetUnused(std::string_view fingerprint,
                                                     std::string_view key, uint32_t now_s,
                                                     uint32_t unused_s) {
  absl::MutexLock lock(&mutex_);
  const DiskPlace* place = index_.Find(fingerprint, key);
  if (place == nullptr || !IsUnused(*place, now_s, unused_s)) return {false, ""};
  const uint64_t parent = index_.At(*place).parent;
  ForgetPlace(*place);
  const DiskPlace* above = parent == 0 ? nullptr : index_.FindHash(parent);
  return {true, above == nullptr ? "" : std::string(index_.At(*above).key.view())};
}

DiskListResult DiskStore::List(std::string_view fingerprint, uint32_t pages_max,
                               uint64_t cursor) const {
  DiskListResult result;
  absl::ReaderMutexLock lock(&mutex_);
  const auto add = [&](const DiskPlace& place) ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    const DiskEntry& entry = index_.At(place);
    result.pages.push_back({std::string(entry.key.view()), PageOf(entry)});
    return result.pages.size() < pages_max;
  };
  result.cursor = ForPages(fingerprint, cursor, add);
  return result;
}

DiskStoreStats DiskStore::Stats() const {
  absl::ReaderMutexLock lock(&mutex_);
  DiskStoreStats stats = stats_;
  stats.capacity_bytes = directory_.capacity_bytes();
  stats.live_bytes = index_.live_bytes();
  stats.pages = index_.pages();
  stats.segments = segments_.size();
  stats.free_segments = static_cast<uint64_t>(std::ranges::count(
      segments_, SegmentUse::kFree, [](const Segment& segment) { return segment.use; }));
  stats.index_bytes = index_.memory_bytes();
  stats.io = io_->Stats();
  stats.segments_made = directory_.segments_made();
  stats.backend = io_->name();
  stats.direct = directory_.direct();
  return stats;
}

void DiskStore::NoteError(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  stats_.last_error = std::string(status.message());
}

// --- Reading ---

DiskStore::Flight DiskStore::Begin(const DiskPlace& place) {
  const DiskEntry& entry = index_.At(place);
  Segment& segment = segments_[place.segment];
  ++segment.readers;
  return {.place = place,
          .generation = segment.generation,
          .sequence = entry.sequence,
          .record_block = entry.record_block,
          .record_bytes = RecordBytes(entry.body_bytes)};
}

absl::Status DiskStore::Check(const Flight& flight, DiskGet& get) const {
  const ByteView record = get.buffer.first(flight.record_bytes);
  absl::StatusOr<PageHeader> header = DecodePageHeader(record.first<kPageHeaderBytes>());
  if (!header.ok()) return Annotate(header.status(), "header");
  if (header->key != get.key || header->fingerprint != get.fingerprint)
    return absl::DataLossError(absl::StrCat("another page lies there, ", Name(header->key)));
  if (header->sequence != flight.sequence || header->generation != flight.generation ||
      RecordBytes(header->body_bytes) != flight.record_bytes) {
    return absl::DataLossError(absl::StrCat("an older write of it lies there: sequence ",
                                            header->sequence, ", expected ", flight.sequence));
  }
  // Also of a page whose body is bad: which part of it is, others can tell.
  get.header = *header;
  get.body = record.subspan(kPageHeaderBytes, header->body_bytes);
  if (const uint32_t crc = Crc32c(get.body); crc != header->body_crc) {
    return absl::DataLossError(absl::StrCat("body: checksum ", absl::Hex(crc), ", expected ",
                                            absl::Hex(header->body_crc)));
  }
  return absl::OkStatus();
}

bool DiskStore::End(const Flight& flight, const DiskGet& get, bool device_failed) {
  absl::MutexLock lock(&mutex_);
  Segment& segment = segments_[flight.place.segment];
  --segment.readers;
  if (get.status.ok()) {
    ++stats_.read_pages;
    stats_.read_body_bytes += get.body.size();
    return false;
  }
  stats_.last_error = std::string(get.status.message());
  // Unless it has gone meanwhile, or moved.
  if (segment.generation != flight.generation) return false;
  const DiskPlace* place = index_.Find(get.fingerprint, get.key);
  if (place == nullptr || *place != flight.place) return false;
  removals_.push_back({flight.place, flight.generation});
  index_.Erase(flight.place);
  ForgetDescendants(get.fingerprint, get.key);  // nobody can reach them
  ++(device_failed ? stats_.unreadable_pages : stats_.corrupt_pages);
  return !device_failed;
}

void DiskStore::ReadAll(std::span<DiskGet> gets, While why) {
  std::vector<Flight> flights;
  std::vector<IoRequest> requests;
  std::vector<DiskGet*> of_request;
  {
    absl::MutexLock lock(&mutex_);
    for (DiskGet& get : gets) {
      const DiskPlace* place = index_.Find(get.fingerprint, get.key);
      if (place == nullptr || index_.At(*place).superseded) {
        get.status = absl::NotFoundError(Name(get.key));
        continue;
      }
      DiskEntry& entry = index_.At(*place);
      const uint64_t bytes = RecordBytes(entry.body_bytes);
      if (get.buffer.size() < bytes) {
        get.status = absl::InvalidArgumentError(absl::StrCat(
            Name(get.key), ": a buffer of ", get.buffer.size(), " bytes, needed are ", bytes));
        continue;
      }
      if (why == While::kRead) entry.used.store(true, std::memory_order_relaxed);
      const Flight& flight = flights.emplace_back(Begin(*place));
      requests.push_back({.kind = IoKind::kRead,
                          .file = directory_.file(place->segment),
                          .offset = flight.record_block * kDiskBlockBytes,
                          .data = get.buffer.first(bytes)});
      of_request.push_back(&get);
    }
  }
  io_->Run(requests, [&](IoRequest& request) {
    const auto i = static_cast<size_t>(&request - requests.data());
    DiskGet& get = *of_request[i];
    get.status = request.status.ok() ? Check(flights[i], get) : request.status;
    get.status = Annotate(get.status, Name(get.key));
    if (!End(flights[i], get, !request.status.ok()) || on_corrupt_ == nullptr) return;
    on_corrupt_({.fingerprint = get.fingerprint,
                 .key = get.key,
                 .found = why,
                 .encoding = get.header.encoding,
                 .body = get.body,
                 .error = get.status});
  });
}

void DiskStore::Read(std::span<DiskGet> gets) { ReadAll(gets, While::kRead); }

DiskVerifyProgress DiskStore::Verify(uint64_t cursor, uint64_t bytes_max) {
  DiskVerifyProgress progress;
  DiskPlace place = PlaceOf(cursor);
  AlignedBuffer buffer;
  for (bool more = true; more;) {
    std::string fingerprint;
    std::string key;
    uint64_t bytes = 0;
    {
      absl::ReaderMutexLock lock(&mutex_);
      for (uint32_t looked = 0; key.empty(); ++looked) {
        if (place.segment >= segments_.size()) {
          progress.cursor = 0;
          return progress;
        }
        if (place.entry >= index_.segment(place.segment).entries.size()) {
          place = {place.segment + 1, 0};
          continue;
        }
        if (looked >= kPlacesPerCall) break;
        const DiskEntry& entry = index_.At(place);
        ++place.entry;
        if (!entry.live || entry.superseded) continue;
        fingerprint = index_.FingerprintOf(entry);
        key = entry.key.view();
        bytes = RecordBytes(entry.body_bytes);
      }
    }
    progress.cursor = CursorOf(place);
    if (key.empty()) break;
    buffer.Grow(bytes);
    DiskGet get{.fingerprint = fingerprint, .key = key, .buffer = buffer.bytes()};
    ReadAll({&get, 1}, While::kVerified);
    ++progress.pages_checked;
    progress.bytes_checked += bytes;
    if (!get.status.ok() && !absl::IsNotFound(get.status)) ++progress.pages_corrupt;
    more = progress.bytes_checked < bytes_max;
  }
  return progress;
}

}  // namespace oscarkv
