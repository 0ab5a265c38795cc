// What a path for devices has brought of pages beyond the layers that were wanted: a call costs
// more than the bytes, so it brings all layers of a fetch, and later groups of them are taken from
// here. Included by the client's own sources only.
#ifndef OSCARKV_CLIENT_CPP_BROUGHT_PAGES_H_
#define OSCARKV_CLIENT_CPP_BROUGHT_PAGES_H_

#include <cstdint>
#include <span>
#include <vector>

#include "client/cpp/device_pages.h"
#include "client/cpp/page_path.h"
#include "kernels/codec/page_codec.h"

namespace oscarkv::client {

// Of one fetch, by one thread. Places are good until the fetch ends.
class BroughtPages {
 public:
  // `place` is of all heads; `block_crc32c`: of its blocks.
  void Add(uint32_t page, const DevicePlace& place, std::span<const uint32_t> block_crc32c);
  // Hands to the sink the wanted layers of the pages that are here, from wanted.first on, as far as
  // they follow each other. False: that one is not.
  bool Take(const PageCodec& codec, const PagesWanted& wanted, DevicePages& sink,
            PagesTaken* taken) const;

 private:
  struct Page {
    DevicePlace place;
    size_t first_crc = 0;  // in crcs_
  };
  const Page* Find(uint32_t page, BlockRange layers) const;

  std::vector<Page> pages_;  // by number; of those that are not here, no layers
  std::vector<uint32_t> crcs_;
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_BROUGHT_PAGES_H_
