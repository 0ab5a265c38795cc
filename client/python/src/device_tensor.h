// Tensors of other libraries in GPU memory: anything with DLPack or __cuda_array_interface__.
#ifndef OSCARKV_CLIENT_PYTHON_SRC_DEVICE_TENSOR_H_
#define OSCARKV_CLIENT_PYTHON_SRC_DEVICE_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/dtype.h"
#include "pybind11/pybind11.h"

namespace oscarkv::python {

// A view; `owner` keeps the memory alive.
struct DeviceTensor {
  std::byte* data = nullptr;
  DType dtype = DType::kBf16;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // bytes
  int device = 0;
  pybind11::object owner;
};

// Does not synchronise: what is done with the tensor is ordered by a stream. Raises ValueError,
// which begins with `name`, for host memory, for a dtype other than bf16 (as uint16 too, where a
// library has no bf16) and fp16, and for objects that speak neither protocol.
DeviceTensor DeviceTensorOf(const pybind11::object& tensor, const std::string& name);

// A stream as an integer, an object of torch (cuda_stream) or cupy (ptr), or None for the default
// stream.
uintptr_t StreamOf(const pybind11::object& stream);

}  // namespace oscarkv::python

#endif  // OSCARKV_CLIENT_PYTHON_SRC_DEVICE_TENSOR_H_
