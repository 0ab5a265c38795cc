// What can be said of a device batch before anything is enqueued.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_CHECK_H_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_CHECK_H_

#include "absl/status/status.h"

#include "cuda_runtime_api.h"
#include "kernels/codec/oscar/cuda_page_codec.h"

namespace oscarkv::cuda {

// kInvalidArgument unless the stream and the thread are on `device`. Allowed while captured.
absl::Status CheckStream(cudaStream_t stream, int device);

absl::Status CheckEngine(const DeviceEngineView& engine);
absl::Status CheckPool(const DevicePoolView& pool);

// Ranges and pointers; kFailedPrecondition for PACKED pages of a codec without transforms.
absl::Status CheckBatch(const CudaPageCodec& codec, const DeviceDecodeBatch& batch);
absl::Status CheckBatch(const CudaPageCodec& codec, const DeviceEncodeBatch& batch);

// Can WIDE rows go to and from this engine as they are?
absl::Status CheckWide(const CudaPageCodec& codec, const DeviceEngineView& engine);

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_CHECK_H_
