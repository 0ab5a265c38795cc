// Views of bytes, and little-endian loads and stores: everything oscarkv writes is little-endian.
#ifndef OSCARKV_KERNELS_BASE_BYTES_H_
#define OSCARKV_KERNELS_BASE_BYTES_H_

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace oscarkv {

static_assert(std::endian::native == std::endian::little,
              "oscarkv runs on little-endian machines only");

// Borrowed bytes; never stored without a stated lifetime.
using ByteView = std::span<const std::byte>;
using MutableByteView = std::span<std::byte>;

inline ByteView AsBytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}
inline std::string_view AsText(ByteView bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Loads a trivially copyable value from possibly unaligned bytes. The caller has checked that
// sizeof(T) bytes are there.
template <typename T>
requires std::is_trivially_copyable_v<T> T LoadLe(const std::byte* source) {
  T value;
  std::memcpy(&value, source, sizeof(T));
  return value;
}

template <typename T>
requires std::is_trivially_copyable_v<T>
void StoreLe(std::byte* destination, T value) { std::memcpy(destination, &value, sizeof(T)); }

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_BASE_BYTES_H_
