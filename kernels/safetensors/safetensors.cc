#include "kernels/safetensors/safetensors.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"

#include "kernels/base/status_macros.h"

namespace oscarkv {
namespace {

using nlohmann::json;

constexpr std::string_view kMetadataName = "__metadata__";
constexpr size_t kDimensionsMax = 32;

absl::Status Invalid(std::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("safetensors: ", absl::string_view(what.data(), what.size())));
}

absl::Status InvalidTensor(const std::string& name, std::string_view what) {
  return Invalid(
      absl::StrCat("tensor '", name, "': ", absl::string_view(what.data(), what.size())));
}

// A list of non-negative integers, or an error naming the field.
absl::StatusOr<std::vector<uint64_t>> ReadIntegers(const std::string& name, const json& entry,
                                                   const char* field, size_t count_max) {
  const auto found = entry.find(field);
  if (found == entry.end() || !found->is_array() || found->size() > count_max) {
    return InvalidTensor(
        name, absl::StrCat("'", field, "' must be a list of at most ", count_max, " integers"));
  }
  std::vector<uint64_t> values;
  for (const json& value : *found) {
    if (!value.is_number_unsigned())
      return InvalidTensor(name, absl::StrCat("'", field, "' holds a non-integer"));
    values.push_back(value.get<uint64_t>());
  }
  return values;
}

absl::StatusOr<uint64_t> ShapeBytes(const std::string& name, std::span<const uint64_t> shape,
                                    uint64_t element_bytes) {
  uint64_t bytes = element_bytes;
  for (uint64_t extent : shape) {
    if (extent != 0 && bytes > std::numeric_limits<uint64_t>::max() / extent) {
      return InvalidTensor(name, absl::StrCat("shape ", ShapeText(shape), " overflows"));
    }
    bytes *= extent;
  }
  return bytes;
}

absl::StatusOr<Tensor> ReadTensor(const std::string& name, const json& entry, ByteView data) {
  if (!entry.is_object()) return InvalidTensor(name, "its entry must be an object");
  Tensor tensor;
  tensor.name = name;
  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string())
    return InvalidTensor(name, "'dtype' must be a string");
  tensor.dtype = dtype->get<std::string>();
  const uint32_t element_bytes = TensorDTypeBytes(tensor.dtype);
  if (element_bytes == 0)
    return InvalidTensor(name, absl::StrCat("unknown dtype '", tensor.dtype, "'"));
  OSCARKV_ASSIGN_OR_RETURN(tensor.shape, ReadIntegers(name, entry, "shape", kDimensionsMax));
  OSCARKV_ASSIGN_OR_RETURN(const uint64_t expected, ShapeBytes(name, tensor.shape, element_bytes));
  OSCARKV_ASSIGN_OR_RETURN(const std::vector<uint64_t> offsets,
                           ReadIntegers(name, entry, "data_offsets", 2));
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data.size()) {
    return InvalidTensor(name,
                         absl::StrCat("data_offsets [", absl::StrJoin(offsets, ", "),
                                      "] do not lie within the ", data.size(), " bytes of data"));
  }
  if (offsets[1] - offsets[0] != expected) {
    return InvalidTensor(
        name, absl::StrCat("shape ", ShapeText(tensor.shape), " of ", tensor.dtype, " has ",
                           expected, " bytes, data_offsets give ", offsets[1] - offsets[0]));
  }
  tensor.bytes = data.subspan(offsets[0], expected);
  return tensor;
}

// Every byte of the data belongs to exactly one tensor.
absl::Status CheckCoverage(const std::map<std::string, Tensor, std::less<>>& tensors,
                           ByteView data) {
  std::vector<const Tensor*> order;
  for (const auto& [name, tensor] : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const Tensor* a, const Tensor* b) {
    return std::pair(a->bytes.data(), a->bytes.size()) <
           std::pair(b->bytes.data(), b->bytes.size());
  });
  const std::byte* next = data.data();
  for (const Tensor* tensor : order) {
    if (tensor->bytes.data() < next)
      return InvalidTensor(tensor->name, "its bytes overlap another tensor's");
    if (tensor->bytes.data() > next)
      return InvalidTensor(tensor->name, "there is a gap before its bytes");
    next = tensor->bytes.data() + tensor->bytes.size();
  }
  if (next != data.data() + data.size()) {
    return Invalid(absl::StrCat(data.data() + data.size() - next,
                                " bytes after the last tensor belong to none"));
  }
  return absl::OkStatus();
}

// nlohmann's parser keeps the last of two equal keys; the format forbids them.
absl::StatusOr<json> ParseHeader(std::string_view text) {
  std::string duplicate;
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const json::parser_callback_t callback = [&](int, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key &&
        !keys.back().insert(parsed.get<std::string>()).second) {
      duplicate = parsed.get<std::string>();
    }
    return true;
  };
  json header = json::parse(text.begin(), text.end(), callback, /*allow_exceptions=*/false);
  if (header.is_discarded() || !header.is_object())
    return Invalid("the header is not a JSON object");
  if (!duplicate.empty()) return Invalid(absl::StrCat("the header names '", duplicate, "' twice"));
  return header;
}

}  // namespace

uint64_t Tensor::elements() const {
  const uint32_t element_bytes = TensorDTypeBytes(dtype);
  return element_bytes == 0 ? 0 : bytes.size() / element_bytes;
}

uint32_t TensorDTypeBytes(std::string_view dtype) {
  static constexpr std::pair<std::string_view, uint32_t> kBytes[] = {
      {"F64", 8}, {"I64", 8}, {"U64", 8},  {"F32", 4},     {"I32", 4},
      {"U32", 4}, {"F16", 2}, {"BF16", 2}, {"I16", 2},     {"U16", 2},
      {"I8", 1},  {"U8", 1},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
  for (const auto& [name, bytes] : kBytes) {
    if (name == dtype) return bytes;
  }
  return 0;
}

std::string ShapeText(std::span<const uint64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape.begin(), shape.end(), ", "), "]");
}

absl::StatusOr<Safetensors> Safetensors::Parse(ByteView file) {
  if (file.size() < 8)
    return Invalid(absl::StrCat("the file has ", file.size(), " bytes, a header length needs 8"));
  const uint64_t header_bytes = LoadLe<uint64_t>(file.data());
  if (header_bytes > kSafetensorsHeaderBytesMax || header_bytes > file.size() - 8) {
    return Invalid(absl::StrCat("the header claims ", header_bytes, " bytes, ", file.size() - 8,
                                " follow and at most ", kSafetensorsHeaderBytesMax,
                                " are accepted"));
  }
  OSCARKV_ASSIGN_OR_RETURN(const json header, ParseHeader(AsText(file.subspan(8, header_bytes))));
  const ByteView data = file.subspan(8 + header_bytes);
  Safetensors result;
  for (const auto& [name, entry] : header.items()) {
    if (name == kMetadataName) {
      if (!entry.is_object()) return Invalid("__metadata__ must be an object of strings");
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string())
          return Invalid(absl::StrCat("__metadata__ '", key, "' must be a string"));
        result.metadata_[key] = value.get<std::string>();
      }
      continue;
    }
    OSCARKV_ASSIGN_OR_RETURN(result.tensors_[name], ReadTensor(name, entry, data));
  }
  OSCARKV_RETURN_IF_ERROR(CheckCoverage(result.tensors_, data));
  return result;
}

absl::StatusOr<Tensor> Safetensors::Get(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found != tensors_.end()) return found->second;
  std::vector<std::string> names;
  for (const auto& [other, tensor] : tensors_) {
    if (names.size() < 8) names.push_back(other);
  }
  return absl::NotFoundError(
      absl::StrCat("no tensor '", absl::string_view(name.data(), name.size()), "'; there are ",
                   tensors_.size(), ": ", absl::StrJoin(names, ", ")));
}

absl::StatusOr<Tensor> Safetensors::Get(std::string_view name, std::string_view dtype,
                                        size_t dimensions) const {
  OSCARKV_ASSIGN_OR_RETURN(Tensor tensor, Get(name));
  if ((!dtype.empty() && tensor.dtype != dtype) || tensor.shape.size() != dimensions) {
    return InvalidTensor(
        tensor.name,
        absl::StrCat("expected ", dimensions, " dimensions of ",
                     dtype.empty() ? "any dtype" : absl::string_view(dtype.data(), dtype.size()),
                     ", found ", tensor.dtype, " ", ShapeText(tensor.shape)));
  }
  return tensor;
}

std::string SerializeSafetensors(std::span<const Tensor> tensors,
                                 const std::map<std::string, std::string, std::less<>>& metadata) {
  // Ordered, so that the file's order is the caller's and the same input gives the same bytes.
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) {
    for (const auto& [key, value] : metadata) header[std::string(kMetadataName)][key] = value;
  }
  uint64_t offset = 0;
  for (const Tensor& tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + tensor.bytes.size()}}};
    offset += tensor.bytes.size();
  }
  std::string text = header.dump(-1, ' ', false, json::error_handler_t::replace);
  text.append((8 - text.size() % 8) % 8, ' ');  // the data starts aligned
  std::string file(8, '\0');
  StoreLe(reinterpret_cast<std::byte*>(file.data()), uint64_t{text.size()});
  file += text;
  file.reserve(file.size() + offset);
  for (const Tensor& tensor : tensors) file += AsText(tensor.bytes);
  return file;
}

}  // namespace oscarkv
