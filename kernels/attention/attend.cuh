// The attention kernel: one warp of a thread block brings pages into a ring in shared memory, the
// others take 16 tokens at a time, teams of warps a page, each warp with running maxima and sums of
// its own. At the end of a chunk warps' sums meet, are taken to the model's basis, and are left for
// the thread block that is the item's last.
#ifndef OSCARKV_KERNELS_ATTENTION_ATTEND_CUH_
#define OSCARKV_KERNELS_ATTENTION_ATTEND_CUH_

#include <algorithm>

#include "absl/strings/str_cat.h"

#include "kernels/attention/attend_merge.cuh"
#include "kernels/base/status_macros.h"
#include "kernels/device/launch.h"
#include "kernels/device/status.h"

namespace oscarkv::cuda {

constexpr uint32_t kStagesMax = 32;           // a lane makes the barriers of each
constexpr uint32_t kPlanned = 2;              // the barrier after which the plan is there
constexpr uint32_t kEndOfChunk = 0x80000000;  // in the place of a page's tokens
constexpr uint32_t kAnyPacked = 1;
constexpr uint32_t kAnyWide = 2;

template <typename S>
struct Shared {
  Barrier loaded[kStagesMax];
  Barrier taken[kStagesMax];
  uint2 pages[kStagesMax];  // tokens, position; or what the end of a chunk says
  AttendPlan plan;
  Chunk chunk;  // what the warps that compute are at
  uint32_t finished;
  WarpSums<S> sums;
  QueryOperands<S> operands;
  Rows<S> rows;
  alignas(128) Matrix<S> matrix;
};

// Where in the ring a warp is.
constexpr uint32_t kNowhere = 0xffffffff;
struct RingPlace {
  uint32_t stage;
  uint32_t parity;

  __device__ __forceinline__ void Advance(uint32_t by, uint32_t stages) {
    stage += by;
    while (stage >= stages) {
      stage -= stages;
      parity ^= 1;
    }
  }
};

// The ring's stages one after the other, for the warp that fills them.
template <typename S>
struct Filling {
  RingPlace at{.stage = 0, .parity = 1};
  uint32_t untouched;  // stages that have never been filled, and need not be waited for

  // `fill(stage)` by each lane of `lanes` in turn, when the stage is free.
  template <typename F>
  __device__ __forceinline__ void Fill(uint32_t lanes, uint32_t lane, uint32_t stages,
                                       Shared<S>& shared, F&& fill) {
    const uint32_t count = __popc(lanes);
    if (count <= untouched) {
      if ((lanes >> lane & 1) != 0) fill(at.stage + __popc(lanes & ((1u << lane) - 1)));
      untouched -= count;
      at.Advance(count, stages);
      return;
    }
    untouched = 0;
    while (lanes != 0) {
      shared.taken[at.stage].Wait(at.parity);
      if (lane + 1 == static_cast<uint32_t>(__ffs(static_cast<int>(lanes)))) fill(at.stage);
      lanes &= lanes - 1;
      at.Advance(1, stages);
    }
  }
};

// The warp that brings pages in: all PACKED ones of the thread block's chunks in turn, and after a
// chunk's last an end for each team.
template <typename S>
__device__ __forceinline__ void BringPages(const AttendArguments& arguments, ChunkPlace place,
                                           uint32_t lane, std::byte* ring, Shared<S>& shared) {
  Filling<S> filling{.untouched = arguments.stages};
  uint32_t number = blockIdx.x;
  for (; place.split < shared.plan.splits; place = ChunkPlace(arguments, number += gridDim.x)) {
    const Chunk chunk = FindChunk(arguments, shared.plan, place,
                                  FindRequest(arguments, shared.plan, place.split, lane));
    const uint64_t packed =
        arguments.packed.layer_offset + uint64_t{chunk.head} * arguments.packed.stride;
    const uint64_t wide =
        arguments.wide.layer_offset + uint64_t{chunk.head} * arguments.wide.stride;
    uint32_t found = 0;
    for (uint32_t first = chunk.page; first < chunk.pages_end; first += 32 * chunk.splits) {
      const uint32_t mine = first + lane * chunk.splits;
      AttendPage page{};
      if (mine < chunk.pages_end) page = arguments.batch.pages[chunk.first_page + mine];
      const uint32_t tokens = min(uint32_t{page.tokens}, arguments.page_tokens);
      const uint32_t to_load =
          __ballot_sync(kAllLanes, tokens > 0 && page.encoding == Encoding::kPacked);
      filling.Fill(to_load, lane, arguments.stages, shared, [&](uint32_t stage) {
        shared.pages[stage] = make_uint2(tokens, page.position);
        shared.loaded[stage].ArriveExpecting(arguments.packed.stride);
        BulkCopy(ring + stage * arguments.stage_bytes, page.bytes + packed, arguments.packed.stride,
                 &shared.loaded[stage]);
      });
      const bool is_wide = tokens > 0 && page.encoding == Encoding::kWide;
      if (is_wide) PrefetchBulk(page.bytes + wide, arguments.wide.stride);
      found |= (to_load != 0 ? kAnyPacked : 0) | (__any_sync(kAllLanes, is_wide) ? kAnyWide : 0);
    }
    filling.Fill((1u << shared.plan.teams) - 1, lane, arguments.stages, shared,
                 [&](uint32_t stage) {
                   shared.pages[stage] = make_uint2(kEndOfChunk | found, 0);
                   shared.loaded[stage].Arrive();
                 });
  }
}

// The warp's part of a chunk's PACKED pages. Returns which encodings the chunk has.
template <typename S>
__device__ __forceinline__ uint32_t TakePackedPages(const AttendArguments& arguments,
                                                    const Sight& sight,
                                                    const PackedQueries<S>& queries, uint32_t warp,
                                                    uint32_t lane, const std::byte* ring,
                                                    Shared<S>& shared, RingPlace& at,
                                                    Running<S>& running) {
  const uint32_t apart = shared.plan.team * kTileTokens;  // a warp's tiles of a page
  const uint32_t first = warp % shared.plan.team * kTileTokens;
  while (true) {
    shared.loaded[at.stage].Wait(at.parity);
    const uint2 page = shared.pages[at.stage];
    if (page.x < kEndOfChunk) {
      const uint32_t plain =
          min(page.x, sight.seen_by_all > page.y ? sight.seen_by_all - page.y : 0u);
      uint32_t token = first;
      LanePlace place = LanePlace::Of<S>(
          arguments, SharedAddress(ring) + at.stage * arguments.stage_bytes, token, lane);
#pragma unroll 1
      for (; token < page.x; token += apart) {
        TakePacked<S>(arguments, sight, queries, place, token, plain, page.x, page.y, lane,
                      running);
        place.Advance<S>(apart);
      }
    }
    shared.taken[at.stage].Arrive(shared.plan.arrivals);
    at.Advance(shared.plan.teams, arguments.stages);
    if (page.x >= kEndOfChunk) return page.x & ~kEndOfChunk;
  }
}

// PACKED sums of all warps, in the model's basis.
template <typename S>
__device__ __forceinline__ void MeetPacked(const AttendArguments& arguments,
                                           const Running<S>& running, uint32_t warp, uint32_t lane,
                                           Shared<S>& shared, Partial<S>& partial) {
  LeaveWarp<S, false>(running, warp, lane, shared.rows, shared.sums.maximum_sum);
  Meet(kComputing, S::kThreads);
  const uint32_t head = shared.chunk.head;
  const uint4* fragments = shared.matrix.Place(MatrixOf<S>(arguments.v, head));
  HeldShare<S> held;
  held.Load(fragments, warp, lane);
  float offset[Partial<S>::kElements];
#pragma unroll
  for (uint32_t i = 0; i < Partial<S>::kElements; ++i) {
    offset[i] = 0.0f;
    if (!Partial<S>::Is(i)) continue;
    offset[i] =
        __ldg(arguments.v.offset + arguments.v.per_head * head * S::kDim + Partial<S>::Dim(i));
  }
  AddWarps<S>(shared.rows, shared.sums, warp, lane, partial);
#pragma unroll
  for (uint32_t i = 0; i < Partial<S>::kElements; ++i) {
    if (!Partial<S>::Is(i)) continue;
    shared.rows.Split(Partial<S>::Row(i), Partial<S>::Dim(i), partial.value[i]);
  }
  Meet(kComputing, S::kThreads);
  Multiply<S>(fragments, held, warp, lane, shared.rows);
  Meet(kComputing, S::kThreads);
#pragma unroll
  for (uint32_t i = 0; i < Partial<S>::kElements; ++i) {
    if (!Partial<S>::Is(i)) continue;
    partial.value[i] = fmaf(partial.total[i], offset[i],
                            shared.rows.Result(Partial<S>::Row(i), Partial<S>::Dim(i)));
  }
}

template <typename S>
__device__ __forceinline__ void MeetWide(const AttendArguments& arguments, const Chunk& chunk,
                                         const Sight& sight, uint32_t warp, uint32_t lane,
                                         Shared<S>& shared, Partial<S>& partial) {
  Running<S> running;
  running.Clear();
  if (arguments.bf16) {
    TakeWidePages<S, true>(arguments, chunk, sight, warp, lane, running);
  } else {
    TakeWidePages<S, false>(arguments, chunk, sight, warp, lane, running);
  }
  Meet(kComputing, S::kThreads);
  LeaveWarp<S, true>(running, warp, lane, shared.rows, shared.sums.maximum_sum);
  Meet(kComputing, S::kThreads);
  Partial<S> wide;
  wide.Clear();
  AddWarps<S>(shared.rows, shared.sums, warp, lane, wide);
  partial.Add(wide);
}

// Leaves a chunk's result for the item's last chunk; the last one adds up all.
template <typename S>
__device__ __forceinline__ bool MeetChunks(const AttendArguments& arguments, const Chunk& chunk,
                                           uint32_t lane, Shared<S>& shared, Partial<S>& partial) {
  const AttendWorkspace& workspace = arguments.workspace;
  const uint32_t items = ItemsOfRequest(arguments);
#pragma unroll
  for (uint32_t i = 0; i < Partial<S>::kElements; ++i) {
    if (!Partial<S>::Is(i)) continue;
    const uint64_t row = uint64_t{chunk.slot} * S::kRows + Partial<S>::Row(i);
    __stcg(&workspace.outputs[row * S::kDim + Partial<S>::Dim(i)], partial.value[i]);
    if (Partial<S>::Dim(i) == 0)
      __stcg(&workspace.maximum_sum[row], make_float2(partial.top[i], partial.total[i]));
  }
  Meet(kComputing, S::kThreads);
  if (threadIdx.x == 0) {
    uint32_t* finished = &workspace.finished[chunk.request * items + chunk.item];
    shared.finished = AddInOrder(finished, 1) + 1;
    if (shared.finished == chunk.splits) *finished = 0;  // for the next call
  }
  Meet(kComputing, S::kThreads);
  if (shared.finished != chunk.splits) return false;
  AddChunks<S>(workspace, chunk.first_slot, items, chunk.splits, lane, partial);
  return true;
}

template <typename S>
__device__ __forceinline__ void Compute(const AttendArguments& arguments, uint32_t warp,
                                        uint32_t lane, const std::byte* ring, Shared<S>& shared) {
  const AttendBatch& batch = arguments.batch;
  WaitForPrevious();
  // A request that is alone has its queries prepared while the plan is made.
  bool planned = !HasOneRequest(arguments);
  if (planned) Meet(kPlanned, S::kThreads + 32);
  RingPlace at{.stage = kNowhere, .parity = 0};
  for (uint32_t number = blockIdx.x;; number += gridDim.x) {
    const ChunkPlace place(arguments, number);
    if (planned && place.split >= shared.plan.splits) break;
    const uint32_t request = planned ? FindRequest(arguments, shared.plan, place.split, lane) : 0;
    PackedQueries<S> queries;
    PrepareQueries<S>(arguments, place, request, warp, lane, shared.matrix, shared.rows,
                      shared.operands, queries);
    if (!planned) {
      Meet(kPlanned, S::kThreads + 32);
      planned = true;
      if (place.split >= shared.plan.splits) {
        shared.matrix.Wait(1);
        break;
      }
    }
    if (at.stage == kNowhere) {
      at.stage = 0;
      at.Advance(warp / shared.plan.team, arguments.stages);
    }
    if (threadIdx.x == 0)  // seen after the next meeting
      shared.chunk = FindChunk(arguments, shared.plan, place, request);
    const uint32_t length = batch.lengths[request];
    // The first new token sees itself too.
    const Sight sight{
        .seen_by_all = length + 1 > batch.new_tokens ? length + 1 - batch.new_tokens : 0,
        .first_row = place.group * S::kRows};
    Running<S> running;
    running.Clear();
    const uint32_t found =
        TakePackedPages<S>(arguments, sight, queries, warp, lane, ring, shared, at, running);
    shared.matrix.Wait(1);
    Partial<S> partial;
    partial.Clear();
    if (found & kAnyPacked) {
      MeetPacked<S>(arguments, running, warp, lane, shared, partial);
    } else {
      Meet(kComputing, S::kThreads);
    }
    if (threadIdx.x == 0) {
      const ChunkPlace next(arguments, number + gridDim.x);
      if (next.split < shared.plan.splits) shared.matrix.Bring(MatrixOf<S>(arguments.k, next.head));
    }
    const Chunk& chunk = shared.chunk;
    if (found & kAnyWide) MeetWide<S>(arguments, chunk, sight, warp, lane, shared, partial);
    if (chunk.splits == 1 || MeetChunks<S>(arguments, chunk, lane, shared, partial))
      WriteOutputs<S>(arguments, chunk, partial);
  }
  // Nothing is on its way into the memory of a thread block that has ended.
  if (at.stage == kNowhere && !HasOneRequest(arguments)) shared.matrix.Wait(0);
}

template <typename S>
__global__ void __launch_bounds__(S::kBlockThreads, 1)
    AttendKernel(const __grid_constant__ AttendArguments arguments) {
  extern __shared__ __align__(128) std::byte memory[];
  Shared<S>& shared = *reinterpret_cast<Shared<S>*>(memory);
  std::byte* ring = memory + sizeof(Shared<S>);
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t lane = threadIdx.x % 32;
  LetNextBegin();
  if (warp == S::kWarps) {
    if (lane < kStagesMax) {
      shared.loaded[lane].Init(1);
      shared.taken[lane].Init(kTeamMost * 32);
    }
    FenceBarrierInit();
  }
  if (threadIdx.x == 0) {
    shared.matrix.loaded.Init(1);
    FenceBarrierInit();
    shared.matrix.Bring(MatrixOf<S>(arguments.k, ChunkPlace(arguments, blockIdx.x).head));
  }
  __syncthreads();
  if (warp < S::kWarps) {
    RaiseRegisters<S::kRegisters>();
    Compute<S>(arguments, warp, lane, ring, shared);
  } else {
    LowerRegisters<S::kRegistersLeft>();
    if (warp > S::kWarps) return;
    const ChunkPlace place(arguments, blockIdx.x);
    WaitForPrevious();
    MakePlan(arguments, S::kWarps, lane, shared.plan);
    ComeTo(kPlanned, S::kThreads + 32);
    BringPages<S>(arguments, place, lane, ring, shared);
  }
}

template <typename S>
constexpr size_t SharedBytes(uint32_t stages, uint32_t stage_bytes) {
  return sizeof(Shared<S>) + size_t{stages} * stage_bytes;
}

template <uint32_t D, typename F>
auto ForShape(const AttendShape& shape, F&& call) {
  const auto with_params = [&]<uint32_t kRows>(std::integral_constant<uint32_t, kRows>) {
    return shape.fp32_params ? call(Shape<D, kRows, true>()) : call(Shape<D, kRows, false>());
  };
  if (shape.item_rows == 4) return with_params(std::integral_constant<uint32_t, 4>());
  if constexpr (D <= 128) {
    if (shape.item_rows == 16) return with_params(std::integral_constant<uint32_t, 16>());
  }
  return with_params(std::integral_constant<uint32_t, 8>());
}

template <uint32_t D>
absl::StatusOr<AttendPlaces> PrepareAttend(const AttendShape& shape, uint32_t stage_bytes) {
  return ForShape<D>(shape, [&]<typename S>(S) -> absl::StatusOr<AttendPlaces> {
    int device = 0;
    int most = 0;
    OSCARKV_RETURN_IF_ERROR(device::ToStatus(cudaGetDevice(&device), "preparing attention"));
    OSCARKV_RETURN_IF_ERROR(device::ToStatus(
        cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "preparing attention"));
    const size_t ring = static_cast<size_t>(most) - std::min(SharedBytes<S>(0, 0), size_t(most));
    const size_t stages = std::min<size_t>(ring / stage_bytes, kStagesMax);
    if (stages == 0) return AttendPlaces{};
    OSCARKV_ASSIGN_OR_RETURN(
        const device::Places there,
        device::PrepareKernel(reinterpret_cast<const void*>(&AttendKernel<S>), S::kBlockThreads,
                              SharedBytes<S>(static_cast<uint32_t>(stages), stage_bytes),
                              "preparing attention"));
    return AttendPlaces{.blocks = there.all(), .stages = static_cast<uint32_t>(stages)};
  });
}

template <uint32_t D>
absl::Status LaunchAttend(const AttendArguments& arguments, const AttendShape& shape,
                          cudaStream_t stream) {
  return ForShape<D>(shape, [&]<typename S>(S) {
    cudaLaunchAttribute early;
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    const cudaLaunchConfig_t config = {
        .gridDim = arguments.places,
        .blockDim = S::kBlockThreads,
        .dynamicSmemBytes = SharedBytes<S>(arguments.stages, arguments.stage_bytes),
        .stream = stream,
        .attrs = &early,
        .numAttrs = 1};
    return device::ToStatus(cudaLaunchKernelEx(&config, AttendKernel<S>, arguments), "attending");
  });
}

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_ATTENTION_ATTEND_CUH_
