// What a kernel needs before it is launched with blocks that stay for the whole launch.
#ifndef OSCARKV_KERNELS_DEVICE_LAUNCH_H_
#define OSCARKV_KERNELS_DEVICE_LAUNCH_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"

namespace oscarkv::device {

// Places for thread blocks on the current device.
struct Places {
  uint32_t processors = 0;
  uint32_t of_processor = 0;  // 0: one block does not fit
  uint32_t all() const { return processors * of_processor; }
};

// Lets `kernel` have `shared_bytes` of dynamic shared memory, and counts the places for its blocks
// of `threads` threads. Waits for nothing; allowed while a stream is captured. `doing` is for
// errors.
absl::StatusOr<Places> PrepareKernel(const void* kernel, uint32_t threads, size_t shared_bytes,
                                     std::string_view doing);

}  // namespace oscarkv::device

#endif  // OSCARKV_KERNELS_DEVICE_LAUNCH_H_
