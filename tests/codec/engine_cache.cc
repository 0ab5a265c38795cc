#include "tests/codec/engine_cache.h"

#include <random>

#include "kernels/codec/oscar/format.h"

namespace oscarkv::testing {
namespace {

constexpr uint32_t kBlockTokens = 4;

}  // namespace

const char* LayoutName(EngineLayout layout) {
  switch (layout) {
    case EngineLayout::kTokenMajor:
      return "TokenMajor";
    case EngineLayout::kNhd:
      return "Nhd";
    case EngineLayout::kHnd:
      return "Hnd";
  }
  return "";
}

EngineCache::EngineCache(EngineLayout layout, const Geometry& geometry, DType dtype, uint32_t slots)
    : geometry_(geometry), dtype_(dtype), slots_(slots) {
  const uint64_t heads = geometry.kv_heads;
  k_.row_bytes = uint64_t{geometry.k_head_dim} * DTypeBytes(dtype);
  v_.row_bytes = uint64_t{geometry.v_head_dim} * DTypeBytes(dtype);
  const uint64_t both = k_.row_bytes + v_.row_bytes;
  if (layout != EngineLayout::kTokenMajor) block_tokens_ = kBlockTokens;
  slots_ = (slots + block_tokens_ - 1) / block_tokens_ * block_tokens_;
  for (Place* place : {&k_, &v_}) {
    switch (layout) {
      case EngineLayout::kTokenMajor:
        place->head_stride = place->row_bytes;
        place->token_stride = heads * place->row_bytes;
        place->block_stride = place->token_stride;
        if (place == &v_) place->offset = slots_ * k_.token_stride;
        break;
      case EngineLayout::kNhd:
        place->head_stride = place->row_bytes;
        place->token_stride = heads * place->row_bytes;
        place->block_stride = block_tokens_ * heads * both;
        if (place == &v_) place->offset = block_tokens_ * heads * k_.row_bytes;
        break;
      case EngineLayout::kHnd:
        place->head_stride = block_tokens_ * both;
        place->token_stride = both;
        place->block_stride = heads * block_tokens_ * both;
        if (place == &v_) place->offset = k_.row_bytes;
        break;
    }
  }
  for (uint32_t layer = 0; layer < geometry.layers; ++layer)
    memory_.emplace_back(slots_ * heads * both, std::byte{0xc3});
  for (Bytes& layer : memory_) {
    k_base_.push_back(layer.data() + k_.offset);
    v_base_.push_back(layer.data() + v_.offset);
  }
}

EngineView EngineCache::View() {
  const auto side = [&](const Place& place, std::span<std::byte* const> base) {
    return EngineSide{.layer_base = base,
                      .block_stride = static_cast<int64_t>(place.block_stride),
                      .token_stride = static_cast<int64_t>(place.token_stride),
                      .head_stride = static_cast<int64_t>(place.head_stride),
                      .dtype = dtype_};
  };
  return {.k = side(k_, k_base_),
          .v = side(v_, v_base_),
          .block_tokens = block_tokens_,
          .slots = slots_};
}

uint64_t EngineCache::OffsetOf(const Place& place, uint32_t head, int64_t slot) const {
  const auto index = static_cast<uint64_t>(slot);
  return place.offset + index / block_tokens_ * place.block_stride +
         index % block_tokens_ * place.token_stride + head * place.head_stride;
}

std::span<std::byte> EngineCache::Row(KvSide side, uint32_t layer, uint32_t head, int64_t slot) {
  return std::span(memory_[layer])
      .subspan(OffsetOf(place(side), head, slot), place(side).row_bytes);
}

void EngineCache::Write(KvSide side, uint32_t layer, uint32_t head, int64_t slot,
                        std::span<const float> row) {
  std::byte* destination = Row(side, layer, head, slot).data();
  for (size_t i = 0; i < row.size(); ++i)
    StoreElement(destination + i * DTypeBytes(dtype_), dtype_, row[i]);
}

std::vector<float> EngineCache::Read(KvSide side, uint32_t layer, uint32_t head, int64_t slot) {
  const std::span<std::byte> bytes = Row(side, layer, head, slot);
  return FromBytes(Bytes(bytes.begin(), bytes.end()), 1, dtype_).values;
}

void EngineCache::FillGaussian(uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  for (uint32_t layer = 0; layer < geometry_.layers; ++layer) {
    for (uint32_t head = 0; head < geometry_.kv_heads; ++head) {
      for (uint32_t slot = 0; slot < slots_; ++slot) {
        for (KvSide side : {KvSide::kK, KvSide::kV}) {
          std::vector<float> row(side == KvSide::kK ? geometry_.k_head_dim : geometry_.v_head_dim);
          for (float& value : row) value = normal(random);
          Write(side, layer, head, slot, row);
        }
      }
    }
  }
}

}  // namespace oscarkv::testing
