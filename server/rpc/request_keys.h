// The keys of a request, checked.
#ifndef OSCARKV_SERVER_RPC_REQUEST_KEYS_H_
#define OSCARKV_SERVER_RPC_REQUEST_KEYS_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "proto/wire/page_key.h"

namespace oscarkv {

// Views of them. kInvalidArgument: more than `most`, or one that is no key.
template <typename Request>
absl::StatusOr<std::vector<std::string_view>> KeysOf(const Request& request, uint32_t most) {
  if (static_cast<uint32_t>(request.keys_size()) > most) {
    return absl::InvalidArgumentError(
        absl::StrCat("at most ", most, " keys in one call, found ", request.keys_size()));
  }
  std::vector<std::string_view> keys;
  keys.reserve(static_cast<size_t>(request.keys_size()));
  for (const std::string& key : request.keys()) {
    OSCARKV_RETURN_IF_ERROR(Annotate(ValidateKey(key), absl::StrCat("key ", keys.size())));
    keys.push_back(key);
  }
  return keys;
}

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_RPC_REQUEST_KEYS_H_
