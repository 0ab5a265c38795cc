// What transfers between host memory and a cache on the GPU are tried with.
#ifndef OSCARKV_TESTS_GPU_TRANSFER_WORLD_H_
#define OSCARKV_TESTS_GPU_TRANSFER_WORLD_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "client/gpu/gpu_cache.h"
#include "client/gpu/gpu_fetcher.h"
#include "client/gpu/gpu_pusher.h"
#include "kernels/device/buffer.h"
#include "kernels/device/stream.h"
#include "tests/codec/engine_cache.h"
#include "tests/gpu/gpu_world.h"

namespace oscarkv::testing {

// An EngineCache mirrored in device memory, described for transfers.
class EngineOnGpu {
 public:
  EngineOnGpu(EngineCache& cache, const Geometry& geometry);
  const client::GpuCache& cache() const { return *cache_; }
  void CopyTo(EngineCache& cache) const;

 private:
  std::vector<device::DeviceBuffer> layers_;
  std::unique_ptr<client::GpuCache> cache_;
};

// Pages in pinned host memory.
class PinnedPages {
 public:
  PinnedPages(const cuda::CudaPageCodec& codec, const std::vector<Encoding>& encodings);
  PinnedPages(const cuda::CudaPageCodec& codec, const std::vector<Encoding>& encodings,
              const std::vector<EncodedPage>& pages);
  std::vector<client::HostPage> Held() const;
  std::vector<client::HostPageRoom> Rooms() const;
  std::span<std::byte> bytes(size_t page) const { return buffers_[page].bytes(); }
  const std::vector<uint32_t>& crcs(size_t page) const { return crcs_[page]; }

 private:
  std::vector<Encoding> encodings_;
  std::vector<device::PinnedBuffer> buffers_;
  mutable std::vector<std::vector<uint32_t>> crcs_;
};

// A World whose pages are what the GPU itself makes of its cache.
struct TransferWorld : World {
  std::shared_ptr<const cuda::CudaPageCodec> codec;
  std::vector<int64_t> all_slots;  // [pages][page_tokens]
  std::vector<Encoding> encodings;
  std::vector<EncodedPage> pages;
  device::Stream stream;

  explicit TransferWorld(const Case& c);
  // Two stages of one layer of one WIDE page, and tables for just these pages.
  client::GpuTransferOptions Small() const;
  client::TransferPart whole() const { return {{0, geometry.layers}, {0, geometry.kv_heads}}; }
  EngineCache Empty(const Case& c) const { return {c.layout, geometry, c.dtype, kSlots}; }
  // What decoding these pages, one after another, makes of an empty cache.
  void Decode(const std::vector<EncodedPage>& of, const client::TransferPart& part,
              EngineCache& into) const;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_GPU_TRANSFER_WORLD_H_
