// Linked where there is no CUDA (cuda_memory.cc is, where there is).
#include "server/tier/device_memory.h"

namespace oscarkv {

absl::Status DeviceMemorySupported() {
  return absl::UnimplementedError("this build has no CUDA (configure with -DOSCARKV_CUDA=ON)");
}

absl::StatusOr<std::unique_ptr<DeviceMemory>> MakeDeviceMemory(const DeviceMemoryOptions&) {
  return DeviceMemorySupported();
}

}  // namespace oscarkv
