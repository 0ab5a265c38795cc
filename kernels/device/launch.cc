#include "kernels/device/launch.h"

#include "kernels/base/status_macros.h"
#include "kernels/device/status.h"

namespace oscarkv::device {

absl::StatusOr<Places> PrepareKernel(const void* kernel, uint32_t threads, size_t shared_bytes,
                                     std::string_view doing) {
  int device = 0;
  int processors = 0;
  int resident = 0;
  OSCARKV_RETURN_IF_ERROR(ToStatus(cudaGetDevice(&device), doing));
  OSCARKV_RETURN_IF_ERROR(
      ToStatus(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), doing));
  OSCARKV_RETURN_IF_ERROR(
      ToStatus(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               doing));
  OSCARKV_RETURN_IF_ERROR(ToStatus(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                                       &resident, kernel, static_cast<int>(threads), shared_bytes),
                                   doing));
  return Places{static_cast<uint32_t>(processors), static_cast<uint32_t>(resident)};
}

}  // namespace oscarkv::device
