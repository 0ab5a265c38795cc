// For how long pages of a namespace that are put WIDE stay so.
#ifndef OSCARKV_PROTO_WIRE_STORE_WIDE_H_
#define OSCARKV_PROTO_WIRE_STORE_WIDE_H_

#include <cstdint>
#include <optional>
#include <string_view>

namespace oscarkv {

// Before the server re-encodes them PACKED with the namespace's transform set. Numbers equal
// oscarkv.v1.StoreWide.
enum class StoreWide : uint8_t {
  kNever = 1,          // at once, the tail of a sequence too
  kTail = 2,           // when the sequence has outgrown them, by recent_tokens
  kUntilPressure = 3,  // when memory is short
};

// "never", "tail", "until_pressure": in configurations, flags and Python.
std::optional<StoreWide> ParseStoreWide(std::string_view name);

}  // namespace oscarkv

#endif  // OSCARKV_PROTO_WIRE_STORE_WIDE_H_
