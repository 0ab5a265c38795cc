#include "kernels/codec/page_codec.h"

#include <algorithm>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"

namespace oscarkv {
namespace {

absl::Status Expect(std::string_view what, uint64_t expected, uint64_t found) {
  if (expected == found) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(absl::string_view(what.data(), what.size()),
                                                 " must be ", expected, ", found ", found));
}

absl::Status CheckSide(const EngineSide& side, const Geometry& geometry) {
  OSCARKV_RETURN_IF_ERROR(Expect("layer base pointers", geometry.layers, side.layer_base.size()));
  for (size_t layer = 0; layer < side.layer_base.size(); ++layer) {
    if (side.layer_base[layer] == nullptr)
      return absl::InvalidArgumentError(absl::StrCat("layer ", layer, " is null"));
  }
  if (DTypeName(side.dtype) == "unknown") {
    return absl::InvalidArgumentError(absl::StrCat("unknown dtype ", static_cast<int>(side.dtype)));
  }
  return absl::OkStatus();
}

absl::Status CheckView(const EngineView& view, const Geometry& geometry) {
  OSCARKV_RETURN_IF_ERROR(Annotate(CheckSide(view.k, geometry), "engine view, K"));
  OSCARKV_RETURN_IF_ERROR(Annotate(CheckSide(view.v, geometry), "engine view, V"));
  if (view.block_tokens == 0 || view.slots < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("engine view: block_tokens must be positive and slots not negative, found ",
                     view.block_tokens, " and ", view.slots));
  }
  return absl::OkStatus();
}

absl::Status CheckSlots(std::span<const int64_t> slots, const EngineView& view,
                        uint32_t page_tokens, int64_t least) {
  OSCARKV_RETURN_IF_ERROR(Expect("slots", page_tokens, slots.size()));
  for (size_t token = 0; token < slots.size(); ++token) {
    if (slots[token] >= least && slots[token] < view.slots) continue;
    return absl::InvalidArgumentError(absl::StrCat("slot of token ", token, " must be ", least,
                                                   "..", view.slots - 1, ", found ", slots[token]));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PageCodec::Encode(const EngineView& source, std::span<const EncodeItem> items,
                               EncodeReport* report) const {
  OSCARKV_RETURN_IF_ERROR(CheckView(source, geometry()));
  for (size_t i = 0; i < items.size(); ++i) {
    const EncodeItem& item = items[i];
    const std::string where = absl::StrCat("item ", i);
    if (item.encoding == Encoding::kPacked && !can_pack_) {
      return absl::FailedPreconditionError(
          absl::StrCat(where, ": PACKED needs a transform set, and the codec has none"));
    }
    OSCARKV_RETURN_IF_ERROR(
        Annotate(CheckSlots(item.slots, source, geometry().page_tokens, 0), where));
    OSCARKV_RETURN_IF_ERROR(Annotate(
        Expect("page bytes", layout(item.encoding).page_bytes(), item.page.size()), where));
    OSCARKV_RETURN_IF_ERROR(
        Annotate(Expect("block checksums", geometry().blocks(), item.block_crc32c.size()), where));
  }
  EncodeReport ignored;
  for (const EncodeItem& item : items)
    DoEncode(source, item, report != nullptr ? report : &ignored);
  return absl::OkStatus();
}

absl::Status PageCodec::Decode(std::span<DecodeItem> items, DecodeBasis basis,
                               const EngineView& destination) const {
  OSCARKV_RETURN_IF_ERROR(CheckView(destination, geometry()));
  for (size_t i = 0; i < items.size(); ++i) {
    const DecodeItem& item = items[i];
    const std::string where = absl::StrCat("item ", i);
    if (item.encoding == Encoding::kPacked && !can_pack_) {
      return absl::FailedPreconditionError(
          absl::StrCat(where, ": PACKED needs a transform set, and the codec has none"));
    }
    if (item.encoding == Encoding::kWide && basis != engine_basis() && !can_pack_) {
      return absl::FailedPreconditionError(
          absl::StrCat(where, ": WIDE pages are in the ",
                       basis == DecodeBasis::kModel ? "transformed basis, and the model's"
                                                    : "model's basis, and the transformed one",
                       " needs a transform set, which the codec has not"));
    }
    OSCARKV_RETURN_IF_ERROR(
        Annotate(CheckSlots(item.slots, destination, geometry().page_tokens, -1), where));
    OSCARKV_RETURN_IF_ERROR(
        Annotate(CheckBlockRange("layers", item.layers, geometry().layers), where));
    OSCARKV_RETURN_IF_ERROR(
        Annotate(CheckBlockRange("heads", item.heads, geometry().kv_heads), where));
    OSCARKV_RETURN_IF_ERROR(
        Annotate(Expect("bytes", layout(item.encoding).range_bytes(item.layers, item.heads),
                        item.bytes.size()),
                 where));
    OSCARKV_RETURN_IF_ERROR(
        Annotate(Expect("block checksums", uint64_t{item.layers.count} * item.heads.count,
                        item.block_crc32c.size()),
                 where));
  }
  for (DecodeItem& item : items) DoDecode(item, basis, destination);
  return absl::OkStatus();
}

EngineView WidePageView(const PageLayout& wide, MutableByteView page,
                        std::span<std::byte*> layer_base) {
  const Geometry& geometry = wide.geometry();
  const auto side = [&](const SideLayout& layout, std::span<std::byte*> bases) {
    for (uint32_t layer = 0; layer < geometry.layers; ++layer) {
      bases[layer] = page.data() + wide.block_offset(layer, 0) + layout.rows_offset;
    }
    const auto row_bytes = static_cast<int64_t>(layout.row_bytes);
    return EngineSide{.layer_base = bases,
                      .block_stride = row_bytes,
                      .token_stride = row_bytes,
                      .head_stride = static_cast<int64_t>(wide.block(0).stride),
                      .dtype = geometry.dtype};
  };
  // All layers of a WIDE page have the same block layout.
  return {.k = side(wide.block(0).k, layer_base.first(geometry.layers)),
          .v = side(wide.block(0).v, layer_base.subspan(geometry.layers)),
          .block_tokens = 1,
          .slots = geometry.page_tokens};
}

}  // namespace oscarkv
