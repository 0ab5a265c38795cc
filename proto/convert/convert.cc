#include "proto/convert/convert.h"

#include <limits>
#include <string>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"

namespace oscarkv {
namespace {

constexpr size_t kStatusMessageMax = 2048;

absl::StatusOr<Geometry> FromProto(const v1::Geometry& in) {
  Geometry out;
  out.layers = in.layers();
  out.kv_heads = in.kv_heads();
  out.k_head_dim = in.k_head_dim();
  out.v_head_dim = in.v_head_dim() == 0 ? in.k_head_dim() : in.v_head_dim();
  out.page_tokens = in.page_tokens();
  switch (in.dtype()) {
    case v1::BF16:
      out.dtype = DType::kBf16;
      break;
    case v1::FP16:
      out.dtype = DType::kFp16;
      break;
    case v1::FP32:
      out.dtype = DType::kFp32;
      break;
    default:
      return absl::InvalidArgumentError(absl::StrCat(
          "geometry: dtype must be BF16, FP16 or FP32, found ", static_cast<int>(in.dtype())));
  }
  return out;
}

absl::StatusOr<CodecSpec> FromProto(const v1::CodecSpec& in) {
  CodecSpec out;
  if (in.bits_size() > 0) out.bits.clear();
  for (const v1::LayerBits& bits : in.bits()) {
    // Out-of-range values become 0, which validation refuses with the entry's number.
    constexpr uint32_t kMost = std::numeric_limits<uint8_t>::max();
    out.bits.push_back({static_cast<uint8_t>(bits.k() <= kMost ? bits.k() : 0),
                        static_cast<uint8_t>(bits.v() <= kMost ? bits.v() : 0)});
  }
  out.group = in.group();
  // Numbers that no enum here has must not become ones that it has.
  if (!v1::ParamsDType_IsValid(in.params()) || !v1::WideBasis_IsValid(in.wide_basis())) {
    return absl::InvalidArgumentError(
        absl::StrCat("codec: params and wide_basis must be ones that this server knows, found ",
                     static_cast<int>(in.params()), " and ", static_cast<int>(in.wide_basis())));
  }
  if (in.params() != v1::PARAMS_UNSPECIFIED) out.params = static_cast<ParamsDType>(in.params());
  out.transform_hash = in.transform_hash();
  out.sink_tokens = in.sink_tokens();
  out.recent_tokens = in.recent_tokens();
  if (in.wide_basis() != v1::WIDE_BASIS_UNSPECIFIED)
    out.wide_basis = static_cast<WideBasis>(in.wide_basis());
  return out;
}

}  // namespace

absl::StatusOr<NamespaceSpec> FromProto(const v1::NamespaceSpec& in) {
  NamespaceSpec out;
  if (!in.tenant().empty()) out.tenant = in.tenant();
  out.model = in.model();
  out.model_revision = in.model_revision();
  out.adapter = in.adapter();
  out.salt = in.salt();
  if (!in.hash_scheme().empty()) out.hash_scheme = in.hash_scheme();
  if (in.has_shard()) {
    out.shard = {in.shard().tp_rank(), in.shard().tp_size(), in.shard().pp_rank(),
                 in.shard().pp_size()};
  }
  OSCARKV_ASSIGN_OR_RETURN(out.geometry, FromProto(in.geometry()));
  OSCARKV_ASSIGN_OR_RETURN(out.codec, FromProto(in.codec()));
  OSCARKV_RETURN_IF_ERROR(ValidateNamespaceSpec(out));
  return out;
}

void ToProto(const NamespaceSpec& spec, v1::NamespaceSpec* out) {
  out->set_tenant(spec.tenant);
  out->set_model(spec.model);
  out->set_model_revision(spec.model_revision);
  out->set_adapter(spec.adapter);
  out->set_salt(spec.salt);
  out->set_hash_scheme(spec.hash_scheme);
  v1::ShardSpec* shard = out->mutable_shard();
  shard->set_tp_rank(spec.shard.tp_rank);
  shard->set_tp_size(spec.shard.tp_size);
  shard->set_pp_rank(spec.shard.pp_rank);
  shard->set_pp_size(spec.shard.pp_size);
  v1::Geometry* geometry = out->mutable_geometry();
  geometry->set_layers(spec.geometry.layers);
  geometry->set_kv_heads(spec.geometry.kv_heads);
  geometry->set_k_head_dim(spec.geometry.k_head_dim);
  geometry->set_v_head_dim(spec.geometry.v_head_dim);
  geometry->set_page_tokens(spec.geometry.page_tokens);
  geometry->set_dtype(static_cast<v1::DType>(spec.geometry.dtype));
  v1::CodecSpec* codec = out->mutable_codec();
  codec->clear_bits();
  for (const LayerBits& bits : spec.codec.bits) {
    v1::LayerBits* entry = codec->add_bits();
    entry->set_k(bits.k);
    entry->set_v(bits.v);
  }
  codec->set_group(spec.codec.group);
  codec->set_params(static_cast<v1::ParamsDType>(spec.codec.params));
  codec->set_transform_hash(spec.codec.transform_hash);
  codec->set_sink_tokens(spec.codec.sink_tokens);
  codec->set_recent_tokens(spec.codec.recent_tokens);
  codec->set_wide_basis(static_cast<v1::WideBasis>(spec.codec.wide_basis));
}

absl::StatusOr<Encoding> FromProto(v1::Encoding encoding) {
  if (encoding == v1::WIDE) return Encoding::kWide;
  if (encoding == v1::PACKED) return Encoding::kPacked;
  return absl::InvalidArgumentError(
      absl::StrCat("encoding must be WIDE or PACKED, found ", static_cast<int>(encoding)));
}

v1::Encoding ToProto(Encoding encoding) { return static_cast<v1::Encoding>(encoding); }

v1::ItemStatus ToProto(ItemStatus status) { return static_cast<v1::ItemStatus>(status); }

ItemStatus FromProto(v1::ItemStatus status) {
  if (status <= v1::ITEM_UNSPECIFIED || status > v1::INVALID) return ItemStatus::kInvalid;
  return static_cast<ItemStatus>(status);
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  std::string message(status.message());
  // A status travels in a header, and one that is too long is lost whole.
  if (message.size() > kStatusMessageMax) message.replace(kStatusMessageMax, message.size(), "...");
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message);
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace oscarkv
