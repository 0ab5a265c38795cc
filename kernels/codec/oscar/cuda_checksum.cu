// A warp a piece: lane l takes words l, l + 32, ... and moves its remainder on by 32 words with
// tables that the thread block makes for itself (cuda_crc32c.h has the arithmetic).
#include <algorithm>

#include "absl/strings/str_cat.h"

#include "kernels/codec/oscar/cuda_checksum.h"
#include "kernels/codec/oscar/cuda_crc32c.h"
#include "kernels/device/status.h"

namespace oscarkv::cuda {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kWarps = kThreads / 32;
constexpr uint32_t kThreadBlocksMax = 1024;
constexpr uint32_t kAhead = 8;  // words a lane has under way

constexpr uint32_t kOneWord = CrcPower(1);
constexpr uint32_t kTwoWords = CrcPower(2);
constexpr uint32_t kFourWords = CrcPower(4);
constexpr uint32_t kEightWords = CrcPower(8);
constexpr uint32_t kSixteenWords = CrcPower(16);
constexpr uint32_t kStep = CrcPower(kCrcLanes);

__device__ __forceinline__ void MakeTables(CrcTables* tables) {
  for (uint32_t i = threadIdx.x; i < 4 * 256; i += kThreads)
    tables->step[i / 256][i % 256] = CrcMultiply(kStep, (i % 256) << (8 * (i / 256)));
  const uint32_t lane = threadIdx.x;
  if (lane >= kCrcLanes) return;
  uint32_t power = kOneWord;
  if ((lane & 1) != 0) power = CrcMultiply(power, kOneWord);
  if ((lane & 2) != 0) power = CrcMultiply(power, kTwoWords);
  if ((lane & 4) != 0) power = CrcMultiply(power, kFourWords);
  if ((lane & 8) != 0) power = CrcMultiply(power, kEightWords);
  if ((lane & 16) != 0) power = CrcMultiply(power, kSixteenWords);
  tables->power[lane] = power;
}

__device__ __forceinline__ uint32_t Advance(const CrcTables& tables, uint32_t remainder) {
  return tables.step[0][remainder & 0xff] ^ tables.step[1][(remainder >> 8) & 0xff] ^
         tables.step[2][(remainder >> 16) & 0xff] ^ tables.step[3][remainder >> 24];
}

__global__ void __launch_bounds__(kThreads)
    ChecksumKernel(const uint32_t* __restrict__ words, uint64_t piece_words, uint32_t count,
                   uint32_t start, uint32_t* __restrict__ crcs) {
  __shared__ CrcTables tables;
  MakeTables(&tables);
  __syncthreads();
  const uint32_t lane = threadIdx.x % 32;
  for (uint32_t piece = blockIdx.x * kWarps + threadIdx.x / 32; piece < count;
       piece += gridDim.x * kWarps) {
    const uint32_t* const mine = words + piece * piece_words;
    uint32_t remainder = 0;
    uint64_t i = lane;
    for (; i + (kAhead - 1) * kCrcLanes < piece_words; i += kAhead * kCrcLanes) {
      uint32_t next[kAhead];
#pragma unroll
      for (uint32_t a = 0; a < kAhead; ++a) next[a] = __ldcs(mine + i + a * kCrcLanes);
#pragma unroll
      for (uint32_t a = 0; a < kAhead; ++a) remainder = Advance(tables, remainder) ^ next[a];
    }
    for (; i < piece_words; i += kCrcLanes) remainder = Advance(tables, remainder) ^ mine[i];
    // The lane's last word is `behind` words before the end.
    if (lane < piece_words) {
      const auto behind = static_cast<uint32_t>((piece_words - 1 - lane) % kCrcLanes);
      remainder = CrcMultiply(tables.power[behind], remainder);
    }
    remainder = __reduce_xor_sync(0xffffffffu, remainder);
    if (lane == 0) crcs[piece] = ~(remainder ^ start);
  }
}

}  // namespace

absl::Status Checksum(const std::byte* data, uint64_t piece_bytes, uint32_t count, uint32_t* crcs,
                      cudaStream_t stream) {
  if (piece_bytes == 0 || piece_bytes % 4 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("checksum: pieces are whole words of 4 bytes, found ", piece_bytes, " bytes"));
  }
  if (count == 0) return absl::OkStatus();
  const uint64_t words = piece_bytes / 4;
  const uint32_t start = CrcMultiply(0xffffffffu, CrcPower(words));
  const uint32_t blocks = std::min((count + kWarps - 1) / kWarps, kThreadBlocksMax);
  ChecksumKernel<<<blocks, kThreads, 0, stream>>>(reinterpret_cast<const uint32_t*>(data), words,
                                                  count, start, crcs);
  return device::LastLaunch("checksum");
}

}  // namespace oscarkv::cuda
