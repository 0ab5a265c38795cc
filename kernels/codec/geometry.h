// What a namespace's pages hold and how: the shape of a model shard's KV cache, and the codec's
// settings.
#ifndef OSCARKV_KERNELS_CODEC_GEOMETRY_H_
#define OSCARKV_KERNELS_CODEC_GEOMETRY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

#include "kernels/base/dtype.h"

namespace oscarkv {

// The shape of one shard's KV cache. A page is `page_tokens` consecutive tokens of all layers and
// KV heads.
struct Geometry {
  uint32_t layers = 0;         // 1..512
  uint32_t kv_heads = 0;       // 1..256
  uint32_t k_head_dim = 0;     // a multiple of 16, 16..256
  uint32_t v_head_dim = 0;     // likewise; may differ from k_head_dim
  uint32_t page_tokens = 0;    // 1..4096
  DType dtype = DType::kBf16;  // the model's KV dtype, which WIDE blocks hold

  uint32_t blocks() const { return layers * kv_heads; }
  bool operator==(const Geometry&) const = default;
};

// kInvalidArgument naming the field, its value and its range.
absl::Status ValidateGeometry(const Geometry& geometry);

// How a page's blocks are held. Numbers are on the wire.
enum class Encoding : uint8_t {
  kWide = 1,    // model dtype
  kPacked = 2,  // OSCAR codes with scale and zero point
};

// The dtype of (scale, zero) pairs. bf16 is refused: zero points of rows with a common offset break
// in it.
enum class ParamsDType : uint8_t { kFp16 = 1, kFp32 = 2 };

// Bits a code, 2 or 4.
struct LayerBits {
  uint8_t k = 2;
  uint8_t v = 2;
  bool operator==(const LayerBits&) const = default;
};

// The basis that WIDE blocks are in: the model's, or already transformed (engines that keep rotated
// caches).
enum class WideBasis : uint8_t { kModel = 1, kTransformed = 2 };

struct CodecSpec {
  std::vector<LayerBits> bits =
      std::vector<LayerBits>(1);  // one entry for every layer, or one entry for all
  uint32_t group = 0;             // 16, 32, 64, or 0 for a whole head row
  ParamsDType params = ParamsDType::kFp16;
  std::string transform_hash;    // 32 raw bytes (SHA-256 of the transform set), or empty: the
                                 // namespace holds WIDE pages only
  uint32_t sink_tokens = 64;     // S: pages that cover a position below S are WIDE
  uint32_t recent_tokens = 256;  // R: pages that cover the last R positions known are pushed WIDE
  WideBasis wide_basis = WideBasis::kModel;

  const LayerBits& layer_bits(uint32_t layer) const {
    return bits.size() == 1 ? bits[0] : bits[layer];
  }
  bool operator==(const CodecSpec&) const = default;
};

// kInvalidArgument naming the field when `spec` is not one that `geometry` can have: bits not 2 or
// 4, as many entries as neither 1 nor layers, a group that does not divide both head dims, a hash
// of another length than 0 or 32.
absl::Status ValidateCodecSpec(const CodecSpec& spec, const Geometry& geometry);

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_CODEC_GEOMETRY_H_
