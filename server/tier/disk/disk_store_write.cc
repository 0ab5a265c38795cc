// Writing: pages into batches, batches onto the device, and then into the index.
#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"

#include "kernels/base/checksum.h"
#include "kernels/base/status_macros.h"
#include "proto/wire/page_key.h"
#include "server/tier/disk/disk_store.h"

namespace oscarkv {
namespace {

// A batch goes to the device in requests of this size, so that several are under way.
constexpr uint64_t kRequestBytes = 1 << 20;

absl::Status FirstError(std::span<const IoRequest> requests) {
  for (const IoRequest& request : requests) OSCARKV_RETURN_IF_ERROR(request.status);
  return absl::OkStatus();
}

}  // namespace

void DiskStore::Write(std::span<DiskPut> puts) {
  absl::MutexLock lock(&writer_mutex_);
  // A removal that fails stays to be written, and its error is counted.
  if (const absl::Status status = WriteRemovalsLocked(); !status.ok()) NoteError(status);
  WriteLocked(puts);
}

bool DiskStore::NeedsWrite(DiskPut& put) const {
  const uint64_t most = body_bytes_max();
  put.status = absl::OkStatus();
  if (put.fingerprint.size() != kFingerprintBytes) {
    put.status = absl::InvalidArgumentError(absl::StrCat("a fingerprint has ", kFingerprintBytes,
                                                         " bytes, found ", put.fingerprint.size()));
  } else if (const absl::Status key = ValidateKey(put.key); !key.ok()) {
    put.status = key;
  } else if (const absl::Status parent = ValidateKey(put.parent);
             !put.parent.empty() && !parent.ok()) {
    put.status = Annotate(parent, "parent");
  } else if (put.body.empty() || put.body.size() > most) {
    put.status = absl::InvalidArgumentError(
        absl::StrCat("a page on this disk has 1..", most, " bytes, found ", put.body.size()));
  } else if (put.checksum_bytes > put.body.size()) {
    put.status = absl::InvalidArgumentError(
        absl::StrCat(put.checksum_bytes, " bytes of checksums in a body of ", put.body.size()));
  }
  return put.status.ok() && !Find(put.fingerprint, put.key).has_value();
}

bool DiskStore::Fits(uint64_t body_bytes) const {
  if (!active_.has_value()) return false;
  uint64_t blocks = written_.next_block + staged_bytes_ / kDiskBlockBytes;
  blocks += RecordBlocks(body_bytes);
  const auto entries = static_cast<uint32_t>(written_.entries + staged_.size() + 1);
  return blocks + TableBlocks(entries) <= segment_blocks();
}

void DiskStore::WriteLocked(std::span<DiskPut> puts) {
  absl::Status status;
  for (DiskPut& put : puts) {
    if (!NeedsWrite(put)) continue;
    // After an error the rest is not tried: the caller decides when to try again.
    if (status.ok()) status = MakeRoom(put.body.size());
    if (!status.ok()) {
      put.status = status;
      absl::MutexLock lock(&mutex_);
      stats_.last_error = std::string(status.message());
      ++stats_.failed_writes;
      continue;
    }
    Stage({.first_position = put.first_position,
           .body_checksum_bytes = put.checksum_bytes,
           .encoding = put.encoding,
           .fingerprint = put.fingerprint,
           .key = put.key,
           .parent = put.parent},
          put.body, &put);
  }
  // Errors are in the statuses of the pages.
  WriteStaged().IgnoreError();
  Publish().IgnoreError();
}

absl::Status DiskStore::MakeRoom(uint64_t body_bytes) {
  if (IsNearlyFull() && !FreeSegment().has_value()) {
    OSCARKV_RETURN_IF_ERROR(WriteStaged());
    OSCARKV_RETURN_IF_ERROR(Publish());
    OSCARKV_RETURN_IF_ERROR(Reclaim());
  }
  if (Fits(body_bytes)) {
    const bool staging = staged_bytes_ + RecordBytes(body_bytes) <= staging_.bytes().size();
    return staging ? absl::OkStatus() : WriteStaged();
  }
  OSCARKV_RETURN_IF_ERROR(WriteStaged());
  OSCARKV_RETURN_IF_ERROR(Publish());
  OSCARKV_RETURN_IF_ERROR(NextSegment());
  if (Fits(body_bytes)) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("a new segment has no room for ", body_bytes, " bytes"));
}

void DiskStore::Stage(const PageHeader& page, ByteView body, DiskPut* put) {
  const uint64_t bytes = RecordBytes(body.size());
  if (staged_.empty()) staging_.Grow(bytes);
  PageHeader header = page;
  header.generation = active_generation_;
  header.sequence = next_sequence_++;
  header.body_bytes = static_cast<uint32_t>(body.size());
  header.body_crc = Crc32c(body);
  header.record_block =
      static_cast<uint32_t>(written_.next_block + staged_bytes_ / kDiskBlockBytes);
  header.segment = *active_;
  header.entry = static_cast<uint32_t>(written_.entries + staged_.size());
  const MutableByteView record = staging_.bytes().subspan(staged_bytes_, bytes);
  EncodePageHeader(header, record.first<kPageHeaderBytes>());
  std::memcpy(record.data() + kPageHeaderBytes, body.data(), body.size());
  std::ranges::fill(record.subspan(kPageHeaderBytes + body.size()), std::byte{0});
  staged_bytes_ += bytes;
  staged_.push_back({header, put});
}

absl::Status DiskStore::WriteStaged() {
  if (staged_.empty()) return absl::OkStatus();
  Position next = written_;
  std::vector<IoRequest> requests;
  for (uint64_t at = 0; at < staged_bytes_; at += kRequestBytes) {
    requests.push_back(
        {.kind = IoKind::kWrite,
         .file = directory_.file(*active_),
         .offset = written_.next_block * kDiskBlockBytes + at,
         .data = staging_.bytes().subspan(at, std::min(kRequestBytes, staged_bytes_ - at))});
  }
  io_->Run(requests);
  // A header is in the table only when its record is on the device.
  absl::Status status = FirstError(requests);
  // A page that is kept has an older copy, which must not lose against half of the new one.
  const bool kept = staged_.front().put == nullptr;
  if (status.ok() && kept) status = io_->Sync(directory_.file(*active_));
  if (status.ok()) status = WriteTable(next);
  if (status.ok()) {
    next.next_block += static_cast<uint32_t>(staged_bytes_ / kDiskBlockBytes);
    written_ = next;
    std::ranges::move(staged_, std::back_inserter(unpublished_));
  } else {
    Fail(staged_, status);
  }
  staged_.clear();
  staged_bytes_ = 0;
  return status;
}

absl::Status DiskStore::WriteTable(Position& next) {
  const auto first = static_cast<uint32_t>(next.entries / kHeadersPerBlock);
  const auto entries = static_cast<uint32_t>(next.entries + staged_.size());
  const uint32_t blocks = TableBlocks(entries) - first;
  // In the order of the file: the last block first.
  const AlignedBuffer table(blocks * kDiskBlockBytes);
  std::ranges::fill(table.bytes(), std::byte{0});
  const auto block_of = [&](uint32_t entry) {
    const auto block = static_cast<uint32_t>(entry / kHeadersPerBlock) - first;
    return table.bytes().subspan((blocks - 1 - block) * kDiskBlockBytes, kDiskBlockBytes);
  };
  std::ranges::copy(next.table_tail, block_of(first * kHeadersPerBlock).begin());
  for (const Staged& page : staged_) {
    const uint64_t at = page.header.entry % kHeadersPerBlock * kPageHeaderBytes;
    EncodePageHeader(page.header,
                     block_of(page.header.entry).subspan(at).first<kPageHeaderBytes>());
  }
  IoRequest write{.kind = IoKind::kWrite,
                  .file = directory_.file(*active_),
                  .offset = TableBlockOffset(directory_.segment_bytes(), first + blocks - 1),
                  .data = table.bytes()};
  io_->Run({&write, 1});
  next.entries = entries;
  next.table_tail.fill(std::byte{0});
  if (entries % kHeadersPerBlock != 0)
    std::ranges::copy(block_of(entries), next.table_tail.begin());
  return write.status;
}

absl::Status DiskStore::Publish() {
  if (unpublished_.empty()) return absl::OkStatus();
  const absl::Status status = io_->Sync(directory_.file(*active_));
  if (!status.ok()) {
    // Nobody knows what of it is on the device: it is written again from where all was well.
    written_ = durable_;
    Fail(unpublished_, status);
    return status;
  }
  durable_ = written_;
  absl::MutexLock lock(&mutex_);
  for (const Staged& page : unpublished_) {
    const DiskPlace older = index_.Append(*active_, page.header);
    const bool kept = page.put == nullptr;
    if (kept && older.is_none()) {
      // Forgotten while its bytes were written again: they are not to bring it back.
      ForgetPlace(*index_.Find(page.header.fingerprint, page.header.key));
    } else if (kept) {
      // What became of it while its bytes were written again.
      DiskEntry& entry = index_.At(*index_.Find(page.header.fingerprint, page.header.key));
      entry.superseded = index_.At(older).superseded;
      entry.used_at_s.store(index_.At(older).used_at_s.load(std::memory_order_relaxed),
                            std::memory_order_relaxed);
      ++stats_.rewritten_pages;  // the older one's segment is about to be void
    } else {
      if (!older.is_none()) removals_.push_back({older, segments_[older.segment].generation});
      ++stats_.written_pages;
      stats_.written_body_bytes += page.header.body_bytes;
    }
  }
  unpublished_.clear();
  return status;
}

void DiskStore::Fail(std::vector<Staged>& pages, const absl::Status& status) {
  NoteError(status);
  absl::MutexLock lock(&mutex_);
  for (const Staged& page : pages) {
    if (page.put == nullptr) continue;
    page.put->status = status;
    ++stats_.failed_writes;
  }
  pages.clear();
}

// --- Removals ---

absl::Status DiskStore::WriteRemovals() {
  absl::MutexLock lock(&writer_mutex_);
  absl::Status status = WriteRemovalsLocked();
  if (!status.ok()) NoteError(status);
  return status;
}

absl::Status DiskStore::WriteRemovalsLocked() {
  // By segment and block of its table.
  std::map<std::pair<uint32_t, uint32_t>, std::vector<Removal>> blocks;
  {
    absl::MutexLock lock(&mutex_);
    for (const Removal& removal : removals_) {
      // A segment that has started anew has forgotten the page.
      if (segments_[removal.place.segment].generation != removal.generation) continue;
      blocks[{removal.place.segment, static_cast<uint32_t>(removal.place.entry / kHeadersPerBlock)}]
          .push_back(removal);
    }
    removals_.clear();
  }
  absl::Status first_error;
  for (auto block = blocks.begin(); block != blocks.end(); ++block) {
    const auto& [segment, number] = block->first;
    absl::Status status = RemoveInTable(segment, number, block->second);
    const auto next = std::next(block);
    const bool last = next == blocks.end() || next->first.first != segment;
    if (status.ok() && last) status = io_->Sync(directory_.file(segment));
    if (status.ok()) continue;
    first_error.Update(status);
    absl::MutexLock lock(&mutex_);
    removals_.insert(removals_.end(), block->second.begin(), block->second.end());
  }
  return first_error;
}

absl::Status DiskStore::RemoveInTable(uint32_t segment, uint32_t block,
                                      std::span<const Removal> removals) {
  const AlignedBuffer buffer(kDiskBlockBytes);
  const MutableByteView bytes = buffer.bytes();
  const uint64_t offset = TableBlockOffset(directory_.segment_bytes(), block);
  const bool is_tail = active_ == segment && block == written_.entries / kHeadersPerBlock;
  if (is_tail) {
    std::ranges::copy(written_.table_tail, bytes.begin());
  } else {
    IoRequest read{
        .kind = IoKind::kRead, .file = directory_.file(segment), .offset = offset, .data = bytes};
    io_->Run({&read, 1});
    OSCARKV_RETURN_IF_ERROR(Annotate(read.status, "table"));
  }
  for (const Removal& removal : removals) {
    const uint64_t at = removal.place.entry % kHeadersPerBlock * kPageHeaderBytes;
    const auto header_bytes = bytes.subspan(at).first<kPageHeaderBytes>();
    absl::StatusOr<PageHeader> header = DecodePageHeader(header_bytes);
    if (!header.ok()) continue;  // damaged: no page is found there either
    // The names are views into what is written.
    const std::string fingerprint(header->fingerprint);
    const std::string key(header->key);
    const std::string parent(header->parent);
    header->fingerprint = fingerprint;
    header->key = key;
    header->parent = parent;
    header->removed = true;
    EncodePageHeader(*header, header_bytes);
  }
  if (is_tail) {
    std::ranges::copy(bytes, written_.table_tail.begin());
    durable_.table_tail = written_.table_tail;
  }
  return Annotate(WriteBlock(segment, offset, bytes), "table");
}

absl::Status DiskStore::WriteBlock(uint32_t segment, uint64_t offset, MutableByteView block) {
  IoRequest write{
      .kind = IoKind::kWrite, .file = directory_.file(segment), .offset = offset, .data = block};
  io_->Run({&write, 1});
  return write.status;
}

}  // namespace oscarkv
