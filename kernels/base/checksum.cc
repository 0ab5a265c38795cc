#include "kernels/base/checksum.h"

#include <array>
#include <cstddef>

#if defined(__x86_64__)
#include <nmmintrin.h>
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
__attribute__((target("sse4.2"))) uint32_t Crc32cSse42(ByteView bytes, uint32_t crc) {
  uint64_t state = ~crc;
  const std::byte* next = bytes.data();
  size_t left = bytes.size();
  for (; left >= 8; next += 8, left -= 8) state = _mm_crc32_u64(state, LoadLe<uint64_t>(next));
  uint32_t narrow = static_cast<uint32_t>(state);
  for (; left > 0; ++next, --left) narrow = _mm_crc32_u8(narrow, static_cast<uint8_t>(*next));
  return ~narrow;
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
  static const bool has_sse42 = __builtin_cpu_supports("sse4.2") != 0;
  if (has_sse42) return Crc32cSse42(bytes, crc);
#endif
  return Crc32cPortable(bytes, crc);
}

}  // namespace oscarkv
