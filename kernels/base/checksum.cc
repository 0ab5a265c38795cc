#include "kernels/base/checksum.h"

#include <array>
#include <cstddef>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace oscarkv {
namespace {

constexpr uint32_t kReversedPolynomial = 0x82f63b78u;

constexpr std::array<std::array<uint32_t, 256>, 8> MakeTables() {
  std::array<std::array<uint32_t, 256>, 8> tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1u) ? kReversedPolynomial : 0u);
    tables[0][byte] = crc;
  }
  for (uint32_t byte = 0; byte < 256; ++byte) {
    for (size_t slice = 1; slice < 8; ++slice) {
      const uint32_t previous = tables[slice - 1][byte];
      tables[slice][byte] = (previous >> 8) ^ tables[0][previous & 0xffu];
    }
  }
  return tables;
}

constexpr auto kTables = MakeTables();

#if defined(__x86_64__)
// x^n modulo the polynomial, bit 31 being x^0.
constexpr uint64_t PowerOfX(size_t n) {
  uint32_t power = 0x80000000u;
  for (size_t i = 0; i < n; ++i) power = (power >> 1) ^ ((power & 1u) ? kReversedPolynomial : 0u);
  return power;
}

// What advances a state over `bytes` zero bytes. A product of two such values has its bits in the
// order of a message of 64, times x; the crc32 instruction divides that, times x^32: 33 powers that
// come by themselves.
constexpr uint64_t AdvanceOver(size_t bytes) { return PowerOfX(8 * bytes - 33); }

// The state after as many runs of three lanes of kLane bytes as there are in `bytes`, which is left
// with the rest. The instruction takes three cycles and one can begin in each: three chains of them
// run at once, and are put together at the end of their lanes.
template <size_t kLane>
__attribute__((target("sse4.2,pclmul"))) uint64_t ThreeLanes(ByteView* bytes, uint64_t state) {
  constexpr uint64_t kOverOne = AdvanceOver(kLane);
  constexpr uint64_t kOverTwo = AdvanceOver(2 * kLane);
  const __m128i over = _mm_set_epi64x(kOverOne, kOverTwo);
  const std::byte* next = bytes->data();
  size_t left = bytes->size();
  for (; left >= 3 * kLane; next += 3 * kLane, left -= 3 * kLane) {
    uint64_t second = 0;
    uint64_t third = 0;
    for (size_t at = 0; at < kLane; at += 8) {
      state = _mm_crc32_u64(state, LoadLe<uint64_t>(next + at));
      second = _mm_crc32_u64(second, LoadLe<uint64_t>(next + kLane + at));
      third = _mm_crc32_u64(third, LoadLe<uint64_t>(next + 2 * kLane + at));
    }
    const __m128i states =
        _mm_set_epi64x(static_cast<int64_t>(second), static_cast<int64_t>(state));
    const __m128i sum = _mm_xor_si128(_mm_clmulepi64_si128(states, over, 0x00),
                                      _mm_clmulepi64_si128(states, over, 0x11));
    state = third ^ _mm_crc32_u64(0, static_cast<uint64_t>(_mm_cvtsi128_si64(sum)));
  }
  *bytes = ByteView(next, left);
  return state;
}

__attribute__((target("sse4.2,pclmul"))) uint64_t AdvanceSse42(ByteView bytes, uint64_t state) {
  state = ThreeLanes<64>(&bytes, ThreeLanes<512>(&bytes, state));
  const std::byte* next = bytes.data();
  size_t left = bytes.size();
  for (; left >= 8; next += 8, left -= 8) state = _mm_crc32_u64(state, LoadLe<uint64_t>(next));
  uint32_t narrow = static_cast<uint32_t>(state);
  for (; left > 0; ++next, --left) narrow = _mm_crc32_u8(narrow, static_cast<uint8_t>(*next));
  return narrow;
}

// Folds a message onto its last 256 whole bytes, and advances over those and what follows. Each 128
// bits, bit 0 being x^127, are multiplied with x^2048 modulo the polynomial and added to the 128
// that lie 256 bytes further on. A product of two halves is short of one power of x.
__attribute__((target("sse4.2,pclmul,avx512f,vpclmulqdq"))) uint64_t AdvanceWide(ByteView bytes,
                                                                                 uint64_t state) {
  constexpr size_t kRun = 256;
  if (bytes.size() < 2 * kRun) return AdvanceSse42(bytes, state);
  constexpr auto kLow = static_cast<int64_t>(PowerOfX(8 * kRun + 63) << 32);
  constexpr auto kHigh = static_cast<int64_t>(PowerOfX(8 * kRun - 1) << 32);
  const __m512i powers = _mm512_set4_epi64(kHigh, kLow, kHigh, kLow);
  const std::byte* next = bytes.data();
  size_t left = bytes.size() - kRun;
  __m512i sums[4] = {};
  for (size_t i = 0; i < 4; ++i) sums[i] = _mm512_loadu_si512(next + 64 * i);
  sums[0] = _mm512_xor_si512(
      sums[0], _mm512_zextsi128_si512(_mm_cvtsi64_si128(static_cast<int64_t>(state))));
  for (next += kRun; left >= kRun; next += kRun, left -= kRun) {
    for (size_t i = 0; i < 4; ++i) {
      const __m512i low = _mm512_clmulepi64_epi128(sums[i], powers, 0x00);
      const __m512i high = _mm512_clmulepi64_epi128(sums[i], powers, 0x11);
      const __m512i here = _mm512_loadu_si512(next + 64 * i);
      sums[i] = _mm512_ternarylogic_epi64(low, high, here, 0x96);  // the xor of the three
    }
  }
  alignas(64) std::byte folded[kRun];
  for (size_t i = 0; i < 4; ++i) _mm512_store_si512(folded + 64 * i, sums[i]);
  return AdvanceSse42(ByteView(next, left), AdvanceSse42(folded, 0));
}
#endif

}  // namespace

uint32_t Crc32cPortable(ByteView bytes, uint32_t crc) {
  crc = ~crc;
  const std::byte* next = bytes.data();
  size_t left = bytes.size();
  for (; left >= 8; next += 8, left -= 8) {
    const uint64_t word = LoadLe<uint64_t>(next) ^ crc;
    crc = 0;
    for (size_t slice = 0; slice < 8; ++slice)
      crc ^= kTables[7 - slice][(word >> (8 * slice)) & 0xffu];
  }
  for (; left > 0; ++next, --left)
    crc = (crc >> 8) ^ kTables[0][(crc ^ static_cast<uint32_t>(*next)) & 0xffu];
  return ~crc;
}

uint32_t Crc32c(ByteView bytes, uint32_t crc) {
#if defined(__x86_64__)
  static const bool has_narrow =
      __builtin_cpu_supports("sse4.2") != 0 && __builtin_cpu_supports("pclmul") != 0;
  static const bool has_wide = has_narrow && __builtin_cpu_supports("avx512f") != 0 &&
                               __builtin_cpu_supports("vpclmulqdq") != 0;
  if (has_wide) return ~static_cast<uint32_t>(AdvanceWide(bytes, ~crc));
  if (has_narrow) return ~static_cast<uint32_t>(AdvanceSse42(bytes, ~crc));
#endif
  return Crc32cPortable(bytes, crc);
}

}  // namespace oscarkv
