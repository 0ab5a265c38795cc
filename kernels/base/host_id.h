// Which machine this is, as far as sharing memory goes.
#ifndef OSCARKV_KERNELS_BASE_HOST_ID_H_
#define OSCARKV_KERNELS_BASE_HOST_ID_H_

#include <string>

namespace oscarkv {

// Equal for processes under one kernel, containers or not, and for no others: the kernel's boot id.
// Empty where it cannot be read.
std::string HostId();

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_BASE_HOST_ID_H_
