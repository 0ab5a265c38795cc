#include "kernels/codec/page_layout.h"

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"

namespace oscarkv {
namespace {

constexpr uint64_t kPageBytesMax = uint64_t{1} << 30;

uint64_t RoundUp(uint64_t value, uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Places one side at `offset` and moves `offset` behind it.
SideLayout PlaceSide(uint32_t dim, uint32_t bits, uint32_t group, uint32_t param_bytes,
                     uint32_t tokens, uint64_t* offset) {
  SideLayout side;
  side.dim = dim;
  side.bits = bits;
  side.group = group == 0 ? dim : group;
  side.row_bytes = uint64_t{dim} * bits / 8;
  side.rows_offset = *offset;
  *offset += side.row_bytes * tokens;
  side.params_row_bytes = uint64_t{dim / side.group} * 2 * param_bytes;
  side.params_offset = *offset;
  *offset += side.params_row_bytes * tokens;
  return side;
}

BlockLayout PlaceBlock(const Geometry& geometry, const CodecSpec& spec, Encoding encoding,
                       uint32_t layer) {
  const bool wide = encoding == Encoding::kWide;
  const uint32_t wide_bits = DTypeBytes(geometry.dtype) * 8;
  const LayerBits bits = spec.layer_bits(layer);
  const uint32_t param_bytes = wide ? 0 : (spec.params == ParamsDType::kFp16 ? 2 : 4);
  const uint32_t group = wide ? 0 : spec.group;
  uint64_t offset = 0;
  BlockLayout block;
  block.k = PlaceSide(geometry.k_head_dim, wide ? wide_bits : bits.k, group, param_bytes,
                      geometry.page_tokens, &offset);
  block.v = PlaceSide(geometry.v_head_dim, wide ? wide_bits : bits.v, group, param_bytes,
                      geometry.page_tokens, &offset);
  block.bytes = offset;
  block.stride = RoundUp(offset, kBlockAlignment);
  return block;
}

}  // namespace

absl::Status CheckBlockRange(absl::string_view what, BlockRange range, uint32_t total) {
  if (range.count > 0 && range.first < total && range.count <= total - range.first)
    return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, " from ", range.first, ", ", range.count,
                                                 " of them, do not lie within 0..", total - 1));
}

absl::StatusOr<PageLayout> PageLayout::Create(const Geometry& geometry, const CodecSpec& spec,
                                              Encoding encoding) {
  OSCARKV_RETURN_IF_ERROR(ValidateGeometry(geometry));
  OSCARKV_RETURN_IF_ERROR(ValidateCodecSpec(spec, geometry));
  PageLayout layout;
  layout.geometry_ = geometry;
  layout.spec_ = spec;
  layout.encoding_ = encoding;
  layout.layer_offsets_.push_back(0);
  for (uint32_t layer = 0; layer < geometry.layers; ++layer) {
    layout.blocks_.push_back(PlaceBlock(geometry, spec, encoding, layer));
    layout.layer_offsets_.push_back(layout.layer_offsets_.back() +
                                    geometry.kv_heads * layout.blocks_.back().stride);
  }
  if (layout.page_bytes() > kPageBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("a page of this geometry has ",
                                                   layout.page_bytes(), " bytes, the most is ",
                                                   kPageBytesMax));
  }
  return layout;
}

uint64_t PageLayout::range_bytes(BlockRange layers, BlockRange heads) const {
  uint64_t bytes = 0;
  for (uint32_t layer = layers.first; layer < layers.first + layers.count; ++layer) {
    bytes += heads.count * blocks_[layer].stride;
  }
  return bytes;
}

}  // namespace oscarkv
