// The extension module oscarkv._native.
#include "client/python/src/numpy_views.h"
#include "kernels/base/deadlocks.h"
#include "pybind11/pybind11.h"

PYBIND11_MODULE(_native, module) {
  module.doc() = "The C++ core of oscarkv.";
  oscarkv::LookForNoDeadlocks();
  module.attr("__version__") = OSCARKV_VERSION;
  oscarkv::python::BindCodec(module);
  oscarkv::python::BindClient(module);
}
