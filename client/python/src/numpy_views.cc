#include "client/python/src/numpy_views.h"

#include <stdexcept>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace oscarkv::python {

namespace py = pybind11;

void ThrowIfError(const absl::Status& status) {
  if (status.ok()) return;
  const std::string message(status.message());
  const bool misuse = absl::IsInvalidArgument(status) || absl::IsFailedPrecondition(status) ||
                      absl::IsOutOfRange(status);
  if (misuse) throw py::value_error(message);
  throw std::runtime_error(absl::StrCat(absl::StatusCodeToString(status.code()), ": ", message));
}

SlotArray SlotsOf(const py::object& slots) {
  const py::array array = py::array::ensure(slots);
  if (!array) throw py::value_error("slots must be an array of integers");
  const char kind = array.dtype().kind();
  if (kind != 'i' && kind != 'u' && array.size() > 0) {
    throw py::value_error(
        absl::StrCat("slots must be integers, found ", std::string(py::str(array.dtype()))));
  }
  return SlotArray(array);
}

PagedKv::Side PagedKv::ViewOf(py::array array, const char* name) {
  Side side;
  if (array.ndim() != 4 && array.ndim() != 5) {
    throw py::value_error(absl::StrCat(
        name, " must be [layers, slots, heads, dim] or [layers, blocks, block_tokens, ",
        "heads, dim], found ", array.ndim(), " dimensions"));
  }
  if (array.dtype().byteorder() == '>') {
    throw py::value_error(absl::StrCat(name, " must be in the machine's byte order, found ",
                                       std::string(py::str(array.dtype()))));
  }
  const char kind = array.dtype().kind();
  const auto item = array.itemsize();
  if (kind == 'f' && item == 4) {
    side.side.dtype = DType::kFp32;
  } else if (kind == 'f' && item == 2) {
    side.side.dtype = DType::kFp16;
  } else if (kind == 'u' && item == 2) {
    side.side.dtype = DType::kBf16;
  } else {
    throw py::value_error(absl::StrCat(name, " must be float32, float16 or uint16 (bf16), found ",
                                       std::string(py::str(array.dtype()))));
  }
  const int last = static_cast<int>(array.ndim()) - 1;
  if (array.strides(last) != item)
    throw py::value_error(absl::StrCat(name, ": the last dimension must be contiguous"));
  if (!array.writeable()) throw py::value_error(absl::StrCat(name, " must be writeable"));
  const bool blocks = array.ndim() == 5;
  side.block_tokens = blocks ? static_cast<uint32_t>(array.shape(2)) : 1;
  side.slots = array.shape(1) * (blocks ? array.shape(2) : 1);
  side.side.block_stride = array.strides(1);
  side.side.token_stride = blocks ? array.strides(2) : array.strides(1);
  side.side.head_stride = array.strides(last - 1);
  side.heads = array.shape(last - 1);
  side.dim = array.shape(last);
  auto* base = static_cast<std::byte*>(array.mutable_data());
  for (py::ssize_t layer = 0; layer < array.shape(0); ++layer)
    side.layer_base.push_back(base + layer * array.strides(0));
  side.array = std::move(array);
  return side;
}

PagedKv::PagedKv(py::array k, py::array v)
    : k_(ViewOf(std::move(k), "k")), v_(ViewOf(std::move(v), "v")) {
  if (k_.slots != v_.slots || k_.block_tokens != v_.block_tokens) {
    throw py::value_error(absl::StrCat("k and v must have the same slots, found ", k_.slots,
                                       " in blocks of ", k_.block_tokens, " and ", v_.slots,
                                       " in blocks of ", v_.block_tokens));
  }
}

EngineView PagedKv::view(const Geometry& geometry) const {
  const auto check = [&](const Side& side, const char* name, uint32_t dim) {
    if (side.heads == geometry.kv_heads && side.dim == dim) return;
    throw py::value_error(absl::StrCat(name, " must have ", geometry.kv_heads, " heads of dim ",
                                       dim, ", found ", side.heads, " of ", side.dim));
  };
  check(k_, "k", geometry.k_head_dim);
  check(v_, "v", geometry.v_head_dim);
  EngineView view{.k = k_.side, .v = v_.side, .block_tokens = k_.block_tokens, .slots = k_.slots};
  view.k.layer_base = k_.layer_base;
  view.v.layer_base = v_.layer_base;
  return view;
}

}  // namespace oscarkv::python
