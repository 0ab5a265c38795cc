#include "kernels/device/buffer.h"

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "kernels/device/status.h"

namespace oscarkv::device {

absl::StatusOr<DeviceBuffer> DeviceBuffer::Allocate(size_t bytes) {
  void* data = nullptr;
  OSCARKV_RETURN_IF_ERROR(
      ToStatus(cudaMalloc(&data, bytes), absl::StrCat("allocating ", bytes, " bytes")));
  return DeviceBuffer(static_cast<std::byte*>(data), bytes);
}

absl::StatusOr<DeviceBuffer> DeviceBuffer::CopyOfBytes(ByteView host) {
  OSCARKV_ASSIGN_OR_RETURN(DeviceBuffer buffer, Allocate(host.size()));
  OSCARKV_RETURN_IF_ERROR(buffer.CopyFrom(host));
  return buffer;
}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) cudaFree(data_);
}

absl::Status DeviceBuffer::CopyFrom(ByteView host) const {
  if (host.size() > size_) {
    return absl::InvalidArgumentError(
        absl::StrCat("copy of ", host.size(), " bytes into a device buffer of ", size_));
  }
  return ToStatus(cudaMemcpy(data_, host.data(), host.size(), cudaMemcpyHostToDevice),
                  "copying to the device");
}

absl::Status DeviceBuffer::CopyTo(MutableByteView host) const {
  if (host.size() > size_) {
    return absl::InvalidArgumentError(
        absl::StrCat("copy of ", host.size(), " bytes out of a device buffer of ", size_));
  }
  return ToStatus(cudaMemcpy(host.data(), data_, host.size(), cudaMemcpyDeviceToHost),
                  "copying from the device");
}

absl::StatusOr<PinnedBuffer> PinnedBuffer::Allocate(size_t bytes) {
  void* data = nullptr;
  OSCARKV_RETURN_IF_ERROR(
      ToStatus(cudaMallocHost(&data, bytes), absl::StrCat("pinning ", bytes, " bytes")));
  return PinnedBuffer(static_cast<std::byte*>(data), bytes);
}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) cudaFreeHost(data_);
}

absl::StatusOr<PinnedRange> PinnedRange::Pin(MutableByteView bytes) {
  OSCARKV_RETURN_IF_ERROR(
      ToStatus(cudaHostRegister(bytes.data(), bytes.size(), cudaHostRegisterPortable),
               absl::StrCat("page-locking ", bytes.size(), " bytes")));
  return PinnedRange(bytes);
}

PinnedRange& PinnedRange::operator=(PinnedRange&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

PinnedRange::~PinnedRange() {
  if (!bytes_.empty()) cudaHostUnregister(bytes_.data());
}

}  // namespace oscarkv::device
