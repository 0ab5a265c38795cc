// CUDA's error codes as statuses.
#ifndef OSCARKV_KERNELS_DEVICE_STATUS_H_
#define OSCARKV_KERNELS_DEVICE_STATUS_H_

#include <string_view>

#include "absl/status/status.h"

#include "cuda_runtime_api.h"

namespace oscarkv::device {

// OK, or an error that says what was being done and what CUDA answered: kResourceExhausted when
// memory ran out, kUnavailable when the device is lost or there is none (every later call fails
// too), kInvalidArgument for arguments that CUDA refuses, otherwise kInternal. Clears CUDA's
// record of the last error, unless the device is lost.
absl::Status ToStatus(cudaError_t error, std::string_view doing);

// What the last kernel launch left. Asks CUDA without waiting for the device.
absl::Status LastLaunch(std::string_view kernel);

}  // namespace oscarkv::device

#endif  // OSCARKV_KERNELS_DEVICE_STATUS_H_
