// Segments: sealing the one that is full, starting another, and freeing the one that goes.
#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/base/checksum.h"
#include "kernels/base/status_macros.h"
#include "server/tier/disk/disk_store.h"

namespace oscarkv {

uint64_t DiskStore::body_bytes_max() const {
  constexpr uint64_t kTableBlocks = 1;
  return directory_.segment_bytes() - (kSegmentFrontBlocks + kTableBlocks) * kDiskBlockBytes -
         kPageHeaderBytes;
}

bool DiskStore::IsNearlyFull() const {
  if (!active_.has_value()) return false;
  const auto entries = static_cast<uint32_t>(written_.entries + staged_.size());
  const auto left = static_cast<double>(segment_blocks() - written_.next_block -
                                        staged_bytes_ / kDiskBlockBytes - TableBlocks(entries));
  // A kept record of at least a block has a header in the table: a sixteenth of it at most.
  const double kept = options_.rewritten_share_max * (1.0 + 1.0 / kHeadersPerBlock);
  return left < kept * segment_blocks();
}

std::optional<uint32_t> DiskStore::FreeSegment() const {
  absl::ReaderMutexLock lock(&mutex_);
  const auto found = std::ranges::find(segments_, SegmentUse::kFree,
                                       [](const Segment& segment) { return segment.use; });
  if (found == segments_.end()) return std::nullopt;
  return static_cast<uint32_t>(found - segments_.begin());
}

std::optional<uint32_t> DiskStore::Victim() const {
  absl::ReaderMutexLock lock(&mutex_);
  std::vector<DiskSegmentInfo> sealed;
  for (uint32_t segment = 0; segment < segments_.size(); ++segment) {
    if (segments_[segment].use != SegmentUse::kSealed) continue;
    sealed.push_back({.segment = segment,
                      .generation = segments_[segment].generation,
                      .segment_bytes = directory_.segment_bytes(),
                      .live_bytes = index_.segment(segment).live_bytes});
  }
  if (sealed.empty()) return std::nullopt;
  return sealed[policy_->Victim(sealed)].segment;
}

absl::Status DiskStore::NextSegment() {
  // What is kept goes to the end of the segment that is full, as far as it fits there.
  if (!FreeSegment().has_value()) OSCARKV_RETURN_IF_ERROR(Reclaim());
  if (active_.has_value()) OSCARKV_RETURN_IF_ERROR(SealActive());
  // The only segment that was sealed may have been the last one written to.
  if (!FreeSegment().has_value()) OSCARKV_RETURN_IF_ERROR(Reclaim());
  const std::optional<uint32_t> free = FreeSegment();
  if (!free.has_value()) return absl::InternalError("no segment can be reclaimed");
  return Activate(*free);
}

absl::Status DiskStore::SealActive() {
  const AlignedBuffer block(kDiskBlockBytes);
  EncodeSegmentSeal({.id = directory_.id(),
                     .segment = *active_,
                     .generation = active_generation_,
                     .entries = durable_.entries},
                    block.bytes().first<kDiskBlockBytes>());
  OSCARKV_RETURN_IF_ERROR(
      Annotate(WriteBlock(*active_, kDiskBlockBytes, block.bytes()), "segment's seal"));
  absl::MutexLock lock(&mutex_);
  segments_[*active_].use = SegmentUse::kSealed;
  active_.reset();
  return absl::OkStatus();
}

absl::Status DiskStore::Activate(uint32_t segment) {
  const uint64_t generation = next_generation_++;
  {
    absl::MutexLock lock(&mutex_);
    const auto unread = [this, segment]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return segments_[segment].readers == 0;
    };
    mutex_.Await(absl::Condition(&unread));
  }
  // The header, and zeros where a seal may have been.
  const AlignedBuffer front(kSegmentFrontBlocks * kDiskBlockBytes);
  std::ranges::fill(front.bytes(), std::byte{0});
  EncodeSegmentHeader({.id = directory_.id(),
                       .segment = segment,
                       .generation = generation,
                       .segment_bytes = directory_.segment_bytes()},
                      front.bytes().first<kDiskBlockBytes>());
  OSCARKV_RETURN_IF_ERROR(Annotate(WriteBlock(segment, 0, front.bytes()), "segment's header"));
  OSCARKV_RETURN_IF_ERROR(Annotate(io_->Sync(directory_.file(segment)), "segment's header"));
  active_ = segment;
  active_generation_ = generation;
  written_ = durable_ = Position{};
  absl::MutexLock lock(&mutex_);
  segments_[segment].use = SegmentUse::kActive;
  segments_[segment].generation = generation;
  return absl::OkStatus();
}

absl::Status DiskStore::Reclaim() {
  const std::optional<uint32_t> victim = Victim();
  if (!victim.has_value()) return absl::OkStatus();
  if (active_.has_value()) OSCARKV_RETURN_IF_ERROR(Keep(*victim));
  {
    absl::MutexLock lock(&mutex_);
    stats_.reclaimed_pages += index_.Clear(*victim);
  }
  // So that its pages do not come back if this is the end: somebody may delete one of them now.
  const AlignedBuffer front(kSegmentFrontBlocks * kDiskBlockBytes);
  std::ranges::fill(front.bytes(), std::byte{0});
  OSCARKV_RETURN_IF_ERROR(Annotate(WriteBlock(*victim, 0, front.bytes()), "reclaimed segment"));
  OSCARKV_RETURN_IF_ERROR(Annotate(io_->Sync(directory_.file(*victim)), "reclaimed segment"));
  absl::MutexLock lock(&mutex_);
  segments_[*victim].use = SegmentUse::kFree;
  return absl::OkStatus();
}

absl::Status DiskStore::Keep(uint32_t victim) {
  const auto most = static_cast<uint64_t>(options_.rewritten_share_max *
                                          static_cast<double>(directory_.segment_bytes()));
  std::vector<std::pair<uint64_t, DiskGet>> kept;  // with their records' bytes
  std::deque<std::pair<std::string, std::string>> names;
  uint64_t bytes = 0;
  {
    absl::ReaderMutexLock lock(&mutex_);
    for (const DiskEntry& entry : index_.segment(victim).entries) {
      const uint64_t record_bytes = RecordBytes(entry.body_bytes);
      const bool used = entry.used.load(std::memory_order_relaxed);
      if (!entry.live || entry.superseded || !policy_->Keeps(used) || bytes + record_bytes > most)
        continue;
      bytes += record_bytes;
      const auto& [fingerprint, key] =
          names.emplace_back(index_.FingerprintOf(entry), entry.key.view());
      kept.push_back({record_bytes, {.fingerprint = fingerprint, .key = key}});
    }
  }
  AlignedBuffer buffer;
  for (auto& [record_bytes, get] : kept) {
    buffer.Grow(record_bytes);
    get.buffer = buffer.bytes();
    ReadAll({&get, 1}, While::kKept);
    if (!get.status.ok()) continue;  // bad: dropped and counted
    if (!Fits(get.body.size())) break;
    if (staged_bytes_ + record_bytes > staging_.bytes().size())
      OSCARKV_RETURN_IF_ERROR(WriteStaged());
    // Names that stay until it is in the index; the buffer is used again.
    get.header.fingerprint = get.fingerprint;
    get.header.key = get.key;
    get.header.parent = names.emplace_back(get.header.parent, "").first;
    Stage(get.header, get.body, nullptr);
  }
  OSCARKV_RETURN_IF_ERROR(WriteStaged());
  return Publish();
}

}  // namespace oscarkv
