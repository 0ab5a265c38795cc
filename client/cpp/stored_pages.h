// Pages as a store holds them, for callers that encode and decode elsewhere than in this library:
// on a GPU, say. Knows no network; Namespace::FetchTo and PushFrom bring both together.
#ifndef OSCARKV_CLIENT_CPP_STORED_PAGES_H_
#define OSCARKV_CLIENT_CPP_STORED_PAGES_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "client/cpp/device_pages.h"
#include "kernels/base/bytes.h"
#include "kernels/codec/page_codec.h"

namespace oscarkv::client {

class DeviceSource;

// Takes the pages of one fetch. Called from the thread that fetches. An error that is not said to
// mean something else ends the fetch, which returns it.
class PageSink {
 public:
  // TakeFrom copies in pieces of these bytes: one can be looked at while a core's cache has it.
  static constexpr size_t kCopiedAtOnce = 256 << 10;
  virtual ~PageSink() = default;

  // How many pages it has been made for.
  virtual uint64_t pages() const = 0;
  // In what order the layers are fetched: all pages' blocks of the first group, then of the next.
  virtual std::vector<BlockRange> LayerGroups(BlockRange layers) const = 0;
  // The fetch begins, of these parts of pages.
  virtual absl::Status Begin(BlockRange layers, BlockRange heads) = 0;
  // Room for `bytes` bytes, the blocks of a group of layers of page `page`; pages come in order.
  // Asked for again when the page has to be fetched once more.
  virtual absl::StatusOr<MutableByteView> Room(uint32_t page, Encoding encoding, BlockRange layers,
                                               uint64_t bytes) = 0;
  // The first `bytes` bytes of what it gave room for are there, and stay until Take, or until room
  // is asked for again: what can be done with a part is done while the rest is on its way.
  virtual void Filled(uint64_t /*bytes*/) {}
  // What it gave room for is there, with these checksums of its blocks; nothing was verified.
  // kDataLoss: a checksum is wrong, the page is corrupt, and none after it is wanted.
  virtual absl::Status Take(std::span<const uint32_t> block_crc32c) = 0;
  // Room and Take in one, of bytes that are there already: a sink that can read them where they are
  // spares a copy. They may go when this returns; memory of another process may even have changed
  // meanwhile, and then the page does not count (EndLayers).
  virtual absl::Status TakeFrom(uint32_t page, Encoding encoding, BlockRange layers, ByteView bytes,
                                std::span<const uint32_t> block_crc32c) {
    const absl::StatusOr<MutableByteView> room = Room(page, encoding, layers, bytes.size());
    if (!room.ok()) return room.status();
    for (size_t at = 0; at < bytes.size(); at += kCopiedAtOnce) {
      const size_t end = std::min(at + kCopiedAtOnce, bytes.size());
      std::memcpy(room->data() + at, bytes.data() + at, end - at);
      if (end < bytes.size()) Filled(end);
    }
    return Take(block_crc32c);
  }
  // How it reads pages where a GPU of this host holds them; null: it does not.
  virtual DevicePages* device_pages() { return nullptr; }
  // A group is complete: the first `pages` pages of it came, and stayed until they were taken.
  virtual absl::Status EndLayers(BlockRange layers, uint32_t pages) = 0;
  // Ends the fetch: what each page that came has come to, kDataLoss where it is corrupt, kAborted
  // where it did not stay until it was read; pages that are not named are whole.
  virtual absl::StatusOr<std::vector<absl::Status>> Finish() = 0;
  // Ends a fetch that failed, at whatever point; after Finish it does nothing.
  virtual void Abandon(const absl::Status& reason) = 0;
};

struct EncodedPage {
  Encoding encoding = Encoding::kWide;
  ByteView bytes;
  std::span<const uint32_t> block_crc32c;
  // Keeps `bytes` as they are for as long as it lives, so that they are sent from where they lie;
  // null: they are copied first. A connection that is stuck may hold on to it after the push.
  std::shared_ptr<const void> holder = nullptr;
};

// Gives the pages of one push. Called from the thread that pushes; an error ends the push, which
// returns it.
class PageSource {
 public:
  virtual ~PageSource() = default;

  // How many pages it has been made for.
  virtual uint64_t pages() const = 0;
  // The next Encode may put pages here, whole and each on a 64-byte boundary, which spares a copy;
  // wherever else it puts them will do. Empty: there is no such room.
  virtual void UseRoom(MutableByteView) {}
  // Encodes pages from `first` on in these forms: as many as it can hold at once, one at least.
  // They stay until the next call. What encoding met is added to the report.
  virtual absl::StatusOr<std::span<const EncodedPage>> Encode(uint32_t first,
                                                              std::span<const Encoding> encodings,
                                                              EncodeReport* report) = 0;
  // How it leaves pages in a GPU's memory (client/cpp/device_source.h); null: it does not.
  virtual DeviceSource* device_source() { return nullptr; }
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_STORED_PAGES_H_
