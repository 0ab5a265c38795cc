// Opening: the index from the tables of all segments. Bodies are not read.
#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "kernels/base/status_macros.h"
#include "server/tier/disk/disk_store.h"

namespace oscarkv {
namespace {

// A table is read in pieces of so many blocks, with several requests under way. Where nobody knows
// how long it is, the first piece is small.
constexpr uint32_t kBlocksPerPiece = 4096;
constexpr uint32_t kBlocksOfFirstPiece = 64;
constexpr uint32_t kBlocksPerRequest = 64;
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
  AlignedBuffer buffer = {};  // of the piece of a table that is being read
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

  // Reads `count` blocks of the segment's table from `first` on, and hands each to `enter`, in
  // their order, while those behind it are being read. Until `enter` says that it was the last.
  absl::Status ReadBlocks(uint32_t segment, uint32_t first, uint32_t count,
                          absl::FunctionRef<bool(uint32_t block, ByteView bytes)> enter) {
    buffer.Grow(uint64_t{count} * kDiskBlockBytes);
    std::vector<IoRequest> requests;
    for (uint32_t at = 0; at < count; at += kBlocksPerRequest) {
      const uint32_t blocks = std::min(kBlocksPerRequest, count - at);
      requests.push_back(
          {.kind = IoKind::kRead,
           .file = directory.file(segment),
           .offset = TableBlockOffset(directory.segment_bytes(), first + at + blocks - 1),
           .data = buffer.bytes().subspan(at * kDiskBlockBytes, blocks * kDiskBlockBytes)});
    }
    std::vector<bool> ended(requests.size());
    size_t next = 0;
    bool more = true;
    absl::Status status;
    io.Run(requests, [&](IoRequest& request) {
      ended[static_cast<size_t>(&request - requests.data())] = true;
      for (; more && next < requests.size() && ended[next]; ++next) {
        const IoRequest& read = requests[next];
        status = read.status;
        more = status.ok();
        const auto blocks = static_cast<uint32_t>(read.data.size() / kDiskBlockBytes);
        // The table grows towards the segment's start.
        for (uint32_t i = 0; more && i < blocks; ++i) {
          more = enter(first + static_cast<uint32_t>(next) * kBlocksPerRequest + i,
                       read.data.subspan((blocks - 1 - i) * kDiskBlockBytes, kDiskBlockBytes));
        }
      }
    });
    return status;
  }

  // Enters the pages of the segment; returns how many entries its table has.
  uint32_t ReadTable(const Found& segment) {
    const uint32_t blocks_max =
        static_cast<uint32_t>(directory.segment_bytes() / kDiskBlockBytes) - kSegmentFrontBlocks;
    const uint32_t blocks =
        segment.entries.has_value() ? TableBlocks(*segment.entries) : blocks_max;
    const uint64_t entries_max = segment.entries.value_or(blocks * kHeadersPerBlock);
    uint32_t last = 0;  // entries up to the last that is a header of this generation
    bool more = true;
    const auto enter = [&](uint32_t block, ByteView headers) {
      const auto first = static_cast<uint32_t>(block * kHeadersPerBlock);
      const uint64_t stop = std::min<uint64_t>(first + kHeadersPerBlock, entries_max);
      const uint32_t found = EnterBlock(segment, headers, first, stop);
      if (found > 0) last = found;
      more = found > 0 || segment.entries.has_value();
      return more;
    };
    uint32_t piece = segment.entries.has_value() ? kBlocksPerPiece : kBlocksOfFirstPiece;
    for (uint32_t block = 0, count = 0; more && block < blocks; block += count) {
      count = std::min(piece, blocks - block);
      piece = std::min(2 * piece, kBlocksPerPiece);
      if (const absl::Status status = ReadBlocks(segment.segment, block, count, enter);
          !status.ok()) {
        stats.last_error = std::string(status.message());
        break;
      }
    }
    return last;
  }

  // Enters the headers first..stop-1 of one block; returns the entries up to the last that is one
  // of this generation, 0 if none is.
  uint32_t EnterBlock(const Found& segment, ByteView block, uint32_t first, uint64_t stop) {
    uint32_t last = 0;
    std::array<std::optional<PageHeader>, kHeadersPerBlock> live;  // [entry - first]
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
      if (!ours || header->removed) continue;
      live[entry - first] = *header;
      index.Prefetch(*header);
    }
    for (uint32_t entry = first; entry < stop; ++entry) {
      const std::optional<PageHeader>& header = live[entry - first];
      if (header.has_value()) Enter(segment.segment, entry, *header);
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
  // Of one that nobody sealed it is not known; it has about as many as others.
  uint32_t most = 0;
  for (const Recovery::Found& found : segments) most = std::max(most, found.entries.value_or(0));
  uint64_t pages = 0;
  for (const Recovery::Found& found : segments) pages += found.entries.value_or(most);
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
