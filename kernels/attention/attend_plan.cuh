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
constexpr uint32_t kTeamMost = 4;     // warps to a page
constexpr uint32_t kLongChunk = 24;   // pages, from which on few warps to a page wait less

// In shared memory.
struct AttendPlan {
  uint32_t splits;  // of all requests: so many chunks for each item of a request
  uint32_t team;    // warps to a page
  uint32_t teams;
  uint32_t arrivals;  // that each of a team's warps stands for: of kTeamMost together
  uint32_t first_page[kAttendRequestsMax + 1];
  uint32_t first_split[kAttendRequestsMax + 1];

  __device__ __forceinline__ uint32_t Pages(uint32_t request) const {
    return first_page[request + 1] - first_page[request];
  }
};

__device__ __forceinline__ uint32_t DivideUp(uint32_t x, uint32_t by) { return (x + by - 1) / by; }

__device__ __forceinline__ uint32_t ItemsOfRequest(const AttendArguments& arguments) {
  return arguments.kv_heads * arguments.groups;
}

// What a chunk's number says without a plan. Chunks are numbered split by split, items of a split
// side by side.
struct ChunkPlace {
  uint32_t split;  // of all requests'
  uint32_t item;   // of the request: KV head major, then group
  uint32_t head;
  uint32_t group;

  __device__ __forceinline__ ChunkPlace(const AttendArguments& arguments, uint32_t number)
      : split(number / ItemsOfRequest(arguments)),
        item(number - split * ItemsOfRequest(arguments)),
        head(arguments.groups == 1 ? item : item / arguments.groups),
        group(item - head * arguments.groups) {}
};

// A thread block's work.
struct Chunk {
  uint32_t request;
  uint32_t item;
  uint32_t head;
  uint32_t group;
  uint32_t splits;      // of the request
  uint32_t slot;        // for its results; those of the item's other splits are items apart
  uint32_t first_slot;  // of the item's split 0
  uint32_t page;        // of the request's: the first; the next ones are splits apart
  uint32_t pages_end;   // how many the request has
  uint32_t first_page;  // of the request, in the page table
};

// Whether there is one request only, which then has all places: its number is no question, and
// where its pages begin and end says all.
__device__ __forceinline__ bool HasOneRequest(const AttendArguments& arguments) {
  return arguments.batch.requests == 1 && arguments.splits_of_one > 0;
}

// Splits of requests, when chunks have so many pages: as many as come to `longest` pages.
__device__ __forceinline__ uint32_t CountSplits(const AttendArguments& arguments,
                                                const AttendPlan& plan, uint32_t pages,
                                                uint32_t lane, uint32_t& longest) {
  uint32_t splits = 0;
  longest = 1;
  for (uint32_t i = lane; i < arguments.batch.requests; i += 32) {
    const uint32_t of_request = max(1u, DivideUp(plan.Pages(i), pages));
    splits += of_request;
    longest = max(longest, DivideUp(plan.Pages(i), of_request));
  }
  longest = __reduce_max_sync(kAllLanes, longest);
  return __reduce_add_sync(kAllLanes, splits);
}

// How many pages chunks should have.
__device__ __forceinline__ uint32_t ChoosePages(const AttendArguments& arguments,
                                                const AttendPlan& plan, uint32_t lane) {
  const uint32_t requests = arguments.batch.requests;
  const uint32_t items = ItemsOfRequest(arguments);
  const uint32_t total = (plan.first_page[requests] - plan.first_page[0]) * items;
  const uint32_t least = DivideUp(requests * items, arguments.places);  // rounds
  uint32_t best_cost = 0xffffffffu;
  uint32_t best = 1;
  for (uint32_t rounds = least; rounds < least + kAttendRoundsBeyond; ++rounds) {
    const uint32_t places = rounds * arguments.places;
    if (total / arguments.places + rounds * kRoundPages >= best_cost) break;
    uint32_t pages = max(1u, DivideUp(total, places));
    uint32_t longest;
    while (true) {
      const uint32_t chunks = CountSplits(arguments, plan, pages, lane, longest) * items;
      if (chunks <= places) break;
      pages = max(pages + pages / 16 + 1, static_cast<uint32_t>(uint64_t{pages} * chunks / places));
    }
    const uint32_t cost = rounds * (longest + kRoundPages);
    if (cost < best_cost) {
      best_cost = cost;
      best = pages;
    }
  }
  return best;
}

// By one warp, for `warps` that compute.
__device__ __forceinline__ void MakePlan(const AttendArguments& arguments, uint32_t warps,
                                         uint32_t lane, AttendPlan& plan) {
  const uint32_t requests = arguments.batch.requests;
  const uint32_t* first_page = arguments.batch.first_page;
  const uint32_t tiles = DivideUp(arguments.page_tokens, kTileTokens);
  const auto choose_team = [&](bool is_long) {
    const uint32_t most = is_long ? 2 : kTeamMost;
    plan.team = tiles >= most ? most : tiles >= 2 ? 2 : 1;
    plan.teams = warps / plan.team;
    plan.arrivals = kTeamMost / plan.team;
  };
  if (HasOneRequest(arguments)) {
    const uint32_t first = first_page[0];
    const uint32_t pages = first_page[1] - first;
    const uint32_t splits = max(1u, min(pages, arguments.splits_of_one));
    if (lane == 0) {
      plan.splits = plan.first_split[1] = splits;
      choose_team(pages > splits * kLongChunk);
      plan.first_split[0] = 0;
      plan.first_page[0] = first;
      plan.first_page[1] = first + pages;
    }
    __syncwarp();
    return;
  }
  for (uint32_t i = lane; i <= requests; i += 32) plan.first_page[i] = first_page[i];
  __syncwarp();
  const uint32_t pages = ChoosePages(arguments, plan, lane);
  uint32_t longest;
  CountSplits(arguments, plan, pages, lane, longest);
  uint32_t before = 0;
  for (uint32_t first = 0; first < requests; first += 32) {
    uint32_t splits =
        first + lane < requests ? max(1u, DivideUp(plan.Pages(first + lane), pages)) : 0;
#pragma unroll
    for (uint32_t step = 1; step < 32; step *= 2) {
      const uint32_t below = __shfl_up_sync(kAllLanes, splits, step);
      if (lane >= step) splits += below;
    }
    if (first + lane < requests) plan.first_split[first + lane + 1] = before + splits;
    before += __shfl_sync(kAllLanes, splits, 31);
  }
  if (lane == 0) {
    plan.first_split[0] = 0;
    plan.splits = before;
    choose_team(longest > kLongChunk);
  }
  __syncwarp();
}

// The request whose split it is; by a whole warp.
__device__ __forceinline__ uint32_t FindRequest(const AttendArguments& arguments,
                                                const AttendPlan& plan, uint32_t split,
                                                uint32_t lane) {
  if (arguments.batch.requests == 1) return 0;
  uint32_t before = 0;
  for (uint32_t i = lane; i < arguments.batch.requests; i += 32)
    before += plan.first_split[i + 1] <= split ? 1 : 0;
  return __reduce_add_sync(kAllLanes, before);
}

__device__ __forceinline__ Chunk FindChunk(const AttendArguments& arguments, const AttendPlan& plan,
                                           const ChunkPlace& place, uint32_t request) {
  const uint32_t first = plan.first_split[request];
  const uint32_t items = ItemsOfRequest(arguments);
  return {.request = request,
          .item = place.item,
          .head = place.head,
          .group = place.group,
          .splits = plan.first_split[request + 1] - first,
          .slot = place.split * items + place.item,
          .first_slot = first * items + place.item,
          .page = place.split - first,
          .pages_end = plan.Pages(request),
          .first_page = plan.first_page[request]};
}

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_ATTENTION_ATTEND_PLAN_CUH_
