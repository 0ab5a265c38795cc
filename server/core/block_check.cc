#include "server/core/block_check.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

#include "kernels/base/checksum.h"

namespace oscarkv {

namespace {

// Of the payload that an error carries.
constexpr char kBadBlock[] = "oscarkv.dev/bad-block";

absl::Status BadBlock(uint32_t layer, uint32_t head, absl::string_view what) {
  absl::Status error =
      absl::DataLossError(absl::StrCat("layer ", layer, ", head ", head, ": ", what));
  error.SetPayload(kBadBlock, absl::Cord(absl::StrCat(layer, " ", head)));
  return error;
}

absl::Status BadChecksum(uint32_t layer, uint32_t head, uint32_t expected, uint32_t found) {
  return BadBlock(layer, head,
                  absl::StrCat("expected crc32c ", absl::Hex(expected, absl::kZeroPad8), ", found ",
                               absl::Hex(found, absl::kZeroPad8)));
}

}  // namespace

std::optional<BlockPlace> BadBlockOf(const absl::Status& error) {
  const auto payload = error.GetPayload(kBadBlock);
  if (!payload.has_value()) return std::nullopt;
  const std::string text(*payload);
  const std::vector<absl::string_view> parts = absl::StrSplit(text, ' ');
  BlockPlace place;
  if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &place.layer) ||
      !absl::SimpleAtoi(parts[1], &place.head))
    return std::nullopt;
  return place;
}

absl::Status CheckBlocks(const PageLayout& layout, ByteView page, std::span<const uint32_t> crcs,
                         BlockRange layers, BlockRange heads) {
  for (uint32_t layer = layers.first; layer < layers.first + layers.count; ++layer) {
    const BlockLayout& shape = layout.block(layer);
    for (uint32_t head = heads.first; head < heads.first + heads.count; ++head) {
      const ByteView block = page.subspan(layout.block_offset(layer, head), shape.stride);
      const uint32_t expected = crcs[size_t{layer} * layout.geometry().kv_heads + head];
      const uint32_t found = Crc32c(block.first(shape.bytes));
      if (found != expected) return BadChecksum(layer, head, expected, found);
      if (!std::ranges::all_of(block.subspan(shape.bytes),
                               [](std::byte byte) { return byte == std::byte{0}; })) {
        return BadBlock(layer, head, "the padding is not zero");
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckAllBlocks(const PageLayout& layout, ByteView page,
                            std::span<const uint32_t> crcs) {
  const Geometry& geometry = layout.geometry();
  return CheckBlocks(layout, page, crcs, {0, geometry.layers}, {0, geometry.kv_heads});
}

std::span<const uint32_t> CrcsBehind(ByteView slot, const PageLayout& layout) {
  const auto* crcs = reinterpret_cast<const uint32_t*>(slot.data() + layout.page_bytes());
  return {crcs, layout.geometry().blocks()};
}

std::vector<TierPieces> PiecesOfSlot(const PageLayout& layout) {
  const Geometry& geometry = layout.geometry();
  std::vector<TierPieces> pieces;
  for (uint32_t layer = 0; layer < geometry.layers; ++layer) {
    const uint64_t stride = layout.block(layer).stride;
    if (!pieces.empty() && pieces.back().bytes == stride) {
      pieces.back().count += geometry.kv_heads;
    } else {
      pieces.push_back({layout.block_offset(layer, 0), stride, geometry.kv_heads});
    }
  }
  pieces.push_back({layout.page_bytes(), geometry.blocks() * sizeof(uint32_t), 1});
  return pieces;
}

uint64_t CountPieces(const PageLayout& layout) { return layout.geometry().blocks() + 1; }

absl::Status CheckPieces(const PageLayout& layout, std::span<const uint32_t> crcs,
                         std::span<const uint32_t> found) {
  constexpr std::array<std::byte, kBlockAlignment> kZeros{};
  const Geometry& geometry = layout.geometry();
  for (uint32_t block = 0; block < geometry.blocks(); ++block) {
    const BlockLayout& shape = layout.block(block / geometry.kv_heads);
    const uint32_t expected =
        Crc32c(ByteView(kZeros).first(shape.stride - shape.bytes), crcs[block]);
    if (found[block] != expected)
      return BadChecksum(block / geometry.kv_heads, block % geometry.kv_heads, expected,
                         found[block]);
  }
  const uint32_t expected = Crc32c(std::as_bytes(crcs));
  if (found.back() == expected) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("the page's checksums: expected crc32c ",
                                          absl::Hex(expected, absl::kZeroPad8), ", found ",
                                          absl::Hex(found.back(), absl::kZeroPad8)));
}

void ClearPadding(const PageLayout& layout, MutableByteView page, BlockRange layers) {
  for (uint32_t layer = layers.first; layer < layers.first + layers.count; ++layer) {
    const BlockLayout& block = layout.block(layer);
    if (block.stride == block.bytes) continue;
    for (uint32_t head = 0; head < layout.geometry().kv_heads; ++head) {
      std::memset(page.data() + layout.block_offset(layer, head) + block.bytes, 0,
                  block.stride - block.bytes);
    }
  }
}

}  // namespace oscarkv
