// Pages of a push that are encoded in a device's memory and go from there, without a way through
// host memory. Knows no network and no device.
#ifndef OSCARKV_CLIENT_CPP_DEVICE_SOURCE_H_
#define OSCARKV_CLIENT_CPP_DEVICE_SOURCE_H_

#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "client/cpp/stored_pages.h"
#include "kernels/codec/page_codec.h"

namespace oscarkv::client {

class PeerLink;

// The part of a PageSource that can; called by the thread that pushes.
class DeviceSource {
 public:
  virtual ~DeviceSource() = default;

  // As PageSource::Encode, but that the bytes lie in the device's memory: as many pages at once as
  // it has room for.
  virtual absl::StatusOr<std::span<const EncodedPage>> EncodeOnDevice(
      uint32_t first, std::span<const Encoding> encodings, EncodeReport* report) = 0;
  // The pages that were encoded so last, in host memory.
  virtual absl::StatusOr<std::span<const EncodedPage>> BringToHost() = 0;

  // Has the memory of that handle be the one that Write writes to. An error says why it cannot be
  // written to from here.
  virtual absl::Status OpenStaging(const std::string& handle) = 0;
  struct Placed {
    ByteView page;  // of those encoded last
    uint64_t offset = 0;
  };
  // Copies pages there; done when it returns.
  virtual absl::Status Write(std::span<const Placed> pages) = 0;

  // What sends pages from memory of this device; null: nothing does.
  virtual PeerLink* sender() { return nullptr; }
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_DEVICE_SOURCE_H_
