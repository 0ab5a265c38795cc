// Which device a thread's calls go to.
#ifndef OSCARKV_KERNELS_DEVICE_DEVICE_H_
#define OSCARKV_KERNELS_DEVICE_DEVICE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "cuda_runtime_api.h"

namespace oscarkv::device {

// kUnavailable where there is none.
absl::StatusOr<int> CurrentDevice();

// kUnavailable when this machine has no such device.
absl::Status CheckDevice(int device);

// "NVIDIA H100 80GB HBM3"
absl::StatusOr<std::string> DeviceName(int device);

// kInvalidArgument unless `stream` belongs to `device`; `what` is for the error. CUDA's default
// streams belong to whichever device is current, and to all.
absl::Status CheckStream(cudaStream_t stream, int device, const char* what);

// kInvalidArgument unless `pointer` is memory of `device`, as cudaMalloc or managed memory gives;
// `what` is for the error.
absl::Status CheckMemory(const void* pointer, int device, const char* what);

// Makes a device current for this thread, and the one before it again when destroyed.
class DeviceScope {
 public:
  explicit DeviceScope(int device);
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  ~DeviceScope();

  const absl::Status& status() const { return status_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  absl::Status status_;
};

}  // namespace oscarkv::device

#endif  // OSCARKV_KERNELS_DEVICE_DEVICE_H_
