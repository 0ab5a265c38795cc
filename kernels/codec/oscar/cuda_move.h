// Arguments and launch of the kernels that move rows as they are, between the page codec on the
// host side and the device code.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_MOVE_H_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_MOVE_H_

#include <cstdint>

#include "absl/status/status.h"

#include "cuda_runtime_api.h"
#include "kernels/codec/oscar/cuda_crc32c.h"
#include "kernels/codec/oscar/cuda_page_codec.h"

namespace oscarkv::cuda {

// Divides by a number that a kernel's launch fixes.
struct Divisor {
  uint32_t value = 1;
  uint32_t multiplier = 1;
  uint32_t shift = 0;
};

// `value` is positive.
constexpr Divisor MakeDivisor(uint32_t value) {
  Divisor divisor{.value = value, .multiplier = 0, .shift = 0};
  while ((uint64_t{1} << divisor.shift) < value) ++divisor.shift;
  const uint64_t power = uint64_t{1} << divisor.shift;
  divisor.multiplier = static_cast<uint32_t>(((power - value) << 32) / value + 1);
  return divisor;
}

// One of the tensors that an engine keeps its cache in, and the part of a block that holds the same
// rows. Words are of 32 bits.
struct MovePart {
  std::byte* const* layer_base = nullptr;  // as DeviceEngineSide's
  int64_t block_stride = 0;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
  uint32_t first_word = 0;  // in a block
  Divisor row_words;
  uint32_t alignment = 16;  // of the engine's rows, bytes: 16, or 4 for rows of single words
  uint32_t absent[2] = {};  // what the even and odd words are of a row that is nowhere
};

// Kinds of blocks: how many parts, how many threads take a block, and whether all rows are of whole
// vectors of 16 bytes.
struct WideKind {
  static constexpr uint32_t kParts = 2;  // K, V
  static constexpr uint32_t kThreads = 256;
  static constexpr uint32_t kHeld = 8;  // vectors that a thread holds
  static constexpr uint32_t kResident = 3;
  static constexpr bool kVectors = true;
};
struct SmallWideKind {  // of blocks that 128 threads hold
  static constexpr uint32_t kParts = 2;
  static constexpr uint32_t kThreads = 128;
  static constexpr uint32_t kHeld = 4;
  static constexpr uint32_t kResident = 8;
  static constexpr bool kVectors = true;
};
struct PoolKind {
  static constexpr uint32_t kParts = 4;  // K codes, K params, V codes, V params
  static constexpr uint32_t kThreads = 128;
  static constexpr uint32_t kHeld = 4;
  static constexpr uint32_t kResident = 6;
  static constexpr bool kVectors = false;
};

// The same for all blocks of a launch.
template <typename Kind>
struct MoveArguments {
  MovePart part[Kind::kParts];
  uint32_t content_words = 0;          // of a block
  uint32_t stride_vectors = 0;         // to the next block
  const CrcFold* fold = nullptr;       // of Kind::kThreads * 4 words a step
  const uint32_t* crc_rows = nullptr;  // MakeCrcRows for its warps and content_words
  uint32_t crc_start = 0;              // what the checksum's initial value has become after a block
  uint32_t page_tokens = 0;
  Divisor block_tokens;
  uint32_t slots = 0;
  uint32_t absent_status = 0;  // of a page with a row that is nowhere
};

template <typename Kind>
absl::Status LaunchMove(const MoveArguments<Kind>& arguments, const DeviceEncodeBatch& batch,
                        cudaStream_t stream);
template <typename Kind>
absl::Status LaunchMove(const MoveArguments<Kind>& arguments, const DeviceDecodeBatch& batch,
                        cudaStream_t stream);

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_MOVE_H_
