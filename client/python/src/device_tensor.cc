#include "client/python/src/device_tensor.h"

#include <memory>

#include "absl/strings/str_cat.h"

#include "pybind11/stl.h"

namespace oscarkv::python {

namespace py = pybind11;

namespace {

// DLPack's ABI, version 0 (dlpack.h of github.com/dmlc/dlpack).
struct DlDevice {
  int32_t type;
  int32_t id;
};
struct DlType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};
struct DlTensor {
  void* data;
  DlDevice device;
  int32_t ndim;
  DlType dtype;
  int64_t* shape;
  int64_t* strides;  // elements; null where the tensor is compact
  uint64_t byte_offset;
};
struct DlManagedTensor {
  DlTensor tensor;
  void* manager;
  void (*deleter)(DlManagedTensor*);
};
constexpr int32_t kDlCuda = 2;
constexpr int32_t kDlCudaManaged = 13;
constexpr uint8_t kDlUnsigned = 1;
constexpr uint8_t kDlFloat = 2;
constexpr uint8_t kDlBfloat = 4;

[[noreturn]] void Refuse(const std::string& name, const std::string& why) {
  throw py::value_error(absl::StrCat(name, ": ", why));
}

DType DTypeOf(const DlType& type, const std::string& name) {
  if (type.bits == 16 && type.lanes == 1) {
    if (type.code == kDlFloat) return DType::kFp16;
    if (type.code == kDlBfloat || type.code == kDlUnsigned) return DType::kBf16;
  }
  Refuse(name,
         absl::StrCat("expected bfloat16, float16 or uint16 (bf16), found DLPack type code ",
                      static_cast<int>(type.code), " of ", static_cast<int>(type.bits), " bits"));
}

std::vector<int64_t> CompactStrides(const std::vector<int64_t>& shape, int64_t item_bytes) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = item_bytes;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= shape[i];
  }
  return strides;
}

DeviceTensor FromDlPack(const py::object& tensor, const std::string& name) {
  const auto place = py::cast<std::pair<int, int>>(tensor.attr("__dlpack_device__")());
  if (place.first != kDlCuda && place.first != kDlCudaManaged) {
    Refuse(name, absl::StrCat("expected a tensor in GPU memory, found one on DLPack device type ",
                              place.first, place.first == 1 ? " (host memory)" : "",
                              "; oscarkv.PagedKv is for host memory"));
  }
  // -1: do not synchronise.
  py::capsule capsule = tensor.attr("__dlpack__")(py::arg("stream") = -1);
  if (std::string(capsule.name()) != "dltensor")
    Refuse(name, absl::StrCat("an unknown DLPack capsule '", capsule.name(), "'"));
  auto* managed = capsule.get_pointer<DlManagedTensor>();
  capsule.set_name("used_dltensor");
  py::capsule owner(managed, [](void* pointer) {
    auto* held = static_cast<DlManagedTensor*>(pointer);
    if (held->deleter != nullptr) held->deleter(held);
  });
  const DlTensor& from = managed->tensor;
  DeviceTensor view;
  view.data = static_cast<std::byte*>(from.data) + from.byte_offset;
  view.dtype = DTypeOf(from.dtype, name);
  view.shape.assign(from.shape, from.shape + from.ndim);
  view.device = from.device.id;
  view.owner = std::move(owner);
  if (from.strides == nullptr) {
    view.strides = CompactStrides(view.shape, 2);
  } else {
    for (int32_t i = 0; i < from.ndim; ++i) view.strides.push_back(from.strides[i] * 2);
  }
  return view;
}

DeviceTensor FromCudaArray(const py::object& tensor, const std::string& name) {
  const py::dict array = tensor.attr("__cuda_array_interface__");
  DeviceTensor view;
  const auto type = py::cast<std::string>(array["typestr"]);
  if (type == "<f2") {
    view.dtype = DType::kFp16;
  } else if (type == "<u2") {
    view.dtype = DType::kBf16;
  } else {
    Refuse(name, absl::StrCat("expected float16 or uint16 (bf16), found type '", type, "'"));
  }
  const auto data = py::cast<std::pair<uintptr_t, bool>>(array["data"]);
  if (data.second) Refuse(name, "expected memory that may be written, found read-only memory");
  // NOLINTNEXTLINE(performance-no-int-to-ptr): so the protocol has it
  view.data = reinterpret_cast<std::byte*>(data.first);
  view.shape = py::cast<std::vector<int64_t>>(array["shape"]);
  const bool compact = !array.contains("strides") || array["strides"].is_none();
  view.strides =
      compact ? CompactStrides(view.shape, 2) : py::cast<std::vector<int64_t>>(array["strides"]);
  view.device = -1;  // the protocol does not say
  view.owner = tensor;
  return view;
}

}  // namespace

DeviceTensor DeviceTensorOf(const py::object& tensor, const std::string& name) {
  if (py::hasattr(tensor, "__dlpack__")) return FromDlPack(tensor, name);
  if (py::hasattr(tensor, "__cuda_array_interface__")) return FromCudaArray(tensor, name);
  Refuse(name, absl::StrCat("expected DLPack or __cuda_array_interface__, found ",
                            std::string(py::str(py::type::of(tensor)))));
}

uintptr_t StreamOf(const py::object& stream) {
  if (stream.is_none()) return 0;
  for (const char* handle : {"cuda_stream", "ptr"}) {
    if (py::hasattr(stream, handle)) return py::cast<uintptr_t>(stream.attr(handle));
  }
  if (py::isinstance<py::int_>(stream)) return py::cast<uintptr_t>(stream);
  throw py::value_error(absl::StrCat(
      "stream: expected an integer, an object with cuda_stream or ptr, or None, found ",
      std::string(py::str(py::type::of(stream)))));
}

}  // namespace oscarkv::python
