// What the attention kernel is given, between the host side and the device code.
//
// Query heads of a KV head times new tokens are `rows` (new token major). A work item is up to
// `item_rows` of them for one (request, KV head). Items' pages are dealt into chunks, a thread
// block takes one chunk at a time, and who finishes an item's last chunk merges the chunks' partial
// results.
#ifndef OSCARKV_KERNELS_ATTENTION_ATTEND_KERNELS_H_
#define OSCARKV_KERNELS_ATTENTION_ATTEND_KERNELS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "cuda_runtime_api.h"
#include "kernels/attention/attend.h"

namespace oscarkv::cuda {

inline constexpr uint32_t kTileTokens = 16;  // of keys
// The device's plan deals no more chunks than places (thread blocks at once) times this beyond one
// for each item.
inline constexpr uint32_t kAttendRoundsBeyond = 4;

// Where blocks of one encoding lie in a page, for the layer at hand, bytes.
struct AttendBlock {
  uint64_t layer_offset;
  uint32_t stride;  // from head to head
  uint32_t k_params;
  uint32_t v_rows;
  uint32_t v_params;
};

// A D x D matrix M for out_i = sum_j M_ij in_j, as left operands of 16 x 8 x 16 products:
// [1 or kv_heads][D / 16 tiles of out][D / 16 tiles of in][2][32 lanes], bf16: M = first + second.
struct AttendMatrix {
  const uint4* fragments;
  const float* offset;  // [1 or kv_heads][D]
  uint32_t per_head;    // 0 or 1
};

// `places` chunks at most are worked on at once.
struct AttendWorkspace {
  uint32_t* finished;   // [items]: chunks; zero between calls
  float2* maximum_sum;  // [chunks][item_rows]
  float* outputs;       // [chunks][item_rows][D]
};

struct AttendArguments {
  AttendBatch batch;
  AttendMatrix k;  // its transposed inverse, for queries
  AttendMatrix v;  // its inverse, for outputs
  AttendWorkspace workspace;
  AttendBlock packed;
  AttendBlock wide;
  uint32_t page_tokens;
  uint32_t kv_heads;
  uint32_t ratio;
  uint32_t rows;    // ratio * new_tokens
  uint32_t groups;  // work items of a (request, KV head)
  uint32_t places;  // thread blocks of the kernel
  uint32_t stages;  // pages that a thread block holds
  uint32_t stage_bytes;
  // Of a request that is alone: as many as there are places for its items, 0 when that is few.
  uint32_t splits_of_one;
  uint32_t bf16;  // 1: queries, outputs and WIDE pages are bf16; 0: fp16
  float scale;    // softmax_scale * log2(e)
};

// What kernels are built for.
struct AttendShape {
  uint32_t dim;
  uint32_t item_rows;
  bool fp32_params;
};

// Rows of a work item, for as many rows.
inline uint32_t AttendItemRows(uint32_t dim, uint32_t rows) {
  if (rows <= 4) return 4;
  return rows <= 8 || dim > 128 ? 8 : 16;
}

struct AttendPlaces {
  uint32_t blocks;  // that the device holds at once; 0 when the pages are too large
  uint32_t stages;
};
// Of one head dim, the shape's: 64, 128 or 256, each a translation unit of its own.
template <uint32_t D>
absl::StatusOr<AttendPlaces> PrepareAttend(const AttendShape& shape, uint32_t stage_bytes);
template <uint32_t D>
absl::Status LaunchAttend(const AttendArguments& arguments, const AttendShape& shape,
                          cudaStream_t stream);

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_ATTENTION_ATTEND_KERNELS_H_
