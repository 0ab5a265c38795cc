// What protobuf writes in front of a field. Included by this folder's own sources only.
#ifndef OSCARKV_PROTO_CONVERT_WIRE_FORMAT_H_
#define OSCARKV_PROTO_CONVERT_WIRE_FORMAT_H_

#include <cstdint>
#include <string>

namespace oscarkv {

enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

inline void AppendVarint(uint64_t value, std::string* out) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>((value & 0x7f) | 0x80));
  out->push_back(static_cast<char>(value));
}

inline void AppendTag(int field, WireType type, std::string* out) {
  AppendVarint((static_cast<uint64_t>(field) << 3) | type, out);
}

}  // namespace oscarkv

#endif  // OSCARKV_PROTO_CONVERT_WIRE_FORMAT_H_
