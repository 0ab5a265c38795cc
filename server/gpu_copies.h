// Where the copies of pages go, from a configuration.
#ifndef OSCARKV_SERVER_GPU_COPIES_H_
#define OSCARKV_SERVER_GPU_COPIES_H_

#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"

#include "kernels/base/bytes.h"
#include "kernels/base/log.h"
#include "server/core/page_copies.h"
#include "server/peer/staging_area.h"
#include "server/tier/device_memory.h"

namespace oscarkv::v1 {
class GpuTierConfig;
}

namespace oscarkv {

// MakeDeviceMemory, or a test's.
using DeviceMemoryMaker =
    absl::FunctionRef<absl::StatusOr<std::unique_ptr<DeviceMemory>>(const DeviceMemoryOptions&)>;

struct GpuCopies {
  std::unique_ptr<PageCopies> copies;
  std::byte* memory = nullptr;  // the tier's, for the device alone; null without one
  // What other processes of the host open the tier's memory by; an error: why they cannot.
  absl::StatusOr<std::string> handle = absl::UnavailableError("there is no GPU tier");
  std::unique_ptr<StagingArea> staging;  // null: off, or no room for it
};

// Opens the GPU tier of `config`, whose capacity is not off. A device that cannot be had is an
// error (the maker's) when the configuration requires it; otherwise it is logged, and the copies
// that are returned have no tier and say why. A build without CUDA is an error always:
// kUnimplemented.
absl::StatusOr<GpuCopies> OpenGpuCopies(const v1::GpuTierConfig& config, MutableByteView host_arena,
                                        DeviceMemoryMaker make, const Logger& logger);

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_GPU_COPIES_H_
