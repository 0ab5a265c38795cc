#include "client/cli/decode_command.h"

#include <algorithm>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

#include "CLI/CLI.hpp"
#include "client/cli/commands.h"
#include "client/cli/progress.h"
#include "client/cli/transform_source.h"
#include "kernels/base/status_macros.h"
#include "kernels/codec/oscar/row_kernels.h"
#include "kernels/safetensors/safetensors.h"
#include "kernels/safetensors/writer.h"

namespace oscarkv::cli {
namespace {

struct Arguments {
  std::string input;
  std::string transform;          // empty: what the file names
  std::optional<uint32_t> layer;  // unset: the file's
  std::string basis = "model";
  std::string dtype;  // empty: the file's
  std::string backend = "cpu";
  std::string output;
};

std::string MetadataOr(const Safetensors& file, std::string_view key, std::string_view otherwise) {
  const auto found = file.metadata().find(key);
  return found == file.metadata().end() ? std::string(otherwise) : found->second;
}

absl::StatusOr<uint32_t> NumberOr(const Safetensors& file, std::string_view key,
                                  uint32_t otherwise) {
  const std::string text = MetadataOr(file, key, absl::StrCat(otherwise));
  uint32_t number = 0;
  if (absl::SimpleAtoi(text, &number)) return number;
  return absl::InvalidArgumentError(absl::StrCat(
      "metadata ", absl::string_view(key.data(), key.size()), " must be a number, found ", text));
}

// The codes of one side, checked.
struct Codes {
  std::string name;
  Tensor codes, params;
  RowFormat format;
  DType dtype = DType::kFp32;  // to write

  uint64_t tokens() const { return codes.shape[0]; }
  uint64_t heads() const { return codes.shape[1]; }
};

absl::StatusOr<Codes> FindCodes(const Safetensors& file, const std::string& name,
                                const Arguments& arguments) {
  Codes found;
  found.name = name;
  OSCARKV_ASSIGN_OR_RETURN(found.codes, file.Get(name + "_codes", "U8", 3));
  OSCARKV_ASSIGN_OR_RETURN(found.params, file.Get(name + "_params", "", 4));
  OSCARKV_ASSIGN_OR_RETURN(found.format.bits, NumberOr(file, name + "_bits", 2));
  if (found.format.bits != 2 && found.format.bits != 4) {
    return absl::InvalidArgumentError(
        absl::StrCat("metadata ", name, "_bits must be 2 or 4, found ", found.format.bits));
  }
  const std::string dtype =
      arguments.dtype.empty() ? MetadataOr(file, name + "_dtype", "fp32") : arguments.dtype;
  const std::optional<DType> parsed = ParseDType(dtype);
  if (!parsed) {
    return absl::InvalidArgumentError(
        absl::StrCat("metadata ", name, "_dtype must be fp32, fp16 or bf16, found ", dtype));
  }
  found.dtype = *parsed;
  if (found.params.dtype != "F16" && found.params.dtype != "F32") {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor '", name, "_params': dtype must be F16 or F32, found ", found.params.dtype));
  }
  found.format.params = found.params.dtype == "F16" ? ParamsDType::kFp16 : ParamsDType::kFp32;
  // A row of more than the greatest head dim is refused with the geometry.
  const uint64_t dim = std::min<uint64_t>(found.codes.shape[2], 1u << 16) * 8 / found.format.bits;
  const uint64_t groups = found.params.shape[2];
  if (found.params.shape[0] != found.tokens() || found.params.shape[1] != found.heads() ||
      found.params.shape[3] != 2 || groups == 0 || dim % groups != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, "_params ", ShapeText(found.params.shape), " does not belong to ", name, "_codes ",
        ShapeText(found.codes.shape), ": expected [tokens, kv_heads, head_dim / group, 2]"));
  }
  found.format.dim = static_cast<uint32_t>(dim);
  found.format.group = static_cast<uint32_t>(dim / groups);
  return found;
}

absl::StatusOr<Geometry> CheckCodes(const Codes& k, const Codes& v) {
  if (k.tokens() != v.tokens() || k.heads() != v.heads()) {
    return absl::InvalidArgumentError(absl::StrCat("k_codes ", ShapeText(k.codes.shape),
                                                   " and v_codes ", ShapeText(v.codes.shape),
                                                   " must have the same tokens and KV heads"));
  }
  const Geometry geometry{
      .layers = 1,
      .kv_heads = static_cast<uint32_t>(std::min<uint64_t>(k.heads(), 1u << 31)),
      .k_head_dim = k.format.dim,
      .v_head_dim = v.format.dim,
      .page_tokens = 1};
  OSCARKV_RETURN_IF_ERROR(ValidateGeometry(geometry));
  for (const Codes* side : {&k, &v}) {
    CodecSpec spec;
    spec.group = side->format.group == side->format.dim ? 0 : side->format.group;
    OSCARKV_RETURN_IF_ERROR(Annotate(ValidateCodecSpec(spec, geometry), side->name + "_params"));
  }
  return geometry;
}

// The transform that the rows were encoded with, from where the options or the file say.
absl::StatusOr<LayerSource> FindTransform(const Safetensors& file, const Arguments& arguments,
                                          const Geometry& geometry) {
  const std::string expected = MetadataOr(file, "transform", "");
  std::string name = arguments.transform;
  if (name.empty()) name = MetadataOr(file, "transform_file", "");
  if (name.empty() && (expected == "identity" || expected == "hadamard")) name = expected;
  if (name.empty()) {
    return absl::InvalidArgumentError(
        "the file does not say where its transform is: give --transform, or --basis transformed");
  }
  uint32_t layer = 0;
  if (arguments.layer.has_value()) {
    layer = *arguments.layer;
  } else {
    OSCARKV_ASSIGN_OR_RETURN(layer, NumberOr(file, "layer", 0));
  }
  OSCARKV_ASSIGN_OR_RETURN(LayerSource source, LoadLayer(name, layer, geometry));
  if (expected.empty() || source.id == expected) return source;
  return absl::FailedPreconditionError(
      absl::StrCat("encoded with transform ", expected, ", ", name, " is ", source.id));
}

// Decodes tokens first..first + tokens of one side, rows as they lie in the file.
std::vector<std::byte> DecodeRun(const RowKernels& kernels, const Codes& side,
                                 const PreparedHeads* transforms, uint64_t first, uint64_t tokens) {
  const uint64_t heads = side.heads();
  const size_t code_bytes = size_t{side.format.dim} * side.format.bits / 8;
  const size_t param_bytes =
      side.params.shape[2] * 2 * (side.format.params == ParamsDType::kFp16 ? size_t{2} : size_t{4});
  const size_t row_bytes = size_t{side.format.dim} * DTypeBytes(side.dtype);
  const ByteView codes =
      side.codes.bytes.subspan(first * heads * code_bytes, tokens * heads * code_bytes);
  const ByteView params =
      side.params.bytes.subspan(first * heads * param_bytes, tokens * heads * param_bytes);
  std::vector<std::byte> rows(tokens * heads * row_bytes);
  std::vector<std::byte> head_codes(tokens * code_bytes);
  std::vector<std::byte> head_params(tokens * param_bytes);
  std::vector<std::byte*> destinations(tokens);
  for (uint64_t head = 0; head < heads; ++head) {
    for (uint64_t i = 0; i < tokens; ++i) {
      const uint64_t row = i * heads + head;
      std::copy_n(codes.data() + row * code_bytes, code_bytes, head_codes.data() + i * code_bytes);
      std::copy_n(params.data() + row * param_bytes, param_bytes,
                  head_params.data() + i * param_bytes);
      destinations[i] = rows.data() + row * row_bytes;
    }
    kernels.Decode(side.format,
                   transforms == nullptr ? nullptr : transforms->at(static_cast<uint32_t>(head)),
                   head_codes.data(), head_params.data(), side.dtype, destinations);
  }
  MappedFile::ReleasePages(codes);
  MappedFile::ReleasePages(params);
  return rows;
}

absl::Status Decode(const Arguments& arguments, const SafetensorsFile& file) {
  OSCARKV_ASSIGN_OR_RETURN(const Codes k, FindCodes(file.contents, "k", arguments));
  OSCARKV_ASSIGN_OR_RETURN(const Codes v, FindCodes(file.contents, "v", arguments));
  OSCARKV_ASSIGN_OR_RETURN(const Geometry geometry, CheckCodes(k, v));
  const RowKernels& kernels = KernelsOf(arguments.backend);
  std::optional<PreparedHeads> k_transforms, v_transforms;
  if (arguments.basis == "model") {
    OSCARKV_ASSIGN_OR_RETURN(const LayerSource source,
                             FindTransform(file.contents, arguments, geometry));
    k_transforms.emplace(kernels, source.set.layer(source.layer).k);
    v_transforms.emplace(kernels, source.set.layer(source.layer).v);
  }
  std::vector<TensorSpec> tensors;
  for (const Codes* side : {&k, &v}) {
    tensors.push_back({side->name,
                       std::string(TensorDTypeOf(side->dtype)),
                       {side->tokens(), side->heads(), side->format.dim}});
  }
  OSCARKV_ASSIGN_OR_RETURN(
      SafetensorsWriter writer,
      SafetensorsWriter::Create(arguments.output, tensors, {{"basis", arguments.basis}}));
  ProgressBar bar("decoding", "tokens");
  for (uint64_t first = 0; first < k.tokens(); first += kRunTokens) {
    const uint64_t tokens = std::min(kRunTokens, k.tokens() - first);
    OSCARKV_RETURN_IF_ERROR(writer.Append(
        0, DecodeRun(kernels, k, k_transforms ? &*k_transforms : nullptr, first, tokens)));
    OSCARKV_RETURN_IF_ERROR(writer.Append(
        1, DecodeRun(kernels, v, v_transforms ? &*v_transforms : nullptr, first, tokens)));
    bar.Show(first + tokens, k.tokens());
  }
  return writer.Finish();
}

absl::Status Run(const Arguments& arguments) {
  OSCARKV_ASSIGN_OR_RETURN(const SafetensorsFile file, OpenSafetensors(arguments.input));
  return Annotate(Decode(arguments, file), arguments.input);
}

}  // namespace

void AddDecodeCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "decode",
      "Decode what `oscarkv encode` wrote to tensors k and v, [tokens, kv_heads, "
      "head_dim]");
  const auto a = std::make_shared<Arguments>();
  command
      ->add_option("input", a->input,
                   "Safetensors file with k_codes, v_codes, k_params and v_params; metadata is "
                   "not required")
      ->required();
  command->add_option("--transform", a->transform,
                      "Transform file, identity or hadamard (default: what the input names; one "
                      "of another hash is refused)");
  command->add_option("--layer", a->layer, "Layer of the transform file (default: the input's)");
  command
      ->add_option("--basis", a->basis,
                   "model (the inverse transform applied) or transformed (as the codes are; needs "
                   "no transform)")
      ->check(CLI::IsMember({"model", "transformed"}))
      ->capture_default_str();
  command
      ->add_option("--dtype", a->dtype,
                   "fp32, fp16 or bf16 (default: of the rows that were encoded)")
      ->check(CLI::IsMember({"fp32", "fp16", "bf16"}));
  command
      ->add_option("--backend", a->backend,
                   "cpu (the fastest this processor has; the inverse transform in fixed point, "
                   "finer than the rounding of bf16) or reference (fp32, plain loops)")
      ->check(CLI::IsMember({"cpu", "reference"}))
      ->capture_default_str();
  command->add_option("-o,--output", a->output, "File to write")->required();
  command->footer(
      "Example:\n"
      "  oscarkv decode codes.safetensors -o back.safetensors              # as it was encoded\n"
      "  oscarkv decode mine.safetensors --transform hadamard --dtype fp32 --backend reference -o "
      "back.safetensors");
  command->callback([a] { Report(Run(*a)); });
}

}  // namespace oscarkv::cli
