// CRC32C of many pieces of device memory at once.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_CHECKSUM_H_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_CHECKSUM_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

#include "cuda_runtime_api.h"

namespace oscarkv::cuda {

// Enqueues on `stream` the CRC32C of `count` pieces of `piece_bytes` each, one behind the other
// from `data` (4-byte aligned device memory), to `crcs` [count], memory that the device reaches.
// kInvalidArgument when piece_bytes is 0 or no multiple of 4; otherwise the launch's errors.
// Allocates nothing, waits for nothing, can be captured into a graph.
absl::Status Checksum(const std::byte* data, uint64_t piece_bytes, uint32_t count, uint32_t* crcs,
                      cudaStream_t stream);

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_CHECKSUM_H_
