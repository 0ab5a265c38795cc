// Shapes that the device's codec is tried on, and a cache to try it with.
#ifndef OSCARKV_TESTS_GPU_GPU_WORLD_H_
#define OSCARKV_TESTS_GPU_GPU_WORLD_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/codec/oscar/cuda_page_codec.h"
#include "tests/codec/page_testing.h"

namespace oscarkv::testing {

inline constexpr uint32_t kSlots = 512;

struct Case {
  uint32_t k_dim;
  uint32_t v_dim;
  LayerBits bits;
  uint32_t group;
  ParamsDType params;
  DType dtype;
  EngineLayout layout;
  uint32_t page_tokens;
};

std::string Describe(const Case& c);

// Both codecs of a case, a cache of Gaussian rows, and the random slots of a few pages in it.
struct World {
  Geometry geometry;
  CodecSpec spec;
  std::shared_ptr<const TransformSet> transforms;
  std::unique_ptr<PageCodec> cpu;
  std::unique_ptr<cuda::CudaPageCodec> gpu;
  std::vector<std::vector<int64_t>> slots;
  EngineCache source;

  World(const Case& c, WideBasis basis);
  std::vector<EncodedPage> CpuPages();
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_GPU_GPU_WORLD_H_
