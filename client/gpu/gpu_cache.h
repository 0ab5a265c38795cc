// A worker's paged KV cache in the memory of a GPU.
#ifndef OSCARKV_CLIENT_GPU_GPU_CACHE_H_
#define OSCARKV_CLIENT_GPU_GPU_CACHE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/codec/geometry.h"
#include "kernels/codec/oscar/cuda_page_codec.h"
#include "kernels/codec/page_codec.h"
#include "kernels/device/buffer.h"

namespace oscarkv::client {

// How much memory, from each layer's base on, belongs to the cache: what is held against the view's
// strides and slots, so that no slot lies beyond it.
struct GpuCacheBytes {
  uint64_t k = 0;
  uint64_t v = 0;
};

// Describes a cache once, for any number of transfers: the engine's memory must outlive it.
// Move-only, immutable otherwise.
class GpuCache {
 public:
  // `view` is as for a cache in host memory, but layer_base points into the current device's
  // memory. kInvalidArgument: a pointer or stride that is not a multiple of 16 bytes, host memory,
  // memory of another device, rows that lie outside `bytes`, a dtype other than bf16 and fp16 -
  // naming side and layer, what was expected and what was found.
  static absl::StatusOr<GpuCache> Create(const EngineView& view, const Geometry& geometry,
                                         const GpuCacheBytes& bytes);

  const cuda::DeviceEngineView& view() const { return view_; }
  int device() const { return device_; }

 private:
  GpuCache() = default;
  device::DeviceBuffer k_base_;
  device::DeviceBuffer v_base_;
  cuda::DeviceEngineView view_;
  int device_ = 0;
};

// kInvalidArgument unless the cache lies in the memory of `device`.
absl::Status CheckDevice(const GpuCache& cache, int device);

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_GPU_GPU_CACHE_H_
