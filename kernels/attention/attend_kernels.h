// What the attention kernels are given, between the host side and the device code.
//
// Query heads of a KV head times new tokens are `rows` (new token major), in tiles of 8. A work
// item is kTiles tiles of one (request, KV head); its units are the request's pages. The units of
// all items, one after the other, are cut into as many equal ranges as there are thread blocks;
// where a range and an item meet, the block leaves a partial result in slot block + item.
#ifndef OSCARKV_KERNELS_ATTENTION_ATTEND_KERNELS_H_
#define OSCARKV_KERNELS_ATTENTION_ATTEND_KERNELS_H_

#include <cstdint>

#include "absl/status/status.h"

#include "cuda_runtime_api.h"
#include "kernels/attention/attend.h"

namespace oscarkv::cuda {

inline constexpr uint32_t kTileRows = 8;     // of queries
inline constexpr uint32_t kTileTokens = 16;  // of keys
inline constexpr uint32_t kAttendThreads = 256;
inline constexpr float kNothingSeen = -1e30f;  // stands for a maximum of no logits

// Of one query tile, in units of log2: logit = scale_k alpha (sum of products - zero_k sum) +
// offset.
struct QueryTile {
  float sum[kTileRows];
  float offset[kTileRows];
  float alpha;
  float unused[3];
};

// Where blocks of one encoding lie in a page, for the layer at hand, bytes.
struct AttendBlock {
  uint64_t layer_offset;
  uint32_t stride;  // from head to head
  uint32_t k_params;
  uint32_t v_rows;
  uint32_t v_params;
};

struct AttendTransform {
  const float* k_inverse_transposed;  // [1 or kv_heads][D][D]
  const float* k_offset;              // [1 or kv_heads][D]
  const float* v_inverse;
  const float* v_offset;
  uint32_t k_per_head;  // 0 or 1
  uint32_t v_per_head;
};

// In slots: [2]: PACKED, WIDE.
struct AttendWorkspace {
  uint2* fragments;     // [requests][kv_heads][tiles][D / 16][32]
  QueryTile* tiles;     // [requests][kv_heads][tiles]
  float2* maximum_sum;  // [slots][2][kTiles * 8]
  float* outputs;       // [slots][2][kTiles * 8][D]
};

struct AttendArguments {
  AttendBatch batch;
  AttendTransform transform;
  AttendWorkspace workspace;
  AttendBlock packed;
  AttendBlock wide;
  uint32_t page_tokens;
  uint32_t kv_heads;
  uint32_t ratio;
  uint32_t rows;    // ratio * new_tokens
  uint32_t groups;  // work items of a (request, KV head)
  uint32_t blocks;  // of the attention kernel
  float scale;      // softmax_scale * log2(e)
};

// Tiles of a work item, for as many rows.
uint32_t AttendTiles(uint32_t dim, uint32_t rows);
// Thread blocks that the device holds at once. 0 when the pages are too large.
absl::StatusOr<uint32_t> AttendBlocks(uint32_t dim, uint32_t tiles, uint32_t packed_block_bytes);

// The three steps, in this order on one stream.
absl::Status LaunchPrepareQueries(const AttendArguments& arguments, uint32_t dim, uint32_t tiles,
                                  cudaStream_t stream);
absl::Status LaunchAttend(const AttendArguments& arguments, uint32_t dim, uint32_t tiles,
                          cudaStream_t stream);
absl::Status LaunchMerge(const AttendArguments& arguments, uint32_t dim, uint32_t tiles,
                         cudaStream_t stream);

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_ATTENTION_ATTEND_KERNELS_H_
