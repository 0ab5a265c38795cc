#include "client/gpu/engine_bounds.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

#include "kernels/base/dtype.h"

namespace oscarkv::client {
namespace {

absl::Status CheckBases(const EngineSide& side, uint32_t layers, const char* name) {
  if (side.layer_base.size() != layers) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": expected ", layers, " layer base pointers, found ", side.layer_base.size()));
  }
  for (uint32_t layer = 0; layer < layers; ++layer) {
    const auto address = reinterpret_cast<uintptr_t>(side.layer_base[layer]);
    if (address != 0 && address % kRowAlignment == 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(name, ", layer ", layer, ": expected a pointer that is a multiple of ",
                     kRowAlignment, ", found 0x", absl::Hex(address)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckEngineSide(const EngineSide& side, const EngineView& view,
                             const Geometry& geometry, uint32_t head_dim, uint64_t bytes,
                             const char* name) {
  if (absl::Status status = CheckBases(side, geometry.layers, name); !status.ok()) return status;
  if (side.dtype != DType::kBf16 && side.dtype != DType::kFp16) {
    const std::string_view found = DTypeName(side.dtype);
    return absl::InvalidArgumentError(absl::StrCat(name, ": expected bf16 or fp16, found ",
                                                   absl::string_view(found.data(), found.size())));
  }
  for (int64_t stride : {side.block_stride, side.token_stride, side.head_stride}) {
    if (stride >= 0 && stride % kRowAlignment == 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": expected strides that are multiples of ", kRowAlignment,
                     " bytes and not negative, found ", stride));
  }
  if (view.slots <= 0 || view.slots > INT32_MAX || view.block_tokens == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": expected 1..2^31-1 slots in blocks of at least 1, found ", view.slots,
                     " in blocks of ", view.block_tokens));
  }
  const int64_t block_tokens = view.block_tokens;
  const int64_t last_block = (view.slots - 1) / block_tokens;
  const int64_t last_token = std::min(view.slots, block_tokens) - 1;
  // In 128 bits: strides are the caller's.
  const auto end = static_cast<__int128>(last_block) * side.block_stride +
                   static_cast<__int128>(last_token) * side.token_stride +
                   static_cast<__int128>(geometry.kv_heads - 1) * side.head_stride +
                   static_cast<__int128>(head_dim) * DTypeBytes(side.dtype);
  if (end <= static_cast<__int128>(bytes)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      name, ": ", view.slots, " slots of ", geometry.kv_heads, " heads end at byte ",
      static_cast<uint64_t>(std::min<__int128>(end, INT64_MAX)), " of a layer, it has ", bytes));
}

absl::Status CheckSlots(std::span<const int64_t> slots, uint64_t pages, uint32_t page_tokens,
                        int64_t least, int64_t slots_of_cache) {
  if (slots.size() != pages * page_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(pages, " pages of ", page_tokens,
                                                   " tokens need ", pages * page_tokens,
                                                   " slots, found ", slots.size()));
  }
  const auto wrong = std::find_if(slots.begin(), slots.end(), [&](int64_t slot) {
    return slot < least || slot >= slots_of_cache;
  });
  if (wrong == slots.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("slot of token ", wrong - slots.begin(),
                                                 " must be ", least, "..", slots_of_cache - 1,
                                                 ", found ", *wrong));
}

}  // namespace oscarkv::client
