// Which pages a thread block takes. Every thread block comes to the same plan from the lengths of
// the page table, as they are when the kernel runs.
//
// A request's pages are dealt out to `splits` chunks for each of its work items, all items the
// same: chunk s takes pages s, s + splits, ..., so that WIDE pages, which stand together and cost
// more, spread. Splits are chosen so that all chunks are of about one size and fill all places of
// as few rounds as is best. A chunk is of one item only.
#ifndef OSCARKV_KERNELS_ATTENTION_ATTEND_PLAN_CUH_
#define OSCARKV_KERNELS_ATTENTION_ATTEND_PLAN_CUH_

#include "kernels/attention/attend_device.cuh"
#include "kernels/attention/attend_kernels.h"

namespace oscarkv::cuda {

constexpr uint32_t kRoundPages = 12;  // a round's beginning and end cost as much as so many pages

struct AttendPlan {
  uint32_t chunks;  // of all
  uint32_t pages;   // of the longest chunk
  uint32_t first_page[kAttendRequestsMax + 1];
  uint32_t first_chunk[kAttendRequestsMax + 1];
};

// A thread block's work.
struct Chunk {
  uint32_t request;
  uint32_t item;  // of the request: KV head major, then group
  uint32_t head;
  uint32_t group;
  uint32_t split;
  uint32_t splits;
  uint32_t slot;        // of this item's split 0; the next splits' are items apart
  uint32_t first_page;  // in the page table; the next ones are splits apart
  uint32_t pages;
};

__device__ __forceinline__ uint32_t DivideUp(uint32_t x, uint32_t by) { return (x + by - 1) / by; }

__device__ __forceinline__ uint32_t Splits(const AttendPlan& plan, uint32_t request,
                                           uint32_t pages) {
  return max(1u, DivideUp(plan.first_page[request + 1] - plan.first_page[request], pages));
}

// By one warp. `plan` is in shared memory.
__device__ __forceinline__ void MakePlan(const AttendArguments& arguments, uint32_t lane,
                                         AttendPlan& plan) {
  const uint32_t requests = arguments.batch.requests;
  const uint32_t items = arguments.kv_heads * arguments.groups;  // of a request
  for (uint32_t i = lane; i <= requests; i += 32)
    plan.first_page[i] = arguments.batch.first_page[i];
  __syncwarp();
  const uint32_t total = (plan.first_page[requests] - plan.first_page[0]) * items;
  const uint32_t least = DivideUp(requests * items, arguments.places);  // rounds
  uint32_t best = 0xffffffffu;
  uint32_t best_pages = 1;
  for (uint32_t rounds = least; rounds < least + kAttendRoundsBeyond; ++rounds) {
    const uint32_t places = rounds * arguments.places;
    if (total / arguments.places + rounds * kRoundPages >= best) break;
    uint32_t pages = max(1u, DivideUp(total, places));
    uint32_t longest;
    while (true) {
      uint32_t chunks = 0;
      longest = 1;
      for (uint32_t i = lane; i < requests; i += 32) {
        const uint32_t splits = Splits(plan, i, pages);
        chunks += splits;
        longest = max(longest, DivideUp(plan.first_page[i + 1] - plan.first_page[i], splits));
      }
      chunks = __reduce_add_sync(kAllLanes, chunks) * items;
      longest = __reduce_max_sync(kAllLanes, longest);
      if (chunks <= places) break;
      pages = max(pages + pages / 16 + 1, static_cast<uint32_t>(uint64_t{pages} * chunks / places));
    }
    const uint32_t cost = rounds * (longest + kRoundPages);
    if (cost < best) {
      best = cost;
      best_pages = pages;
      if (lane == 0) plan.pages = longest;
    }
  }
  uint32_t before = 0;
  for (uint32_t first = 0; first < requests; first += 32) {
    uint32_t chunks = first + lane < requests ? Splits(plan, first + lane, best_pages) * items : 0;
#pragma unroll
    for (uint32_t step = 1; step < 32; step *= 2) {
      const uint32_t below = __shfl_up_sync(kAllLanes, chunks, step);
      if (lane >= step) chunks += below;
    }
    if (first + lane < requests) plan.first_chunk[first + lane + 1] = before + chunks;
    before += __shfl_sync(kAllLanes, chunks, 31);
  }
  if (lane == 0) {
    plan.first_chunk[0] = 0;
    plan.chunks = before;
  }
}

// Chunks of a request come item by item, and requests' first ones are multiples of items: an item,
// and with it the head, is known without the plan.
__device__ __forceinline__ uint32_t HeadOf(const AttendArguments& arguments, uint32_t number) {
  return number % (arguments.kv_heads * arguments.groups) / arguments.groups;
}

// By a whole warp.
__device__ __forceinline__ Chunk FindChunk(const AttendArguments& arguments, const AttendPlan& plan,
                                           uint32_t number, uint32_t lane) {
  uint32_t before = 0;
  for (uint32_t i = lane; i < arguments.batch.requests; i += 32)
    before += plan.first_chunk[i + 1] <= number ? 1 : 0;
  const uint32_t items = arguments.kv_heads * arguments.groups;
  Chunk chunk;
  chunk.request = __reduce_add_sync(kAllLanes, before);
  const uint32_t first = plan.first_chunk[chunk.request];
  chunk.item = number % items;
  chunk.head = chunk.item / arguments.groups;
  chunk.group = chunk.item % arguments.groups;
  chunk.split = (number - first) / items;
  chunk.splits = (plan.first_chunk[chunk.request + 1] - first) / items;
  chunk.slot = first + chunk.item;
  const uint32_t pages = plan.first_page[chunk.request + 1] - plan.first_page[chunk.request];
  chunk.first_page = plan.first_page[chunk.request] + chunk.split;
  chunk.pages = pages > chunk.split ? DivideUp(pages - chunk.split, chunk.splits) : 0;
  return chunk;
}

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_ATTENTION_ATTEND_PLAN_CUH_
