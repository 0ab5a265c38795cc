#include "proto/wire/page_key.h"

#include "absl/strings/str_cat.h"

#include "kernels/base/bytes.h"
#include "kernels/base/sha256.h"

namespace oscarkv {

absl::Status ValidateKey(std::string_view key) {
  if (key.size() >= kKeyBytesMin && key.size() <= kKeyBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("a key must have ", kKeyBytesMin, "..",
                                                 kKeyBytesMax, " bytes, found ", key.size()));
}

std::vector<std::string> ChainKeys(std::span<const uint32_t> tokens, uint32_t page_tokens,
                                   std::string_view parent) {
  std::vector<std::string> keys;
  if (page_tokens == 0) return keys;
  keys.reserve(tokens.size() / page_tokens);
  std::string previous(parent);
  for (size_t first = 0; first + page_tokens <= tokens.size(); first += page_tokens) {
    Sha256 hash;
    hash.Update(AsBytes(previous));
    hash.Update(std::as_bytes(tokens.subspan(first, page_tokens)));
    previous = hash.Finish();
    keys.push_back(previous);
  }
  return keys;
}

}  // namespace oscarkv
