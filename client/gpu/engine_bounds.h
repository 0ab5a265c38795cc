// Whether the rows of an engine's cache lie where they should. Knows no device.
#ifndef OSCARKV_CLIENT_GPU_ENGINE_BOUNDS_H_
#define OSCARKV_CLIENT_GPU_ENGINE_BOUNDS_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"

#include "kernels/codec/geometry.h"
#include "kernels/codec/page_codec.h"

namespace oscarkv::client {

// Rows are read and written in pieces of this many bytes.
inline constexpr int64_t kRowAlignment = 16;

// kInvalidArgument: as many base pointers as the geometry has not layers, a null or misaligned one,
// strides that are negative or misaligned, a dtype other than bf16 and fp16, or a row that ends
// beyond `bytes` from its layer's base. `name` is for the error.
absl::Status CheckEngineSide(const EngineSide& side, const EngineView& view,
                             const Geometry& geometry, uint32_t head_dim, uint64_t bytes,
                             const char* name);

// kInvalidArgument unless there are pages * page_tokens slots within least..slots_of_cache-1; says
// which one is not. `least`: 0, or -1 where tokens may be left out.
absl::Status CheckSlots(std::span<const int64_t> slots, uint64_t pages, uint32_t page_tokens,
                        int64_t least, int64_t slots_of_cache);

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_GPU_ENGINE_BOUNDS_H_
