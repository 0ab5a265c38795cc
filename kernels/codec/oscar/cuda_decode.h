// The decode kernels' arguments and launch, between the page codec on the host side and the device
// code.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_DECODE_H_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_DECODE_H_

#include <cstdint>

#include "cuda_runtime_api.h"
#include "kernels/codec/oscar/cuda_crc32c.h"
#include "kernels/codec/oscar/cuda_page_codec.h"

namespace oscarkv::cuda {

// Where one side lies in the blocks of a layer, and what its head rows are multiplied by. Pointers
// are device memory, [1 or kv_heads] of them one after the other.
struct DeviceSide {
  uint32_t rows_offset;    // bytes from the block's start
  uint32_t params_offset;  // likewise
  uint32_t group;
  uint32_t per_head;       // 1 when each head has a transform of its own
  const uint2* fragments;  // T^-1 as tensor-core operands, see PrepareInverse
  const float* columns;    // [1 + dim / group][dim]: offsets, sums per group
  const float* scales;     // [1]: what sums are multiplied by
};

struct DeviceLayer {
  uint64_t strides_before;  // sum of the block strides of the layers before, for one head
  uint32_t stride;
  uint32_t content_words;  // 32-bit words that the checksum covers
  uint32_t crc_start;      // what the checksum's initial value has become after them
  DeviceSide side[2];      // K, V
};

// Sides of a layer that one thread block takes: `first_side`, and as many as the launch's shape
// says.
struct DecodeTask {
  uint16_t layer;
  uint16_t first_side;
};

struct DecodeArguments {
  const DeviceLayer* layers;
  const DecodeTask* tasks;
  const CrcTables* crc;
  DeviceDecodeBatch batch;
  uint64_t strides_before_range;  // strides_before of the first layer in the batch
  DeviceEngineSide side[2];
  uint32_t page_tokens;
  uint32_t block_tokens;
  uint32_t slots;
  bool fp32_params;
  bool transform;
};

// What a kernel was built for.
struct RowShape {
  uint32_t dim = 0;
  uint32_t bits = 0;
  uint32_t group = 0;
  uint32_t sides = 1;  // of one layer at once
  bool operator==(const RowShape&) const = default;
};

bool HasDecodeKernel(uint32_t dim, uint32_t bits);
// Can K and V rows of `dim` elements be decoded by one thread block?
bool TakesBothSides(uint32_t dim);

// Decodes `tasks` tasks, all of rows of `shape`, of all heads and pages of the batch.
// `block_bytes`: the greatest stride among them.
absl::Status LaunchDecode(const DecodeArguments& arguments, const RowShape& shape, bool to_bf16,
                          uint32_t tasks, uint32_t block_bytes, cudaStream_t stream);

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_DECODE_H_
