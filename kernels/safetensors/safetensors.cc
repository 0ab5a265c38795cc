#include "kernels/safetensors/safetensors.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "kernels/base/status_macros.h"
#include "kernels/safetensors/header.h"

namespace oscarkv {
namespace {

absl::Status Invalid(std::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("safetensors: ", absl::string_view(what.data(), what.size())));
}

absl::Status InvalidTensor(const std::string& name, std::string_view what) {
  return Invalid(
      absl::StrCat("tensor '", name, "': ", absl::string_view(what.data(), what.size())));
}

// Every tensor lies within the data and has its shape's bytes, and every byte of the data belongs
// to exactly one. Sorts the entries by their place.
absl::Status CheckRanges(std::vector<HeaderEntry>& entries, uint64_t data_bytes) {
  std::sort(entries.begin(), entries.end(), [](const HeaderEntry& a, const HeaderEntry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t next = 0;
  for (const HeaderEntry& entry : entries) {
    const std::string range = absl::StrCat("[", entry.begin, ", ", entry.end, "]");
    if (entry.begin > entry.end || entry.end > data_bytes) {
      return InvalidTensor(
          entry.name, absl::StrCat("data_offsets ", range, " do not lie within the ", data_bytes,
                                   " bytes of data"));
    }
    const std::optional<uint64_t> expected = TensorBytes(entry.dtype, entry.shape);
    if (!expected) {
      return InvalidTensor(entry.name,
                           absl::StrCat("shape ", ShapeText(entry.shape), " overflows"));
    }
    if (entry.end - entry.begin != *expected) {
      return InvalidTensor(
          entry.name,
          absl::StrCat("shape ", ShapeText(entry.shape), " of ", entry.dtype, " has ", *expected,
                       " bytes, data_offsets give ", entry.end - entry.begin));
    }
    if (entry.begin != next) {
      return InvalidTensor(entry.name, absl::StrCat("data_offsets ", range,
                                                    entry.begin < next ? " overlap another tensor's"
                                                                       : " leave a gap before them",
                                                    ", expected to begin at ", next));
    }
    next = entry.end;
  }
  if (next == data_bytes) return absl::OkStatus();
  return Invalid(absl::StrCat(data_bytes - next, " bytes after the last tensor belong to none"));
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

std::optional<DType> FloatTensorDType(std::string_view dtype) {
  if (dtype == "F32") return DType::kFp32;
  if (dtype == "F16") return DType::kFp16;
  if (dtype == "BF16") return DType::kBf16;
  return std::nullopt;
}

std::string_view TensorDTypeOf(DType dtype) {
  if (dtype == DType::kFp32) return "F32";
  return dtype == DType::kFp16 ? "F16" : "BF16";
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
  absl::StatusOr<SafetensorsHeader> header =
      ParseSafetensorsHeader(AsText(file.subspan(8, header_bytes)));
  if (!header.ok()) return Annotate(header.status(), "safetensors");
  const ByteView data = file.subspan(8 + header_bytes);
  OSCARKV_RETURN_IF_ERROR(CheckRanges(header->entries, data.size()));
  Safetensors result;
  result.metadata_ = std::move(header->metadata);
  for (HeaderEntry& entry : header->entries) {
    Tensor tensor{entry.name, std::move(entry.dtype), std::move(entry.shape),
                  data.subspan(entry.begin, entry.end - entry.begin)};
    result.tensors_.emplace(std::move(entry.name), std::move(tensor));
  }
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
  SafetensorsHeader header{{}, metadata};
  uint64_t offset = 0;
  for (const Tensor& tensor : tensors) {
    header.entries.push_back(
        {tensor.name, tensor.dtype, tensor.shape, offset, offset + tensor.bytes.size()});
    offset += tensor.bytes.size();
  }
  std::string file = WriteSafetensorsHeader(header);
  file.reserve(file.size() + offset);
  for (const Tensor& tensor : tensors) file += AsText(tensor.bytes);
  return file;
}

}  // namespace oscarkv
