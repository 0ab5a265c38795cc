#include "client/cli/kv_source.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

#include "client/cli/kv_rows.h"
#include "kernels/base/status_macros.h"
#include "kernels/calibrate/dump.h"

namespace oscarkv::cli {
namespace {

// Beyond what any geometry allows, whatever the file says.
uint32_t Held(uint64_t extent) {
  return static_cast<uint32_t>(std::min<uint64_t>(extent, 1u << 31));
}

// The tokens of sequence number `wanted` of a dump's file: the first and how many.
absl::StatusOr<std::pair<uint64_t, uint64_t>> FindSequence(const Safetensors& file, uint64_t tokens,
                                                           std::optional<uint64_t> wanted) {
  OSCARKV_ASSIGN_OR_RETURN(const std::vector<uint64_t> lengths,
                           calibrate::SequenceLengths(file, tokens));
  if (!wanted && lengths.size() > 1) {
    return absl::InvalidArgumentError(absl::StrCat("the dump has ", lengths.size(),
                                                   " sequences: choose one with --sequence 0.."));
  }
  const uint64_t chosen = wanted.value_or(0);
  if (chosen >= lengths.size()) {
    return absl::InvalidArgumentError(absl::StrCat("--sequence ", chosen,
                                                   " is not there: the dump has ", lengths.size(),
                                                   " sequences, counted from 0"));
  }
  uint64_t first = 0;
  for (uint64_t i = 0; i < chosen; ++i) first += lengths[i];
  return std::pair(first, lengths[chosen]);
}

}  // namespace

absl::StatusOr<KvSource> KvSource::Open(const std::vector<std::string>& paths,
                                        std::optional<uint64_t> sequence) {
  KvSource source;
  std::error_code error;
  if (paths.size() == 1 && !std::filesystem::is_directory(paths[0], error)) {
    OSCARKV_ASSIGN_OR_RETURN(SafetensorsFile file, OpenSafetensors(paths[0]));
    absl::StatusOr<Tensor> k = file.contents.Get("k");
    if (!k.ok()) return Annotate(k.status(), paths[0]);
    if (k->shape.size() == 4) {
      OSCARKV_RETURN_IF_ERROR(Annotate(source.AddWhole(file), paths[0]));
      source.files_.push_back(std::move(file));
      return source;
    }
    if (k->shape.size() != 3 || !absl::StrContains(paths[0], "layer_")) {
      return absl::InvalidArgumentError(absl::StrCat(
          paths[0], ": k must be [layers, tokens, kv_heads, head_dim], found ", ShapeText(k->shape),
          "; [tokens, kv_heads, head_dim] is for files named ", "layer_<number>*.safetensors"));
    }
  }
  OSCARKV_ASSIGN_OR_RETURN(const auto layers, calibrate::FindDumpFiles(paths));
  for (const auto& [layer, files] : layers) {
    if (files.size() > 1) {
      return absl::InvalidArgumentError(absl::StrCat("layer ", layer, " has ", files.size(),
                                                     " files (", files[0], ", ", files[1],
                                                     "): one sequence has one file a layer"));
    }
    OSCARKV_RETURN_IF_ERROR(Annotate(source.AddLayer(files[0], sequence), files[0]));
  }
  return source;
}

absl::Status KvSource::AddWhole(const SafetensorsFile& file) {
  OSCARKV_ASSIGN_OR_RETURN(const Tensor k, file.contents.Get("k", "", 4));
  OSCARKV_ASSIGN_OR_RETURN(const Tensor v, file.contents.Get("v", "", 4));
  if (v.shape[0] != k.shape[0] || k.shape[0] == 0) {
    return absl::InvalidArgumentError(absl::StrCat("k ", ShapeText(k.shape), " and v ",
                                                   ShapeText(v.shape),
                                                   " must have the same layers, at least one"));
  }
  const uint64_t layers = k.shape[0];
  // One layer after the other, so that every one meets the same checks.
  for (uint64_t layer = 0; layer < layers; ++layer) {
    const auto part = [&](const Tensor& tensor) {
      const uint64_t bytes = tensor.bytes.size() / layers;
      return Tensor{tensor.name,
                    tensor.dtype,
                    {tensor.shape[1], tensor.shape[2], tensor.shape[3]},
                    tensor.bytes.subspan(layer * bytes, bytes)};
    };
    OSCARKV_RETURN_IF_ERROR(AddRows(part(k), part(v), 0, k.shape[1]));
  }
  return absl::OkStatus();
}

absl::Status KvSource::AddLayer(const std::string& path, std::optional<uint64_t> sequence) {
  OSCARKV_ASSIGN_OR_RETURN(SafetensorsFile file, OpenSafetensors(path));
  OSCARKV_ASSIGN_OR_RETURN(const Tensor k, file.contents.Get("k", "", 3));
  OSCARKV_ASSIGN_OR_RETURN(const Tensor v, file.contents.Get("v", "", 3));
  OSCARKV_ASSIGN_OR_RETURN(const auto run, FindSequence(file.contents, k.shape[0], sequence));
  OSCARKV_RETURN_IF_ERROR(AddRows(k, v, run.first, run.second));
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

absl::Status KvSource::AddRows(const Tensor& k, const Tensor& v, uint64_t first, uint64_t count) {
  const std::optional<DType> dtype = FloatTensorDType(k.dtype);
  if (!dtype || v.dtype != k.dtype) {
    return absl::InvalidArgumentError(absl::StrCat(
        "k and v must be F32, F16 or BF16, both the same; found ", k.dtype, " and ", v.dtype));
  }
  if (v.shape[0] != k.shape[0] || v.shape[1] != k.shape[1]) {
    return absl::InvalidArgumentError(absl::StrCat("k ", ShapeText(k.shape), " and v ",
                                                   ShapeText(v.shape),
                                                   " must have the same tokens and KV heads"));
  }
  const Geometry geometry{.layers = geometry_.layers + 1,
                          .kv_heads = Held(k.shape[1]),
                          .k_head_dim = Held(k.shape[2]),
                          .v_head_dim = Held(v.shape[2]),
                          .page_tokens = 1,
                          .dtype = *dtype};
  OSCARKV_RETURN_IF_ERROR(ValidateGeometry(geometry));
  Geometry before = geometry_;
  before.layers = geometry.layers;
  before.page_tokens = geometry.page_tokens;
  if (geometry_.layers > 0 && (before != geometry || count != tokens_)) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", geometry_.layers, " has ", count, " tokens, k ", ShapeText(k.shape),
                     " and v ", ShapeText(v.shape), " of ", k.dtype, "; layer 0 has ", tokens_,
                     " tokens, ", before.kv_heads, " KV heads, head dims ", before.k_head_dim,
                     " and ", before.v_head_dim, " of ", std::string(DTypeName(before.dtype))));
  }
  geometry_ = geometry;
  geometry_.page_tokens = 0;
  tokens_ = count;
  const auto start = [&](const Tensor& tensor, uint32_t dim) {
    return const_cast<std::byte*>(tensor.bytes.data()) + first * TokenBytes(geometry, dim);
  };
  k_.push_back(start(k, geometry.k_head_dim));
  v_.push_back(start(v, geometry.v_head_dim));
  return absl::OkStatus();
}

EngineView KvSource::view() const { return ViewOfRows(geometry_, tokens_, k_, v_); }

ByteView KvSource::KRows(uint32_t layer, uint64_t first, uint64_t count) const {
  const uint64_t token_bytes = TokenBytes(geometry_, geometry_.k_head_dim);
  return {k_[layer] + first * token_bytes, count * token_bytes};
}

ByteView KvSource::VRows(uint32_t layer, uint64_t first, uint64_t count) const {
  const uint64_t token_bytes = TokenBytes(geometry_, geometry_.v_head_dim);
  return {v_[layer] + first * token_bytes, count * token_bytes};
}

}  // namespace oscarkv::cli
