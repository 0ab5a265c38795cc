// Geometry, codec settings, transform sets and the page codec, as Python sees them.
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

#include "client/python/src/numpy_views.h"
#include "client/python/src/transform_handle.h"
#include "kernels/base/sha256.h"
#include "kernels/codec/page_codec.h"
#include "kernels/codec/transform_file.h"
#include "kernels/safetensors/safetensors.h"
#include "proto/wire/namespace_spec.h"
#include "proto/wire/page_key.h"
#include "pybind11/stl.h"

namespace oscarkv::python {

namespace py = pybind11;
using py::arg;

namespace {

DType DTypeOf(const std::string& name) {
  const std::optional<DType> dtype = ParseDType(name);
  if (!dtype)
    throw py::value_error(absl::StrCat("dtype must be bf16, fp16 or fp32, found '", name, "'"));
  return *dtype;
}

ParamsDType ParamsOf(const std::string& name) {
  if (name == "fp16") return ParamsDType::kFp16;
  if (name == "fp32") return ParamsDType::kFp32;
  throw py::value_error(absl::StrCat("params must be fp16 or fp32, found '", name, "'"));
}

Encoding EncodingOf(const std::string& name) {
  if (name == "wide") return Encoding::kWide;
  if (name == "packed") return Encoding::kPacked;
  throw py::value_error(absl::StrCat("encoding must be wide or packed, found '", name, "'"));
}

DecodeBasis BasisOf(const std::string& name) {
  if (name == "model") return DecodeBasis::kModel;
  if (name == "transformed") return DecodeBasis::kTransformed;
  throw py::value_error(absl::StrCat("basis must be model or transformed, found '", name, "'"));
}

// NOLINTNEXTLINE(readability-function-size): a list
void BindSettings(py::module_& module) {
  py::class_<Geometry>(module, "Geometry", "The shape of one shard's KV cache.")
      .def(py::init([](uint32_t layers, uint32_t kv_heads, uint32_t k_head_dim,
                       std::optional<uint32_t> v_head_dim, uint32_t page_tokens,
                       const std::string& dtype) {
             Geometry geometry{layers,      kv_heads,
                               k_head_dim,  v_head_dim.value_or(k_head_dim),
                               page_tokens, DTypeOf(dtype)};
             ThrowIfError(ValidateGeometry(geometry));
             return geometry;
           }),
           arg("layers"), arg("kv_heads"), arg("k_head_dim"), arg("v_head_dim") = py::none(),
           arg("page_tokens") = 64, arg("dtype") = "bf16")
      .def_readonly("layers", &Geometry::layers)
      .def_readonly("kv_heads", &Geometry::kv_heads)
      .def_readonly("k_head_dim", &Geometry::k_head_dim)
      .def_readonly("v_head_dim", &Geometry::v_head_dim)
      .def_readonly("page_tokens", &Geometry::page_tokens)
      .def_property_readonly("dtype",
                             [](const Geometry& g) { return std::string(DTypeName(g.dtype)); });

  py::class_<CodecSpec>(module, "CodecSpec", "How a namespace's pages are held.")
      .def(py::init([](uint8_t k_bits, uint8_t v_bits, uint32_t group, const std::string& params,
                       const py::bytes& transform_hash, uint32_t sink_tokens,
                       uint32_t recent_tokens) {
             CodecSpec spec;
             spec.bits[0] = {.k = k_bits, .v = v_bits};
             spec.group = group;
             spec.params = ParamsOf(params);
             spec.transform_hash = transform_hash;
             spec.sink_tokens = sink_tokens;
             spec.recent_tokens = recent_tokens;
             return spec;
           }),
           arg("k_bits") = 2, arg("v_bits") = 2, arg("group") = 0, arg("params") = "fp16",
           arg("transform_hash") = py::bytes(), arg("sink_tokens") = 64, arg("recent_tokens") = 256)
      .def_property_readonly("k_bits", [](const CodecSpec& s) { return s.bits[0].k; })
      .def_property_readonly("v_bits", [](const CodecSpec& s) { return s.bits[0].v; })
      .def_readonly("group", &CodecSpec::group)
      .def_readonly("sink_tokens", &CodecSpec::sink_tokens)
      .def_readonly("recent_tokens", &CodecSpec::recent_tokens)
      .def_property_readonly("transform_hash",
                             [](const CodecSpec& s) { return py::bytes(s.transform_hash); });

  py::class_<NamespaceSpec>(module, "NamespaceSpec", "Everything that makes page bytes comparable.")
      .def(py::init([](const std::string& model, const Geometry& geometry, const CodecSpec& codec,
                       const std::string& model_revision, const std::string& tenant,
                       const std::string& adapter, const std::string& salt,
                       const std::string& hash_scheme, uint32_t tp_rank, uint32_t tp_size,
                       uint32_t pp_rank, uint32_t pp_size) {
             NamespaceSpec spec;
             spec.model = model;
             spec.geometry = geometry;
             spec.codec = codec;
             spec.model_revision = model_revision;
             spec.tenant = tenant;
             spec.adapter = adapter;
             spec.salt = salt;
             spec.hash_scheme = hash_scheme;
             spec.shard = {tp_rank, tp_size, pp_rank, pp_size};
             ThrowIfError(ValidateNamespaceSpec(spec));
             return spec;
           }),
           arg("model"), arg("geometry"), arg("codec"), arg("model_revision") = "",
           arg("tenant") = "default", arg("adapter") = "", arg("salt") = "", py::kw_only(),
           arg("hash_scheme") = NamespaceSpec().hash_scheme, arg("tp_rank") = 0, arg("tp_size") = 1,
           arg("pp_rank") = 0, arg("pp_size") = 1)
      .def_readonly("model", &NamespaceSpec::model)
      .def_readonly("geometry", &NamespaceSpec::geometry)
      .def_readonly("codec", &NamespaceSpec::codec)
      .def_property_readonly("fingerprint",
                             [](const NamespaceSpec& s) { return py::bytes(Fingerprint(s)); });
}

void BindTransforms(py::module_& module) {
  py::class_<TransformHandle>(module, "TransformSet",
                              "A frozen transform set: what calibration writes.")
      .def_static(
          "from_bytes", [](const py::bytes& file) { return MakeTransformHandle(file); },
          arg("file"))
      .def_static(
          "load",
          [](const std::string& path) {
            const auto file = ValueOrThrow(MappedFile::Open(path));
            return MakeTransformHandle(std::string(AsText(file->bytes())));
          },
          arg("path"))
      .def_static(
          "identity",
          [](const Geometry& geometry, float k_clip, float v_clip) {
            return MakeTransformHandle(SerializeTransformFile(
                ValueOrThrow(MakeIdentityTransformSet(geometry, k_clip, v_clip)), ""));
          },
          arg("geometry"), arg("k_clip") = 0.0f, arg("v_clip") = 0.0f, "T = I: plain INT2.")
      .def_static(
          "hadamard",
          [](const Geometry& geometry, float k_clip, float v_clip) {
            return MakeTransformHandle(SerializeTransformFile(
                ValueOrThrow(MakeHadamardTransformSet(geometry, k_clip, v_clip)), ""));
          },
          arg("geometry"), arg("k_clip") = 0.0f, arg("v_clip") = 0.0f)
      .def_property_readonly("hash", [](const TransformHandle& t) { return py::bytes(t.hash); })
      .def_property_readonly("layers", [](const TransformHandle& t) { return t.set->layers(); })
      .def_property_readonly("k_methods",
                             [](const TransformHandle& t) {
                               std::vector<std::string> methods;
                               for (uint32_t i = 0; i < t.set->layers(); ++i)
                                 methods.push_back(t.set->layer(i).k_method);
                               return methods;
                             })
      .def("to_bytes", [](const TransformHandle& t) { return py::bytes(*t.file); })
      .def(
          "save",
          [](const TransformHandle& t, const std::string& path) {
            ThrowIfError(WriteFileAtomically(path, AsBytes(*t.file)));
          },
          arg("path"));
}

// A codec and what it has met so far.
struct CodecHandle {
  std::unique_ptr<PageCodec> codec;
  EncodeReport report;
};

py::tuple EncodePage(CodecHandle& self, const PagedKv& kv, const py::object& slots,
                     const std::string& encoding) {
  const Encoding form = EncodingOf(encoding);
  const EngineView view = kv.view(self.codec->geometry());
  py::array_t<uint8_t> page(static_cast<py::ssize_t>(self.codec->layout(form).page_bytes()));
  py::array_t<uint32_t> crcs(static_cast<py::ssize_t>(self.codec->geometry().blocks()));
  EncodeItem item;
  item.encoding = form;
  const SlotArray places = SlotsOf(slots);
  item.slots = SlotSpan(places);
  item.page =
      std::as_writable_bytes(std::span(page.mutable_data(), static_cast<size_t>(page.size())));
  item.block_crc32c = {crcs.mutable_data(), static_cast<size_t>(crcs.size())};
  EncodeReport report;
  absl::Status status;
  {
    const py::gil_scoped_release release;
    status = self.codec->Encode(view, {&item, 1}, &report);
  }
  ThrowIfError(status);
  self.report.rows += report.rows;
  self.report.constant_rows += report.constant_rows;
  self.report.nonfinite_rows += report.nonfinite_rows;
  self.report.overflow_rows += report.overflow_rows;
  return py::make_tuple(page, crcs);
}

void DecodePage(const CodecHandle& self, const py::array_t<uint8_t, py::array::c_style>& page,
                const py::array_t<uint32_t, py::array::c_style>& crcs, const PagedKv& kv,
                const py::object& slots, const std::string& encoding, const std::string& basis) {
  DecodeItem item;
  item.encoding = EncodingOf(encoding);
  item.layers = {0, self.codec->geometry().layers};
  item.heads = {0, self.codec->geometry().kv_heads};
  const SlotArray places = SlotsOf(slots);
  item.slots = SlotSpan(places);
  item.bytes = std::as_bytes(std::span(page.data(), static_cast<size_t>(page.size())));
  item.block_crc32c = {crcs.data(), static_cast<size_t>(crcs.size())};
  const DecodeBasis form = BasisOf(basis);
  const EngineView view = kv.view(self.codec->geometry());
  absl::Status status;
  {
    const py::gil_scoped_release release;
    status = self.codec->Decode({&item, 1}, form, view);
  }
  ThrowIfError(status);
  ThrowIfError(item.result);
}

void BindPages(py::module_& module) {
  py::class_<PagedKv>(module, "PagedKv", "A worker's K and V, viewed in place.")
      .def(py::init<py::array, py::array>(), arg("k"), arg("v"));

  py::class_<CodecHandle>(module, "PageCodec",
                          "Encodes and decodes pages between a paged cache and page bytes.")
      .def(py::init([](const Geometry& geometry, const CodecSpec& spec,
                       const TransformHandle* transforms, const std::string& backend) {
             if (backend != "cpu" && backend != "reference") {
               throw py::value_error(
                   absl::StrCat("backend must be cpu or reference, found '", backend, "'"));
             }
             const CodecBackend kind =
                 backend == "cpu" ? CodecBackend::kCpu : CodecBackend::kReference;
             CodecHandle handle;
             handle.codec = ValueOrThrow(MakePageCodec(
                 kind, geometry, spec, transforms == nullptr ? nullptr : transforms->set));
             return handle;
           }),
           arg("geometry"), arg("spec"), arg("transforms") = nullptr, arg("backend") = "cpu")
      .def_property_readonly("backend",
                             [](const CodecHandle& c) { return std::string(c.codec->backend()); })
      .def(
          "page_bytes",
          [](const CodecHandle& c, const std::string& encoding) {
            return c.codec->layout(EncodingOf(encoding)).page_bytes();
          },
          arg("encoding"))
      .def("encode", &EncodePage, arg("kv"), arg("slots"), arg("encoding") = "packed",
           "The page at `slots` of the cache: (bytes uint8, block checksums uint32).")
      .def("decode", &DecodePage, arg("page"), arg("crcs"), arg("kv"), arg("slots"),
           arg("encoding") = "packed", arg("basis") = "model",
           "Verifies the checksums and writes the page into the cache; RuntimeError on damage.")
      .def_property_readonly("report", [](const CodecHandle& c) {
        py::dict report;
        report["rows"] = c.report.rows;
        report["constant_rows"] = c.report.constant_rows;
        report["nonfinite_rows"] = c.report.nonfinite_rows;
        report["overflow_rows"] = c.report.overflow_rows;
        return report;
      });

  module.def(
      "chain_keys",
      [](const py::array_t<uint32_t, py::array::c_style | py::array::forcecast>& tokens,
         uint32_t page_tokens, const py::bytes& parent) {
        if (page_tokens == 0) throw py::value_error("page_tokens must be positive");
        const std::span<const uint32_t> view(tokens.data(), static_cast<size_t>(tokens.size()));
        std::vector<py::bytes> keys;
        for (const std::string& key : ChainKeys(view, page_tokens, std::string(parent)))
          keys.emplace_back(key);
        return keys;
      },
      arg("tokens"), arg("page_tokens"), arg("parent") = py::bytes(),
      "The keys of the whole pages of a token sequence, 32 bytes each.");
}

}  // namespace

TransformHandle MakeTransformHandle(std::string file) {
  TransformHandle handle;
  handle.set = std::make_shared<TransformSet>(ValueOrThrow(ParseTransformFile(AsBytes(file))));
  handle.hash = Sha256Of(AsBytes(file));
  handle.file = std::make_shared<const std::string>(std::move(file));
  return handle;
}

void BindCodec(py::module_& module) {
  BindSettings(module);
  BindTransforms(module);
  BindPages(module);
}

}  // namespace oscarkv::python
