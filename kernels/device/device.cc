#include "kernels/device/device.h"

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "kernels/device/status.h"

namespace oscarkv::device {

absl::StatusOr<int> CurrentDevice() {
  int device = 0;
  OSCARKV_RETURN_IF_ERROR(ToStatus(cudaGetDevice(&device), "asking for the current device"));
  return device;
}

absl::Status CheckDevice(int device) {
  int count = 0;
  OSCARKV_RETURN_IF_ERROR(ToStatus(cudaGetDeviceCount(&count), "counting devices"));
  if (device >= 0 && device < count) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("there is no device ", device, ": this machine has ", count));
}

absl::StatusOr<std::string> DeviceName(int device) {
  cudaDeviceProp properties;
  OSCARKV_RETURN_IF_ERROR(
      ToStatus(cudaGetDeviceProperties(&properties, device), "asking for a device's name"));
  return std::string(properties.name);
}

absl::Status CheckStream(cudaStream_t stream, int device, const char* what) {
  if (stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread)
    return absl::OkStatus();
  int found = 0;
  OSCARKV_RETURN_IF_ERROR(ToStatus(cudaStreamGetDevice(stream, &found), what));
  if (found == device) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, ": expected a stream of device ", device, ", found one of ", found));
}

absl::Status CheckMemory(const void* pointer, int device, const char* what) {
  cudaPointerAttributes attributes = {};
  OSCARKV_RETURN_IF_ERROR(ToStatus(cudaPointerGetAttributes(&attributes, pointer), what));
  if (attributes.type == cudaMemoryTypeManaged) return absl::OkStatus();
  if (attributes.type == cudaMemoryTypeDevice && attributes.device == device)
    return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      what, ": expected memory of device ", device, ", found ",
      attributes.type == cudaMemoryTypeDevice ? absl::StrCat("memory of device ", attributes.device)
                                              : std::string("host memory")));
}

DeviceScope::DeviceScope(int device) {
  const absl::StatusOr<int> before = CurrentDevice();
  if (!before.ok()) {
    status_ = before.status();
    return;
  }
  before_ = *before;
  if (before_ == device) return;
  status_ = ToStatus(cudaSetDevice(device), absl::StrCat("making device ", device, " current"));
  changed_ = status_.ok();
}

DeviceScope::~DeviceScope() {
  if (changed_) cudaSetDevice(before_);
}

}  // namespace oscarkv::device
