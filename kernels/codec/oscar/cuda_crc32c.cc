#include "kernels/codec/oscar/cuda_crc32c.h"

namespace oscarkv::cuda {
namespace {

// x^(-32 words) mod P: x has order 2^31 - 1.
uint32_t InversePower(uint64_t words) { return CrcPower((uint64_t{1} << 31) - 1 - words); }

}  // namespace

CrcTables MakeCrcTables() {
  CrcTables tables = {};
  const uint32_t step = CrcPower(kCrcLanes);
  for (uint32_t byte = 0; byte < 4; ++byte) {
    for (uint32_t value = 0; value < 256; ++value)
      tables.step[byte][value] = CrcMultiply(step, value << (8 * byte));
  }
  for (uint32_t n = 0; n < kCrcLanes; ++n) tables.power[n] = CrcPower(n + 1);
  return tables;
}

CrcMultiples MakeCrcMultiples() {
  CrcMultiples multiples = {};
  for (uint32_t nibble = 0; nibble < 8; ++nibble) {
    for (uint32_t value = 0; value < 16; ++value) {
      for (uint32_t d = 0; d < kCrcLanes; ++d)
        multiples.of[nibble][value][d] = CrcMultiply(CrcPower(d + 1), value << (4 * nibble));
    }
  }
  return multiples;
}

std::vector<uint32_t> MakeCrcPowers(uint32_t count) {
  std::vector<uint32_t> powers;
  const uint32_t word = CrcPower(1);
  for (uint32_t power = word; powers.size() < count; power = CrcMultiply(power, word))
    powers.push_back(power);
  return powers;
}

CrcFold MakeCrcFold(uint32_t step) {
  CrcFold fold = {};
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t half = 0; half < 2; ++half) {
      const uint32_t power = CrcPower(step - lane % 4 * 4 - half);
      for (uint32_t bit = 0; bit < 32; ++bit) {
        const uint32_t product = CrcMultiply(uint32_t{1} << bit, power);
        for (uint32_t tile = 0; tile < 4; ++tile)
          fold.columns[2 * tile + half][lane] |= (product >> (8 * tile + lane / 4) & 1) << bit;
      }
    }
  }
  return fold;
}

std::vector<uint32_t> MakeCrcRows(uint32_t warps, uint32_t after) {
  std::vector<uint32_t> rows;
  for (uint32_t warp = 0; warp < warps; ++warp) {
    for (uint32_t row = 0; row < 16; ++row)
      rows.push_back(InversePower(kWarpFoldWords * warp + row % 8 * 16 + row / 8 * 2 + after));
  }
  return rows;
}

}  // namespace oscarkv::cuda
