#include "proto/wire/store_wide.h"

namespace oscarkv {

std::optional<StoreWide> ParseStoreWide(std::string_view name) {
  if (name == "never") return StoreWide::kNever;
  if (name == "tail") return StoreWide::kTail;
  if (name == "until_pressure") return StoreWide::kUntilPressure;
  return std::nullopt;
}

}  // namespace oscarkv
