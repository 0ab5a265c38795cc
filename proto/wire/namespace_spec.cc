#include "proto/wire/namespace_spec.h"

#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

#include "kernels/base/bytes.h"
#include "kernels/base/dtype.h"
#include "kernels/base/sha256.h"
#include "kernels/base/status_macros.h"

namespace oscarkv {
namespace {

constexpr size_t kNameBytesMax = 256;
constexpr std::string_view kCanonicalHeader = "oscarkv namespace v1\npage_format=1\n";

using Fields = std::vector<std::pair<std::string, std::string>>;

std::string BitsText(const CodecSpec& codec) {
  std::string text;
  for (const LayerBits& bits : codec.bits)
    absl::StrAppend(&text, text.empty() ? "" : ",", bits.k, ":", bits.v);
  return text;
}

// Every field in the order of declaration; strings as they are.
Fields AllFields(const NamespaceSpec& spec) {
  const Geometry& geometry = spec.geometry;
  const CodecSpec& codec = spec.codec;
  return {
      {"tenant", spec.tenant},
      {"model", spec.model},
      {"model_revision", spec.model_revision},
      {"adapter", spec.adapter},
      {"salt", spec.salt},
      {"hash_scheme", spec.hash_scheme},
      {"shard.tp_rank", absl::StrCat(spec.shard.tp_rank)},
      {"shard.tp_size", absl::StrCat(spec.shard.tp_size)},
      {"shard.pp_rank", absl::StrCat(spec.shard.pp_rank)},
      {"shard.pp_size", absl::StrCat(spec.shard.pp_size)},
      {"geometry.layers", absl::StrCat(geometry.layers)},
      {"geometry.kv_heads", absl::StrCat(geometry.kv_heads)},
      {"geometry.k_head_dim", absl::StrCat(geometry.k_head_dim)},
      {"geometry.v_head_dim", absl::StrCat(geometry.v_head_dim)},
      {"geometry.page_tokens", absl::StrCat(geometry.page_tokens)},
      {"geometry.dtype", std::string(DTypeName(geometry.dtype))},
      {"codec.bits", BitsText(codec)},
      {"codec.group", absl::StrCat(codec.group)},
      {"codec.params", codec.params == ParamsDType::kFp16 ? "fp16" : "fp32"},
      {"codec.transform_hash", codec.transform_hash},
      {"codec.sink_tokens", absl::StrCat(codec.sink_tokens)},
      {"codec.recent_tokens", absl::StrCat(codec.recent_tokens)},
      {"codec.wide_basis", codec.wide_basis == WideBasis::kModel ? "model" : "transformed"},
  };
}

bool IsRawBytes(std::string_view name) { return name == "codec.transform_hash"; }

}  // namespace

absl::Status ValidateNamespaceSpec(const NamespaceSpec& spec) {
  const std::pair<const char*, const std::string*> names[] = {
      {"tenant", &spec.tenant},   {"model", &spec.model}, {"model_revision", &spec.model_revision},
      {"adapter", &spec.adapter}, {"salt", &spec.salt},   {"hash_scheme", &spec.hash_scheme}};
  for (const auto& [name, value] : names) {
    if (value->size() > kNameBytesMax) {
      return absl::InvalidArgumentError(absl::StrCat("namespace: ", name, " must have at most ",
                                                     kNameBytesMax, " bytes, found ",
                                                     value->size()));
    }
  }
  for (size_t required : {size_t{0}, size_t{1}, size_t{5}}) {
    if (names[required].second->empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("namespace: ", names[required].first, " must not be empty"));
    }
  }
  const ShardSpec& shard = spec.shard;
  if (shard.tp_rank >= shard.tp_size || shard.pp_rank >= shard.pp_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("namespace: shard rank must be below its size, found tp ", shard.tp_rank, "/",
                     shard.tp_size, ", pp ", shard.pp_rank, "/", shard.pp_size));
  }
  OSCARKV_RETURN_IF_ERROR(ValidateGeometry(spec.geometry));
  return ValidateCodecSpec(spec.codec, spec.geometry);
}

std::string Fingerprint(const NamespaceSpec& spec) {
  std::string text(kCanonicalHeader);
  for (const auto& [name, value] : AllFields(spec))
    absl::StrAppend(&text, name, "=", absl::BytesToHexString(value), "\n");
  return Sha256Of(AsBytes(text));
}

std::string DescribeDifference(const NamespaceSpec& mine, const NamespaceSpec& theirs) {
  const Fields left = AllFields(mine);
  const Fields right = AllFields(theirs);
  std::string text;
  for (size_t i = 0; i < left.size(); ++i) {
    if (left[i].second == right[i].second) continue;
    const auto show = [&](const std::string& value) {
      return IsRawBytes(left[i].first) ? absl::BytesToHexString(value) : value;
    };
    absl::StrAppend(&text, text.empty() ? "" : "; ", left[i].first, " ", show(left[i].second),
                    " / ", show(right[i].second));
  }
  return text;
}

}  // namespace oscarkv
