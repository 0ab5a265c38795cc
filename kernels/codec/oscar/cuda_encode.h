// The encode kernels' arguments and launch, between the page codec on the host side and the device
// code.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_ENCODE_H_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_ENCODE_H_

#include <cstdint>

#include "cuda_runtime_api.h"
#include "kernels/codec/oscar/cuda_crc32c.h"
#include "kernels/codec/oscar/cuda_decode.h"
#include "kernels/codec/oscar/cuda_page_codec.h"
#include "kernels/codec/oscar/cuda_transforms.h"

namespace oscarkv::cuda {

// Where one side lies in the blocks of a layer, and what its rows are multiplied by and clipped to.
// Pointers are device memory, [1 or kv_heads] of them one after the other.
struct EncodeSide {
  uint32_t rows_offset;  // bytes from the block's start
  uint32_t params_offset;
  uint32_t group;
  uint32_t per_head;          // 1 when each head has a transform of its own
  const std::byte* matrices;  // T, see PreparedForward
  const ForwardHead* heads;
};

struct EncodeLayer {
  uint64_t strides_before;  // sum of the block strides of the layers before, for one head
  uint32_t stride;
  uint32_t content_words;  // 32-bit words that the checksum covers
  uint32_t crc_constant;   // what initial value and final exclusive-or add to the checksum
  EncodeSide side[2];      // K, V
};

struct EncodeArguments {
  const EncodeLayer* layers;
  const DecodeTask* tasks;
  const CrcTables* crc;
  const CrcMultiples* crc_multiples;
  const uint32_t* crc_powers;  // [n]: x^(32 (n + 1)), for all words of a block
  DeviceEncodeBatch batch;
  uint64_t strides_before_range;  // strides_before of the first layer in the batch
  DeviceEngineSide side[2];
  uint32_t page_tokens;
  uint32_t block_tokens;
  uint32_t slots;
  bool fp32_params;
  bool transform;
  bool bf16;
};

// Encodes `tasks` tasks, all of rows of `shape` (one side each), of all heads and pages of the
// batch. Checksums are zero before.
absl::Status LaunchEncode(const EncodeArguments& arguments, const RowShape& shape, uint32_t tasks,
                          cudaStream_t stream);

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_ENCODE_H_
