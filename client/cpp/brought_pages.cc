#include "client/cpp/brought_pages.h"

namespace oscarkv::client {

void BroughtPages::Add(uint32_t page, const DevicePlace& place,
                       std::span<const uint32_t> block_crc32c) {
  if (pages_.size() <= page) pages_.resize(page + size_t{1});
  pages_[page] = {place, crcs_.size()};
  crcs_.insert(crcs_.end(), block_crc32c.begin(), block_crc32c.end());
}

const BroughtPages::Page* BroughtPages::Find(uint32_t page, BlockRange layers) const {
  if (page >= pages_.size()) return nullptr;
  const BlockRange here = pages_[page].place.layers;
  const bool whole =
      layers.first >= here.first && layers.first + layers.count <= here.first + here.count;
  return whole ? &pages_[page] : nullptr;
}

bool BroughtPages::Take(const PageCodec& codec, const PagesWanted& wanted, DevicePages& sink,
                        PagesTaken* taken) const {
  const uint32_t heads = codec.geometry().kv_heads;
  bool any = false;
  for (uint32_t number = wanted.first; number < wanted.end; ++number) {
    const Page* page = Find(number, wanted.layers);
    if (page == nullptr) break;
    any = true;
    const PageLayout& layout = codec.layout(page->place.encoding);
    DevicePlace place = page->place;
    const uint32_t above = wanted.layers.first - place.layers.first;
    place.offset += layout.range_bytes({place.layers.first, above}, {0, heads});
    place.layers = wanted.layers;
    place.bytes = layout.range_bytes(wanted.layers, {0, heads});
    const std::span crcs = std::span(crcs_).subspan(page->first_crc + size_t{above} * heads,
                                                    size_t{wanted.layers.count} * heads);
    const uint32_t before = taken->pages;
    CountTaken(sink.TakeAt(number, place, crcs), taken);
    if (taken->pages == before) break;
    taken->bytes += place.bytes;
  }
  return any;
}

}  // namespace oscarkv::client
