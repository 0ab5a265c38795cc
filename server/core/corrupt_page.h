// What is told of a page whose bytes are not what its producer made, wherever that is found.
#ifndef OSCARKV_SERVER_CORE_CORRUPT_PAGE_H_
#define OSCARKV_SERVER_CORE_CORRUPT_PAGE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>

#include "server/core/block_check.h"
#include "server/core/tier.h"

namespace oscarkv {

// What was being done with it.
enum class CorruptAt : uint8_t {
  kPut,    // it came so, or lay so when a put of its key came
  kMove,   // between tiers, or from one form to the other
  kServe,  // to a reader
  kScrub,
};
inline constexpr size_t kCorruptAts = 4;
constexpr std::string_view CorruptAtName(CorruptAt at) {
  constexpr std::string_view kNames[kCorruptAts] = {"put", "move", "serve", "scrub"};
  return kNames[static_cast<size_t>(at)];
}

// Views stay until the call returns.
struct CorruptPage {
  std::string_view fingerprint;  // of its namespace
  std::string_view key;
  TierKind tier = TierKind::kHost;  // where its bytes lay
  CorruptAt at = CorruptAt::kServe;
  std::optional<BlockPlace> block;  // the first bad one; none: what lay there was no such page
  std::string_view error;           // what was expected, and found
};

// Called once for each, on any thread, under no lock of the store's.
using OnCorruptPage = std::function<void(const CorruptPage&)>;

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_CORRUPT_PAGE_H_
