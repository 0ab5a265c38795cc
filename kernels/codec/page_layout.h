// Where everything lies inside a page. The only place that computes block offsets (FORMAT.md, "The
// page").
#ifndef OSCARKV_KERNELS_CODEC_PAGE_LAYOUT_H_
#define OSCARKV_KERNELS_CODEC_PAGE_LAYOUT_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "kernels/codec/geometry.h"

namespace oscarkv {

inline constexpr uint64_t kBlockAlignment = 64;

// One half (K or V) of a block of one layer, in bytes from the block's start. WIDE blocks have no
// params.
struct SideLayout {
  uint32_t dim = 0;          // head dim
  uint32_t bits = 0;         // 2 or 4; 16 or 32 in a WIDE block
  uint32_t group = 0;        // elements that share a (scale, zero) pair
  uint64_t rows_offset = 0;  // codes [page_tokens][row_bytes]
  uint64_t row_bytes = 0;
  uint64_t params_offset = 0;  // [page_tokens][dim / group][2] of the params dtype
  uint64_t params_row_bytes = 0;
};

// A block of one layer; all heads of a layer have the same.
struct BlockLayout {
  SideLayout k;
  SideLayout v;
  uint64_t bytes = 0;   // of content, which the checksum covers
  uint64_t stride = 0;  // to the next block: `bytes` rounded up to kBlockAlignment, the rest zero
};

struct BlockRange {
  uint32_t first = 0;
  uint32_t count = 0;
};

// kInvalidArgument, naming `what`, unless the range has anything and lies within 0..total-1.
absl::Status CheckBlockRange(absl::string_view what, BlockRange range, uint32_t total);

class PageLayout {
 public:
  // kInvalidArgument when geometry or spec do not validate, or a page would exceed 1 GiB.
  static absl::StatusOr<PageLayout> Create(const Geometry& geometry, const CodecSpec& spec,
                                           Encoding encoding);

  const Geometry& geometry() const { return geometry_; }
  const CodecSpec& spec() const { return spec_; }
  Encoding encoding() const { return encoding_; }
  const BlockLayout& block(uint32_t layer) const { return blocks_[layer]; }
  // From the page's start to block (layer, head).
  uint64_t block_offset(uint32_t layer, uint32_t head) const {
    return layer_offsets_[layer] + uint64_t{head} * blocks_[layer].stride;
  }
  uint64_t page_bytes() const { return layer_offsets_.back(); }
  // Bytes of the blocks of `layers` x `heads`, each with its padding, in page order: what a partial
  // read returns.
  uint64_t range_bytes(BlockRange layers, BlockRange heads) const;

 private:
  PageLayout() = default;
  Geometry geometry_;
  CodecSpec spec_;
  Encoding encoding_ = Encoding::kWide;
  std::vector<BlockLayout> blocks_;      // [layers]
  std::vector<uint64_t> layer_offsets_;  // [layers + 1]
};

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_CODEC_PAGE_LAYOUT_H_
