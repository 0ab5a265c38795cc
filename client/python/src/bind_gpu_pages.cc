// Pages to and from caches on a GPU, as oscarkv.gpu has them.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "client/gpu/gpu_cache.h"
#include "client/gpu/gpu_pages.h"
#include "client/python/src/device_tensor.h"
#include "client/python/src/gpu_bindings.h"
#include "client/python/src/numpy_views.h"
#include "client/python/src/transform_handle.h"
#include "kernels/codec/oscar/cuda_page_codec.h"
#include "kernels/device/device.h"
#include "pybind11/stl.h"

namespace oscarkv::python {

namespace py = pybind11;
using client::FetchTarget;
using client::GpuCache;
using client::GpuPageSink;
using client::GpuPageSource;
using client::GpuTransferOptions;
using client::PageSink;
using client::PageSource;
using py::arg;

namespace {

// K or V of a cache: one tensor of all layers, or a tensor for each.
struct GpuSide {
  std::vector<DeviceTensor> tensors;  // [layers], without the layers' dimension; owners hold memory
  uint64_t layer_bytes = 0;           // from a layer's first row to the end of its last
};

// Rows must lie at one distance in all layers: views know one set of strides.
void CheckAlike(const GpuSide& side, const std::string& name) {
  const DeviceTensor& first = side.tensors.front();
  for (const DeviceTensor& layer : side.tensors) {
    if (layer.shape == first.shape && layer.strides == first.strides &&
        layer.dtype == first.dtype && layer.device == first.device)
      continue;
    throw py::value_error(
        absl::StrCat(name, ": expected layers of one shape, strides, dtype and device"));
  }
}

GpuSide SideOf(const py::object& tensors, const std::string& name) {
  GpuSide side;
  if (py::isinstance<py::list>(tensors) || py::isinstance<py::tuple>(tensors)) {
    for (const py::handle layer : tensors) {
      side.tensors.push_back(DeviceTensorOf(py::reinterpret_borrow<py::object>(layer),
                                            absl::StrCat(name, ", layer ", side.tensors.size())));
    }
  } else {
    const DeviceTensor all = DeviceTensorOf(tensors, name);
    if (all.shape.empty()) throw py::value_error(name + ": expected layers, found a number");
    for (int64_t layer = 0; layer < all.shape[0]; ++layer) {
      DeviceTensor one = all;
      one.data += layer * all.strides[0];
      one.shape.erase(one.shape.begin());
      one.strides.erase(one.strides.begin());
      side.tensors.push_back(std::move(one));
    }
  }
  if (side.tensors.empty()) throw py::value_error(name + ": expected layers, found none");
  CheckAlike(side, name);
  const DeviceTensor& first = side.tensors.front();
  const size_t dims = first.shape.size();
  if (dims != 3 && dims != 4) {
    throw py::value_error(absl::StrCat(
        name, ": a layer must be [slots, heads, dim] or [blocks, block_tokens, heads, dim], found ",
        dims, " dimensions"));
  }
  if (first.strides.back() != 2)
    throw py::value_error(absl::StrCat(name,
                                       ": expected rows that are contiguous, found a stride of ",
                                       first.strides.back(), " bytes in the last dimension"));
  side.layer_bytes = 2;
  for (size_t i = 0; i < dims; ++i) {
    if (first.shape[i] <= 0 || first.strides[i] < 0)
      throw py::value_error(name + ": expected extents above 0 and strides that are not negative");
    side.layer_bytes +=
        static_cast<uint64_t>(first.shape[i] - 1) * static_cast<uint64_t>(first.strides[i]);
  }
  return side;
}

// A worker's cache in GPU memory. Keeps the tensors alive.
class GpuPagedKv {
 public:
  GpuPagedKv(const py::object& k, const py::object& v) : k_(SideOf(k, "k")), v_(SideOf(v, "v")) {
    const std::vector<int64_t>& k_shape = k_.tensors[0].shape;
    const std::vector<int64_t>& v_shape = v_.tensors[0].shape;
    // All dimensions but heads and dim count tokens.
    if (k_.tensors.size() != v_.tensors.size() || k_shape.size() != v_shape.size() ||
        !std::equal(k_shape.begin(), k_shape.end() - 2, v_shape.begin()) ||
        k_.tensors[0].device != v_.tensors[0].device) {
      throw py::value_error("k and v must have the same layers and slots, and be on one device");
    }
  }

  // Described for the device and geometry of a codec, once.
  const GpuCache& CacheFor(const Geometry& geometry, int device) {
    if (!cache_ || !(geometry == geometry_)) {
      cache_ = std::make_unique<GpuCache>(Describe(geometry, device));
      geometry_ = geometry;
    }
    return *cache_;
  }

 private:
  GpuCache Describe(const Geometry& geometry, int device) const {
    const auto check = [&](const GpuSide& side, const char* name, uint32_t dim) {
      const DeviceTensor& layer = side.tensors[0];
      const size_t dims = layer.shape.size();
      if (layer.shape[dims - 2] != geometry.kv_heads || layer.shape[dims - 1] != dim) {
        throw py::value_error(absl::StrCat(name, " must have ", geometry.kv_heads, " heads of dim ",
                                           dim, ", found ", layer.shape[dims - 2], " of ",
                                           layer.shape[dims - 1]));
      }
      if (layer.device != -1 && layer.device != device) {
        throw py::value_error(absl::StrCat(name, ": expected memory of device ", device,
                                           ", found memory of device ", layer.device));
      }
    };
    check(k_, "k", geometry.k_head_dim);
    check(v_, "v", geometry.v_head_dim);
    std::vector<std::byte*> k_base;
    std::vector<std::byte*> v_base;
    for (const DeviceTensor& layer : k_.tensors) k_base.push_back(layer.data);
    for (const DeviceTensor& layer : v_.tensors) v_base.push_back(layer.data);
    const std::vector<int64_t>& shape = k_.tensors[0].shape;
    const bool blocks = shape.size() == 4;
    EngineView view;
    view.k = ViewOf(k_, k_base);
    view.v = ViewOf(v_, v_base);
    view.block_tokens = blocks ? static_cast<uint32_t>(shape[1]) : 1;
    view.slots = shape[0] * (blocks ? shape[1] : 1);
    const device::DeviceScope scope(device);
    ThrowIfError(scope.status());
    return ValueOrThrow(
        GpuCache::Create(view, geometry, {.k = k_.layer_bytes, .v = v_.layer_bytes}));
  }

  static EngineSide ViewOf(const GpuSide& side, const std::vector<std::byte*>& base) {
    const DeviceTensor& layer = side.tensors[0];
    const size_t dims = layer.shape.size();
    EngineSide view;
    view.layer_base = base;
    view.block_stride = layer.strides[0];
    view.token_stride = layer.strides[dims - 3];
    view.head_stride = layer.strides[dims - 2];
    view.dtype = layer.dtype;
    return view;
  }

  GpuSide k_;
  GpuSide v_;
  Geometry geometry_;
  std::unique_ptr<GpuCache> cache_;
};

// A codec, and the device that it is on.
struct GpuCodec {
  std::shared_ptr<const cuda::CudaPageCodec> codec;
  int device = 0;
};

GpuCodec MakeCodec(const Geometry& geometry, const CodecSpec& spec,
                   const TransformHandle* transforms, int device) {
  const device::DeviceScope scope(device);
  ThrowIfError(scope.status());
  return {ValueOrThrow(cuda::CudaPageCodec::Create(
              geometry, spec, transforms == nullptr ? nullptr : transforms->set.get())),
          device};
}

// A sink or source, and what the transfer under way borrows.
struct SinkHandle {
  std::unique_ptr<GpuPageSink> sink;
  GpuCodec codec;
  std::shared_ptr<GpuPagedKv> kv;
};
struct SourceHandle {
  std::unique_ptr<GpuPageSource> source;
  GpuCodec codec;
  std::shared_ptr<GpuPagedKv> kv;
};

using Range = std::optional<std::pair<uint32_t, uint32_t>>;

BlockRange RangeOf(const Range& range, uint32_t count, const char* name) {
  if (!range) return {0, count};
  if (range->second <= range->first)
    throw py::value_error(absl::StrCat(name, " must be (first, end) with first < end"));
  return {range->first, range->second - range->first};
}

cudaStream_t CudaStreamOf(const py::object& stream) {
  return reinterpret_cast<cudaStream_t>(StreamOf(stream));
}

// The constructor that sinks and sources share: `Transfers` of a codec, on its device.
template <typename Handle, typename Transfers>
void DefineInit(py::class_<Handle>& type) {
  const GpuTransferOptions defaults;
  type.def(py::init([](const GpuCodec& codec, uint32_t pages_max, uint64_t stage_bytes,
                       uint32_t stages) {
             const device::DeviceScope scope(codec.device);
             ThrowIfError(scope.status());
             const GpuTransferOptions options{
                 .pages_max = pages_max, .stage_bytes = stage_bytes, .stages = stages};
             return Handle{ValueOrThrow(Transfers::Create(codec.codec, options)), codec, nullptr};
           }),
           arg("codec"), arg("pages_max") = defaults.pages_max,
           arg("stage_bytes") = defaults.stage_bytes, arg("stages") = defaults.stages);
}

}  // namespace

// NOLINTNEXTLINE(readability-function-size): a list
void BindGpuPages(py::module_& module) {
  py::class_<GpuPagedKv, std::shared_ptr<GpuPagedKv>>(
      module, "PagedKv",
      "K and V in GPU memory: each a tensor [layers, slots, heads, dim] or [layers, blocks, "
      "block_tokens, heads, dim], or a list of such tensors without the first dimension; bfloat16, "
      "float16 or uint16 (bf16), of any strides with contiguous dim. Viewed in place, kept alive.")
      .def(py::init<const py::object&, const py::object&>(), arg("k"), arg("v"));

  py::class_<GpuCodec>(module, "PageCodec", "A page codec on a device.")
      .def(py::init(&MakeCodec), arg("geometry"), arg("spec"), arg("transforms") = nullptr,
           arg("device") = 0)
      .def_property_readonly("device", [](const GpuCodec& codec) { return codec.device; });

  py::class_<SinkHandle> sink(module, "FetchSink", "Where fetches into GPU memory go, one by one.");
  DefineInit<SinkHandle, GpuPageSink>(sink);
  sink.def(
          "start",
          [](SinkHandle& self, std::shared_ptr<GpuPagedKv> kv, const py::object& slots,
             const Range& layers, const Range& heads, const py::object& stream) {
            const Geometry& geometry = self.codec.codec->geometry();
            const SlotArray places = SlotsOf(slots);
            const FetchTarget target{.cache = kv->CacheFor(geometry, self.codec.device),
                                     .part = {RangeOf(layers, geometry.layers, "layers"),
                                              RangeOf(heads, geometry.kv_heads, "heads")},
                                     .slots = SlotSpan(places)};
            ThrowIfError(self.sink->Start(target, CudaStreamOf(stream)));
            self.kv = std::move(kv);
          },
          arg("kv"), arg("slots"), arg("layers") = Range(), arg("heads") = Range(),
          arg("stream") = py::none())
      .def(
          "wait_layer",
          [](SinkHandle& self, uint32_t layer, const py::object& stream) {
            const cudaStream_t waits = CudaStreamOf(stream);
            const absl::Status status = [&] {
              const py::gil_scoped_release release;
              return self.sink->WaitLayer(layer, waits);
            }();
            ThrowIfError(status);
          },
          arg("layer"), arg("stream") = py::none())
      .def(
          "receive_over_nccl",
          [](SinkHandle& self, const std::string& library, uint32_t slots, uint64_t slot_bytes) {
            const device::DeviceScope scope(self.codec.device);
            ThrowIfError(scope.status());
            ThrowIfError(
                self.sink->ReceiveOverNccl({.library = library, .device = self.codec.device},
                                           {.slots = slots, .slot_bytes = slot_bytes}));
          },
          arg("library"), arg("slots"), arg("slot_bytes"))
      .def_property_readonly(
          "pages", [](SinkHandle& self) -> PageSink& { return *self.sink; },
          py::return_value_policy::reference_internal);

  py::class_<SourceHandle> source(module, "PushSource", "Where pushes from GPU memory come from.");
  DefineInit<SourceHandle, GpuPageSource>(source);
  source
      .def(
          "start",
          [](SourceHandle& self, std::shared_ptr<GpuPagedKv> kv, const py::object& slots,
             const py::object& stream) {
            const SlotArray places = SlotsOf(slots);
            const client::PushOrigin origin{
                .cache = kv->CacheFor(self.codec.codec->geometry(), self.codec.device),
                .slots = SlotSpan(places)};
            ThrowIfError(self.source->Start(origin, CudaStreamOf(stream)));
            self.kv = std::move(kv);
          },
          arg("kv"), arg("slots"), arg("stream") = py::none())
      .def(
          "send_over_nccl",
          [](SourceHandle& self, const std::string& library) {
            ThrowIfError(
                self.source->SendOverNccl({.library = library, .device = self.codec.device}));
          },
          arg("library"))
      .def_property_readonly(
          "pages", [](SourceHandle& self) -> PageSource& { return *self.source; },
          py::return_value_policy::reference_internal);
}

}  // namespace oscarkv::python
