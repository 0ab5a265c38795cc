#include "kernels/device/shared_memory.h"

#include <cstring>

#include "absl/strings/str_cat.h"

#include "kernels/device/status.h"

namespace oscarkv::device {
namespace {

// Sharing is a matter of where the process runs, not of what it asked for.
absl::Status Unavailable(const absl::Status& status) {
  return status.ok() ? status : absl::UnavailableError(status.message());
}

}  // namespace

absl::StatusOr<std::string> HandleOf(const DeviceBuffer& buffer) {
  cudaIpcMemHandle_t handle;
  const absl::Status status =
      Unavailable(ToStatus(cudaIpcGetMemHandle(&handle, buffer.data()), "sharing device memory"));
  if (!status.ok()) return status;
  return std::string(reinterpret_cast<const char*>(&handle), sizeof(handle));
}

absl::StatusOr<OpenedMemory> OpenedMemory::Open(const std::string& handle) {
  cudaIpcMemHandle_t opened;
  if (handle.size() != sizeof(opened)) {
    return absl::InvalidArgumentError(absl::StrCat("a handle of device memory has ", sizeof(opened),
                                                   " bytes, found ", handle.size()));
  }
  std::memcpy(&opened, handle.data(), sizeof(opened));
  void* data = nullptr;
  const absl::Status status =
      Unavailable(ToStatus(cudaIpcOpenMemHandle(&data, opened, cudaIpcMemLazyEnablePeerAccess),
                           "opening another process's memory"));
  if (!status.ok()) return status;
  return OpenedMemory(static_cast<const std::byte*>(data));
}

OpenedMemory::~OpenedMemory() {
  if (data_ != nullptr) cudaIpcCloseMemHandle(const_cast<std::byte*>(data_));
}

}  // namespace oscarkv::device
