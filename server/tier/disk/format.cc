#include "server/tier/disk/format.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"

#include "kernels/base/checksum.h"
#include "kernels/base/status_macros.h"
#include "proto/wire/page_key.h"
#include "server/core/catalog.h"

namespace oscarkv {
namespace {

constexpr std::string_view kSuperblockMagic = "OKVDISK\n";
constexpr std::string_view kSegmentMagic = "OKVSEGM\n";
constexpr std::string_view kSealMagic = "OKVSEAL\n";
constexpr std::string_view kCatalogMagic = "OKVFILE\n";
constexpr uint32_t kPageMagic = 0x50564b4f;  // "OKVP"

// Offsets in the four kinds of whole block.
constexpr size_t kVersionAt = 8;
constexpr size_t kBlockCrcAt = 12;
constexpr size_t kIdAt = 16;
constexpr size_t kFieldsAt = 32;

// In a page header.
constexpr size_t kPageCrcAt = 4;
constexpr size_t kFingerprintAt = 64;
constexpr size_t kKeyAt = 96;
constexpr size_t kParentAt = 160;

constexpr uint8_t kRemovedFlag = 1;

// The checksum of `bytes` as if the four at `crc_at` were zero.
uint32_t CrcWithout(ByteView bytes, size_t crc_at) {
  constexpr std::byte kZeros[4] = {};
  const uint32_t front = Crc32c(kZeros, Crc32c(bytes.first(crc_at)));
  return Crc32c(bytes.subspan(crc_at + sizeof(kZeros)), front);
}

template <typename T>
T Load(ByteView bytes, size_t at) {
  return LoadLe<T>(bytes.data() + at);
}
template <typename T>
void Store(MutableByteView bytes, size_t at, T value) {
  StoreLe<T>(bytes.data() + at, value);
}
void StoreText(MutableByteView bytes, size_t at, std::string_view text) {
  if (!text.empty()) std::memcpy(bytes.data() + at, text.data(), text.size());
}
std::string_view LoadText(ByteView bytes, size_t at, size_t size) {
  return AsText(bytes.subspan(at, size));
}

void BeginBlock(std::string_view magic, const DiskId& id, BlockBytes block) {
  std::ranges::fill(block, std::byte{0});
  StoreText(block, 0, magic);
  Store(block, kVersionAt, kDiskFormatVersion);
  std::ranges::copy(id, block.begin() + kIdAt);
}
void EndBlock(BlockBytes block) { Store(block, kBlockCrcAt, CrcWithout(block, kBlockCrcAt)); }

absl::Status CheckVersion(uint32_t version) {
  if (version == kDiskFormatVersion) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("written in version ", version,
                                                    " of the format, this program has version ",
                                                    kDiskFormatVersion));
}

absl::Status CheckBlock(std::string_view magic, ConstBlockBytes block) {
  if (LoadText(block, 0, magic.size()) != magic) return absl::DataLossError("magic is missing");
  // The version first: another one may have its checksum elsewhere.
  OSCARKV_RETURN_IF_ERROR(CheckVersion(Load<uint32_t>(block, kVersionAt)));
  if (Load<uint32_t>(block, kBlockCrcAt) != CrcWithout(block, kBlockCrcAt))
    return absl::DataLossError("checksum does not match");
  return absl::OkStatus();
}

DiskId IdOf(ConstBlockBytes block) {
  DiskId id;
  std::copy_n(block.begin() + kIdAt, id.size(), id.begin());
  return id;
}

bool IsSegmentSize(uint64_t bytes) {
  return bytes >= kSegmentBytesMin && bytes <= kSegmentBytesMax && bytes % kDiskBlockBytes == 0;
}

bool IsKeySize(size_t bytes) { return bytes >= kKeyBytesMin && bytes <= kKeyBytesMax; }

}  // namespace

void EncodeSuperblock(const Superblock& superblock, BlockBytes block) {
  BeginBlock(kSuperblockMagic, superblock.id, block);
  Store(block, kFieldsAt, superblock.segment_bytes);
  Store(block, kFieldsAt + 8, static_cast<uint8_t>(superblock.owner.size()));
  StoreText(block, kFieldsAt + 9, superblock.owner);
  EndBlock(block);
}

absl::StatusOr<Superblock> DecodeSuperblock(ConstBlockBytes block) {
  OSCARKV_RETURN_IF_ERROR(CheckBlock(kSuperblockMagic, block));
  const size_t owner_bytes = Load<uint8_t>(block, kFieldsAt + 8);
  Superblock superblock{
      .id = IdOf(block), .segment_bytes = Load<uint64_t>(block, kFieldsAt), .owner = {}};
  if (!IsSegmentSize(superblock.segment_bytes) || owner_bytes > kOwnerBytesMax)
    return absl::DataLossError("a field is out of its range");
  superblock.owner = LoadText(block, kFieldsAt + 9, owner_bytes);
  return superblock;
}

void EncodeSegmentHeader(const SegmentHeader& header, BlockBytes block) {
  BeginBlock(kSegmentMagic, header.id, block);
  Store(block, kFieldsAt, header.generation);
  Store(block, kFieldsAt + 8, header.segment_bytes);
  Store(block, kFieldsAt + 16, header.segment);
  EndBlock(block);
}

absl::StatusOr<SegmentHeader> DecodeSegmentHeader(ConstBlockBytes block) {
  OSCARKV_RETURN_IF_ERROR(CheckBlock(kSegmentMagic, block));
  const SegmentHeader header{.id = IdOf(block),
                             .segment = Load<uint32_t>(block, kFieldsAt + 16),
                             .generation = Load<uint64_t>(block, kFieldsAt),
                             .segment_bytes = Load<uint64_t>(block, kFieldsAt + 8)};
  if (header.generation == 0 || !IsSegmentSize(header.segment_bytes))
    return absl::DataLossError("a field is out of its range");
  return header;
}

void EncodeSegmentSeal(const SegmentSeal& seal, BlockBytes block) {
  BeginBlock(kSealMagic, seal.id, block);
  Store(block, kFieldsAt, seal.generation);
  Store(block, kFieldsAt + 8, seal.segment);
  Store(block, kFieldsAt + 12, seal.entries);
  EndBlock(block);
}

absl::StatusOr<SegmentSeal> DecodeSegmentSeal(ConstBlockBytes block) {
  OSCARKV_RETURN_IF_ERROR(CheckBlock(kSealMagic, block));
  const SegmentSeal seal{.id = IdOf(block),
                         .segment = Load<uint32_t>(block, kFieldsAt + 8),
                         .generation = Load<uint64_t>(block, kFieldsAt),
                         .entries = Load<uint32_t>(block, kFieldsAt + 12)};
  if (seal.generation == 0) return absl::DataLossError("a field is out of its range");
  return seal;
}

void EncodeCatalogFile(const CatalogFileHeader& header, BlockBytes block) {
  BeginBlock(kCatalogMagic, header.id, block);
  StoreText(block, kFieldsAt, header.name);
  Store(block, kFieldsAt + 32, header.bytes);
  Store(block, kFieldsAt + 40, header.crc);
  Store(block, kFieldsAt + 44, header.kind);
  EndBlock(block);
}

absl::StatusOr<CatalogFileHeader> DecodeCatalogFile(ConstBlockBytes block) {
  OSCARKV_RETURN_IF_ERROR(CheckBlock(kCatalogMagic, block));
  return CatalogFileHeader{.id = IdOf(block),
                           .kind = Load<uint8_t>(block, kFieldsAt + 44),
                           .bytes = Load<uint64_t>(block, kFieldsAt + 32),
                           .crc = Load<uint32_t>(block, kFieldsAt + 40),
                           .name = std::string(LoadText(block, kFieldsAt, kCatalogNameBytes))};
}

void EncodePageHeader(const PageHeader& header, HeaderBytes bytes) {
  std::ranges::fill(bytes, std::byte{0});
  Store(bytes, 0, kPageMagic);
  Store(bytes, 8, header.generation);
  Store(bytes, 16, header.sequence);
  Store(bytes, 24, header.first_position);
  Store(bytes, 32, header.body_bytes);
  Store(bytes, 36, header.body_crc);
  Store(bytes, 40, header.record_block);
  Store(bytes, 44, header.entry);
  Store(bytes, 48, header.segment);
  Store(bytes, 52, static_cast<uint8_t>(header.key.size()));
  Store(bytes, 53, static_cast<uint8_t>(header.parent.size()));
  Store(bytes, 54, header.encoding);
  Store(bytes, 55, header.removed ? kRemovedFlag : uint8_t{0});
  Store(bytes, 56, header.body_checksum_bytes);
  Store(bytes, 60, kDiskFormatVersion);
  StoreText(bytes, kFingerprintAt, header.fingerprint);
  StoreText(bytes, kKeyAt, header.key);
  StoreText(bytes, kParentAt, header.parent);
  Store(bytes, kPageCrcAt, CrcWithout(bytes, kPageCrcAt));
}

absl::StatusOr<PageHeader> DecodePageHeader(ConstHeaderBytes bytes) {
  if (Load<uint32_t>(bytes, 0) != kPageMagic) return absl::DataLossError("magic is missing");
  OSCARKV_RETURN_IF_ERROR(CheckVersion(Load<uint32_t>(bytes, 60)));
  if (Load<uint32_t>(bytes, kPageCrcAt) != CrcWithout(bytes, kPageCrcAt))
    return absl::DataLossError("checksum does not match");
  const size_t key_bytes = Load<uint8_t>(bytes, 52);
  const size_t parent_bytes = Load<uint8_t>(bytes, 53);
  const auto encoding = Load<Encoding>(bytes, 54);
  const auto flags = Load<uint8_t>(bytes, 55);
  const PageHeader header{
      .generation = Load<uint64_t>(bytes, 8),
      .sequence = Load<uint64_t>(bytes, 16),
      .first_position = Load<uint64_t>(bytes, 24),
      .body_bytes = Load<uint32_t>(bytes, 32),
      .body_crc = Load<uint32_t>(bytes, 36),
      .body_checksum_bytes = Load<uint32_t>(bytes, 56),
      .record_block = Load<uint32_t>(bytes, 40),
      .segment = Load<uint32_t>(bytes, 48),
      .entry = Load<uint32_t>(bytes, 44),
      .encoding = encoding,
      .removed = flags == kRemovedFlag,
      .fingerprint = LoadText(bytes, kFingerprintAt, kFingerprintBytes),
      .key = LoadText(bytes, kKeyAt, std::min(key_bytes, kKeyBytesMax)),
      .parent = LoadText(bytes, kParentAt, std::min(parent_bytes, kKeyBytesMax))};
  const bool sound = IsKeySize(key_bytes) && (parent_bytes == 0 || IsKeySize(parent_bytes)) &&
                     (encoding == Encoding::kWide || encoding == Encoding::kPacked) &&
                     flags <= kRemovedFlag && header.body_bytes > 0 &&
                     header.body_checksum_bytes <= header.body_bytes;
  if (!sound) return absl::DataLossError("a field is out of its range");
  return header;
}

}  // namespace oscarkv
