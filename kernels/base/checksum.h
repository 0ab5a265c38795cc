// CRC32C (Castagnoli polynomial, RFC 3720 section B.4), the checksum of every block.
#ifndef OSCARKV_KERNELS_BASE_CHECKSUM_H_
#define OSCARKV_KERNELS_BASE_CHECKSUM_H_

#include <cstdint>

#include "kernels/base/bytes.h"

namespace oscarkv {

// The CRC of `bytes`, or of everything before it followed by `bytes` when `crc` is the CRC of what
// came before. Uses what the processor has of SSE4.2, PCLMUL and AVX-512, a table otherwise; all
// give the same value. Thread-safe.
uint32_t Crc32c(ByteView bytes, uint32_t crc = 0);

// The table form, always available; what Crc32c is tested against.
uint32_t Crc32cPortable(ByteView bytes, uint32_t crc = 0);

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_BASE_CHECKSUM_H_
