#include "server/core/block_check.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"

#include "kernels/base/checksum.h"

namespace oscarkv {

absl::Status CheckBlocks(const PageLayout& layout, ByteView page, std::span<const uint32_t> crcs,
                         BlockRange layers, BlockRange heads) {
  for (uint32_t layer = layers.first; layer < layers.first + layers.count; ++layer) {
    const BlockLayout& shape = layout.block(layer);
    for (uint32_t head = heads.first; head < heads.first + heads.count; ++head) {
      const ByteView block = page.subspan(layout.block_offset(layer, head), shape.stride);
      const uint32_t expected = crcs[size_t{layer} * layout.geometry().kv_heads + head];
      const uint32_t found = Crc32c(block.first(shape.bytes));
      if (found != expected) {
        return absl::DataLossError(absl::StrCat(
            "layer ", layer, ", head ", head, ": expected crc32c ",
            absl::Hex(expected, absl::kZeroPad8), ", found ", absl::Hex(found, absl::kZeroPad8)));
      }
      if (!std::ranges::all_of(block.subspan(shape.bytes),
                               [](std::byte byte) { return byte == std::byte{0}; })) {
        return absl::DataLossError(
            absl::StrCat("layer ", layer, ", head ", head, ": the padding is not zero"));
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

void ClearPadding(const PageLayout& layout, MutableByteView page) {
  const Geometry& geometry = layout.geometry();
  for (uint32_t layer = 0; layer < geometry.layers; ++layer) {
    const BlockLayout& block = layout.block(layer);
    if (block.stride == block.bytes) continue;
    for (uint32_t head = 0; head < geometry.kv_heads; ++head) {
      std::memset(page.data() + layout.block_offset(layer, head) + block.bytes, 0,
                  block.stride - block.bytes);
    }
  }
}

}  // namespace oscarkv
