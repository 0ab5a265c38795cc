// Decoding, what all its kernels share: blocks are dealt to thread blocks, brought into shared
// memory and judged. Device code only.
//
// A layer's blocks, page by page and head by head, are dealt to the thread blocks in turn: at any
// time all of them are at the same few pages, and what they write lies together in memory. A thread
// block's last warps have the copy engine bring blocks into shared memory, verify their checksums
// and work out where rows go; the others write rows.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_DECODE_PAGES_CUH_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_DECODE_PAGES_CUH_

#include <cstdint>

#include "kernels/codec/oscar/cuda_crc_fold.cuh"
#include "kernels/codec/oscar/cuda_decode.h"
#include "kernels/codec/oscar/cuda_primitives.cuh"

namespace oscarkv::cuda::decode {

constexpr uint32_t kStagesMax = 16;
constexpr uint32_t kVerifiers = 4;  // warps; each has every fourth page, and the next one loads
constexpr uint32_t kWriters = 8;    // warps
constexpr uint32_t kThreads = (kWriters + kVerifiers) * 32;
constexpr uint32_t kTileRows = 16;  // that a warp takes at a time
constexpr int64_t kNoRow = -1;

// What is in shared memory before the dynamic part: the stages' blocks, then their offsets,
// [stages][sides][page_tokens].
struct SharedFixed {
  Barrier loaded[kStagesMax];
  Barrier ready[kStagesMax];
  Barrier free[kStagesMax];
  uint32_t good[kStagesMax];  // the stage's block may be written

  // `writers`: threads that are done with a stage before it is free. All threads of the block call.
  __device__ __forceinline__ void Init(uint32_t stages, uint32_t writers) {
    if (threadIdx.x == 0) {
      for (uint32_t stage = 0; stage < stages; ++stage) {
        loaded[stage].Init(1);
        ready[stage].Init(32);
        free[stage].Init(writers);
      }
      FenceBarrierInit();
    }
    __syncthreads();
  }
};

// Where a turn's block stands, and the parity of the barriers' phase.
struct Stage {
  uint32_t number;
  uint32_t parity;
  __device__ __forceinline__ Stage(uint32_t turn, uint32_t stages)
      : number(turn % stages), parity(turn / stages & 1) {}
};

// A walk over a thread block's share of the blocks, heads innermost, then pages, then tasks.
struct Walk {
  const DecodeArguments& arguments;
  uint32_t task_number;
  uint32_t head_in_range;
  uint32_t page;
  DecodeTask task;
  const DeviceLayer* layer;

  __device__ __forceinline__ Walk(const DecodeArguments& of, uint32_t first) : arguments(of) {
    const DeviceDecodeBatch& batch = arguments.batch;
    head_in_range = first % batch.heads.count;
    page = first / batch.heads.count % batch.pages;
    task_number = first / batch.heads.count / batch.pages;
    Arrive();
  }
  // Goes on by that many heads and pages; true when that leads to another head or task.
  __device__ __forceinline__ bool Advance(uint32_t heads, uint32_t pages) {
    const DeviceDecodeBatch& batch = arguments.batch;
    head_in_range += heads;
    page += pages;
    if (head_in_range >= batch.heads.count) {
      head_in_range -= batch.heads.count;
      ++page;
    }
    if (page < batch.pages) return heads != 0;
    for (; page >= batch.pages; page -= batch.pages) ++task_number;
    if (task_number < arguments.task_count) Arrive();
    return true;
  }
  __device__ __forceinline__ uint32_t head() const {
    return arguments.batch.heads.first + head_in_range;
  }
  __device__ __forceinline__ uint64_t BlockOffset() const {  // in a page of the batch
    return (layer->strides_before - arguments.strides_before_range) * arguments.batch.heads.count +
           uint64_t{head_in_range} * layer->stride;
  }
  // Index of the block in block_crc32c and status.
  __device__ __forceinline__ uint64_t BlockNumber() const {
    const DeviceDecodeBatch& batch = arguments.batch;
    return (uint64_t{page} * batch.layers.count + task.layer - batch.layers.first) *
               batch.heads.count +
           head_in_range;
  }

 private:
  __device__ __forceinline__ void Arrive() {
    task = arguments.tasks[task_number];
    layer = &arguments.layers[task.layer];
  }
};

// CRC32C of a block, by one warp. `fold` is at its beginning.
__device__ __forceinline__ uint32_t CrcOfBlock(FoldedCrc fold, const DeviceLayer& layer,
                                               const std::byte* block, uint32_t lane) {
  const uint32_t content_words = layer.content_words;
  const uint32_t row = layer.crc_rows[FoldedCrc::Row()];
  const uint32_t start = layer.crc_start;
  for (uint32_t word = lane * 4; word - lane * 4 < content_words; word += kWarpFoldWords) {
    uint4 words = make_uint4(0, 0, 0, 0);
    if (word < content_words)
      words = KeepWords(reinterpret_cast<const uint4*>(block)[word / 4], content_words - word);
    fold.Add(words);
  }
  return ~(fold.Sum(row) ^ start);
}

// One of the warps that bring blocks in and judge them. The next block of each is on its way while
// it judges one, and both are among the stages.
template <uint32_t kSides>
__device__ __forceinline__ void Verify(const DecodeArguments& arguments, uint32_t turns,
                                       uint32_t verifier, SharedFixed& shared, std::byte* blocks,
                                       int64_t* offsets, uint32_t lane) {
  const uint32_t verifiers = min(kVerifiers, arguments.stages / 2);
  if (verifier >= verifiers || verifier >= turns) return;
  const DeviceDecodeBatch& batch = arguments.batch;
  const FoldedCrc fold(arguments.crc->columns);
  // Begins to load the block that `walk` stands at; false when that cannot be.
  const auto load = [&](const Walk& walk, uint32_t turn) {
    const Stage stage(turn, arguments.stages);
    const std::byte* page = batch.page_bytes[walk.page];
    const bool usable = IsUsable(page) && IsUsable(arguments.side[0].layer_base[walk.task.layer]) &&
                        IsUsable(arguments.side[1].layer_base[walk.task.layer]);
    if (turn >= arguments.stages) shared.free[stage.number].Wait(stage.parity ^ 1);
    if (lane == 0) {
      const uint32_t bytes = usable ? walk.layer->stride : 0;
      shared.loaded[stage.number].ArriveExpecting(bytes);
      if (usable) {
        BulkCopy(blocks + stage.number * arguments.stage_bytes, page + walk.BlockOffset(), bytes,
                 &shared.loaded[stage.number]);
      }
    }
    return usable;
  };
  const uint32_t heads = verifiers * gridDim.x % batch.heads.count;
  const uint32_t pages = verifiers * gridDim.x / batch.heads.count;
  Walk next(arguments, blockIdx.x + verifier * gridDim.x);
  bool next_usable = load(next, verifier);
  for (uint32_t turn = verifier; turn < turns; turn += verifiers) {
    const DeviceLayer& layer = *next.layer;
    const uint32_t first_side = next.task.first_side;
    const uint32_t head = next.head();
    const Stage stage(turn, arguments.stages);
    const uint64_t number = next.BlockNumber();
    const bool usable = next_usable;
    const uint32_t expected = batch.block_crc32c[number];
    const int64_t* slots = batch.slots + uint64_t{next.page} * arguments.page_tokens;
    next.Advance(heads, pages);
    if (turn + verifiers < turns) next_usable = load(next, turn + verifiers);
    uint32_t bad_slot = 0;
    for (uint32_t token = lane; token < arguments.page_tokens; token += 32) {
      const int64_t slot = slots[token];
      if (slot >= arguments.slots) bad_slot = kBadSlot;
      const bool wanted = slot >= 0 && slot < arguments.slots;
      const uint32_t index = wanted ? static_cast<uint32_t>(slot) : 0;
      const uint32_t engine_block = index / arguments.block_tokens;
      const uint32_t in_block = index % arguments.block_tokens;
#pragma unroll
      for (uint32_t side = 0; side < kSides; ++side) {
        const DeviceEngineSide& engine = arguments.side[first_side + side];
        offsets[(stage.number * kSides + side) * arguments.page_tokens + token] =
            wanted ? head * engine.head_stride + engine_block * engine.block_stride +
                         in_block * engine.token_stride
                   : kNoRow;
      }
    }
    shared.loaded[stage.number].Wait(stage.parity);
    uint32_t bits = __reduce_or_sync(0xffffffffu, bad_slot);
    if (!usable) {
      bits = kBadPointer;
    } else if (CrcOfBlock(fold, layer, blocks + stage.number * arguments.stage_bytes, lane) !=
               expected) {
      bits |= kBadChecksum;
    }
    if (lane == 0) {
      shared.good[stage.number] = (bits & ~kBadSlot) == 0 ? 1 : 0;
      if (bits != 0) atomicOr(&batch.status[number], bits);
    }
    shared.ready[stage.number].Arrive();
  }
}

struct RowParams {
  float scale;
  float zero;
};

__device__ __forceinline__ RowParams LoadParams(const std::byte* params, uint32_t pair, bool fp32) {
  if (fp32) {
    const float2 both = reinterpret_cast<const float2*>(params)[pair];
    return {both.x, both.y};
  }
  const float2 both = __half22float2(reinterpret_cast<const __half2*>(params)[pair]);
  return {both.x, both.y};
}

// Blocks that a thread block is dealt.
__device__ __forceinline__ uint32_t TurnsOf(const DecodeArguments& arguments) {
  return (arguments.blocks - blockIdx.x + gridDim.x - 1) / gridDim.x;
}

}  // namespace oscarkv::cuda::decode

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_DECODE_PAGES_CUH_
