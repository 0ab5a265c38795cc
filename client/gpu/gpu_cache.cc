#include "client/gpu/gpu_cache.h"

#include "absl/strings/str_cat.h"

#include "client/gpu/engine_bounds.h"
#include "kernels/base/status_macros.h"
#include "kernels/device/device.h"

namespace oscarkv::client {
namespace {

absl::Status CheckLayers(const EngineSide& side, int device, const char* name) {
  for (size_t layer = 0; layer < side.layer_base.size(); ++layer) {
    OSCARKV_RETURN_IF_ERROR(device::CheckMemory(side.layer_base[layer], device,
                                                absl::StrCat(name, ", layer ", layer).c_str()));
  }
  return absl::OkStatus();
}

cuda::DeviceEngineSide SideOf(const EngineSide& side, const device::DeviceBuffer& base) {
  return {.layer_base = base.as<std::byte*>(),
          .block_stride = side.block_stride,
          .token_stride = side.token_stride,
          .head_stride = side.head_stride,
          .dtype = side.dtype};
}

}  // namespace

absl::StatusOr<GpuCache> GpuCache::Create(const EngineView& view, const Geometry& geometry,
                                          const GpuCacheBytes& bytes) {
  OSCARKV_RETURN_IF_ERROR(
      CheckEngineSide(view.k, view, geometry, geometry.k_head_dim, bytes.k, "cache, K"));
  OSCARKV_RETURN_IF_ERROR(
      CheckEngineSide(view.v, view, geometry, geometry.v_head_dim, bytes.v, "cache, V"));
  GpuCache cache;
  OSCARKV_ASSIGN_OR_RETURN(cache.device_, device::CurrentDevice());
  OSCARKV_RETURN_IF_ERROR(CheckLayers(view.k, cache.device_, "cache, K"));
  OSCARKV_RETURN_IF_ERROR(CheckLayers(view.v, cache.device_, "cache, V"));
  OSCARKV_ASSIGN_OR_RETURN(cache.k_base_, device::DeviceBuffer::CopyOf(view.k.layer_base));
  OSCARKV_ASSIGN_OR_RETURN(cache.v_base_, device::DeviceBuffer::CopyOf(view.v.layer_base));
  cache.view_ = {.k = SideOf(view.k, cache.k_base_),
                 .v = SideOf(view.v, cache.v_base_),
                 .block_tokens = view.block_tokens,
                 .slots = static_cast<uint32_t>(view.slots)};
  return cache;
}

absl::Status CheckDevice(const GpuCache& cache, int device) {
  if (cache.device() == device) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the cache: expected one of device ", device,
                                                 ", found one of device ", cache.device()));
}

}  // namespace oscarkv::client
