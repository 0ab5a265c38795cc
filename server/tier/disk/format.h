// The bytes of the disk tier, version 1. FORMAT.md is the normative text; this is its encoder and
// decoder. Knows no I/O.
#ifndef OSCARKV_SERVER_TIER_DISK_FORMAT_H_
#define OSCARKV_SERVER_TIER_DISK_FORMAT_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/base/bytes.h"
#include "kernels/codec/geometry.h"
#include "server/tier/disk/aligned_buffer.h"

namespace oscarkv {

inline constexpr uint32_t kDiskFormatVersion = 1;
inline constexpr uint64_t kDiskBlockBytes = kIoAlignment;
inline constexpr uint64_t kPageHeaderBytes = 256;
inline constexpr uint64_t kHeadersPerBlock = kDiskBlockBytes / kPageHeaderBytes;
// Blocks at a segment's start: its header and its seal.
inline constexpr uint32_t kSegmentFrontBlocks = 2;
inline constexpr uint64_t kSegmentBytesMin = 1 << 20;
inline constexpr uint64_t kSegmentBytesMax = uint64_t{4} << 30;
inline constexpr size_t kOwnerBytesMax = 64;
inline constexpr size_t kFingerprintBytes = 32;

using DiskId = std::array<std::byte, 16>;  // of a directory, drawn when it is made

struct Superblock {
  DiskId id{};
  uint64_t segment_bytes = 0;
  std::string owner;
  bool operator==(const Superblock&) const = default;
};

struct SegmentHeader {
  DiskId id{};
  uint32_t segment = 0;     // its number in the directory
  uint64_t generation = 0;  // rises each time that any segment starts anew; never 0
  uint64_t segment_bytes = 0;
  bool operator==(const SegmentHeader&) const = default;
};

// Says that nothing more is added to a segment.
struct SegmentSeal {
  DiskId id{};
  uint32_t segment = 0;
  uint64_t generation = 0;
  uint32_t entries = 0;  // headers in its table
  bool operator==(const SegmentSeal&) const = default;
};

// Of a page; at the front of its record, and in its segment's table. Views into the header's bytes
// when decoded.
struct PageHeader {
  uint64_t generation = 0;  // of the segment
  uint64_t sequence = 0;    // of all pages written to the directory; of two with one key, the later
  uint64_t first_position = 0;
  uint32_t body_bytes = 0;
  uint32_t body_crc = 0;
  uint32_t body_checksum_bytes = 0;  // how many of the body's last bytes are block checksums
  uint32_t record_block = 0;         // where in the segment the record starts
  uint32_t segment = 0;
  uint32_t entry = 0;  // its place in the segment's table
  Encoding encoding = Encoding::kWide;
  bool removed = false;  // a tombstone: the page is no more
  std::string_view fingerprint;
  std::string_view key;
  std::string_view parent;  // empty: the root of a sequence
  bool operator==(const PageHeader&) const = default;
};

// Of a file that holds no pages: a namespace or a transform set.
struct CatalogFileHeader {
  DiskId id{};
  uint8_t kind = 0;    // CatalogKind
  uint64_t bytes = 0;  // of the contents, which begin with the file's second block
  uint32_t crc = 0;    // CRC32C of them
  std::string name;    // 32 bytes
  bool operator==(const CatalogFileHeader&) const = default;
};

using HeaderBytes = std::span<std::byte, kPageHeaderBytes>;
using ConstHeaderBytes = std::span<const std::byte, kPageHeaderBytes>;
using BlockBytes = std::span<std::byte, kDiskBlockBytes>;
using ConstBlockBytes = std::span<const std::byte, kDiskBlockBytes>;

// Encoders fill all bytes. Decoders: kDataLoss when the bytes are not what was written (magic,
// checksum, or a field out of its range), kFailedPrecondition for another version, naming both.
void EncodeSuperblock(const Superblock& superblock, BlockBytes block);
absl::StatusOr<Superblock> DecodeSuperblock(ConstBlockBytes block);

void EncodeSegmentHeader(const SegmentHeader& header, BlockBytes block);
absl::StatusOr<SegmentHeader> DecodeSegmentHeader(ConstBlockBytes block);

void EncodeSegmentSeal(const SegmentSeal& seal, BlockBytes block);
absl::StatusOr<SegmentSeal> DecodeSegmentSeal(ConstBlockBytes block);

void EncodeCatalogFile(const CatalogFileHeader& header, BlockBytes block);
absl::StatusOr<CatalogFileHeader> DecodeCatalogFile(ConstBlockBytes block);

void EncodePageHeader(const PageHeader& header, HeaderBytes bytes);
absl::StatusOr<PageHeader> DecodePageHeader(ConstHeaderBytes bytes);

// --- Where things lie in a segment ---

// Bytes of a record on disk: its header, its body, zeros up to the next block.
constexpr uint64_t RecordBytes(uint64_t body_bytes) {
  return RoundUpToIo(kPageHeaderBytes + body_bytes);
}
constexpr uint32_t RecordBlocks(uint64_t body_bytes) {
  return static_cast<uint32_t>(RecordBytes(body_bytes) / kDiskBlockBytes);
}
// Blocks that a table of `entries` takes, at the segment's end.
constexpr uint32_t TableBlocks(uint32_t entries) {
  return static_cast<uint32_t>((entries + kHeadersPerBlock - 1) / kHeadersPerBlock);
}
// The offset of the table's block `block`: the table grows from the segment's end to its start, a
// block at a time.
constexpr uint64_t TableBlockOffset(uint64_t segment_bytes, uint32_t block) {
  return segment_bytes - (uint64_t{block} + 1) * kDiskBlockBytes;
}

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_TIER_DISK_FORMAT_H_
