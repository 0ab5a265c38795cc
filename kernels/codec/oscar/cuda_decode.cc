#include "kernels/codec/oscar/cuda_decode.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "kernels/device/status.h"

namespace oscarkv::cuda {
namespace {

constexpr uint32_t kStagesMost = 16;
constexpr size_t kReservedBytes = 2048;  // of a thread block: barriers, and what CUDA takes

}  // namespace

bool HasDecodeKernel(uint32_t dim, uint32_t bits) {
  return (dim == 64 || dim == 128 || dim == 256) && (bits == 2 || bits == 4);
}

bool TakesBothSides(uint32_t dim) { return dim < 256; }

absl::StatusOr<uint32_t> FitStages(DecodeArguments& arguments, uint32_t sides, size_t more,
                                   uint32_t resident) {
  int device = 0;
  int shared_bytes = 0;
  OSCARKV_RETURN_IF_ERROR(device::ToStatus(cudaGetDevice(&device), "preparing to decode"));
  OSCARKV_RETURN_IF_ERROR(device::ToStatus(
      cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device),
      "preparing to decode"));
  const size_t stage =
      arguments.stage_bytes + size_t{sides} * arguments.page_tokens * sizeof(int64_t);
  // A warp group is at up to four pages of 16 rows at once, or at two larger ones, and a verifier's
  // next page must have a place beside them.
  const uint32_t least = arguments.page_tokens <= 16 ? 8 : 3;
  size_t all = 0;
  arguments.stages = 0;
  for (; resident > 0 && arguments.stages < least; --resident) {
    all = static_cast<size_t>(shared_bytes) / resident;
    const size_t room = all > more + kReservedBytes ? all - more - kReservedBytes : 0;
    arguments.stages = static_cast<uint32_t>(std::min<size_t>(room / stage, kStagesMost));
  }
  if (arguments.stages < least) {
    return absl::InvalidArgumentError(absl::StrCat("decoding needs ", least, " blocks of ", stage,
                                                   " bytes and ", more,
                                                   " more in shared memory, the device has ", all));
  }
  return static_cast<uint32_t>(arguments.stages * stage + more);
}

}  // namespace oscarkv::cuda
