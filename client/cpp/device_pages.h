// Pages that a sink reads where a server keeps them: in the memory of a GPU that the server shares
// with the processes of its host. Knows no network and no device.
#ifndef OSCARKV_CLIENT_CPP_DEVICE_PAGES_H_
#define OSCARKV_CLIENT_CPP_DEVICE_PAGES_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/codec/page_layout.h"

namespace oscarkv::client {

class PeerLink;

// What keeps pages in place. Destroying it ends it, too.
class PagesHold {
 public:
  virtual ~PagesHold() = default;
  // Ends it, within its fetch's deadline. OK: the pages were in their places until now; anything
  // else: what was read there may be anything.
  virtual absl::Status End() = 0;
};

// A page's blocks of some layers and of all heads.
struct DevicePlace {
  enum class Memory : uint8_t { kShared, kReceived };  // the server's, or the receiver's slots
  Memory memory = Memory::kShared;
  Encoding encoding = Encoding::kPacked;
  BlockRange layers;
  uint64_t offset = 0;  // in that memory
  uint64_t bytes = 0;
};

// The part of a sink (client/cpp/stored_pages.h) that reads pages in place; called between the
// sink's Begin and Finish, by the thread that fetches.
class DevicePages {
 public:
  virtual ~DevicePages() = default;

  // Has the memory of that handle be the one that places are in from now on. An error says why it
  // cannot be read here.
  virtual absl::Status Open(const std::string& handle) = 0;
  // Pages first.. first + count - 1 stay in their places as long as `hold` does. The sink ends it
  // when it has read them; the sink's Finish says kAborted of pages whose hold had ended before.
  virtual void Keep(uint32_t first, uint32_t count, std::unique_ptr<PagesHold> hold) = 0;
  // What receives pages into memory of this device; null: nothing does.
  virtual PeerLink* receiver() { return nullptr; }
  virtual bool receives() const { return false; }
  // Where in the receiver's memory a slot begins that nothing reads any more and that is not kept.
  // Waits for what was taken from it last.
  virtual absl::StatusOr<uint64_t> ReceiveSlot() {
    return absl::UnimplementedError("there is no receiver");
  }
  // Whether that slot may stay as it is until the sink's Finish, so that there are others to go on
  // with; and has it do so.
  virtual bool MayKeepSlot() const { return false; }
  virtual void KeepSlot() {}
  // As PageSink's Room and Take in one, of bytes that are read where they are: until the hold ends,
  // or the slot is given again.
  virtual absl::Status TakeAt(uint32_t page, const DevicePlace& place,
                              std::span<const uint32_t> block_crc32c) = 0;
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_DEVICE_PAGES_H_
