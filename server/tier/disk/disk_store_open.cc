// Opening: the index from the tables of all segments. Bodies are not read.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "kernels/base/status_macros.h"
#include "server/tier/disk/disk_store.h"

namespace oscarkv {
namespace {

// A table is read in pieces of so many blocks, with several requests under way. Where nobody knows
// how long it is, the first piece is small.
constexpr uint32_t kBlocksPerPiece = 2048;
constexpr uint32_t kBlocksOfFirstPiece = 64;
constexpr uint64_t kRequestBytes = 512 << 10;
// By how much the counters jump, past whatever a segment that cannot be read may have used.
constexpr uint64_t kCounterJump = 1 << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<DiskStore>> DiskStore::Open(
    const DiskStoreOptions& options, std::unique_ptr<BlockIo> io,
    std::unique_ptr<DiskReclaimPolicy> policy) {
  if (io == nullptr) return absl::InvalidArgumentError("disk: block I/O is needed");
  if (!(options.rewritten_share_max >= 0 && options.rewritten_share_max <= 0.5)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "disk: rewritten_share_max must be in 0..0.5, found ", options.rewritten_share_max));
  }
  if (policy == nullptr) policy = std::make_unique<SecondChanceReclaim>();
  OSCARKV_ASSIGN_OR_RETURN(DiskDirectory directory, DiskDirectory::Open(options.directory, *io));
  auto store = std::unique_ptr<DiskStore>(
      new DiskStore(options, std::move(io), std::move(policy), std::move(directory)));
  absl::MutexLock writer(&store->writer_mutex_);
  absl::MutexLock lock(&store->mutex_);
  OSCARKV_RETURN_IF_ERROR(Annotate(store->Recover(), "disk directory " + options.directory.path));
  return store;
}

// Reads the tables, segment by segment in the order of their generations.
struct DiskStore::Recovery {
  struct Found {
    uint32_t segment;
    uint64_t generation;
    std::optional<uint32_t> entries;  // if sealed
  };

  const DiskDirectory& directory;
  BlockIo& io;
  DiskIndex& index;
  DiskStoreStats& stats;
  uint64_t sequence_max = 0;
  // Whole, but not to be found: older copies of pages that are there, and orphans. They would come
  // back once the newer copy is removed, or what they extend is stored again.
  std::vector<DiskPlace> unwanted = {};

  // Segments that have been started, by generation.
  std::vector<Found> FindSegments() {
    const uint32_t count = directory.segments();
    const AlignedBuffer fronts(count * kSegmentFrontBlocks * kDiskBlockBytes);
    const auto front_of = [&](uint32_t segment) {
      return fronts.bytes().subspan(segment * kSegmentFrontBlocks * kDiskBlockBytes,
                                    kSegmentFrontBlocks * kDiskBlockBytes);
    };
    std::vector<IoRequest> requests;
    for (uint32_t segment = 0; segment < count; ++segment) {
      requests.push_back({.kind = IoKind::kRead,
                          .file = directory.file(segment),
                          .offset = 0,
                          .data = front_of(segment)});
    }
    io.Run(requests);
    std::vector<Found> found;
    for (uint32_t segment = 0; segment < count; ++segment) {
      if (!requests[segment].status.ok()) {
        stats.last_error = std::string(requests[segment].status.message());
        continue;  // what was in it is gone
      }
      const auto header = DecodeSegmentHeader(front_of(segment).first<kDiskBlockBytes>());
      if (!header.ok() || header->id != directory.id() || header->segment != segment ||
          header->segment_bytes != directory.segment_bytes())
        continue;
      Found& entry = found.emplace_back(Found{segment, header->generation, std::nullopt});
      const auto seal = DecodeSegmentSeal(front_of(segment).last<kDiskBlockBytes>());
      const uint32_t blocks_max =
          static_cast<uint32_t>(directory.segment_bytes() / kDiskBlockBytes) - kSegmentFrontBlocks;
      if (seal.ok() && seal->id == directory.id() && seal->segment == segment &&
          seal->generation == header->generation && TableBlocks(seal->entries) <= blocks_max)
        entry.entries = seal->entries;
    }
    std::ranges::sort(found, {}, &Found::generation);
    return found;
  }

  absl::Status ReadPiece(uint32_t segment, uint64_t offset, MutableByteView bytes) {
    std::vector<IoRequest> requests;
    for (uint64_t at = 0; at < bytes.size(); at += kRequestBytes) {
      requests.push_back({.kind = IoKind::kRead,
                          .file = directory.file(segment),
                          .offset = offset + at,
                          .data = bytes.subspan(at, std::min(kRequestBytes, bytes.size() - at))});
    }
    absl::Status status;
    io.Run(requests, [&](IoRequest& request) { status.Update(request.status); });
    return status;
  }

  // Enters the pages of the segment; returns how many entries its table has.
  uint32_t ReadTable(const Found& segment) {
    const uint32_t blocks_max =
        static_cast<uint32_t>(directory.segment_bytes() / kDiskBlockBytes) - kSegmentFrontBlocks;
    const uint32_t blocks =
        segment.entries.has_value() ? TableBlocks(*segment.entries) : blocks_max;
    const uint64_t entries_max = segment.entries.value_or(blocks * kHeadersPerBlock);
    const AlignedBuffer buffer(kBlocksPerPiece * kDiskBlockBytes);
    uint32_t last = 0;  // entries up to the last that is a header of this generation
    uint32_t piece = segment.entries.has_value() ? kBlocksPerPiece : kBlocksOfFirstPiece;
    for (uint32_t block = 0, count = 0; block < blocks; block += count) {
      count = std::min(piece, blocks - block);
      piece = std::min(2 * piece, kBlocksPerPiece);
      const MutableByteView bytes = buffer.bytes().first(count * kDiskBlockBytes);
      const absl::Status status = ReadPiece(
          segment.segment, TableBlockOffset(directory.segment_bytes(), block + count - 1), bytes);
      if (!status.ok()) {
        stats.last_error = std::string(status.message());
        return last;
      }
      for (uint32_t i = 0; i < count; ++i) {
        const auto first = static_cast<uint32_t>((block + i) * kHeadersPerBlock);
        const uint64_t stop = std::min<uint64_t>(first + kHeadersPerBlock, entries_max);
        const ByteView headers = bytes.subspan((count - 1 - i) * kDiskBlockBytes, kDiskBlockBytes);
        if (const uint32_t found = EnterBlock(segment, headers, first, stop); found > 0)
          last = found;
        else if (!segment.entries.has_value())
          return last;
      }
    }
    return last;
  }

  // Enters the headers first..stop-1 of one block; returns the entries up to the last that is one
  // of this generation, 0 if none is.
  uint32_t EnterBlock(const Found& segment, ByteView block, uint32_t first, uint64_t stop) {
    uint32_t last = 0;
    for (uint32_t entry = first; entry < stop; ++entry) {
      const auto header = DecodePageHeader(
          block.subspan((entry - first) * kPageHeaderBytes).first<kPageHeaderBytes>());
      const bool ours = header.ok() && header->generation == segment.generation &&
                        header->segment == segment.segment && header->entry == entry;
      if (ours) {
        last = entry + 1;
        sequence_max = std::max(sequence_max, header->sequence);
      } else if (segment.entries.has_value()) {
        ++stats.damaged_headers;
      }
      if (ours && !header->removed) {
        Enter(segment.segment, entry, *header);
      }
    }
    return last;
  }

  void Enter(uint32_t segment, uint32_t entry, const PageHeader& header) {
    while (index.segment(segment).entries.size() < entry) index.AppendGap(segment);
    const DiskPlace older = index.Append(segment, header);
    if (!older.is_none()) unwanted.push_back(older);
  }

  // Drops pages whose ancestors are not all there: nobody could reach them.
  void DropOrphans() {
    for (const DiskPlace& place : index.Orphans()) {
      index.Erase(place);
      unwanted.push_back(place);
      ++stats.orphan_pages;
    }
  }
};

absl::Status DiskStore::Recover() {
  const absl::Time start = absl::Now();
  Recovery recovery{directory_, *io_, index_, stats_};
  const std::vector<Recovery::Found> segments = recovery.FindSegments();
  uint64_t pages = 0;
  for (const Recovery::Found& found : segments) pages += found.entries.value_or(0);
  index_.Reserve(pages);
  for (const Recovery::Found& found : segments) {
    // What is found of a segment that was written to may not be on the device yet, but only in its
    // cache or the system's; what is served as durable is. Nothing of it is, if it cannot be.
    absl::Status synced;
    if (!found.entries.has_value()) synced = io_->Sync(directory_.file(found.segment));
    if (!synced.ok()) stats_.last_error = std::string(synced.message());
    const uint32_t entries = synced.ok() ? recovery.ReadTable(found) : 0;
    Segment& segment = segments_[found.segment];
    segment.use = SegmentUse::kSealed;
    segment.generation = found.generation;
    next_generation_ = std::max(next_generation_, found.generation + 1);
    if (found.entries.has_value() || !synced.ok()) continue;
    const AlignedBuffer block(kDiskBlockBytes);
    EncodeSegmentSeal({.id = directory_.id(),
                       .segment = found.segment,
                       .generation = found.generation,
                       .entries = entries},
                      block.bytes().first<kDiskBlockBytes>());
    // A seal that cannot be written is not needed until something is written.
    if (const absl::Status status = WriteBlock(found.segment, kDiskBlockBytes, block.bytes());
        !status.ok())
      stats_.last_error = std::string(status.message());
  }
  recovery.DropOrphans();
  for (const DiskPlace& place : recovery.unwanted)
    removals_.push_back({place, segments_[place.segment].generation});
  next_generation_ += kCounterJump;
  next_sequence_ = recovery.sequence_max + kCounterJump;
  stats_.recovered_pages = index_.pages();
  stats_.recovery = absl::Now() - start;
  return absl::OkStatus();
}

}  // namespace oscarkv
