// K and V as files and commands lay them out: for each layer, rows of [tokens, kv_heads, head_dim].
#ifndef OSCARKV_CLIENT_CLI_KV_ROWS_H_
#define OSCARKV_CLIENT_CLI_KV_ROWS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/codec/page_codec.h"

namespace oscarkv::cli {

// Bytes of one token's heads of K or of V, whose head dim is `dim`.
uint64_t TokenBytes(const Geometry& geometry, uint32_t dim);

// A cache whose slots are `tokens` tokens, from where each layer's rows start, [layers] pointers
// each. Borrows the spans.
EngineView ViewOfRows(const Geometry& geometry, uint64_t tokens,
                      std::span<std::byte* const> k_layers, std::span<std::byte* const> v_layers);

// [layers, tokens, kv_heads, head_dim] of K and of V, one after the other in the caller's memory.
class KvRows {
 public:
  static uint64_t Bytes(const Geometry& geometry, uint64_t tokens);

  // `memory` has Bytes(geometry, tokens) and outlives this.
  KvRows(const Geometry& geometry, uint64_t tokens, std::byte* memory);

  EngineView view() const { return ViewOfRows(geometry_, tokens_, k_layers_, v_layers_); }
  ByteView k() const;
  ByteView v() const;

 private:
  const Geometry geometry_;
  const uint64_t tokens_;
  std::vector<std::byte*> k_layers_;
  std::vector<std::byte*> v_layers_;
};

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_KV_ROWS_H_
