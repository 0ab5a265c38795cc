#include "server/gpu_copies.h"

#include <string>
#include <utility>

#include "kernels/base/status_macros.h"
#include "server/config/load.h"
#include "server/tier/gpu_tier.h"

#include "oscarkv/v1/server_config.pb.h"

namespace oscarkv {
namespace {

absl::StatusOr<std::unique_ptr<StagingArea>> OpenStaging(DeviceMemory& device, uint64_t bytes) {
  OSCARKV_ASSIGN_OR_RETURN(std::unique_ptr<DeviceMemory> memory, device.Beside(bytes));
  std::byte* const address = memory->address();
  absl::StatusOr<std::string> handle = memory->Handle();
  OSCARKV_ASSIGN_OR_RETURN(std::unique_ptr<GpuTier> tier, GpuTier::Create(std::move(memory)));
  return std::make_unique<StagingArea>(std::move(tier), address, std::move(handle));
}

absl::StatusOr<std::unique_ptr<GpuTier>> OpenTier(const DeviceMemoryOptions& options,
                                                  uint64_t staging_bytes, DeviceMemoryMaker make,
                                                  const Logger& logger, GpuCopies* opened) {
  OSCARKV_ASSIGN_OR_RETURN(std::unique_ptr<DeviceMemory> memory, make(options));
  const std::string device = memory->device_name();
  opened->handle = memory->Handle();
  opened->memory = memory->address();
  if (staging_bytes > 0) {
    auto staging = OpenStaging(*memory, staging_bytes);
    if (staging.ok()) {
      opened->staging = *std::move(staging);
    } else {
      logger.Log(LogLevel::kWarning, "no pages are taken from workers' GPUs: no memory for staging",
                 {{"reason", std::string(staging.status().message())}});
    }
  }
  OSCARKV_ASSIGN_OR_RETURN(std::unique_ptr<GpuTier> tier, GpuTier::Create(std::move(memory)));
  logger.Log(LogLevel::kInfo, "the GPU tier is open",
             {{"device", device},
              {"bytes", FormatBytes(tier->capacity_bytes())},
              {"host_arena", "page-locked part by part, as copies come from it"},
              {"other_processes",
               opened->handle.ok() ? "may read it" : opened->handle.status().ToString()}});
  return tier;
}

}  // namespace

absl::StatusOr<GpuCopies> OpenGpuCopies(const v1::GpuTierConfig& config, MutableByteView host_arena,
                                        DeviceMemoryMaker make, const Logger& logger) {
  OSCARKV_ASSIGN_OR_RETURN(const uint64_t bytes, ParseBytes(config.capacity()));
  uint64_t staging_bytes = 0;
  if (config.staging() != "off") {
    OSCARKV_ASSIGN_OR_RETURN(staging_bytes, ParseBytes(config.staging()));
  }
  GpuCopies opened;
  auto tier = OpenTier({.bytes = bytes, .device = config.device(), .host_arena = host_arena},
                       staging_bytes, make, logger, &opened);
  if (!tier.ok()) {
    if (config.required() || absl::IsUnimplemented(tier.status()))
      return Annotate(tier.status(), "the GPU tier");
    logger.Log(LogLevel::kWarning, "the GPU tier is out of use: serving from host memory alone",
               {{"reason", std::string(tier.status().message())}});
  }
  OSCARKV_ASSIGN_OR_RETURN(opened.copies, PageCopies::Create({}, std::move(tier)));
  return opened;
}

}  // namespace oscarkv
