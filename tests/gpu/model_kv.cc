// The device's codec on a real model's K and V (model_kv.py makes the files): how far its codes
// part from the CPU's, and its decoded rows from exact arithmetic, in parts of what FORMAT.md
// allows. Exit status 1 when that is exceeded.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "kernels/codec/oscar/cuda_page_codec.h"
#include "kernels/codec/oscar/format.h"
#include "kernels/codec/transform_file.h"
#include "kernels/device/stream.h"
#include "kernels/safetensors/safetensors.h"
#include "tests/codec/page_testing.h"
#include "tests/gpu/gpu_cache.h"

namespace oscarkv::testing {
namespace {

constexpr uint32_t kPageTokens = 64;

// A file's K or V, [layers][tokens][heads][dim] of bf16.
struct Rows {
  std::vector<uint64_t> shape;
  ByteView bytes;

  Rows(const Safetensors& file, std::string_view name) {
    const Tensor tensor = OrDie(file.Get(name, "BF16", 4));
    shape = tensor.shape;
    bytes = tensor.bytes;
  }
  std::vector<float> Row(uint64_t layer, uint64_t token, uint64_t head) const {
    const uint64_t dim = shape[3];
    const std::byte* row =
        bytes.data() + ((layer * shape[1] + token) * shape[2] + head) * dim * sizeof(uint16_t);
    std::vector<float> elements(dim);
    for (uint64_t i = 0; i < dim; ++i)
      elements[i] = LoadElement(row + i * sizeof(uint16_t), DType::kBf16);
    return elements;
  }
};

// Greatest values over all rows.
struct Figures {
  uint64_t codes = 0;
  uint64_t differ = 0;
  uint32_t code = 0;     // by which a code differs
  double scale = 0.0;    // by which a scale does, in parts of itself
  double zero = 0.0;     // by which a zero does, in parts of max(1, |zero|)
  double decoded = 0.0;  // by which an element does, in parts of its row's greatest
};

struct Subject {
  Geometry geometry;
  CodecSpec spec;
  std::shared_ptr<const TransformSet> transforms;
  std::unique_ptr<PageCodec> cpu;
  std::unique_ptr<cuda::CudaPageCodec> gpu;
  std::vector<std::vector<int64_t>> slots;
  uint32_t tokens;

  Subject(const Rows& k, const Rows& v, std::shared_ptr<const TransformSet> set, DType dtype,
          LayerBits bits)
      : geometry{.layers = static_cast<uint32_t>(k.shape[0]),
                 .kv_heads = static_cast<uint32_t>(k.shape[2]),
                 .k_head_dim = static_cast<uint32_t>(k.shape[3]),
                 .v_head_dim = static_cast<uint32_t>(v.shape[3]),
                 .page_tokens = kPageTokens,
                 .dtype = dtype},
        transforms(std::move(set)),
        tokens(static_cast<uint32_t>(k.shape[1]) / kPageTokens * kPageTokens) {
    spec.bits = {bits};
    spec.transform_hash = std::string(32, 't');
    cpu = OrDie(MakePageCodec(CodecBackend::kReference, geometry, spec, transforms));
    gpu = OrDie(cuda::CudaPageCodec::Create(geometry, spec, transforms.get()));
    for (uint32_t first = 0; first < tokens; first += kPageTokens) {
      slots.emplace_back(kPageTokens);
      std::iota(slots.back().begin(), slots.back().end(), first);
    }
  }
  void Fill(EngineCache& cache, const Rows& k, const Rows& v) const {
    for (uint32_t layer = 0; layer < geometry.layers; ++layer) {
      for (uint32_t token = 0; token < tokens; ++token) {
        for (uint32_t head = 0; head < geometry.kv_heads; ++head) {
          cache.Write(KvSide::kK, layer, head, token, k.Row(layer, token, head));
          cache.Write(KvSide::kV, layer, head, token, v.Row(layer, token, head));
        }
      }
    }
  }
  std::vector<EncodedPage> GpuPages(EngineCache& source) const {
    const GpuCache cache(source);
    const GpuEncodeBatch batch(gpu->layout(Encoding::kPacked), slots);
    const auto stream = OrDie(device::Stream::Create());
    OrDie(gpu->Encode(cache.View(), batch.batch(), stream.get()));
    OrDie(stream.Synchronize());
    return batch.Pages();
  }
  void GpuDecode(const std::vector<EncodedPage>& pages, EngineCache& into) const {
    const GpuCache cache(into);
    const GpuBatch batch(pages, slots, {0, geometry.layers}, {0, geometry.kv_heads});
    const auto stream = OrDie(device::Stream::Create());
    OrDie(gpu->Decode(batch.batch(), DecodeBasis::kModel, cache.View(), stream.get()));
    OrDie(stream.Synchronize());
    for (uint32_t word : batch.Status()) {
      if (word != 0) OrDie(absl::InternalError("a block was bad"));
    }
    cache.CopyTo(into);
  }
};

void CompareCodes(const SideLayout& side, ParamsDType params, const std::byte* found,
                  const std::byte* expected, Figures& figures) {
  for (uint32_t token = 0; token < kPageTokens; ++token) {
    const uint64_t codes = side.rows_offset + token * side.row_bytes;
    for (uint32_t i = 0; i < side.dim; ++i) {
      const uint32_t a = LoadCode(found + codes, i, side.dim, side.bits);
      const uint32_t b = LoadCode(expected + codes, i, side.dim, side.bits);
      ++figures.codes;
      figures.differ += a != b ? 1 : 0;
      figures.code = std::max(figures.code, std::max(a, b) - std::min(a, b));
    }
    const uint64_t pairs = side.params_offset + token * side.params_row_bytes;
    for (uint32_t group = 0; group < side.dim / side.group; ++group) {
      const ScaleZero a = LoadParams(found + pairs, group, params);
      const ScaleZero b = LoadParams(expected + pairs, group, params);
      figures.scale =
          std::max(figures.scale, std::fabs(double{a.scale} - double{b.scale}) / double{b.scale});
      figures.zero = std::max(figures.zero, std::fabs(double{a.zero} - double{b.zero}) /
                                                std::max(1.0, std::fabs(double{b.zero})));
    }
  }
}

// A row of a block as FORMAT.md has it read, in exact arithmetic.
std::vector<double> ExactRow(const SideLayout& side, ParamsDType params,
                             const SideTransform& transform, const std::byte* block,
                             uint32_t token) {
  std::vector<double> row(transform.offset.begin(), transform.offset.end());
  for (uint32_t i = 0; i < side.dim; ++i) {
    const ScaleZero pair = LoadParams(block + side.params_offset + token * side.params_row_bytes,
                                      i / side.group, params);
    const uint32_t code =
        LoadCode(block + side.rows_offset + token * side.row_bytes, i, side.dim, side.bits);
    const double y = double{(static_cast<float>(code) - pair.zero) * pair.scale};
    for (uint32_t j = 0; j < side.dim; ++j)
      row[j] += y * double{transform.inverse[i * side.dim + j]};
  }
  return row;
}

Figures Measure(const Subject& subject, const Rows& k, const Rows& v) {
  const Geometry& geometry = subject.geometry;
  EngineCache source(EngineLayout::kNhd, geometry, geometry.dtype, subject.tokens);
  subject.Fill(source, k, v);
  std::vector<EncodedPage> expected;
  for (const auto& slots : subject.slots)
    expected.push_back(EncodePage(*subject.cpu, Encoding::kPacked, source, slots));
  const std::vector<EncodedPage> found = subject.GpuPages(source);
  EngineCache decoded(EngineLayout::kNhd, geometry, geometry.dtype, subject.tokens);
  subject.GpuDecode(expected, decoded);
  const PageLayout& layout = subject.cpu->layout(Encoding::kPacked);
  Figures figures;
  for (size_t page = 0; page < expected.size(); ++page) {
    for (uint32_t layer = 0; layer < geometry.layers; ++layer) {
      for (uint32_t head = 0; head < geometry.kv_heads; ++head) {
        const std::byte* block = expected[page].bytes.data() + layout.block_offset(layer, head);
        for (KvSide which : {KvSide::kK, KvSide::kV}) {
          const bool is_k = which == KvSide::kK;
          const SideLayout& side = is_k ? layout.block(layer).k : layout.block(layer).v;
          const SideTransform& transform =
              is_k ? subject.transforms->k(layer, head) : subject.transforms->v(layer, head);
          CompareCodes(side, subject.spec.params,
                       found[page].bytes.data() + layout.block_offset(layer, head), block, figures);
          for (uint32_t token = 0; token < kPageTokens; ++token) {
            const auto exact = ExactRow(side, subject.spec.params, transform, block, token);
            const auto row = decoded.Read(which, layer, head, subject.slots[page][token]);
            double most = 0.0;
            double error = 0.0;
            for (uint32_t j = 0; j < side.dim; ++j) {
              most = std::max(most, std::fabs(exact[j]));
              error = std::max(error, std::fabs(double{row[j]} - exact[j]));
            }
            if (most > 0.0) figures.decoded = std::max(figures.decoded, error / most);
          }
        }
      }
    }
  }
  return figures;
}

bool Report(const Figures& figures, DType dtype, LayerBits bits) {
  const double share = static_cast<double>(figures.differ) / static_cast<double>(figures.codes);
  const bool bf16 = dtype == DType::kBf16;
  std::printf(
      "%s, %u bits for K, %u for V: %.5f %% of %llu codes differ, by %u at most; scales by 2^%.1f, "
      "zeros by 2^%.1f; decoded elements by 2^%.1f of the row's greatest\n",
      bf16 ? "bf16" : "fp16", bits.k, bits.v, 100 * share,
      static_cast<unsigned long long>(figures.codes), figures.code, std::log2(figures.scale),
      std::log2(figures.zero), std::log2(figures.decoded));
  return share <= 1e-3 && figures.code <= 1 && figures.scale <= 0x1p-10 &&
         figures.zero <= 0x1p-10 && figures.decoded <= (bf16 ? 0x1p-5 : 0x1p-9);
}

bool Run(const std::string& dump, const std::string& transform) {
  const auto file = OrDie(MappedFile::Open(dump));
  const auto tensors = OrDie(Safetensors::Parse(file->bytes()));
  const Rows k(tensors, "k");
  const Rows v(tensors, "v");
  const auto set_file = OrDie(MappedFile::Open(transform));
  const auto set =
      std::make_shared<const TransformSet>(OrDie(ParseTransformFile(set_file->bytes())));
  bool good = true;
  for (DType dtype : {DType::kBf16, DType::kFp16}) {
    for (LayerBits bits : {LayerBits{2, 2}, LayerBits{4, 2}, LayerBits{4, 4}})
      good = Report(Measure(Subject(k, v, set, dtype, bits), k, v), dtype, bits) && good;
  }
  return good;
}

}  // namespace
}  // namespace oscarkv::testing

int main(int argc, char** argv) {
  CLI::App app("The device's codec on a model's K and V, against FORMAT.md's bounds");
  std::string dump;
  std::string transform;
  app.add_option("--dump", dump, "kv.safetensors of model_kv.py")->required();
  app.add_option("--transform", transform, "its transform.safetensors")->required();
  CLI11_PARSE(app, argc, argv);
  if (oscarkv::testing::Run(dump, transform)) return 0;
  std::fprintf(stderr, "gpu_model_kv: beyond FORMAT.md's bounds\n");
  return 1;
}
