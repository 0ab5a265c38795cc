// The keys of a request, checked.
#ifndef OSCARKV_SERVER_RPC_REQUEST_KEYS_H_
#define OSCARKV_SERVER_RPC_REQUEST_KEYS_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "proto/wire/page_key.h"

namespace oscarkv {

// kInvalidArgument: more than `most`, or one that is no key.
inline absl::Status CheckKeys(std::span<const std::string_view> keys, uint32_t most) {
  if (keys.size() > most) {
    return absl::InvalidArgumentError(
        absl::StrCat("at most ", most, " keys in one call, found ", keys.size()));
  }
  for (size_t i = 0; i < keys.size(); ++i) {
    const absl::Status status = ValidateKey(keys[i]);
    if (!status.ok()) return Annotate(status, absl::StrCat("key ", i));
  }
  return absl::OkStatus();
}

// Views of them, checked.
template <typename Request>
absl::StatusOr<std::vector<std::string_view>> KeysOf(const Request& request, uint32_t most) {
  std::vector<std::string_view> keys(request.keys().begin(), request.keys().end());
  OSCARKV_RETURN_IF_ERROR(CheckKeys(keys, most));
  return keys;
}

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_RPC_REQUEST_KEYS_H_
