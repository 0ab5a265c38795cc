// Attention over pages in device memory, as Python sees it.
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"

#include "client/python/src/gpu_bindings.h"
#include "client/python/src/numpy_views.h"
#include "client/python/src/transform_handle.h"
#include "kernels/attention/attend.h"
#include "pybind11/numpy.h"

namespace oscarkv::python {

namespace py = pybind11;
using cuda::AttendBatch;
using cuda::AttendPage;
using cuda::Attention;
using py::arg;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// The entries of a block table as bytes, to be copied to the device: [pages, 16] uint8.
py::array_t<uint8_t> PageTable(const Array<uint64_t>& addresses, const Array<uint32_t>& positions,
                               const Array<uint16_t>& tokens, const Array<bool>& packed) {
  const py::ssize_t count = addresses.size();
  if (positions.size() != count || tokens.size() != count || packed.size() != count) {
    throw py::value_error(absl::StrCat("a page has one of each: found ", count, " addresses, ",
                                       positions.size(), " positions, ", tokens.size(),
                                       " numbers of tokens, ", packed.size(), " encodings"));
  }
  py::array_t<uint8_t> table({count, static_cast<py::ssize_t>(sizeof(AttendPage))});
  for (py::ssize_t i = 0; i < count; ++i) {
    AttendPage page;
    page.bytes = AtAddress<const std::byte>(addresses.data()[i]);
    page.position = positions.data()[i];
    page.tokens = tokens.data()[i];
    page.encoding = packed.data()[i] ? Encoding::kPacked : Encoding::kWide;
    std::memcpy(table.mutable_data(i, 0), &page, sizeof(page));
  }
  return table;
}

}  // namespace

void BindAttention(py::module_& module) {
  module.def("page_table", &PageTable, arg("addresses"), arg("positions"), arg("tokens"),
             arg("packed"),
             "A block table's entries for Attention.attend: each page's address on the device, the "
             "position of its first token, its tokens in use, and whether it is packed.");

  py::class_<Attention>(module, "Attention",
                        "Decode attention over packed and wide pages. Thread-safe.")
      .def(py::init([](const Geometry& geometry, const CodecSpec& spec,
                       const TransformHandle& transforms, uint32_t q_heads) {
             return ValueOrThrow(Attention::Create(geometry, spec, *transforms.set, q_heads));
           }),
           arg("geometry"), arg("spec"), arg("transforms"), arg("q_heads"))
      .def("workspace_bytes", &Attention::WorkspaceBytes, arg("requests"), arg("new_tokens") = 1)
      .def(
          "init_workspace",
          [](const Attention& self, uintptr_t workspace, size_t workspace_bytes, uintptr_t stream) {
            ThrowIfError(self.InitWorkspace(AtAddress<std::byte>(workspace), workspace_bytes,
                                            AtAddress<CUstream_st>(stream)));
          },
          py::kw_only(), arg("workspace"), arg("workspace_bytes"), arg("stream"),
          "Only enqueues. Once before a workspace's first call; memory of zeros needs it not.")
      .def(
          "attend",
          [](const Attention& self, uint32_t layer, uint32_t requests, uint32_t new_tokens,
             float softmax_scale, uintptr_t pages, uintptr_t first_page, uintptr_t lengths,
             uintptr_t queries, uintptr_t output, uintptr_t workspace, size_t workspace_bytes,
             uintptr_t stream, uintptr_t log_sum_exp) {
            AttendBatch batch;
            batch.layer = layer;
            batch.requests = requests;
            batch.new_tokens = new_tokens;
            batch.softmax_scale = softmax_scale;
            batch.pages = AtAddress<const AttendPage>(pages);
            batch.first_page = AtAddress<const uint32_t>(first_page);
            batch.lengths = AtAddress<const uint32_t>(lengths);
            batch.queries = AtAddress<const std::byte>(queries);
            batch.output = AtAddress<std::byte>(output);
            batch.log_sum_exp = AtAddress<float>(log_sum_exp);
            ThrowIfError(self.Attend(batch, AtAddress<std::byte>(workspace), workspace_bytes,
                                     AtAddress<CUstream_st>(stream)));
          },
          py::kw_only(), arg("layer"), arg("requests"), arg("new_tokens") = 1, arg("softmax_scale"),
          arg("pages"), arg("first_page"), arg("lengths"), arg("queries"), arg("output"),
          arg("workspace"), arg("workspace_bytes"), arg("stream"), arg("log_sum_exp") = 0,
          "Only enqueues. Device addresses as attend.h has them: pages and first_page (uint32 "
          "[requests + 1]) from page_table, lengths uint32 [requests], queries and output in "
          "the model's dtype, [requests, new_tokens, q_heads, dim].");
}

}  // namespace oscarkv::python
