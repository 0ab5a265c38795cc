#include "tests/gpu/transfer_world.h"

#include <algorithm>
#include <utility>

#include "tests/gpu/gpu_cache.h"

namespace oscarkv::testing {

using client::GpuTransferOptions;
using client::HostPage;
using client::HostPageRoom;
using client::TransferPart;
using device::DeviceBuffer;
using device::PinnedBuffer;

EngineOnGpu::EngineOnGpu(EngineCache& cache, const Geometry& geometry) {
  EngineView view = cache.View();
  std::vector<std::byte*> k;
  std::vector<std::byte*> v;
  client::GpuCacheBytes bytes;
  for (size_t layer = 0; layer < cache.memory().size(); ++layer) {
    const Bytes& memory = cache.memory()[layer];
    layers_.push_back(OrDie(DeviceBuffer::CopyOf(std::span(memory))));
    const auto k_offset = view.k.layer_base[layer] - memory.data();
    const auto v_offset = view.v.layer_base[layer] - memory.data();
    k.push_back(layers_.back().data() + k_offset);
    v.push_back(layers_.back().data() + v_offset);
    bytes = {.k = memory.size() - static_cast<uint64_t>(k_offset),
             .v = memory.size() - static_cast<uint64_t>(v_offset)};
  }
  view.k.layer_base = k;
  view.v.layer_base = v;
  cache_ =
      std::make_unique<client::GpuCache>(OrDie(client::GpuCache::Create(view, geometry, bytes)));
}

void EngineOnGpu::CopyTo(EngineCache& cache) const {
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    std::byte* memory = cache.View().k.layer_base[layer];  // K's first row is where it starts
    OrDie(layers_[layer].CopyTo({memory, cache.memory()[layer].size()}));
  }
}

PinnedPages::PinnedPages(const cuda::CudaPageCodec& codec, const std::vector<Encoding>& encodings)
    : encodings_(encodings) {
  for (Encoding encoding : encodings) {
    const PageLayout& layout = codec.layout(encoding);
    buffers_.push_back(OrDie(PinnedBuffer::Allocate(layout.page_bytes())));
    std::ranges::fill(buffers_.back().bytes(), std::byte{0x3c});
    crcs_.emplace_back(layout.geometry().blocks());
  }
}

PinnedPages::PinnedPages(const cuda::CudaPageCodec& codec, const std::vector<Encoding>& encodings,
                         const std::vector<EncodedPage>& pages)
    : PinnedPages(codec, encodings) {
  for (size_t page = 0; page < pages.size(); ++page) {
    std::ranges::copy(pages[page].bytes, buffers_[page].bytes().begin());
    crcs_[page] = pages[page].crcs;
  }
}

std::vector<HostPage> PinnedPages::Held() const {
  std::vector<HostPage> held;
  for (size_t page = 0; page < buffers_.size(); ++page)
    held.push_back({encodings_[page], buffers_[page].bytes().data(), crcs_[page].data()});
  return held;
}

std::vector<HostPageRoom> PinnedPages::Rooms() const {
  std::vector<HostPageRoom> rooms;
  for (size_t page = 0; page < buffers_.size(); ++page)
    rooms.push_back({encodings_[page], buffers_[page].bytes().data(), crcs_[page].data()});
  return rooms;
}

TransferWorld::TransferWorld(const Case& c)
    : World(c, WideBasis::kModel),
      codec(std::move(gpu)),
      encodings(slots.size(), Encoding::kPacked),
      stream(OrDie(device::Stream::Create())) {
  for (const auto& page : slots) all_slots.insert(all_slots.end(), page.begin(), page.end());
  encodings.front() = encodings.back() = Encoding::kWide;  // a sink, and a recent page
  const GpuCache mirror(source);
  for (size_t page = 0; page < slots.size(); ++page) {
    const GpuEncodeBatch batch(codec->layout(encodings[page]), {slots[page]});
    OrDie(codec->Encode(mirror.View(), batch.batch(), stream.get()));
    OrDie(stream.Synchronize());
    pages.push_back(batch.Pages().front());
  }
}

GpuTransferOptions TransferWorld::Small() const {
  const client::PageLayouts layouts{codec->layout(Encoding::kWide),
                                    codec->layout(Encoding::kPacked)};
  return {.pages_max = static_cast<uint32_t>(slots.size()),
          .stage_bytes = client::LargestPiece(layouts),
          .stages = 2,
          .piece_bytes = 1};
}

void TransferWorld::Decode(const std::vector<EncodedPage>& of, const TransferPart& part,
                           EngineCache& into) const {
  const GpuCache mirror(into);
  for (size_t page = 0; page < of.size(); ++page) {
    const GpuBatch batch({of[page]}, {slots[page]}, part.layers, part.heads, encodings[page]);
    OrDie(codec->Decode(batch.batch(), DecodeBasis::kModel, mirror.View(), stream.get()));
    OrDie(stream.Synchronize());
  }
  mirror.CopyTo(into);
}

}  // namespace oscarkv::testing
