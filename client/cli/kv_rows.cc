#include "client/cli/kv_rows.h"

namespace oscarkv::cli {
namespace {

EngineSide SideOf(const Geometry& geometry, std::span<std::byte* const> layers, uint32_t dim) {
  const auto token_bytes = static_cast<int64_t>(TokenBytes(geometry, dim));
  return {.layer_base = layers,
          .block_stride = token_bytes,
          .token_stride = token_bytes,
          .head_stride = static_cast<int64_t>(dim * DTypeBytes(geometry.dtype)),
          .dtype = geometry.dtype};
}

}  // namespace

uint64_t TokenBytes(const Geometry& geometry, uint32_t dim) {
  return uint64_t{geometry.kv_heads} * dim * DTypeBytes(geometry.dtype);
}

EngineView ViewOfRows(const Geometry& geometry, uint64_t tokens,
                      std::span<std::byte* const> k_layers, std::span<std::byte* const> v_layers) {
  return {.k = SideOf(geometry, k_layers, geometry.k_head_dim),
          .v = SideOf(geometry, v_layers, geometry.v_head_dim),
          .block_tokens = 1,
          .slots = static_cast<int64_t>(tokens)};
}

uint64_t KvRows::Bytes(const Geometry& geometry, uint64_t tokens) {
  return geometry.layers * tokens *
         (TokenBytes(geometry, geometry.k_head_dim) + TokenBytes(geometry, geometry.v_head_dim));
}

KvRows::KvRows(const Geometry& geometry, uint64_t tokens, std::byte* memory)
    : geometry_(geometry), tokens_(tokens) {
  const auto add = [&](std::vector<std::byte*>* layers, uint32_t dim) {
    for (uint32_t layer = 0; layer < geometry.layers; ++layer) {
      layers->push_back(memory);
      memory += tokens * TokenBytes(geometry, dim);
    }
  };
  add(&k_layers_, geometry.k_head_dim);
  add(&v_layers_, geometry.v_head_dim);
}

ByteView KvRows::k() const {
  return {k_layers_[0], geometry_.layers * tokens_ * TokenBytes(geometry_, geometry_.k_head_dim)};
}

ByteView KvRows::v() const {
  return {v_layers_[0], geometry_.layers * tokens_ * TokenBytes(geometry_, geometry_.v_head_dim)};
}

}  // namespace oscarkv::cli
