// The WIDE kernels' arguments and launch, between the page codec on the host side and the device
// code.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_WIDE_H_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_WIDE_H_

#include <cstdint>

#include "absl/status/status.h"

#include "cuda_runtime_api.h"
#include "kernels/codec/oscar/cuda_crc32c.h"
#include "kernels/codec/oscar/cuda_page_codec.h"

namespace oscarkv::cuda {

// Blocks of all layers are alike; everything is counted in vectors of 16 bytes.
struct WideShape {
  uint32_t row_vectors[2] = {};   // K, V
  uint32_t side_vectors[2] = {};  // of a block
  uint32_t stride_vectors = 0;
  uint32_t crc_start = 0;  // what the checksum's initial value has become after a block
  uint32_t page_tokens = 0;
};

struct WideArguments {
  WideShape shape;
  const CrcFold* fold;
  DeviceEngineSide side[2];
  uint32_t block_tokens;
  uint32_t slots;
};

absl::Status LaunchWideEncode(const WideArguments& arguments, const DeviceEncodeBatch& batch,
                              cudaStream_t stream);
absl::Status LaunchWideDecode(const WideArguments& arguments, const DeviceDecodeBatch& batch,
                              cudaStream_t stream);

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_WIDE_H_
