// A worker's paged KV cache in one of the layouts that engines use, with index arithmetic of its
// own to hold EngineView against.
#ifndef OSCARKV_TESTS_CODEC_ENGINE_CACHE_H_
#define OSCARKV_TESTS_CODEC_ENGINE_CACHE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/codec/geometry.h"
#include "kernels/codec/page_codec.h"
#include "tests/codec/codec_testing.h"

namespace oscarkv::testing {

enum class EngineLayout {
  kTokenMajor,  // SGLang: K [slots][heads][dim], and V apart
  kNhd,         // vLLM, FlashInfer: [blocks][K, V][block tokens][heads][dim]
  kHnd,         // vLLM: [blocks][heads][block tokens][K dim and V dim]
};
const char* LayoutName(EngineLayout layout);

enum class KvSide { kK, kV };

// One allocation a layer, filled with a pattern first. `slots` is rounded up to whole blocks.
class EngineCache {
 public:
  EngineCache(EngineLayout layout, const Geometry& geometry, DType dtype, uint32_t slots);
  EngineCache(const EngineCache&) = delete;
  EngineCache& operator=(const EngineCache&) = delete;

  EngineView View();
  DType dtype() const { return dtype_; }

  std::span<std::byte> Row(KvSide side, uint32_t layer, uint32_t head, int64_t slot);
  void Write(KvSide side, uint32_t layer, uint32_t head, int64_t slot, std::span<const float> row);
  std::vector<float> Read(KvSide side, uint32_t layer, uint32_t head, int64_t slot);
  // Every row Gaussian, each another one; the same in every layout and dtype but for rounding.
  void FillGaussian(uint64_t seed);

  // All bytes of all layers, to see whether anything was written.
  const std::vector<Bytes>& memory() const { return memory_; }

 private:
  struct Place {
    uint64_t block_stride = 0;
    uint64_t token_stride = 0;
    uint64_t head_stride = 0;
    uint64_t offset = 0;  // from the start of the layer's allocation
    uint64_t row_bytes = 0;
  };
  const Place& place(KvSide side) const { return side == KvSide::kK ? k_ : v_; }
  uint64_t OffsetOf(const Place& place, uint32_t head, int64_t slot) const;

  Geometry geometry_;
  DType dtype_;
  uint32_t block_tokens_ = 1;
  uint32_t slots_;
  Place k_;
  Place v_;
  std::vector<Bytes> memory_;  // [layers]
  std::vector<std::byte*> k_base_;
  std::vector<std::byte*> v_base_;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_CODEC_ENGINE_CACHE_H_
