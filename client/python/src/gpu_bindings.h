// What the extension module oscarkv._gpu is made of; it is built only where there is CUDA.
#ifndef OSCARKV_CLIENT_PYTHON_SRC_GPU_BINDINGS_H_
#define OSCARKV_CLIENT_PYTHON_SRC_GPU_BINDINGS_H_

#include <cstdint>

#include "pybind11/pybind11.h"

namespace oscarkv::python {

// Device memory and streams cross as integers: what tensor.data_ptr() and stream.cuda_stream give.
template <typename T>
T* AtAddress(uintptr_t address) {
  return reinterpret_cast<T*>(address);  // NOLINT(performance-no-int-to-ptr): see above
}

void BindAttention(pybind11::module_& module);
void BindGpuPages(pybind11::module_& module);

}  // namespace oscarkv::python

#endif  // OSCARKV_CLIENT_PYTHON_SRC_GPU_BINDINGS_H_
