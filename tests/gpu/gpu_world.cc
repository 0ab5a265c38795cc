#include "tests/gpu/gpu_world.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "tests/gpu/gpu_cache.h"

namespace oscarkv::testing {

std::string Describe(const Case& c) {
  return std::string("K") + std::to_string(c.k_dim) + "x" + std::to_string(c.bits.k) + " V" +
         std::to_string(c.v_dim) + "x" + std::to_string(c.bits.v) + " group " +
         std::to_string(c.group) + (c.params == ParamsDType::kFp16 ? " fp16" : " fp32") + " " +
         std::string(DTypeName(c.dtype)) + " " + LayoutName(c.layout) + " page " +
         std::to_string(c.page_tokens);
}

World::World(const Case& c, WideBasis basis)
    : geometry{.layers = 3,
               .kv_heads = 2,
               .k_head_dim = c.k_dim,
               .v_head_dim = c.v_dim,
               .page_tokens = c.page_tokens,
               .dtype = c.dtype},
      source(c.layout, geometry, c.dtype, kSlots) {
  spec.bits = {c.bits};
  spec.group = c.group;
  spec.params = c.params;
  spec.transform_hash = std::string(32, 't');
  spec.wide_basis = basis;
  transforms = RotationSet(geometry, 0.9f);
  cpu = OrDie(MakePageCodec(CodecBackend::kReference, geometry, spec, transforms));
  gpu = OrDie(cuda::CudaPageCodec::Create(geometry, spec, transforms.get()));
  source.FillGaussian(7);
  std::vector<int64_t> free(kSlots);
  std::iota(free.begin(), free.end(), 0);
  std::shuffle(free.begin(), free.end(), std::mt19937(3));
  for (uint32_t page = 0; page < (c.page_tokens > 64 ? 3u : 5u); ++page) {
    const auto first = free.begin() + page * c.page_tokens;
    slots.emplace_back(first, first + c.page_tokens);
  }
}

std::vector<EncodedPage> World::CpuPages() {
  std::vector<EncodedPage> pages;
  for (const auto& page_slots : slots)
    pages.push_back(EncodePage(*cpu, Encoding::kPacked, source, page_slots));
  return pages;
}

}  // namespace oscarkv::testing
