#include "kernels/codec/oscar/row_kernels.h"

namespace oscarkv {

const RowKernels& CpuRowKernels() { return ReferenceRowKernels(); }

std::vector<const RowKernels*> AllCpuRowKernels() { return {}; }

}  // namespace oscarkv
