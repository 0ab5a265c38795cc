// What the device's kernels need to know of a namespace, worked out once and held in device memory.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_PREPARED_H_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_PREPARED_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

#include "kernels/codec/oscar/cuda_crc32c.h"
#include "kernels/codec/oscar/cuda_decode.h"
#include "kernels/codec/oscar/cuda_encode.h"
#include "kernels/codec/page_layout.h"
#include "kernels/codec/transform_set.h"
#include "kernels/device/buffer.h"

namespace oscarkv::cuda {

// A kind of block whose rows are moved as they are.
struct PreparedBlock {
  BlockLayout layout;
  uint32_t crc_start = 0;
  device::DeviceBuffer fold;      // CrcFold
  device::DeviceBuffer crc_rows;  // MakeCrcRows
};

// For thread blocks of `threads` threads.
absl::StatusOr<PreparedBlock> PrepareBlock(const BlockLayout& layout, uint32_t threads);

// The tasks that one kernel does: rows of one shape.
struct TaskList {
  RowShape shape;
  std::vector<DecodeTask> tasks;  // by layer
  device::DeviceBuffer on_device;
};

// A list's tasks of a range of layers.
struct TaskRange {
  const DecodeTask* on_device;
  std::span<const DecodeTask> tasks;
};

TaskRange TasksOf(const TaskList& list, BlockRange layers);

// Everything for PACKED pages.
struct PreparedPacked {
  std::vector<DeviceLayer> layers;
  std::vector<EncodeLayer> encode_layers;
  std::vector<TaskList> decode_lists;
  std::vector<TaskList> encode_lists;
  std::vector<device::DeviceBuffer> transforms;  // what DeviceSide and EncodeSide point to
  device::DeviceBuffer layers_on_device;
  device::DeviceBuffer encode_layers_on_device;
  device::DeviceBuffer fold;           // CrcFold of one warp
  device::DeviceBuffer crc_tables;     // CrcTables
  device::DeviceBuffer crc_multiples;  // CrcMultiples
  device::DeviceBuffer crc_powers;     // [n]: x^(32 (n + 1)), for all words of a block
};

// The dtype of rows that the encode kernels transform.
inline DType ForwardDType(const Geometry& geometry) {
  return geometry.dtype == DType::kFp16 ? DType::kFp16 : DType::kBf16;
}

// kInvalidArgument: head dims or bits for which no kernel was built (the message lists those that
// exist), or a page with too large a block; otherwise the device's errors.
absl::StatusOr<PreparedPacked> PreparePacked(const PageLayout& layout,
                                             const TransformSet& transforms);

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_PREPARED_H_
