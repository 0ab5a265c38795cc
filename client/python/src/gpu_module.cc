// The extension module oscarkv._gpu.
#include "client/python/src/gpu_bindings.h"
#include "pybind11/pybind11.h"

PYBIND11_MODULE(_gpu, module) {
  module.doc() = "What oscarkv does on a GPU.";
  // Its classes are arguments here.
  pybind11::module_::import("oscarkv._native");
  oscarkv::python::BindAttention(module);
  oscarkv::python::BindGpuPages(module);
}
