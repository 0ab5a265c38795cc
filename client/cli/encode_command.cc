#include "client/cli/encode_command.h"

#include <algorithm>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"

#include "CLI/CLI.hpp"
#include "client/cli/code_options.h"
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
  std::string transform;
  uint32_t layer = 0;
  CodeOptions codes;
  std::optional<float> k_clip, v_clip;  // unset: the transform's own
  uint32_t group = 0;                   // 0: the head dim
  std::string backend = "cpu";
  std::string output;
  bool json = false;
};

// The rows of one side, [tokens, kv_heads, head_dim].
struct Rows {
  Tensor tensor;
  DType dtype = DType::kFp32;

  uint64_t tokens() const { return tensor.shape[0]; }
  uint64_t heads() const { return tensor.shape[1]; }
  uint32_t dim() const { return static_cast<uint32_t>(tensor.shape[2]); }
};

absl::StatusOr<Rows> FindRows(const Safetensors& file, const char* name) {
  OSCARKV_ASSIGN_OR_RETURN(Tensor tensor, file.Get(name, "", 3));
  const std::optional<DType> dtype = FloatTensorDType(tensor.dtype);
  if (!dtype) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor '", name, "': dtype must be F32, F16 or BF16, found ", tensor.dtype));
  }
  return Rows{std::move(tensor), *dtype};
}

// What both sides and the options must agree on.
absl::StatusOr<Geometry> CheckRows(const Rows& k, const Rows& v, const Arguments& arguments) {
  if (k.tokens() != v.tokens() || k.heads() != v.heads()) {
    return absl::InvalidArgumentError(absl::StrCat("k ", ShapeText(k.tensor.shape), " and v ",
                                                   ShapeText(v.tensor.shape),
                                                   " must have the same tokens and KV heads"));
  }
  const auto held = [](uint64_t extent) {
    return static_cast<uint32_t>(std::min<uint64_t>(extent, 1u << 31));
  };
  const Geometry geometry{.layers = 1,
                          .kv_heads = held(k.heads()),
                          .k_head_dim = held(k.tensor.shape[2]),
                          .v_head_dim = held(v.tensor.shape[2]),
                          .page_tokens = 1};
  OSCARKV_RETURN_IF_ERROR(ValidateGeometry(geometry));
  const bool whole_row =
      arguments.group == geometry.k_head_dim && arguments.group == geometry.v_head_dim;
  CodecSpec spec;
  spec.bits = {arguments.codes.bits()};
  spec.group = whole_row ? 0 : arguments.group;
  OSCARKV_RETURN_IF_ERROR(ValidateCodecSpec(spec, geometry));
  return geometry;
}

// Encodes one side, run by run, into bytes that lie as they do in the file: token by token, head by
// head.
class SideEncoder {
 public:
  SideEncoder(const RowKernels& kernels, const Rows& rows, RowFormat format,
              const std::vector<SideTransform>& heads, std::optional<float> clip)
      : kernels_(kernels),
        rows_(rows),
        format_(format),
        transforms_(kernels, heads),
        code_bytes_(size_t{format.dim} * format.bits / 8),
        param_bytes_(size_t{format.dim / format.group} * 2 *
                     (format.params == ParamsDType::kFp16 ? 2 : 4)) {
    for (uint64_t head = 0; head < rows.heads(); ++head)
      clips_.push_back(clip.value_or(heads[heads.size() == 1 ? 0 : head].clip_ratio));
  }

  // Appends to the two tensors of `writer` from number `first_tensor` on.
  absl::Status Run(uint64_t first, uint64_t tokens, size_t first_tensor, SafetensorsWriter* writer,
                   EncodeReport* report) {
    const uint64_t heads = rows_.heads();
    const size_t row_bytes = size_t{format_.dim} * DTypeBytes(rows_.dtype);
    const ByteView input =
        rows_.tensor.bytes.subspan(first * heads * row_bytes, tokens * heads * row_bytes);
    std::vector<std::byte> codes(tokens * heads * code_bytes_);
    std::vector<std::byte> params(tokens * heads * param_bytes_);
    std::vector<std::byte> head_codes(tokens * code_bytes_);
    std::vector<std::byte> head_params(tokens * param_bytes_);
    std::vector<const std::byte*> sources(tokens);
    for (uint64_t head = 0; head < heads; ++head) {
      for (uint64_t i = 0; i < tokens; ++i)
        sources[i] = input.data() + (i * heads + head) * row_bytes;
      RowFormat format = format_;
      format.clip_index = ClipIndex(clips_[head], format.dim);
      kernels_.Encode(format, transforms_.at(static_cast<uint32_t>(head)), rows_.dtype, sources,
                      head_codes.data(), head_params.data(), report);
      for (uint64_t i = 0; i < tokens; ++i) {
        std::copy_n(head_codes.data() + i * code_bytes_, code_bytes_,
                    codes.data() + (i * heads + head) * code_bytes_);
        std::copy_n(head_params.data() + i * param_bytes_, param_bytes_,
                    params.data() + (i * heads + head) * param_bytes_);
      }
    }
    MappedFile::ReleasePages(input);
    OSCARKV_RETURN_IF_ERROR(writer->Append(first_tensor, codes));
    return writer->Append(first_tensor + 1, params);
  }

  std::vector<TensorSpec> Tensors() const {
    const uint64_t tokens = rows_.tokens();
    const uint64_t heads = rows_.heads();
    return {{rows_.tensor.name + "_codes", "U8", {tokens, heads, code_bytes_}},
            {rows_.tensor.name + "_params",
             format_.params == ParamsDType::kFp16 ? "F16" : "F32",
             {tokens, heads, format_.dim / format_.group, 2}}};
  }
  uint64_t OutputBytes() const {
    return rows_.tokens() * rows_.heads() * (code_bytes_ + param_bytes_);
  }
  // One ratio for each head.
  std::string ClipText() const { return absl::StrJoin(clips_, ","); }

 private:
  const RowKernels& kernels_;
  const Rows& rows_;
  const RowFormat format_;
  const PreparedHeads transforms_;
  const size_t code_bytes_;  // of a row
  const size_t param_bytes_;
  std::vector<float> clips_;
};

void PrintSummary(const Arguments& arguments, const Rows& k, const Rows& v, uint64_t bytes_out,
                  const EncodeReport& report) {
  const uint64_t bytes_in = k.tensor.bytes.size() + v.tensor.bytes.size();
  if (arguments.json) {
    const nlohmann::ordered_json summary = {{"tokens", k.tokens()},
                                            {"kv_heads", k.heads()},
                                            {"k_head_dim", k.dim()},
                                            {"v_head_dim", v.dim()},
                                            {"bytes_in", bytes_in},
                                            {"bytes_out", bytes_out},
                                            {"rows", report.rows},
                                            {"constant_rows", report.constant_rows},
                                            {"nonfinite_rows", report.nonfinite_rows},
                                            {"overflow_rows", report.overflow_rows}};
    std::cout << summary.dump() << "\n";
  } else {
    std::cout << absl::StrFormat(
        "%d tokens of %d KV heads, head dims %d and %d: %d bytes in, %d out", k.tokens(), k.heads(),
        k.dim(), v.dim(), bytes_in, bytes_out);
    if (bytes_out > 0) {
      std::cout << absl::StrFormat(" (%.2fx less)",
                                   static_cast<double>(bytes_in) / static_cast<double>(bytes_out));
    }
    std::cout << "\n";
  }
  if (report.nonfinite_rows > 0) {
    std::cerr << "oscarkv: warning: " << report.nonfinite_rows
              << " rows with a NaN or an infinity: they decode to NaN\n";
  }
  if (report.overflow_rows > 0) {
    std::cerr << "oscarkv: warning: " << report.overflow_rows
              << " rows beyond the range of their params: they decode to NaN; try --params fp32\n";
  }
}

// Clip ratios are fitted for codes of so many bits.
void WarnOfOtherBits(const LayerSource& source, const Arguments& arguments) {
  const auto warn = [](const char* side, uint64_t fitted, uint32_t bits) {
    if (fitted == 0 || fitted == bits) return;
    std::cerr << "oscarkv: warning: the transform was fitted for " << side << " in " << fitted
              << " bits, codes have " << bits << "\n";
  };
  warn("K", source.fitted_k_bits, arguments.codes.k_bits);
  warn("V", source.fitted_v_bits, arguments.codes.v_bits);
}

absl::Status Encode(const Arguments& arguments, const SafetensorsFile& file) {
  OSCARKV_ASSIGN_OR_RETURN(const Rows k, FindRows(file.contents, "k"));
  OSCARKV_ASSIGN_OR_RETURN(const Rows v, FindRows(file.contents, "v"));
  OSCARKV_ASSIGN_OR_RETURN(const Geometry geometry, CheckRows(k, v, arguments));
  OSCARKV_ASSIGN_OR_RETURN(const LayerSource source,
                           LoadLayer(arguments.transform, arguments.layer, geometry));

  const RowKernels& kernels = KernelsOf(arguments.backend);
  const LayerTransform& layer = source.set.layer(source.layer);
  const auto format_of = [&](const Rows& rows, uint32_t bits) {
    return RowFormat{.dim = rows.dim(),
                     .bits = bits,
                     .group = arguments.group == 0 ? rows.dim() : arguments.group,
                     .params = arguments.codes.params_dtype()};
  };
  SideEncoder k_encoder(kernels, k, format_of(k, arguments.codes.k_bits), layer.k,
                        arguments.k_clip);
  SideEncoder v_encoder(kernels, v, format_of(v, arguments.codes.v_bits), layer.v,
                        arguments.v_clip);
  std::map<std::string, std::string, std::less<>> metadata = {
      {"format", "oscarkv-codes-1"},
      {"transform", source.id},
      {"layer", absl::StrCat(arguments.layer)},
      {"params", arguments.codes.params},
      {"group", absl::StrCat(arguments.group)},
      {"k_dtype", std::string(DTypeName(k.dtype))},
      {"v_dtype", std::string(DTypeName(v.dtype))},
      {"k_bits", absl::StrCat(arguments.codes.k_bits)},
      {"v_bits", absl::StrCat(arguments.codes.v_bits)},
      {"k_clip", k_encoder.ClipText()},
      {"v_clip", v_encoder.ClipText()}};
  if (source.id != arguments.transform) metadata["transform_file"] = arguments.transform;

  std::vector<TensorSpec> tensors = k_encoder.Tensors();
  for (TensorSpec& tensor : v_encoder.Tensors()) tensors.push_back(std::move(tensor));
  OSCARKV_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                           SafetensorsWriter::Create(arguments.output, tensors, metadata));
  ProgressBar bar("encoding", "tokens");
  EncodeReport report;
  for (uint64_t first = 0; first < k.tokens(); first += kRunTokens) {
    const uint64_t tokens = std::min(kRunTokens, k.tokens() - first);
    OSCARKV_RETURN_IF_ERROR(k_encoder.Run(first, tokens, 0, &writer, &report));
    OSCARKV_RETURN_IF_ERROR(v_encoder.Run(first, tokens, 2, &writer, &report));
    bar.Show(first + tokens, k.tokens());
  }
  OSCARKV_RETURN_IF_ERROR(writer.Finish());
  bar.Finish();
  WarnOfOtherBits(source, arguments);
  PrintSummary(arguments, k, v, k_encoder.OutputBytes() + v_encoder.OutputBytes(), report);
  return absl::OkStatus();
}

absl::Status Run(const Arguments& arguments) {
  OSCARKV_ASSIGN_OR_RETURN(const SafetensorsFile file, OpenSafetensors(arguments.input));
  return Annotate(Encode(arguments, file), arguments.input);
}

}  // namespace

void AddEncodeCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "encode", "Encode rows of K and V to 2-bit codes, as the store's pages hold them");
  const auto a = std::make_shared<Arguments>();
  command
      ->add_option("input", a->input,
                   "Safetensors file with k and v, [tokens, kv_heads, head_dim] of F32, F16 or "
                   "BF16")
      ->required();
  command
      ->add_option("--transform", a->transform,
                   "Transform file of `oscarkv calibrate`, or identity or hadamard")
      ->required();
  command->add_option("--layer", a->layer, "Layer of the transform file that the rows belong to")
      ->capture_default_str();
  command
      ->add_option("--clip-k", a->k_clip,
                   "Clip ratio of K, 0: none (default: the transform file's, head by head; none "
                   "for identity and hadamard)")
      ->check(CLI::Range(0.0, 1.0));
  command->add_option("--clip-v", a->v_clip, "Clip ratio of V, likewise")
      ->check(CLI::Range(0.0, 1.0));
  AddCodeOptions(command, &a->codes);
  command
      ->add_option("--group", a->group,
                   "Elements that share a scale: 16, 32, 64, or the head dim (0)")
      ->capture_default_str();
  command
      ->add_option("--backend", a->backend,
                   "cpu (the fastest this processor has) or reference (plain loops); codes of the "
                   "same transformed row are the same")
      ->check(CLI::IsMember({"cpu", "reference"}))
      ->capture_default_str();
  command
      ->add_option("-o,--output", a->output,
                   "File to write: k_codes and v_codes (U8, [tokens, kv_heads, head_dim * bits / "
                   "8]), k_params and v_params ([tokens, kv_heads, head_dim / group, 2]: scale, "
                   "zero)")
      ->required();
  command->add_flag("--json", a->json, "Print the summary as JSON");
  command->footer(
      "Arithmetic and packing of codes: kernels/codec/FORMAT.md, Quantising a row. A row with a "
      "NaN "
      "or an\ninfinity, or beyond the range of its params, is counted and decodes to NaN; it "
      "touches "
      "no other row.\n"
      "Example:\n"
      "  oscarkv encode kv.safetensors --transform m.transform.safetensors --layer 3 -o "
      "codes.safetensors\n"
      "  oscarkv decode codes.safetensors -o back.safetensors");
  command->callback([a] { Report(Run(*a)); });
}

}  // namespace oscarkv::cli
