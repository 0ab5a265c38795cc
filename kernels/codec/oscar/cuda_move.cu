// An engine's rows as they are, block by block, and back: WIDE pages, and PACKED pages of the
// reference engine's INT2 pool. A thread block takes one block of a page, 16 bytes a thread at a
// time, all of which are on their way at once. Decoding writes nothing before the checksum is
// known: what the registers hold by then is written from there, what came before is read again.
#include <type_traits>

#include "kernels/codec/oscar/cuda_crc_fold.cuh"
#include "kernels/codec/oscar/cuda_move.h"
#include "kernels/codec/oscar/cuda_primitives.cuh"
#include "kernels/device/status.h"

namespace oscarkv::cuda {
namespace {

__device__ __forceinline__ uint32_t Quotient(uint32_t number, const Divisor& divisor) {
  const uint64_t sum = uint64_t{__umulhi(number, divisor.multiplier)} + number;
  return static_cast<uint32_t>(sum >> divisor.shift);
}

// Which block of which page a thread block has, in tiles of Kind::kHeld vectors a thread.
template <typename Kind, typename Batch>
struct Work {
  using PageBytes = std::remove_cvref_t<decltype(*Batch::page_bytes)>;

  const MoveArguments<Kind>& arguments;
  const int64_t* slots;
  uint64_t number;  // of the block, in status words and checksums
  PageBytes block;
  std::byte* base[Kind::kParts];  // of the engine's rows of this layer and head
  bool usable;                    // the pointers are
  uint32_t vectors;
  uint32_t tiles;

  __device__ __forceinline__ Work(const MoveArguments<Kind>& of, const Batch& batch,
                                  uint64_t block_number)
      : arguments(of), number(block_number) {
    const uint32_t blocks = batch.layers.count * batch.heads.count;
    const auto page = static_cast<uint32_t>(number / blocks);
    const auto in_page = static_cast<uint32_t>(number % blocks);
    const uint32_t layer = batch.layers.first + in_page / batch.heads.count;
    const uint32_t head = batch.heads.first + in_page % batch.heads.count;
    slots = batch.slots + uint64_t{page} * arguments.page_tokens;
    block = batch.page_bytes[page];
    usable = IsUsable(block);
    block += uint64_t{in_page} * arguments.stride_vectors * sizeof(uint4);
#pragma unroll
    for (uint32_t part = 0; part < Kind::kParts; ++part) {
      base[part] = arguments.part[part].layer_base[layer];
      usable = usable && IsUsable(base[part], arguments.part[part].alignment);
      base[part] += int64_t{head} * arguments.part[part].head_stride;
    }
    vectors = (arguments.content_words + 3) / 4;
    tiles = (vectors + kTileVectors - 1) / kTileVectors;
  }

  static constexpr uint32_t kTileVectors = Kind::kHeld * Kind::kThreads;
  // The first of all threads' vectors of a step, and this thread's.
  static __device__ __forceinline__ uint32_t First(uint32_t tile, uint32_t step) {
    return tile * kTileVectors + step * Kind::kThreads;
  }
  static __device__ __forceinline__ uint32_t Mine(uint32_t tile, uint32_t step) {
    return First(tile, step) + threadIdx.x;
  }
};

// Where the engine keeps a word of a block.
template <typename Kind>
struct Place {
  std::byte* at = nullptr;  // null: nowhere
  uint32_t absent[2] = {};  // what stands for its row's words of even and odd number then
  bool odd = false;
  bool bad_slot = false;
  bool whole = true;  // the engine keeps the three words behind it there too

  template <typename Work>
  __device__ __forceinline__ Place(const Work& work, uint32_t word) {
    const MoveArguments<Kind>& arguments = work.arguments;
    uint32_t first_word = 0;
    Divisor row_words = arguments.part[0].row_words;
    int64_t block_stride = arguments.part[0].block_stride;
    int64_t token_stride = arguments.part[0].token_stride;
    std::byte* base = work.base[0];
    uint32_t alignment = arguments.part[0].alignment;
    absent[0] = arguments.part[0].absent[0];
    absent[1] = arguments.part[0].absent[1];
#pragma unroll
    for (uint32_t i = 1; i < Kind::kParts; ++i) {
      const MovePart& part = arguments.part[i];
      if (word < part.first_word) continue;
      first_word = part.first_word;
      row_words = part.row_words;
      block_stride = part.block_stride;
      token_stride = part.token_stride;
      base = work.base[i];
      alignment = part.alignment;
      absent[0] = part.absent[0];
      absent[1] = part.absent[1];
    }
    const uint32_t in_part = word - first_word;
    const uint32_t row = Quotient(in_part, row_words);
    const uint32_t column = in_part - row * row_words.value;
    const int64_t slot = work.slots[row];
    if constexpr (!Kind::kVectors) whole = alignment == 16 && in_part % 4 == 0;
    bad_slot = slot >= arguments.slots;
    odd = column % 2 == 1;
    if (bad_slot || slot < 0) return;
    const auto index = static_cast<uint32_t>(slot);
    const uint32_t engine_block = Quotient(index, arguments.block_tokens);
    const uint32_t in_block = index - engine_block * arguments.block_tokens.value;
    at = base + int64_t{engine_block} * block_stride + int64_t{in_block} * token_stride +
         column * sizeof(uint32_t);
  }
};

// A vector of a block from the engine's rows.
template <typename Kind, typename Work>
__device__ __forceinline__ uint4 Gather(const Work& work, uint32_t vector, bool& absent) {
  const Place<Kind> place(work, vector * 4);
  if (place.whole) {
    absent = absent || place.at == nullptr;
    return place.at != nullptr
               ? __ldcs(reinterpret_cast<const uint4*>(place.at))
               : make_uint4(place.absent[0], place.absent[1], place.absent[0], place.absent[1]);
  }
  uint32_t words[4] = {};
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t word = vector * 4 + i;
    if (word >= work.arguments.content_words) continue;
    const Place<Kind> of_word(work, word);
    absent = absent || of_word.at == nullptr;
    words[i] = of_word.at != nullptr ? __ldcs(reinterpret_cast<const uint32_t*>(of_word.at))
               : of_word.odd         ? of_word.absent[1]
                                     : of_word.absent[0];
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// A vector of a block to the engine's rows.
template <typename Kind, typename Work>
__device__ __forceinline__ void Scatter(const Work& work, uint32_t vector, uint4 words,
                                        bool& bad_slot) {
  const Place<Kind> place(work, vector * 4);
  if (place.whole) {
    bad_slot = bad_slot || place.bad_slot;
    if (place.at != nullptr) StoreGlobal(place.at, words);
    return;
  }
  const uint32_t all[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t word = vector * 4 + i;
    if (word >= work.arguments.content_words) continue;
    const Place<Kind> of_word(work, word);
    bad_slot = bad_slot || of_word.bad_slot;
    if (of_word.at != nullptr) StoreGlobal(of_word.at, all[i]);
  }
}

// The block's checksum, of which each warp has a part.
template <typename Kind>
__device__ __forceinline__ uint32_t Checksum(const MoveArguments<Kind>& arguments,
                                             const FoldedCrc& crc, uint32_t (&scratch)[32]) {
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t of_warp = crc.Sum(arguments.crc_rows[warp * 16 + FoldedCrc::Row()]);
  if (threadIdx.x % 32 == 0) scratch[warp] = of_warp;
  __syncthreads();
  uint32_t sum = arguments.crc_start;
#pragma unroll
  for (uint32_t i = 0; i < Kind::kThreads / 32; ++i) sum ^= scratch[i];
  return ~sum;
}

__device__ __forceinline__ void Report(uint32_t* status, uint32_t bits) {
  if (threadIdx.x == 0 && bits != 0) atomicOr(status, bits);
}

template <typename Kind>
__device__ __forceinline__ void Move(const Work<Kind, DeviceEncodeBatch>& work,
                                     const DeviceEncodeBatch& batch, FoldedCrc crc,
                                     uint32_t (&scratch)[32]) {
  auto* block = reinterpret_cast<uint4*>(work.block);
  bool absent = false;
  for (uint32_t tile = 0; tile < work.tiles; ++tile) {
    uint4 held[Kind::kHeld];
#pragma unroll
    for (uint32_t step = 0; step < Kind::kHeld; ++step) {
      const uint32_t vector = work.Mine(tile, step);
      held[step] =
          vector < work.vectors ? Gather<Kind>(work, vector, absent) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (uint32_t step = 0; step < Kind::kHeld; ++step) {
      if (work.First(tile, step) >= work.vectors) continue;
      const uint32_t vector = work.Mine(tile, step);
      if (vector < work.vectors) StoreGlobal(block + vector, held[step]);
      crc.Add(held[step]);
    }
  }
  const uint32_t padding = work.arguments.stride_vectors - work.vectors;
  if (threadIdx.x < padding)
    StoreGlobal(block + work.vectors + threadIdx.x, make_uint4(0, 0, 0, 0));
  const bool any_absent = __syncthreads_or(absent) != 0;
  const uint32_t sum = Checksum(work.arguments, crc, scratch);
  if (threadIdx.x == 0) batch.block_crc32c[work.number] = sum;
  Report(&batch.status[work.number], any_absent ? work.arguments.absent_status : 0);
}

template <typename Kind>
__device__ __forceinline__ void Move(const Work<Kind, DeviceDecodeBatch>& work,
                                     const DeviceDecodeBatch& batch, FoldedCrc crc,
                                     uint32_t (&scratch)[32]) {
  const auto* block = reinterpret_cast<const uint4*>(work.block);
  const uint32_t expected = batch.block_crc32c[work.number];
  uint4 held[Kind::kHeld];
  const auto load = [&](uint32_t tile) {
#pragma unroll
    for (uint32_t step = 0; step < Kind::kHeld; ++step) {
      const uint32_t vector = work.Mine(tile, step);
      held[step] = make_uint4(0, 0, 0, 0);
      if (vector >= work.vectors) continue;
      held[step] = __ldcs(block + vector);
      if constexpr (!Kind::kVectors)
        held[step] = KeepWords(held[step], work.arguments.content_words - vector * 4);
    }
  };
  for (uint32_t tile = 0; tile < work.tiles; ++tile) {
    load(tile);
#pragma unroll
    for (uint32_t step = 0; step < Kind::kHeld; ++step) {
      if (work.First(tile, step) < work.vectors) crc.Add(held[step]);
    }
  }
  const bool good = Checksum(work.arguments, crc, scratch) == expected;
  bool bad_slot = false;
  for (uint32_t tile = good ? work.tiles : 0; tile-- > 0;) {
    if (tile + 1 != work.tiles) load(tile);
#pragma unroll
    for (uint32_t step = 0; step < Kind::kHeld; ++step) {
      const uint32_t vector = work.Mine(tile, step);
      if (vector < work.vectors) Scatter<Kind>(work, vector, held[step], bad_slot);
    }
  }
  const bool any_bad = __syncthreads_or(bad_slot) != 0;
  Report(&batch.status[work.number], (good ? 0 : kBadChecksum) | (any_bad ? kBadSlot : 0));
}

template <typename Kind, typename Batch>
__global__ void __launch_bounds__(Kind::kThreads, Kind::kResident)
    MoveKernel(const __grid_constant__ MoveArguments<Kind> arguments,
               const __grid_constant__ Batch batch) {
  __shared__ uint32_t scratch[32];
  const FoldedCrc crc(arguments.fold->columns);
  const Work<Kind, Batch> work(arguments, batch, blockIdx.x);
  if (work.usable) {
    Move(work, batch, crc, scratch);
  } else {
    Report(&batch.status[work.number], kBadPointer);
  }
}

template <typename Kind, typename Batch>
absl::Status Launch(const MoveArguments<Kind>& arguments, const Batch& batch, cudaStream_t stream) {
  const uint32_t blocks = batch.pages * batch.layers.count * batch.heads.count;
  MoveKernel<Kind, Batch><<<blocks, Kind::kThreads, 0, stream>>>(arguments, batch);
  return device::LastLaunch("moving rows");
}

}  // namespace

template <typename Kind>
absl::Status LaunchMove(const MoveArguments<Kind>& arguments, const DeviceEncodeBatch& batch,
                        cudaStream_t stream) {
  return Launch(arguments, batch, stream);
}

template <typename Kind>
absl::Status LaunchMove(const MoveArguments<Kind>& arguments, const DeviceDecodeBatch& batch,
                        cudaStream_t stream) {
  return Launch(arguments, batch, stream);
}

template absl::Status LaunchMove(const MoveArguments<WideKind>&, const DeviceEncodeBatch&,
                                 cudaStream_t);
template absl::Status LaunchMove(const MoveArguments<WideKind>&, const DeviceDecodeBatch&,
                                 cudaStream_t);
template absl::Status LaunchMove(const MoveArguments<PoolKind>&, const DeviceEncodeBatch&,
                                 cudaStream_t);
template absl::Status LaunchMove(const MoveArguments<SmallWideKind>&, const DeviceEncodeBatch&,
                                 cudaStream_t);
template absl::Status LaunchMove(const MoveArguments<PoolKind>&, const DeviceDecodeBatch&,
                                 cudaStream_t);
template absl::Status LaunchMove(const MoveArguments<SmallWideKind>&, const DeviceDecodeBatch&,
                                 cudaStream_t);

}  // namespace oscarkv::cuda
