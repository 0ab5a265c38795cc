// numpy arrays as engine views, in place.
#ifndef OSCARKV_CLIENT_PYTHON_SRC_NUMPY_VIEWS_H_
#define OSCARKV_CLIENT_PYTHON_SRC_NUMPY_VIEWS_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"

#include "kernels/codec/page_codec.h"
#include "pybind11/numpy.h"
#include "pybind11/pybind11.h"

namespace oscarkv::python {

// Raises ValueError (what the caller did is wrong) or RuntimeError (it went wrong) with the
// status's message.
void ThrowIfError(const absl::Status& status);

template <typename T>
T ValueOrThrow(absl::StatusOr<T> result) {
  ThrowIfError(result.status());
  return *std::move(result);
}

// A worker's cache: K and V as numpy arrays [layers, slots, heads, dim] or [layers, blocks,
// block_tokens, heads, dim], of any strides with contiguous dim, viewed in place. Keeps the arrays
// alive.
class PagedKv {
 public:
  PagedKv(pybind11::array k, pybind11::array v);

  // Borrows this object.
  EngineView view(const Geometry& geometry) const;

 private:
  struct Side {
    pybind11::array array;
    std::vector<std::byte*> layer_base;
    EngineSide side;
    uint32_t block_tokens = 1;
    int64_t slots = 0;
    int64_t heads = 0;
    int64_t dim = 0;
  };
  static Side ViewOf(pybind11::array array, const char* name);

  Side k_;
  Side v_;
};

using SlotArray = pybind11::array_t<int64_t, pybind11::array::c_style | pybind11::array::forcecast>;
// Slots as Python gives them: an array or a sequence of integers. Raises ValueError for anything
// else.
SlotArray SlotsOf(const pybind11::object& slots);
// Borrows the array.
inline std::span<const int64_t> SlotSpan(const SlotArray& slots) {
  return {slots.data(), static_cast<size_t>(slots.size())};
}

void BindCodec(pybind11::module_& module);
void BindClient(pybind11::module_& module);

}  // namespace oscarkv::python

#endif  // OSCARKV_CLIENT_PYTHON_SRC_NUMPY_VIEWS_H_
