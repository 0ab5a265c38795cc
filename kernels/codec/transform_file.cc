#include "kernels/codec/transform_file.h"

#include <algorithm>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

#include "kernels/base/status_macros.h"
#include "kernels/safetensors/safetensors.h"

namespace oscarkv {
namespace {

constexpr std::string_view kFormat = "oscarkv-transform-1";

absl::Status Invalid(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("transform file: ", what));
}

// The tensors of one side, checked against each other.
struct SideTensors {
  Tensor forward, inverse, offset, clip_ratio;
};

absl::StatusOr<SideTensors> FindSide(const Safetensors& file, const std::string& side) {
  SideTensors found;
  OSCARKV_ASSIGN_OR_RETURN(found.forward, file.Get(side + ".forward", "F32", 4));
  OSCARKV_ASSIGN_OR_RETURN(found.inverse, file.Get(side + ".inverse", "F32", 4));
  OSCARKV_ASSIGN_OR_RETURN(found.offset, file.Get(side + ".offset", "F32", 3));
  OSCARKV_ASSIGN_OR_RETURN(found.clip_ratio, file.Get(side + ".clip_ratio", "F32", 2));
  const std::vector<uint64_t>& shape = found.forward.shape;
  const std::vector<uint64_t> by_head(shape.begin(), shape.begin() + 2);
  const std::vector<uint64_t> by_dim(shape.begin(), shape.begin() + 3);
  if (shape[2] != shape[3] || shape[0] == 0 || shape[1] == 0 || found.inverse.shape != shape ||
      found.offset.shape != by_dim || found.clip_ratio.shape != by_head) {
    return Invalid(absl::StrCat(side, ": forward ", ShapeText(shape), ", inverse ",
                                ShapeText(found.inverse.shape), ", offset ",
                                ShapeText(found.offset.shape), " and clip_ratio ",
                                ShapeText(found.clip_ratio.shape), " do not belong together"));
  }
  return found;
}

// Everything allocated later is bounded by this.
absl::Status CheckExtents(const SideTensors& k, const SideTensors& v, uint32_t kv_heads) {
  const auto held = [](uint64_t extent) {
    return static_cast<uint32_t>(std::min<uint64_t>(extent, std::numeric_limits<uint32_t>::max()));
  };
  const Geometry geometry{.layers = held(k.forward.shape[0]),
                          .kv_heads = kv_heads,
                          .k_head_dim = held(k.forward.shape[2]),
                          .v_head_dim = held(v.forward.shape[2]),
                          .page_tokens = 1};
  OSCARKV_RETURN_IF_ERROR(Annotate(ValidateGeometry(geometry), "transform file"));
  for (const SideTensors* side : {&k, &v}) {
    const uint64_t heads = side->forward.shape[1];
    if (heads == 1 || heads == kv_heads) continue;
    return Invalid(absl::StrCat(side->forward.name, " ", ShapeText(side->forward.shape),
                                ": the second dimension must be 1 or the ", kv_heads, " KV heads"));
  }
  return absl::OkStatus();
}

std::vector<float> Floats(const Tensor& tensor, size_t first, size_t count) {
  std::vector<float> values(count);
  std::memcpy(values.data(), tensor.bytes.data() + first * sizeof(float), count * sizeof(float));
  return values;
}

std::vector<SideTransform> ReadLayer(const SideTensors& side, size_t layer) {
  const size_t heads = side.forward.shape[1];
  const size_t dim = side.forward.shape[2];
  std::vector<SideTransform> transforms;
  for (size_t index = layer * heads; index < (layer + 1) * heads; ++index) {
    transforms.push_back({.dim = static_cast<uint32_t>(dim),
                          .forward = Floats(side.forward, index * dim * dim, dim * dim),
                          .inverse = Floats(side.inverse, index * dim * dim, dim * dim),
                          .offset = Floats(side.offset, index * dim, dim),
                          .clip_ratio = Floats(side.clip_ratio, index, 1)[0]});
  }
  return transforms;
}

std::string MetadataOr(const Safetensors& file, std::string_view key, std::string_view otherwise) {
  const auto found = file.metadata().find(key);
  return found == file.metadata().end() ? std::string(otherwise) : found->second;
}

std::vector<std::string> Methods(const Safetensors& file, std::string_view key, size_t layers) {
  std::vector<std::string> methods =
      absl::StrSplit(MetadataOr(file, key, ""), ' ', absl::SkipEmpty());
  methods.resize(layers, "unknown");
  return methods;
}

// One side of all layers, gathered into contiguous tensors.
struct SideArrays {
  size_t heads = 1;
  size_t dim = 0;
  std::vector<float> forward, inverse, offset, clip_ratio;
};

SideArrays Gather(const TransformSet& set, const std::vector<SideTransform> LayerTransform::*side) {
  SideArrays arrays;
  for (uint32_t layer = 0; layer < set.layers(); ++layer) {
    arrays.heads = std::max(arrays.heads, (set.layer(layer).*side).size());
  }
  for (uint32_t layer = 0; layer < set.layers(); ++layer) {
    const std::vector<SideTransform>& heads = set.layer(layer).*side;
    for (size_t head = 0; head < arrays.heads; ++head) {
      const SideTransform& transform = heads[heads.size() == 1 ? 0 : head];
      arrays.dim = transform.dim;
      arrays.forward.insert(arrays.forward.end(), transform.forward.begin(),
                            transform.forward.end());
      arrays.inverse.insert(arrays.inverse.end(), transform.inverse.begin(),
                            transform.inverse.end());
      arrays.offset.insert(arrays.offset.end(), transform.offset.begin(), transform.offset.end());
      arrays.clip_ratio.push_back(transform.clip_ratio);
    }
  }
  return arrays;
}

void AppendTensors(const std::string& name, const SideArrays& side, uint64_t layers,
                   std::vector<Tensor>* tensors) {
  const auto bytes = [](const std::vector<float>& values) {
    return std::as_bytes(std::span(values));
  };
  tensors->push_back(
      {name + ".forward", "F32", {layers, side.heads, side.dim, side.dim}, bytes(side.forward)});
  tensors->push_back(
      {name + ".inverse", "F32", {layers, side.heads, side.dim, side.dim}, bytes(side.inverse)});
  tensors->push_back({name + ".offset", "F32", {layers, side.heads, side.dim}, bytes(side.offset)});
  tensors->push_back({name + ".clip_ratio", "F32", {layers, side.heads}, bytes(side.clip_ratio)});
}

}  // namespace

absl::StatusOr<TransformSet> ParseTransformFile(ByteView bytes) {
  OSCARKV_ASSIGN_OR_RETURN(const Safetensors file, Safetensors::Parse(bytes));
  if (const std::string format = MetadataOr(file, "format", "none"); format != kFormat) {
    return Invalid(absl::StrCat(
        "format must be ", absl::string_view(kFormat.data(), kFormat.size()), ", found ", format));
  }
  uint32_t kv_heads = 0;
  if (!absl::SimpleAtoi(MetadataOr(file, "kv_heads", "0"), &kv_heads) || kv_heads == 0) {
    return Invalid("metadata kv_heads must be a positive integer");
  }
  OSCARKV_ASSIGN_OR_RETURN(const SideTensors k, FindSide(file, "k"));
  OSCARKV_ASSIGN_OR_RETURN(const SideTensors v, FindSide(file, "v"));
  const size_t layer_count = k.forward.shape[0];
  if (v.forward.shape[0] != layer_count) {
    return Invalid(absl::StrCat("k has ", layer_count, " layers, v has ", v.forward.shape[0]));
  }
  OSCARKV_RETURN_IF_ERROR(CheckExtents(k, v, kv_heads));
  const std::vector<std::string> k_methods = Methods(file, "k_methods", layer_count);
  const std::vector<std::string> v_methods = Methods(file, "v_methods", layer_count);
  std::vector<LayerTransform> layers;
  for (size_t layer = 0; layer < layer_count; ++layer) {
    layers.push_back(
        {k_methods[layer], v_methods[layer], ReadLayer(k, layer), ReadLayer(v, layer)});
  }
  return TransformSet::Create(std::move(layers), kv_heads);
}

std::string SerializeTransformFile(const TransformSet& set, std::string_view report_json) {
  std::map<std::string, std::string, std::less<>> metadata = {
      {"format", std::string(kFormat)}, {"kv_heads", absl::StrCat(set.kv_heads())}};
  std::vector<std::string> k_methods, v_methods;
  for (uint32_t layer = 0; layer < set.layers(); ++layer) {
    k_methods.push_back(set.layer(layer).k_method);
    v_methods.push_back(set.layer(layer).v_method);
  }
  metadata["k_methods"] = absl::StrJoin(k_methods, " ");
  metadata["v_methods"] = absl::StrJoin(v_methods, " ");
  if (!report_json.empty()) metadata["report"] = std::string(report_json);
  const SideArrays k = Gather(set, &LayerTransform::k);
  const SideArrays v = Gather(set, &LayerTransform::v);
  std::vector<Tensor> tensors;
  AppendTensors("k", k, set.layers(), &tensors);
  AppendTensors("v", v, set.layers(), &tensors);
  return SerializeSafetensors(tensors, metadata);
}

absl::StatusOr<std::string> TransformFileReport(ByteView bytes) {
  OSCARKV_ASSIGN_OR_RETURN(const Safetensors file, Safetensors::Parse(bytes));
  return MetadataOr(file, "report", "{}");
}

}  // namespace oscarkv
