// The codec on one thread, D = 128, bf16, beside the float route (float_route.h), memcpy and the
// rates of this machine.
//   BM_Decode/<kernels>, BM_DecodeFloatRoute/<kernels>          with the inverse transform
//   BM_DecodeTransformed/<kernels>, BM_Memcpy                   without
//   BM_Encode/<kernels>, BM_EncodeFloatRoute/<kernels>          transform, clip, 2 bits
// bytes_per_second counts model-dtype bytes. tests/bench/report.py makes the table.
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"

#include "kernels/base/dtype.h"
#include "kernels/codec/oscar/row_kernels.h"
#include "kernels/codec/transform_set.h"
#include "tests/bench/float_route.h"

namespace oscarkv::bench {

FloatRoute FloatRouteFor(std::string_view kernels) {
  if (kernels.starts_with("cpu/AVX3")) return kFloatRouteAvx512;
  if (kernels == "cpu/AVX2") return kFloatRouteAvx2;
  return kFloatRoutePlain;
}

namespace {

constexpr uint32_t kDim = 128;
constexpr uint32_t kRows =
    1 << 18;  // 64 MiB of bf16, beyond the last cache: for what is bound by memory
constexpr uint32_t kPageRows =
    36 * 8 * 64;  // K of one 64-token page of Qwen3-8B, 4.5 MiB: for what is bound by arithmetic
constexpr float kClipRatio = 0.86f;

// Rows of random numbers, a random orthogonal transform's stand-in (Hadamard), and what they encode
// to.
struct World {
  std::vector<uint16_t> x;
  std::vector<uint16_t> back;
  std::vector<std::byte> codes;
  std::vector<std::byte> params;
  std::vector<float> float_params;
  TransformSet set;
  std::vector<const std::byte*> sources;
  std::vector<std::byte*> destinations;

  static TransformSet MakeSet() {
    Geometry geometry{
        .layers = 1, .kv_heads = 1, .k_head_dim = kDim, .v_head_dim = kDim, .page_tokens = 64};
    return *MakeHadamardTransformSet(geometry, kClipRatio, kClipRatio);
  }

  World()
      : x(size_t{kRows} * kDim),
        back(x.size()),
        codes(size_t{kRows} * kDim / 4),
        params(size_t{kRows} * 4),
        float_params(size_t{kRows} * 2),
        set(MakeSet()) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<uint16_t> pool(1 << 20);
    for (uint16_t& value : pool) value = FloatToBf16(normal(random));
    for (size_t i = 0; i < x.size(); ++i) x[i] = pool[(i * 2654435761u >> 7) & (pool.size() - 1)];
    for (uint32_t row = 0; row < kRows; ++row) {
      sources.push_back(reinterpret_cast<const std::byte*>(&x[size_t{row} * kDim]));
      destinations.push_back(reinterpret_cast<std::byte*>(&back[size_t{row} * kDim]));
    }
    EncodeReport report;
    const auto prepared = CpuRowKernels().Prepare(set.k(0, 0));
    CpuRowKernels().Encode(Format(), prepared.get(), DType::kBf16, sources, codes.data(),
                           params.data(), &report);
    for (size_t i = 0; i < float_params.size(); ++i) {
      float_params[i] = Fp16ToFloat(LoadLe<uint16_t>(params.data() + i * 2));
    }
  }

  static RowFormat Format() {
    return {.dim = kDim,
            .bits = 2,
            .group = kDim,
            .clip_index = ClipIndex(kClipRatio, kDim),
            .params = ParamsDType::kFp16};
  }
};

World& TheWorld() {
  static World world;
  return world;
}

void SetBytes(benchmark::State& state, size_t rows) {
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(rows) * kDim * 2);
}

void Encode(benchmark::State& state, const RowKernels* kernels) {
  World& world = TheWorld();
  const auto prepared = kernels->Prepare(world.set.k(0, 0));
  EncodeReport report;
  for (auto _ : state) {
    kernels->Encode(World::Format(), prepared.get(), DType::kBf16,
                    std::span(world.sources).first(kPageRows), world.codes.data(),
                    world.params.data(), &report);
  }
  SetBytes(state, kPageRows);
}

void EncodeFloatRoute(benchmark::State& state, FloatRoute route) {
  World& world = TheWorld();
  for (auto _ : state) {
    route.encode(world.x.data(), world.set.k(0, 0).forward.data(), kPageRows, kDim,
                 ClipIndex(kClipRatio, kDim), reinterpret_cast<uint8_t*>(world.codes.data()),
                 world.float_params.data());
  }
  SetBytes(state, kPageRows);
}

void Decode(benchmark::State& state, const RowKernels* kernels, bool transform) {
  World& world = TheWorld();
  const auto prepared = kernels->Prepare(world.set.k(0, 0));
  const auto rows = std::span(world.destinations).first(transform ? kPageRows : kRows);
  for (auto _ : state) {
    kernels->Decode(World::Format(), transform ? prepared.get() : nullptr, world.codes.data(),
                    world.params.data(), DType::kBf16, rows);
  }
  SetBytes(state, rows.size());
}

void DecodeFloatRoute(benchmark::State& state, FloatRoute route) {
  World& world = TheWorld();
  for (auto _ : state) {
    route.decode(reinterpret_cast<const uint8_t*>(world.codes.data()), world.float_params.data(),
                 world.set.k(0, 0).inverse.data(), kPageRows, kDim, world.back.data());
  }
  SetBytes(state, kPageRows);
}

void Memcpy(benchmark::State& state) {
  World& world = TheWorld();
  for (auto _ : state) {
    std::memcpy(world.back.data(), world.x.data(), world.x.size() * 2);
    benchmark::ClobberMemory();
  }
  SetBytes(state, kRows);
}

// Fused multiply-adds a second: what the float route could do at best.
void PeakFma(benchmark::State& state, FloatRoute route) {
  double rate = 0.0;
  for (auto _ : state) rate = route.peak_fma_per_s();
  state.counters["fma_per_s"] = rate;
}

void Register() {
  for (const RowKernels* kernels : AllCpuRowKernels()) {
    const std::string name(kernels->name().substr(4));
    const FloatRoute route = FloatRouteFor(kernels->name());
    benchmark::RegisterBenchmark(("BM_Decode/" + name).c_str(), Decode, kernels, true);
    benchmark::RegisterBenchmark(("BM_DecodeFloatRoute/" + name).c_str(), DecodeFloatRoute, route);
    benchmark::RegisterBenchmark(("BM_Encode/" + name).c_str(), Encode, kernels);
    benchmark::RegisterBenchmark(("BM_EncodeFloatRoute/" + name).c_str(), EncodeFloatRoute, route);
    benchmark::RegisterBenchmark(("BM_DecodeTransformed/" + name).c_str(), Decode, kernels, false);
    benchmark::RegisterBenchmark(("BM_PeakFma/" + name).c_str(), PeakFma, route);
  }
  benchmark::RegisterBenchmark("BM_Memcpy", Memcpy);
}

}  // namespace
}  // namespace oscarkv::bench

int main(int argc, char** argv) {
  oscarkv::bench::Register();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
