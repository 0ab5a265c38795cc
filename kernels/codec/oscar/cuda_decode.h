// The decode kernels' arguments and launch, between the page codec on the host side and the device
// code.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_DECODE_H_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_DECODE_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

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
  uint32_t per_head;          // 1 when each head has a transform of its own
  const std::byte* matrices;  // T^-1, see PreparedInverse
  const float* columns;       // [1 + dim / group][dim]: offsets, sums per group
  const float* scales;        // [1]: what sums are multiplied by
};

OSCARKV_HOST_DEVICE constexpr uint32_t InverseBytes(uint32_t dim) { return dim * dim * 2; }

struct DeviceLayer {
  uint64_t strides_before;  // sum of the block strides of the layers before, for one head
  uint32_t stride;
  uint32_t content_words;  // 32-bit words that the checksum covers
  uint32_t crc_start;      // what the checksum's initial value has become after them
  uint32_t crc_rows[16];   // by which a warp's remainders are multiplied, see MakeCrcRows
  DeviceSide side[2];      // K, V
};

// Sides of a layer that one thread block takes: `first_side`, and as many as the launch's shape
// says.
struct DecodeTask {
  uint16_t layer;
  uint16_t first_side;
};

struct DecodeArguments {
  const DeviceLayer* layers = nullptr;
  const DecodeTask* tasks = nullptr;
  uint32_t task_count = 0;
  uint32_t blocks = 0;           // of all tasks, heads and pages
  const CrcFold* crc = nullptr;  // of a warp
  DeviceDecodeBatch batch;
  uint64_t strides_before_range = 0;  // strides_before of the first layer in the batch
  DeviceEngineSide side[2];
  uint32_t stage_bytes = 0;  // the greatest stride among the tasks' layers
  uint32_t stages = 0;       // blocks in shared memory at once
  uint32_t page_tokens = 0;
  uint32_t block_tokens = 0;
  uint32_t slots = 0;
  bool fp32_params = false;
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

// Calls `launch` for a shape's dim, bits and sides.
template <typename Launch>
absl::Status ForShape(const RowShape& shape, Launch&& launch) {
  const auto with_bits = [&]<uint32_t kDim, uint32_t kSides>() {
    return shape.bits == 2 ? launch.template operator()<kDim, 2, kSides>()
                           : launch.template operator()<kDim, 4, kSides>();
  };
  switch (shape.dim * 2 + shape.sides) {
    case 64 * 2 + 1:
      return with_bits.template operator()<64, 1>();
    case 64 * 2 + 2:
      return with_bits.template operator()<64, 2>();
    case 128 * 2 + 1:
      return with_bits.template operator()<128, 1>();
    case 128 * 2 + 2:
      return with_bits.template operator()<128, 2>();
    default:
      return with_bits.template operator()<256, 1>();
  }
}

// Decides how many stages there are: as many as shared memory takes beside `more` bytes, for
// `resident` thread blocks a multiprocessor, or for fewer where blocks are large. Returns the bytes
// of all of it. kInvalidArgument when blocks are too large for this device.
absl::StatusOr<uint32_t> FitStages(DecodeArguments& arguments, uint32_t sides, size_t more,
                                   uint32_t resident);

// Decode all tasks, of rows of `shape` (one that HasDecodeKernel knows), of all heads and pages of
// the batch: in the model's basis, and as stored.
absl::Status LaunchDecode(const DecodeArguments& arguments, const RowShape& shape, bool to_bf16,
                          cudaStream_t stream);
absl::Status LaunchDequantise(const DecodeArguments& arguments, const RowShape& shape, bool to_bf16,
                              cudaStream_t stream);

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_DECODE_H_
