// Page keys: opaque bytes that name a page. Normally the chained hash of all tokens up to the
// page's end.
#ifndef OSCARKV_PROTO_WIRE_PAGE_KEY_H_
#define OSCARKV_PROTO_WIRE_PAGE_KEY_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace oscarkv {

inline constexpr size_t kKeyBytesMin = 16;
inline constexpr size_t kKeyBytesMax = 64;

// kInvalidArgument when `key` is not 16..64 bytes.
absl::Status ValidateKey(std::string_view key);

// The keys of the whole pages of a token sequence, h_i = SHA-256(h_{i-1} || each token as u32
// little-endian), the first page without a prior; 32 raw bytes each. The scheme of SGLang's page
// hashes ("sha256-chain-v1" in a namespace). Tokens after the last whole page have no key. `parent`
// is empty or the 32-byte key of the page before the first.
std::vector<std::string> ChainKeys(std::span<const uint32_t> tokens, uint32_t page_tokens,
                                   std::string_view parent = {});

}  // namespace oscarkv

#endif  // OSCARKV_PROTO_WIRE_PAGE_KEY_H_
