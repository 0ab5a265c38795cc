#include "tests/gpu/gpu_cache.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "kernels/device/status.h"

namespace oscarkv::testing {

using device::DeviceBuffer;

void OrDie(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::abort();
}

DeviceBuffer Repeated(ByteView pattern, size_t bytes) {
  auto to = OrDie(DeviceBuffer::Allocate(bytes));
  for (size_t at = 0; at < bytes; at += pattern.size()) {
    const size_t part = std::min(pattern.size(), bytes - at);
    OrDie(device::ToStatus(cudaMemcpy(to.data() + at, pattern.data(), part, cudaMemcpyHostToDevice),
                           "filling"));
  }
  return to;
}

DeviceBuffer WithPointer(const void* pointers, size_t count, size_t which, uintptr_t value) {
  std::vector<uintptr_t> all(count);
  OrDie(device::ToStatus(
      cudaMemcpy(all.data(), pointers, count * sizeof(uintptr_t), cudaMemcpyDeviceToHost),
      "reading pointers"));
  all[which] = value;
  return OrDie(DeviceBuffer::CopyOf(std::span(all)));
}

GpuCache::GpuCache(EngineCache& cache) {
  const EngineView host = cache.View();
  std::vector<std::byte*> k_base;
  std::vector<std::byte*> v_base;
  for (size_t layer = 0; layer < cache.memory().size(); ++layer) {
    const Bytes& memory = cache.memory()[layer];
    layers_.push_back(OrDie(DeviceBuffer::CopyOf(std::span(memory))));
    std::byte* start = layers_.back().data();
    k_base.push_back(start + (host.k.layer_base[layer] - memory.data()));
    v_base.push_back(start + (host.v.layer_base[layer] - memory.data()));
  }
  k_base_ = OrDie(DeviceBuffer::CopyOf(std::span(k_base)));
  v_base_ = OrDie(DeviceBuffer::CopyOf(std::span(v_base)));
  const auto side = [](const EngineSide& from, const DeviceBuffer& base) {
    return cuda::DeviceEngineSide{.layer_base = base.as<std::byte*>(),
                                  .block_stride = from.block_stride,
                                  .token_stride = from.token_stride,
                                  .head_stride = from.head_stride,
                                  .dtype = from.dtype};
  };
  view_ = {.k = side(host.k, k_base_),
           .v = side(host.v, v_base_),
           .block_tokens = host.block_tokens,
           .slots = static_cast<uint32_t>(host.slots)};
}

void GpuCache::CopyTo(EngineCache& cache) const {
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    // The first row of K is where the layer's memory starts.
    OrDie(layers_[layer].CopyTo({cache.View().k.layer_base[layer], cache.memory()[layer].size()}));
  }
}

GpuBatch::GpuBatch(std::vector<EncodedPage> pages, const std::vector<std::vector<int64_t>>& slots,
                   BlockRange layers, BlockRange heads, Encoding encoding) {
  std::vector<const std::byte*> page_bytes;
  std::vector<int64_t> all_slots;
  std::vector<uint32_t> crcs;
  for (size_t i = 0; i < pages.size(); ++i) {
    pages_.push_back(OrDie(DeviceBuffer::CopyOf(std::span(pages[i].bytes))));
    page_bytes.push_back(pages_.back().data());
    all_slots.insert(all_slots.end(), slots[i].begin(), slots[i].end());
    crcs.insert(crcs.end(), pages[i].crcs.begin(), pages[i].crcs.end());
  }
  page_bytes_ = OrDie(DeviceBuffer::CopyOf(std::span(page_bytes)));
  slots_ = OrDie(DeviceBuffer::CopyOf(std::span(all_slots)));
  crcs_ = OrDie(DeviceBuffer::CopyOf(std::span(crcs)));
  const std::vector<uint32_t> none(crcs.size(), 0);
  status_ = OrDie(DeviceBuffer::CopyOf(std::span(none)));
  batch_ = {.encoding = encoding,
            .layers = layers,
            .heads = heads,
            .pages = static_cast<uint32_t>(pages.size()),
            .page_bytes = page_bytes_.as<const std::byte*>(),
            .slots = slots_.as<int64_t>(),
            .block_crc32c = crcs_.as<uint32_t>(),
            .status = status_.as<uint32_t>()};
}

GpuEncodeBatch::GpuEncodeBatch(const PageLayout& layout,
                               const std::vector<std::vector<int64_t>>& slots)
    : GpuEncodeBatch(layout, slots, {0, layout.geometry().layers},
                     {0, layout.geometry().kv_heads}) {}

GpuEncodeBatch::GpuEncodeBatch(const PageLayout& layout,
                               const std::vector<std::vector<int64_t>>& slots, BlockRange layers,
                               BlockRange heads)
    : page_bytes_each_(layout.range_bytes(layers, heads)) {
  const std::vector<std::byte> pattern(page_bytes_each_ * slots.size(), std::byte{0x3c});
  pages_ = OrDie(DeviceBuffer::CopyOf(std::span(pattern)));
  std::vector<std::byte*> page_bytes;
  std::vector<int64_t> all_slots;
  for (size_t i = 0; i < slots.size(); ++i) {
    page_bytes.push_back(pages_.data() + i * page_bytes_each_);
    all_slots.insert(all_slots.end(), slots[i].begin(), slots[i].end());
  }
  page_bytes_ = OrDie(DeviceBuffer::CopyOf(std::span(page_bytes)));
  slots_ = OrDie(DeviceBuffer::CopyOf(std::span(all_slots)));
  const std::vector<uint32_t> words(slots.size() * layers.count * heads.count, 0);
  crcs_ = OrDie(DeviceBuffer::CopyOf(std::span(words)));
  status_ = OrDie(DeviceBuffer::CopyOf(std::span(words)));
  const cuda::DeviceEncodeCounts none;
  counts_ = OrDie(DeviceBuffer::CopyOf(std::span(&none, 1)));
  batch_ = {.encoding = layout.encoding(),
            .layers = layers,
            .heads = heads,
            .pages = static_cast<uint32_t>(slots.size()),
            .page_bytes = page_bytes_.as<std::byte*>(),
            .slots = slots_.as<int64_t>(),
            .block_crc32c = crcs_.as<uint32_t>(),
            .status = status_.as<uint32_t>(),
            .counts = counts_.as<cuda::DeviceEncodeCounts>()};
}

std::vector<EncodedPage> GpuEncodeBatch::Pages() const {
  std::vector<std::byte> bytes(pages_.size());
  OrDie(pages_.CopyTo(bytes));
  std::vector<uint32_t> crcs(crcs_.size() / sizeof(uint32_t));
  OrDie(crcs_.CopyTo(std::as_writable_bytes(std::span(crcs))));
  const size_t blocks = crcs.size() / batch_.pages;
  std::vector<EncodedPage> pages(batch_.pages);
  for (size_t i = 0; i < pages.size(); ++i) {
    const auto page = std::span(bytes).subspan(i * page_bytes_each_, page_bytes_each_);
    const auto of_page = std::span(crcs).subspan(i * blocks, blocks);
    pages[i].bytes.assign(page.begin(), page.end());
    pages[i].crcs.assign(of_page.begin(), of_page.end());
  }
  return pages;
}

std::vector<uint32_t> GpuEncodeBatch::Status() const {
  std::vector<uint32_t> status(status_.size() / sizeof(uint32_t));
  OrDie(status_.CopyTo(std::as_writable_bytes(std::span(status))));
  return status;
}

cuda::DeviceEncodeCounts GpuEncodeBatch::Counts() const {
  cuda::DeviceEncodeCounts counts;
  OrDie(counts_.CopyTo(std::as_writable_bytes(std::span(&counts, 1))));
  return counts;
}

std::vector<uint32_t> GpuBatch::Status() const {
  std::vector<uint32_t> status(status_.size() / sizeof(uint32_t));
  OrDie(status_.CopyTo(std::as_writable_bytes(std::span(status))));
  return status;
}

}  // namespace oscarkv::testing
