// Whether the blocks of a page are what their producer made.
#ifndef OSCARKV_SERVER_CORE_BLOCK_CHECK_H_
#define OSCARKV_SERVER_CORE_BLOCK_CHECK_H_

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"

#include "kernels/base/bytes.h"
#include "kernels/codec/page_layout.h"
#include "server/core/tier.h"

namespace oscarkv {

struct BlockPlace {
  uint32_t layer = 0;
  uint32_t head = 0;
};
// Of an error of CheckBlocks, as it was returned: which block was bad.
std::optional<BlockPlace> BadBlockOf(const absl::Status& error);

// Verifies the blocks of `layers` x `heads`, which lie within the page: each against its checksum
// of `crcs` [layers * kv_heads], layer-major, and the padding behind it against zero, so that no
// byte of a page is unverified. kDataLoss naming the first bad block, with what was expected and
// found. O(bytes of the blocks).
absl::Status CheckBlocks(const PageLayout& layout, ByteView page, std::span<const uint32_t> crcs,
                         BlockRange layers, BlockRange heads);
absl::Status CheckAllBlocks(const PageLayout& layout, ByteView page,
                            std::span<const uint32_t> crcs);

// The checksums of a slot. Slots and pages are multiples of 64 bytes, so they are aligned.
std::span<const uint32_t> CrcsBehind(ByteView slot, const PageLayout& layout);

// What a tier has to check so that no byte of a slot is unverified: every block with its padding,
// in order, then the checksums behind the page, as one piece.
std::vector<TierPieces> PiecesOfSlot(const PageLayout& layout);
// How many pieces those are: one a block, and one.
uint64_t CountPieces(const PageLayout& layout);
// Whether the pieces' checksums as they were `found` are those of a sound page with these `crcs`.
// Errors as CheckBlocks. O(pieces).
absl::Status CheckPieces(const PageLayout& layout, std::span<const uint32_t> crcs,
                         std::span<const uint32_t> found);

// Sets the padding of every block of these layers to zero.
void ClearPadding(const PageLayout& layout, MutableByteView page, BlockRange layers);

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_BLOCK_CHECK_H_
