#include "kernels/calibrate/dump.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "kernels/codec/oscar/format.h"

namespace oscarkv::calibrate {
namespace {

constexpr const char* kNames[] = {"q", "k", "v"};

absl::StatusOr<DumpShape> ShapeOf(const Tensor* tensors) {
  const std::optional<DType> dtype = FloatTensorDType(tensors[0].dtype);
  for (int i = 0; i < 3; ++i) {
    if (!dtype || tensors[i].dtype != tensors[0].dtype) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", kNames[i], ": dtype must be F32, F16 or BF16 and the same ",
                       "for q, k and v, found ", tensors[i].dtype));
    }
    if (tensors[i].shape[0] != tensors[0].shape[0]) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", kNames[i], " has ",
                                                     tensors[i].shape[0], " tokens, q has ",
                                                     tensors[0].shape[0]));
    }
  }
  const auto& q = tensors[0].shape;
  const auto& k = tensors[1].shape;
  const auto& v = tensors[2].shape;
  if (k[1] == 0 || q[1] == 0 || q[1] % k[1] != 0 || v[1] != k[1] || q[2] != k[2]) {
    return absl::InvalidArgumentError(
        absl::StrCat("q ", ShapeText(q), ", k ", ShapeText(k), " and v ", ShapeText(v),
                     " do not belong together: q heads must be a multiple of KV heads, k and ",
                     "v have the same heads, q and k the same head dim"));
  }
  for (const uint64_t dim : {k[2], v[2]}) {
    if (dim < 16 || dim > 256 || dim % 16 != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("head dims must be multiples of 16 up to 256, found ", dim));
    }
  }
  return DumpShape{static_cast<uint32_t>(q[1]), static_cast<uint32_t>(k[1]),
                   static_cast<uint32_t>(k[2]), static_cast<uint32_t>(v[2]), *dtype};
}

// The number behind "layer_" in a path.
std::optional<uint32_t> LayerNumber(const std::string& path) {
  const size_t at = path.rfind("layer_");
  if (at == std::string::npos) return std::nullopt;
  size_t end = at + 6;
  while (end < path.size() && path[end] >= '0' && path[end] <= '9') ++end;
  uint32_t number = 0;
  if (!absl::SimpleAtoi(path.substr(at + 6, end - at - 6), &number)) return std::nullopt;
  return number;
}

absl::StatusOr<std::vector<std::string>> ExpandFolders(const std::vector<std::string>& paths) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    std::error_code error;
    if (!std::filesystem::is_directory(path, error)) {
      files.push_back(path);
      continue;
    }
    for (auto it = std::filesystem::recursive_directory_iterator(path, error);
         !error && it != std::filesystem::recursive_directory_iterator(); it.increment(error)) {
      if (it->path().extension() == ".safetensors") files.push_back(it->path().string());
    }
    if (error)
      return absl::InvalidArgumentError(
          absl::StrCat("reading folder ", path, ": ", error.message()));
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

absl::StatusOr<LayerDump> LayerDump::Open(uint32_t layer, const std::vector<std::string>& paths) {
  LayerDump dump;
  dump.layer_ = layer;
  for (const std::string& path : paths) {
    const std::string where = absl::StrCat("layer ", layer, ", ", path);
    File file;
    OSCARKV_ASSIGN_OR_RETURN(file.source, OpenSafetensors(path));
    for (int i = 0; i < 3; ++i) {
      absl::StatusOr<Tensor> tensor = file.source.contents.Get(kNames[i], "", 3);
      if (!tensor.ok()) return Annotate(tensor.status(), where);
      file.tensors[i] = *std::move(tensor);
    }
    absl::StatusOr<DumpShape> shape = ShapeOf(file.tensors);
    if (!shape.ok()) return Annotate(shape.status(), where);
    if (!dump.files_.empty() && *shape != dump.shape_) {
      return Annotate(absl::InvalidArgumentError(absl::StrCat(
                          "q ", ShapeText(file.tensors[0].shape), " of ", file.tensors[0].dtype,
                          " is of another shape than the layer's first file")),
                      where);
    }
    dump.shape_ = *shape;
    const auto lengths = SequenceLengths(file.source.contents, file.tensors[0].shape[0]);
    if (!lengths.ok()) return Annotate(lengths.status(), where);
    uint64_t first = 0;
    for (uint64_t length : *lengths) {
      dump.sequences_.push_back({dump.files_.size(), first, length});
      first += length;
    }
    dump.files_.push_back(std::move(file));
  }
  return dump;
}

absl::StatusOr<RowMatrix> LayerDump::Read(Tensor3 which, uint32_t head, const Sequence& sequence,
                                          uint64_t first, uint64_t count) const {
  const Tensor& tensor = files_[sequence.file].tensors[static_cast<int>(which)];
  const uint64_t heads = tensor.shape[1];
  const uint64_t dim = tensor.shape[2];
  const uint64_t element_bytes = DTypeBytes(shape_.dtype);
  RowMatrix rows(static_cast<Eigen::Index>(count), static_cast<Eigen::Index>(dim));
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t token = sequence.first_token + first + i;
    const std::byte* source = tensor.bytes.data() + ((token * heads + head) * dim) * element_bytes;
    float* row = rows.data() + i * dim;
    float finite = 0.0f;  // stays 0 unless a value is NaN or infinite
    for (uint64_t j = 0; j < dim; ++j) {
      row[j] = LoadElement(source + j * element_bytes, shape_.dtype);
      finite += row[j] * 0.0f;
    }
    if (finite != 0.0f) {
      return absl::InvalidArgumentError(absl::StrCat("layer ", layer_, ", tensor ", tensor.name,
                                                     ", head ", head, ", token ", token,
                                                     ": a value is NaN or infinite"));
    }
  }
  return rows;
}

void LayerDump::Release(const Sequence& sequence, uint64_t first, uint64_t count) const {
  for (const Tensor& tensor : files_[sequence.file].tensors) {
    const uint64_t row_bytes = tensor.shape[1] * tensor.shape[2] * DTypeBytes(shape_.dtype);
    MappedFile::ReleasePages(
        tensor.bytes.subspan((sequence.first_token + first) * row_bytes, count * row_bytes));
  }
}

absl::Status LayerDump::CheckFinite(const Sequence& sequence, uint64_t first,
                                    uint64_t count) const {
  constexpr uint64_t kChunkTokens = 1024;
  for (uint64_t done = 0; done < count; done += kChunkTokens) {
    const uint64_t tokens = std::min(kChunkTokens, count - done);
    for (uint32_t head = 0; head < shape_.q_heads; ++head) {
      OSCARKV_RETURN_IF_ERROR(Read(Tensor3::kQ, head, sequence, first + done, tokens).status());
    }
    for (uint32_t head = 0; head < shape_.kv_heads; ++head) {
      OSCARKV_RETURN_IF_ERROR(Read(Tensor3::kK, head, sequence, first + done, tokens).status());
      OSCARKV_RETURN_IF_ERROR(Read(Tensor3::kV, head, sequence, first + done, tokens).status());
    }
    Release(sequence, first + done, tokens);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<uint64_t>> SequenceLengths(const Safetensors& file, uint64_t tokens) {
  if (file.tensors().find("seq_lens") == file.tensors().end()) return std::vector<uint64_t>{tokens};
  OSCARKV_ASSIGN_OR_RETURN(const Tensor tensor, file.Get("seq_lens", "I64", 1));
  std::vector<uint64_t> lengths;
  uint64_t left = tokens;
  for (uint64_t i = 0; i < tensor.shape[0]; ++i) {
    const int64_t length = LoadLe<int64_t>(tensor.bytes.data() + i * 8);
    if (length <= 0 || static_cast<uint64_t>(length) > left) {
      return absl::InvalidArgumentError(
          absl::StrCat("seq_lens entry ", i, " is ", length, ", ", left, " tokens are left"));
    }
    lengths.push_back(static_cast<uint64_t>(length));
    left -= static_cast<uint64_t>(length);
  }
  if (left == 0) return lengths;
  return absl::InvalidArgumentError(
      absl::StrCat("seq_lens add up to ", tokens - left, ", the file has ", tokens, " tokens"));
}

absl::StatusOr<std::map<uint32_t, std::vector<std::string>>> FindDumpFiles(
    const std::vector<std::string>& paths) {
  OSCARKV_ASSIGN_OR_RETURN(const std::vector<std::string> files, ExpandFolders(paths));
  if (files.empty()) return absl::InvalidArgumentError("no .safetensors files in the dump");
  std::map<uint32_t, std::vector<std::string>> by_layer;
  for (const std::string& file : files) {
    const std::optional<uint32_t> layer = LayerNumber(file);
    if (!layer)
      return absl::InvalidArgumentError(absl::StrCat(file, ": the name must hold layer_<number>"));
    by_layer[*layer].push_back(file);
  }
  uint32_t expected = 0;
  for (const auto& [layer, layer_files] : by_layer) {
    if (layer != expected++) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", expected - 1, " is missing: the next one is ", layer));
    }
  }
  return by_layer;
}

absl::StatusOr<std::vector<LayerDump>> OpenDump(const std::vector<std::string>& paths) {
  OSCARKV_ASSIGN_OR_RETURN(const auto by_layer, FindDumpFiles(paths));
  std::vector<LayerDump> layers;
  for (const auto& [layer, layer_files] : by_layer) {
    OSCARKV_ASSIGN_OR_RETURN(LayerDump dump, LayerDump::Open(layer, layer_files));
    if (!layers.empty() && !(dump.shape() == layers[0].shape())) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", layer, " has other heads, head dims or dtype than layer 0"));
    }
    layers.push_back(std::move(dump));
  }
  return layers;
}

}  // namespace oscarkv::calibrate
