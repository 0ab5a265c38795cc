// Hostile page bytes, ranges, slots and checksums for a geometry that the input chooses: the call
// is refused, the item is refused, or its rows are written; whatever is refused has written
// nothing, nothing outside the slots is ever written, and in the transformed basis both back ends
// read the same numbers.
//
// Input: a header of 24 bytes (kHeader names them), page_tokens slots of one byte (the slot + 2),
// then the page's bytes.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/base/checksum.h"
#include "kernels/codec/oscar/format.h"
#include "kernels/codec/page_codec.h"

namespace oscarkv {
namespace {

constexpr size_t kHeader = 24;
constexpr uint32_t kDims[] = {16, 32, 64, 128};
constexpr uint32_t kSlots = 8;
constexpr size_t kMargin = 64;
constexpr std::byte kPattern{0xc3};

void Require(bool condition) {
  if (!condition) std::abort();
}

// A cache of kSlots token slots, token-major, with a margin at both ends of every layer.
struct Cache {
  Cache(const Geometry& geometry, DType engine_dtype) : dtype(engine_dtype) {
    const size_t element = DTypeBytes(dtype);
    k_row = geometry.k_head_dim * element;
    v_row = geometry.v_head_dim * element;
    token = geometry.kv_heads * (k_row + v_row);
    for (uint32_t layer = 0; layer < geometry.layers; ++layer)
      memory.emplace_back(2 * kMargin + kSlots * token, kPattern);
    for (auto& layer : memory) {
      k_base.push_back(layer.data() + kMargin);
      v_base.push_back(layer.data() + kMargin + geometry.kv_heads * k_row);
    }
  }
  EngineView View() const {
    const auto side = [&](const std::vector<std::byte*>& base, size_t row) {
      return EngineSide{.layer_base = base,
                        .block_stride = static_cast<int64_t>(token),
                        .token_stride = static_cast<int64_t>(token),
                        .head_stride = static_cast<int64_t>(row),
                        .dtype = dtype};
    };
    return {.k = side(k_base, k_row), .v = side(v_base, v_row), .block_tokens = 1, .slots = kSlots};
  }
  bool Untouched(const std::vector<std::byte>& layer, size_t first, size_t end) const {
    return std::all_of(layer.begin() + static_cast<std::ptrdiff_t>(first),
                       layer.begin() + static_cast<std::ptrdiff_t>(end),
                       [](std::byte byte) { return byte == kPattern; });
  }
  bool Untouched() const {
    return std::all_of(memory.begin(), memory.end(),
                       [&](const auto& layer) { return Untouched(layer, 0, layer.size()); });
  }

  DType dtype;
  size_t k_row = 0;
  size_t v_row = 0;
  size_t token = 0;
  std::vector<std::vector<std::byte>> memory;
  std::vector<std::byte*> k_base;
  std::vector<std::byte*> v_base;
};

// Any settings at all: refused, or a layout whose blocks lie in order within the page.
void TryLayout(const uint8_t* data) {
  uint32_t words[5];
  std::memcpy(words, data, sizeof(words));
  const Geometry geometry{.layers = words[0],
                          .kv_heads = words[1],
                          .k_head_dim = words[2],
                          .v_head_dim = words[3],
                          .page_tokens = words[4],
                          .dtype = static_cast<DType>(data[20])};
  CodecSpec spec;
  spec.bits[0] = {.k = data[21], .v = data[22]};
  spec.group = data[23];
  for (Encoding encoding : {Encoding::kWide, Encoding::kPacked}) {
    const auto layout = PageLayout::Create(geometry, spec, encoding);
    if (!layout.ok()) continue;
    const uint32_t last = geometry.layers - 1;
    Require(layout->block_offset(last, geometry.kv_heads - 1) + layout->block(last).stride ==
            layout->page_bytes());
  }
}

// Making a set costs more than all the rest, so that each is made once.
std::shared_ptr<const TransformSet> IdentitySet(const Geometry& geometry) {
  static auto& sets = *new std::map<std::array<uint32_t, 4>, std::shared_ptr<const TransformSet>>();
  auto& set = sets[{geometry.layers, geometry.kv_heads, geometry.k_head_dim, geometry.v_head_dim}];
  if (set == nullptr) {
    auto made = MakeIdentityTransformSet(geometry, 0.0f, 0.0f);
    Require(made.ok());
    set = std::make_shared<const TransformSet>(*std::move(made));
  }
  return set;
}

DType PickDType(uint8_t byte) {
  constexpr DType all[] = {DType::kBf16, DType::kFp16, DType::kFp32};
  return all[byte % 3];
}

bool SameNumbers(const Cache& a, const Cache& b) {
  const size_t element = DTypeBytes(a.dtype);
  for (size_t layer = 0; layer < a.memory.size(); ++layer) {
    for (size_t at = 0; at < a.memory[layer].size(); at += element) {
      if (std::memcmp(&a.memory[layer][at], &b.memory[layer][at], element) == 0) continue;
      if (!std::isnan(LoadElement(&a.memory[layer][at], a.dtype)) ||
          !std::isnan(LoadElement(&b.memory[layer][at], b.dtype))) {
        return false;
      }
    }
  }
  return true;
}

void RequireOnlySlotsWritten(const Cache& cache, const DecodeItem& item) {
  for (size_t layer = 0; layer < cache.memory.size(); ++layer) {
    const auto& memory = cache.memory[layer];
    Require(cache.Untouched(memory, 0, kMargin));
    Require(cache.Untouched(memory, memory.size() - kMargin, memory.size()));
    const bool selected =
        layer >= item.layers.first && layer - item.layers.first < item.layers.count;
    for (uint32_t slot = 0; slot < kSlots; ++slot) {
      if (selected && std::count(item.slots.begin(), item.slots.end(), slot) != 0) continue;
      Require(cache.Untouched(memory, kMargin + slot * cache.token,
                              kMargin + (slot + 1) * cache.token));
    }
  }
}

std::pair<Geometry, CodecSpec> ReadSettings(const uint8_t* data) {
  const Geometry geometry{.layers = 1u + data[0] % 3,
                          .kv_heads = 1u + data[1] % 3,
                          .k_head_dim = kDims[data[2] % 4],
                          .v_head_dim = kDims[data[3] % 4],
                          .page_tokens = 1u + data[4] % 6,
                          .dtype = PickDType(data[5])};
  CodecSpec spec;
  spec.bits.resize(geometry.layers);
  for (uint32_t layer = 0; layer < geometry.layers; ++layer)
    spec.bits[layer] = {.k = static_cast<uint8_t>((data[6] >> layer) % 2 == 0 ? 2 : 4),
                        .v = static_cast<uint8_t>((data[7] >> layer) % 2 == 0 ? 2 : 4)};
  constexpr uint32_t groups[] = {0, 16, 32, 64};
  spec.group = groups[data[8] % 4];
  spec.params = data[9] % 2 == 0 ? ParamsDType::kFp16 : ParamsDType::kFp32;
  spec.wide_basis = data[10] % 2 == 0 ? WideBasis::kModel : WideBasis::kTransformed;
  return {geometry, spec};
}

int Run(const uint8_t* data, size_t size) {
  if (size < kHeader) return 0;
  TryLayout(data);
  const auto [geometry, spec] = ReadSettings(data);
  const Encoding encoding = data[11] % 2 == 0 ? Encoding::kPacked : Encoding::kWide;
  const DecodeBasis basis = data[12] % 2 == 0 ? DecodeBasis::kModel : DecodeBasis::kTransformed;
  const DType engine_dtype = PickDType(data[13]);
  const bool true_checksums = data[14] % 4 != 0;
  if (!ValidateCodecSpec(spec, geometry).ok()) return 0;

  const auto transforms = data[15] % 8 != 0 ? IdentitySet(geometry) : nullptr;
  const auto cpu = MakePageCodec(CodecBackend::kCpu, geometry, spec, transforms);
  Require(cpu.ok());

  // Copies of the right size, so that a sanitizer sees a read beyond them.
  const uint8_t* rest = data + kHeader;
  size_t left = size - kHeader;
  std::vector<int64_t> slots(std::min<size_t>(left, geometry.page_tokens));
  for (int64_t& slot : slots)
    slot = int64_t{*rest++} - 2;  // some before the first and behind the last
  left -= slots.size();
  const std::vector<std::byte> bytes(reinterpret_cast<const std::byte*>(rest),
                                     reinterpret_cast<const std::byte*>(rest) + left);
  DecodeItem item{.encoding = encoding,
                  .layers = {data[16], data[17]},
                  .heads = {data[18], data[19]},
                  .slots = slots,
                  .bytes = bytes,
                  .block_crc32c = {},
                  .result = {}};
  std::vector<uint32_t> crcs;
  const PageLayout& layout = (*cpu)->layout(encoding);
  size_t offset = 0;
  for (uint32_t layer = data[16]; layer < geometry.layers && layer - data[16] < data[17]; ++layer) {
    for (uint32_t head = 0; head < data[19]; ++head, offset += layout.block(layer).stride) {
      const size_t content = layout.block(layer).bytes;
      const bool inside = true_checksums && offset + content <= bytes.size();
      crcs.push_back(inside ? Crc32c({bytes.data() + offset, content}) : data[20]);
    }
  }
  item.block_crc32c = crcs;

  Cache cache(geometry, engine_dtype);
  const absl::Status status = (*cpu)->Decode({&item, 1}, basis, cache.View());
  if (!status.ok() || !item.result.ok()) {
    Require(cache.Untouched());
    return 0;
  }
  RequireOnlySlotsWritten(cache, item);
  if (encoding == Encoding::kPacked && basis == DecodeBasis::kTransformed) {
    const auto reference = MakePageCodec(CodecBackend::kReference, geometry, spec, transforms);
    Require(reference.ok());
    Cache expected(geometry, engine_dtype);
    Require((*reference)->Decode({&item, 1}, basis, expected.View()).ok() && item.result.ok());
    Require(SameNumbers(expected, cache));
  }
  return 0;
}

}  // namespace
}  // namespace oscarkv

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return oscarkv::Run(data, size);
}
