// The attention kernel: each warp takes pages of its own through a ring in shared memory, 16 tokens
// at a time, with running maxima and sums of its own; warps' results meet at the end of a work
// item.
//
// Logits stand transposed, tokens x queries, so that keys' masked bytes are the left operand:
// code * 4^field * 2^-24 in fp16, denormal and exact, the powers of four taken out of the queries.
// Values likewise: masked bytes of two tokens side by side, dims x tokens, times tokens x queries;
// their scale is in the probabilities, and zero points and powers of four are applied to the sums.
#include <algorithm>

#include "absl/strings/str_cat.h"

#include "kernels/attention/attend_device.cuh"
#include "kernels/attention/attend_tiles.cuh"
#include "kernels/base/status_macros.h"
#include "kernels/device/launch.h"
#include "kernels/device/status.h"

namespace oscarkv::cuda {
namespace {

// A warp's ring of blocks.
struct Ring {
  std::byte* blocks;
  Barrier* loaded;
  uint32_t bytes;       // of a block
  uint32_t put = 0;     // stage to fill next
  uint32_t take = 0;    // stage to read next
  uint32_t parity = 0;  // of `take`
};

template <typename S>
__device__ __forceinline__ void TakePackedPages(const AttendArguments& arguments, const Item& item,
                                                uint32_t warp, uint32_t lane, Ring& ring,
                                                Running<S>& running, bool& any) {
  PackedQueries<S> queries;
  bool ready = false;
  const uint64_t offset =
      arguments.packed.layer_offset + uint64_t{item.head} * arguments.packed.stride;
  for (uint32_t first = warp; first < item.pages; first += 32 * kWarps) {
    const uint32_t mine = first + lane * kWarps;
    AttendPage page{};
    if (mine < item.pages) page = arguments.batch.pages[item.first_page + mine];
    const bool wanted = mine < item.pages && page.encoding == Encoding::kPacked && page.tokens > 0;
    uint32_t to_load = __ballot_sync(0xffffffffu, wanted);
    uint32_t to_take = to_load;
    const uint32_t tokens_of = min(uint32_t{page.tokens}, arguments.page_tokens);
    const auto load = [&] {
      if (to_load == 0) return;
      const auto source = static_cast<int>(__ffs(static_cast<int>(to_load)) - 1);
      to_load &= to_load - 1;
      if (static_cast<int>(lane) == source) {
        ring.loaded[ring.put].ArriveExpecting(ring.bytes);
        BulkCopy(ring.blocks + ring.put * ring.bytes, page.bytes + offset, ring.bytes,
                 &ring.loaded[ring.put]);
      }
      ring.put = ring.put + 1 == S::kStages ? 0 : ring.put + 1;
    };
#pragma unroll
    for (uint32_t stage = 0; stage < S::kStages; ++stage) load();
    if (!ready && to_take != 0) {
      WaitForPrevious();
      queries.Load(arguments, item, lane);
      ready = true;
      any = true;
    }
    while (to_take != 0) {
      const auto source = static_cast<int>(__ffs(static_cast<int>(to_take)) - 1);
      to_take &= to_take - 1;
      const uint32_t tokens = __shfl_sync(0xffffffffu, tokens_of, source);
      const uint32_t position = __shfl_sync(0xffffffffu, page.position, source);
      const std::byte* block = ring.blocks + ring.take * ring.bytes;
      ring.loaded[ring.take].Wait(ring.parity);
      const uint32_t plain =
          min(tokens, item.seen_by_all > position ? item.seen_by_all - position : 0u);
      uint32_t token = 0;
#pragma unroll 1
      for (; token + kTileTokens <= plain; token += kTileTokens) {
        TakePacked<S, false>(arguments, item, queries, block, token, tokens, position, lane,
                             running);
      }
#pragma unroll 1
      for (; token < tokens; token += kTileTokens) {
        TakePacked<S, true>(arguments, item, queries, block, token, tokens, position, lane,
                            running);
      }
      __syncwarp();
      if (++ring.take == S::kStages) {
        ring.take = 0;
        ring.parity ^= 1;
      }
      load();
    }
  }
}

// 16 tokens of a WIDE block, read where they are.
template <typename S>
__device__ __forceinline__ void TakeWide(const AttendArguments& arguments, const Item& item,
                                         const uint4 (&queries)[S::kTiles][S::kDim / 32],
                                         const std::byte* block, uint32_t token, uint32_t tokens,
                                         uint32_t position, uint32_t lane, Running<S>& running) {
  constexpr uint32_t kPieces = S::kDim / 32;  // 16 bytes a lane of a key
  constexpr uint32_t kRow = S::kDim * 2;
  const uint32_t quad = lane & 3;
  const uint32_t row = lane >> 2;
  const uint32_t token0 = token + TokenOfRow(row);
  const uint32_t last = arguments.page_tokens - 1;
  float sums[S::kTiles][4] = {};
#pragma unroll
  for (uint32_t piece = 0; piece < kPieces; ++piece) {
    const std::byte* from = block + piece * 64 + quad * 16;
    const uint4 k0 = __ldg(reinterpret_cast<const uint4*>(from + min(token0, last) * kRow));
    const uint4 k1 = __ldg(reinterpret_cast<const uint4*>(from + min(token0 + 8, last) * kRow));
    const uint32_t a[4] = {k0.x, k1.x, k0.y, k1.y};
    const uint32_t b[4] = {k0.z, k1.z, k0.w, k1.w};
#pragma unroll
    for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
      MultiplyAddBf16(sums[tile], a, queries[tile][piece].x, queries[tile][piece].y);
      MultiplyAddBf16(sums[tile], b, queries[tile][piece].z, queries[tile][piece].w);
    }
  }
  float logits[S::kTiles][4];
  const auto scaled = [&](const float(&base)[S::kTiles][2]) {
#pragma unroll
    for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i)
        logits[tile][i] = fmaf(sums[tile][i], arguments.scale, base[tile][i % 2]);
    }
    Hide<S>(arguments, item, token0, token0 + 8, tokens, position, quad, logits);
  };
  float check = 0.0f;
  const auto weigh = [&] {
    scaled(running.base);
    check = 0.0f;
#pragma unroll
    for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        logits[tile][i] = Exp2(logits[tile][i]);
        check += logits[tile][i];
      }
    }
  };
  weigh();
  if (__any_sync(0xffffffffu, !(check <= kCeiling))) {
    const float none[S::kTiles][2] = {};
    scaled(none);
    running.Move(logits, 0.0f, none);
    weigh();
  }
  uint2 right[S::kTiles];
#pragma unroll
  for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
    running.sum[tile][0] += logits[tile][0] + logits[tile][2];
    running.sum[tile][1] += logits[tile][1] + logits[tile][3];
    right[tile].x = Transpose(PackPair<true>(logits[tile][0], logits[tile][1]));
    right[tile].y = Transpose(PackPair<true>(logits[tile][2], logits[tile][3]));
  }
  const std::byte* values = block + arguments.wide.v_rows + row * 16;
#pragma unroll
  for (uint32_t part = 0; part < S::kDim / 64; ++part) {
    uint32_t words[4][4];
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
      const uint32_t at = token + TokenOfRow(2 * quad + j % 2) + j / 2 * 8;
      uint4 all = make_uint4(0, 0, 0, 0);  // what is beyond may hold anything, NaN too
      if (at < tokens) all = __ldg(reinterpret_cast<const uint4*>(values + at * kRow + part * 128));
      words[j][0] = all.x, words[j][1] = all.y, words[j][2] = all.z, words[j][3] = all.w;
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t a[4] = {__byte_perm(words[0][i], words[1][i], 0x5410),
                             __byte_perm(words[0][i], words[1][i], 0x7632),
                             __byte_perm(words[2][i], words[3][i], 0x5410),
                             __byte_perm(words[2][i], words[3][i], 0x7632)};
#pragma unroll
      for (uint32_t tile = 0; tile < S::kTiles; ++tile)
        MultiplyAddBf16(running.acc[tile][part * 4 + i], a, right[tile].x, right[tile].y);
    }
  }
}

template <typename S>
__device__ __forceinline__ void TakeWidePages(const AttendArguments& arguments, const Item& item,
                                              uint32_t warp, uint32_t lane, Running<S>& running,
                                              bool& any) {
  constexpr uint32_t kPieces = S::kDim / 32;
  constexpr uint32_t kAcross = 4;  // warps to a page
  uint4 queries[S::kTiles][kPieces];
#pragma unroll
  for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
    const uint32_t row = item.group * S::kRows + tile * kTileRows + lane / 4;
    const uint32_t token = row / arguments.ratio;
    const uint32_t heads = arguments.kv_heads * arguments.ratio;
    const uint64_t at = (uint64_t{item.request} * arguments.batch.new_tokens + token) * heads +
                        item.head * arguments.ratio + row % arguments.ratio;
#pragma unroll
    for (uint32_t piece = 0; piece < kPieces; ++piece) {
      queries[tile][piece] = make_uint4(0, 0, 0, 0);
      if (row < arguments.rows) {
        queries[tile][piece] = __ldg(reinterpret_cast<const uint4*>(
            arguments.batch.queries + at * (S::kDim * 2) + piece * 64 + lane % 4 * 16));
      }
    }
  }
  const uint64_t offset = arguments.wide.layer_offset + uint64_t{item.head} * arguments.wide.stride;
  constexpr uint32_t kPages = kWarps / kAcross;  // at once
  for (uint32_t first = warp / kAcross; first < item.pages; first += 32 * kPages) {
    const uint32_t mine = first + lane * kPages;
    AttendPage page{};
    if (mine < item.pages) page = arguments.batch.pages[item.first_page + mine];
    const bool wanted = mine < item.pages && page.encoding == Encoding::kWide && page.tokens > 0;
    uint32_t to_take = __ballot_sync(0xffffffffu, wanted);
    while (to_take != 0) {
      const auto source = static_cast<int>(__ffs(static_cast<int>(to_take)) - 1);
      to_take &= to_take - 1;
      const uint32_t tokens =
          __shfl_sync(0xffffffffu, min(uint32_t{page.tokens}, arguments.page_tokens), source);
      const uint32_t position = __shfl_sync(0xffffffffu, page.position, source);
      const std::byte* bytes = reinterpret_cast<const std::byte*>(
          __shfl_sync(0xffffffffu, reinterpret_cast<uint64_t>(page.bytes), source));
      for (uint32_t token = warp % kAcross * kTileTokens; token < tokens;
           token += kAcross * kTileTokens) {
        TakeWide<S>(arguments, item, queries, bytes + offset, token, tokens, position, lane,
                    running);
        any = true;
      }
    }
  }
}

// The thread block's result for an item, from its warps', into the item's slot.
template <typename S, bool kWide>
__device__ __forceinline__ void Leave(const AttendArguments& arguments, const Item& item,
                                      const Running<S>& running, bool any, std::byte* memory,
                                      uint32_t warp, uint32_t lane) {
  constexpr uint32_t kRows = S::kRows;
  const uint64_t slot = (uint64_t{blockIdx.x} + item.index) * 2 + (kWide ? 1 : 0);
  float2* maximum_sum = arguments.workspace.maximum_sum + slot * kRows;
  // Also: every warp is past its last read of the ring.
  if (!__syncthreads_or(any ? 1 : 0)) {
    if (threadIdx.x < kRows) maximum_sum[threadIdx.x] = make_float2(kNothingSeen, 0.0f);
    return;
  }
  const auto outputs = reinterpret_cast<float(*)[kRows][S::kDim]>(memory);
  const auto maxima =
      reinterpret_cast<float2(*)[kRows]>(memory + sizeof(float) * kWarps * kRows * S::kDim);
  const uint32_t quad = lane & 3;
  const uint32_t row = lane >> 2;
#pragma unroll
  for (uint32_t tile = 0; tile < S::kTiles; ++tile) {
    const uint32_t query = tile * kTileRows + 2 * quad;
    float zero[2];
#pragma unroll
    for (uint32_t j = 0; j < 2; ++j) {
      const float sum = SumOverRows(running.sum[tile][j]);
      zero[j] = SumOverRows(running.zero[tile][j]);
      if (row == 0) maxima[warp][query + j] = make_float2(running.maximum[tile][j], sum);
    }
    const float back = 1.0f / running.value_scale;
#pragma unroll
    for (uint32_t step = 0; step < S::kSteps; ++step) {
      const float(&acc)[4] = running.acc[tile][step];
#pragma unroll
      for (uint32_t j = 0; j < 2; ++j) {
        uint32_t dim;
        float2 pair = make_float2(acc[j], acc[2 + j]);
        if constexpr (kWide) {
          dim = step / 4 * 64 + row * 8 + step % 4 * 2;
        } else {
          const uint32_t field = step / S::kHalves;
          const float unit = static_cast<float>(1 << (24 - 2 * field));
          dim = field * S::kRowBytes + row * S::kValueBytes + step % S::kHalves * 2;
          pair.x = fmaf(pair.x, unit, -zero[j]) * back;
          pair.y = fmaf(pair.y, unit, -zero[j]) * back;
        }
        *reinterpret_cast<float2*>(&outputs[warp][query + j][dim]) = pair;
      }
    }
  }
  __syncthreads();
  float* to = arguments.workspace.outputs + slot * kRows * S::kDim;
  for (uint32_t i = threadIdx.x; i < kRows * S::kDim; i += kAttendThreads) {
    const uint32_t query = i / S::kDim;
    float top = kNothingSeen;
#pragma unroll
    for (uint32_t w = 0; w < kWarps; ++w) top = fmaxf(top, maxima[w][query].x);
    float output = 0.0f;
    float sum = 0.0f;
#pragma unroll
    for (uint32_t w = 0; w < kWarps; ++w) {
      const float weight = Exp2(maxima[w][query].x - top);
      sum = fmaf(weight, maxima[w][query].y, sum);
      output = fmaf(weight, outputs[w][query][i % S::kDim], output);
    }
    to[i] = output;
    if (i % S::kDim == 0) maximum_sum[query] = make_float2(top, sum);
  }
  FenceForCopies();
  __syncthreads();
}

template <typename S>
__global__ void __launch_bounds__(kAttendThreads, S::kBlocksResident)
    AttendKernel(const __grid_constant__ AttendArguments arguments) {
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ Barrier loaded[kWarps][S::kStages];
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t lane = threadIdx.x % 32;
  const AttendBatch& batch = arguments.batch;
  if (lane == 0) {
    for (uint32_t stage = 0; stage < S::kStages; ++stage) loaded[warp][stage].Init(1);
    FenceBarrierInit();
  }
  LetNextBegin();
  Ring ring{.blocks = memory + warp * S::kStages * arguments.packed.stride,
            .loaded = loaded[warp],
            .bytes = arguments.packed.stride};
  const uint32_t items = arguments.kv_heads * arguments.groups;  // of a request
  const AttendPlan plan(batch.first_page[batch.requests] * items, gridDim.x);
  uint32_t unit = 0;
  uint32_t end = 0;
  if (blockIdx.x < plan.blocks) {
    unit = plan.Begin(blockIdx.x);
    end = plan.Begin(blockIdx.x + 1);
  }
  while (unit < end) {
    Item item;
    const bool before =
        threadIdx.x < batch.requests && batch.first_page[threadIdx.x + 1] * items <= unit;
    item.request = static_cast<uint32_t>(__syncthreads_count(before ? 1 : 0));
    const uint32_t first_page = batch.first_page[item.request];
    const uint32_t pages = batch.first_page[item.request + 1] - first_page;
    const uint32_t in_request = unit - first_page * items;
    const uint32_t of_request = in_request / pages;
    const uint32_t page = in_request - of_request * pages;
    item.head = of_request / arguments.groups;
    item.group = of_request % arguments.groups;
    item.index = item.request * items + of_request;
    item.first_page = first_page + page;
    item.pages = min(pages - page, end - unit);
    // The first new token sees itself too.
    const uint32_t length = batch.lengths[item.request];
    item.seen_by_all = length + 1 > batch.new_tokens ? length + 1 - batch.new_tokens : 0;
    Running<S> running;
    running.Clear();
    bool any = false;
    TakePackedPages<S>(arguments, item, warp, lane, ring, running, any);
    Leave<S, false>(arguments, item, running, any, memory, warp, lane);
    running.Clear();
    any = false;
    TakeWidePages<S>(arguments, item, warp, lane, running, any);
    Leave<S, true>(arguments, item, running, any, memory, warp, lane);
    unit += item.pages;
  }
  WaitForPrevious();  // so that who waits for this kernel has waited for those before
}

template <typename S>
size_t SharedBytes(uint32_t block_bytes) {
  // The last tile of a page may reach beyond the last block.
  constexpr size_t kBeyond = kTileTokens * (S::kRowBytes + 4);
  return std::max<size_t>(size_t{kWarps} * S::kStages * block_bytes + kBeyond, S::kMergeBytes);
}

template <typename F>
absl::Status ForShape(uint32_t dim, uint32_t tiles, F&& call) {
  switch (dim * 4 + tiles) {
    case 64 * 4 + 1:
      return call(Shape<64, 1>());
    case 64 * 4 + 2:
      return call(Shape<64, 2>());
    case 128 * 4 + 1:
      return call(Shape<128, 1>());
    case 128 * 4 + 2:
      return call(Shape<128, 2>());
    case 256 * 4 + 1:
      return call(Shape<256, 1>());
    default:
      return absl::InternalError(
          absl::StrCat("no attention kernel for ", tiles, " tiles of ", dim, " elements"));
  }
}

}  // namespace

uint32_t AttendTiles(uint32_t dim, uint32_t rows) { return rows > kTileRows && dim <= 128 ? 2 : 1; }

absl::StatusOr<uint32_t> AttendBlocks(uint32_t dim, uint32_t tiles, uint32_t packed_block_bytes) {
  uint32_t blocks = 0;
  OSCARKV_RETURN_IF_ERROR(ForShape(dim, tiles, [&]<typename S>(S) -> absl::Status {
    OSCARKV_ASSIGN_OR_RETURN(
        const device::Places there,
        device::PrepareKernel(reinterpret_cast<const void*>(&AttendKernel<S>), kAttendThreads,
                              SharedBytes<S>(packed_block_bytes), "preparing attention"));
    blocks = there.all();
    return absl::OkStatus();
  }));
  return blocks;
}

absl::Status LaunchAttend(const AttendArguments& arguments, uint32_t dim, uint32_t tiles,
                          cudaStream_t stream) {
  return ForShape(dim, tiles, [&]<typename S>(S) {
    cudaLaunchAttribute early;
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    const cudaLaunchConfig_t config = {.gridDim = arguments.blocks,
                                       .blockDim = kAttendThreads,
                                       .dynamicSmemBytes = SharedBytes<S>(arguments.packed.stride),
                                       .stream = stream,
                                       .attrs = &early,
                                       .numAttrs = 1};
    return device::ToStatus(cudaLaunchKernelEx(&config, AttendKernel<S>, arguments), "attending");
  });
}

}  // namespace oscarkv::cuda
