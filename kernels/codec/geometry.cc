#include "kernels/codec/geometry.h"

#include <string_view>

#include "absl/strings/str_cat.h"

namespace oscarkv {
namespace {

absl::Status CheckRange(const char* field, uint64_t value, uint64_t least, uint64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("geometry: ", field, " must be ", least, "..", most, ", found ", value));
}

absl::Status CheckHeadDim(const char* field, uint32_t dim) {
  if (absl::Status status = CheckRange(field, dim, 16, 256); !status.ok()) return status;
  if (dim % 16 == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("geometry: ", field, " must be a multiple of 16, found ", dim));
}

}  // namespace

absl::Status ValidateGeometry(const Geometry& geometry) {
  absl::Status status = CheckRange("layers", geometry.layers, 1, 512);
  if (status.ok()) status = CheckRange("kv_heads", geometry.kv_heads, 1, 256);
  if (status.ok()) status = CheckHeadDim("k_head_dim", geometry.k_head_dim);
  if (status.ok()) status = CheckHeadDim("v_head_dim", geometry.v_head_dim);
  if (status.ok()) status = CheckRange("page_tokens", geometry.page_tokens, 1, 4096);
  if (status.ok() && DTypeName(geometry.dtype) == "unknown") {
    status = absl::InvalidArgumentError(
        absl::StrCat("geometry: dtype must be bf16, fp16 or fp32, found code ",
                     static_cast<int>(geometry.dtype)));
  }
  return status;
}

absl::Status ValidateCodecSpec(const CodecSpec& spec, const Geometry& geometry) {
  if (spec.bits.size() != 1 && spec.bits.size() != geometry.layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("codec: bits must have 1 entry or one for each of ", geometry.layers,
                     " layers, found ", spec.bits.size()));
  }
  for (size_t i = 0; i < spec.bits.size(); ++i) {
    for (int bits : {spec.bits[i].k, spec.bits[i].v}) {
      if (bits == 2 || bits == 4) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("codec: bits of entry ", i, " must be 2 or 4, found ", bits));
    }
  }
  if (spec.group != 0 && spec.group != 16 && spec.group != 32 && spec.group != 64) {
    return absl::InvalidArgumentError(
        absl::StrCat("codec: group must be 16, 32, 64 or 0 (the head dim), found ", spec.group));
  }
  if (spec.group != 0 &&
      (geometry.k_head_dim % spec.group != 0 || geometry.v_head_dim % spec.group != 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("codec: group ", spec.group, " does not divide the head dims ",
                     geometry.k_head_dim, " and ", geometry.v_head_dim));
  }
  if (!spec.transform_hash.empty() && spec.transform_hash.size() != 32) {
    return absl::InvalidArgumentError(absl::StrCat(
        "codec: transform_hash must be 32 bytes or empty, found ", spec.transform_hash.size()));
  }
  if (spec.params != ParamsDType::kFp16 && spec.params != ParamsDType::kFp32) {
    return absl::InvalidArgumentError(absl::StrCat(
        "codec: params must be fp16 or fp32, found code ", static_cast<int>(spec.params)));
  }
  if (spec.wide_basis != WideBasis::kModel && spec.wide_basis != WideBasis::kTransformed) {
    return absl::InvalidArgumentError(
        absl::StrCat("codec: wide_basis must be MODEL or TRANSFORMED, found code ",
                     static_cast<int>(spec.wide_basis)));
  }
  return absl::OkStatus();
}

}  // namespace oscarkv
