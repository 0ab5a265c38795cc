// Encoding and decoding: every token of a cache, to pages and back, pages at random places.
#include <algorithm>
#include <memory>
#include <numeric>
#include <random>

#include "kernels/codec/oscar/cuda_page_codec.h"
#include "kernels/device/buffer.h"
#include "kernels/device/status.h"
#include "tests/codec/codec_testing.h"
#include "tests/codec/page_testing.h"
#include "tests/gpu/gpu_bench.h"
#include "tests/gpu/gpu_cache.h"

namespace oscarkv::testing {
namespace {

using device::DeviceBuffer;

constexpr uint32_t kHeads = kQwen3.kv_heads;
constexpr uint32_t kDim = kQwen3.k_head_dim;
constexpr uint32_t kPageTokens = kQwen3.page_tokens;
constexpr size_t kTokenBytes = size_t{kHeads} * kDim * 2;  // K or V

// Gaussian rows of a few pages, as an engine keeps them: [tokens][heads][dim], bf16.
Bytes GaussianRows(uint64_t seed) {
  constexpr size_t kTokens = 64 * kPageTokens;
  EngineCache cache(EngineLayout::kTokenMajor, kQwen3, DType::kBf16, kTokens);
  cache.FillGaussian(seed);
  const std::byte* rows = cache.View().k.layer_base[0];
  return Bytes(rows, rows + kTokens * kTokenBytes);
}

// A worker's cache of `tokens`, and pages for all of them.
class CacheAndPages {
 public:
  CacheAndPages(const PageLayout& layout, const Bytes& rows, uint32_t tokens)
      : pages_(tokens / kPageTokens),
        k_(Repeated(rows, tokens * kTokenBytes)),
        v_(Repeated(rows, tokens * kTokenBytes)),
        bytes_(OrDie(DeviceBuffer::Allocate(layout.page_bytes() * pages_))) {
    k_base_ = Put(std::vector<std::byte*>{k_.data()});
    v_base_ = Put(std::vector<std::byte*>{v_.data()});
    std::vector<std::byte*> page_bytes(pages_);
    for (size_t page = 0; page < pages_; ++page)
      page_bytes[page] = bytes_.data() + page * layout.page_bytes();
    page_bytes_ = Put(page_bytes);
    std::vector<int64_t> numbers(pages_);
    std::iota(numbers.begin(), numbers.end(), 0);
    std::shuffle(numbers.begin(), numbers.end(), std::mt19937(1));
    std::vector<int64_t> slots;
    for (int64_t number : numbers) {
      for (int64_t i = 0; i < kPageTokens; ++i) slots.push_back(number * kPageTokens + i);
    }
    slots_ = Put(slots);
    const std::vector<uint32_t> none(size_t{pages_} * kHeads, 0);
    crcs_ = Put(none);
    status_ = Put(none);
    counts_ = Put(std::vector<cuda::DeviceEncodeCounts>(1));
  }

  cuda::DeviceEngineView View() const {
    const auto side = [](const DeviceBuffer& base) {
      return cuda::DeviceEngineSide{.layer_base = base.as<std::byte*>(),
                                    .block_stride = int64_t{kTokenBytes},
                                    .token_stride = int64_t{kTokenBytes},
                                    .head_stride = int64_t{kDim} * 2,
                                    .dtype = DType::kBf16};
    };
    return {
        .k = side(k_base_), .v = side(v_base_), .block_tokens = 1, .slots = pages_ * kPageTokens};
  }

  cuda::DeviceEncodeBatch ToEncode() const {
    return {.encoding = Encoding::kPacked,
            .layers = {0, 1},
            .heads = {0, kHeads},
            .pages = pages_,
            .page_bytes = page_bytes_.as<std::byte*>(),
            .slots = slots_.as<int64_t>(),
            .block_crc32c = crcs_.as<uint32_t>(),
            .status = status_.as<uint32_t>(),
            .counts = counts_.as<cuda::DeviceEncodeCounts>()};
  }

  cuda::DeviceDecodeBatch ToDecode() const {
    return {.encoding = Encoding::kPacked,
            .layers = {0, 1},
            .heads = {0, kHeads},
            .pages = pages_,
            .page_bytes = page_bytes_.as<const std::byte*>(),
            .slots = slots_.as<int64_t>(),
            .block_crc32c = crcs_.as<uint32_t>(),
            .status = status_.as<uint32_t>()};
  }

  void ExpectNoBadBlock() const {
    std::vector<uint32_t> status(size_t{pages_} * kHeads);
    OrDie(status_.CopyTo(std::as_writable_bytes(std::span(status))));
    if (std::any_of(status.begin(), status.end(), [](uint32_t word) { return word != 0; }))
      OrDie(absl::InternalError("a block was bad"));
  }

 private:
  template <typename T>
  static DeviceBuffer Put(const std::vector<T>& host) {
    return OrDie(DeviceBuffer::CopyOf(std::span(host)));
  }

  uint32_t pages_;
  DeviceBuffer k_;
  DeviceBuffer v_;
  DeviceBuffer bytes_;
  DeviceBuffer k_base_;
  DeviceBuffer v_base_;
  DeviceBuffer page_bytes_;
  DeviceBuffer slots_;
  DeviceBuffer crcs_;
  DeviceBuffer status_;
  DeviceBuffer counts_;
};

void BenchTokens(Bench& bench, const cuda::CudaPageCodec& codec, const Bytes& rows,
                 uint32_t tokens) {
  const std::string suffix = "/tokens:" + std::to_string(tokens);
  const PageLayout& layout = codec.layout(Encoding::kPacked);
  Least least;
  least.bytes =
      static_cast<double>(layout.page_bytes()) * tokens / kPageTokens + 2.0 * kTokenBytes * tokens;
  const double transform = 2.0 * 2.0 * kDim * kDim * kHeads * tokens;  // K's and V's
  const Bench::Rotation rotation = Bench::RotationFor(least);
  std::vector<std::unique_ptr<CacheAndPages>> memory;
  const auto stream = OrDie(device::Stream::Create());
  for (size_t i = 0; i < rotation.copies; ++i) {
    memory.push_back(std::make_unique<CacheAndPages>(layout, rows, tokens));
    OrDie(codec.Encode(memory.back()->View(), memory.back()->ToEncode(), stream.get()));
  }
  OrDie(stream.Synchronize());
  const auto measure = [&](const std::string& name, double operations, const auto& enqueue) {
    if (!bench.Wants(name + suffix)) return;
    std::vector<Enqueue> calls;
    for (size_t i = 0; i < rotation.calls; ++i) {
      const CacheAndPages& of = *memory[i % memory.size()];
      calls.emplace_back([&of, &enqueue](cudaStream_t to) { return enqueue(of, to); });
    }
    least.operations = operations;
    bench.Measure(name + suffix, least, calls);
    for (const auto& of : memory) of->ExpectNoBadBlock();
  };
  measure("encode", transform, [&](const CacheAndPages& of, cudaStream_t to) {
    return codec.Encode(of.View(), of.ToEncode(), to);
  });
  measure("decode_rotated", 0, [&](const CacheAndPages& of, cudaStream_t to) {
    return codec.Decode(of.ToDecode(), DecodeBasis::kTransformed, of.View(), to);
  });
  measure("decode", transform, [&](const CacheAndPages& of, cudaStream_t to) {
    return codec.Decode(of.ToDecode(), DecodeBasis::kModel, of.View(), to);
  });
}

}  // namespace

void BenchCodec(Bench& bench) {
  CodecSpec spec;
  spec.transform_hash = std::string(32, 't');
  const auto codec =
      OrDie(cuda::CudaPageCodec::Create(kQwen3, spec, RotationSet(kQwen3, 0.9f).get()));
  const Bytes rows = GaussianRows(1);
  for (uint32_t tokens : {8192u, 65536u, 262144u}) {
    const std::string suffix = "/tokens:" + std::to_string(tokens);
    if (bench.Wants("encode" + suffix) || bench.Wants("decode_rotated" + suffix) ||
        bench.Wants("decode" + suffix))
      BenchTokens(bench, *codec, rows, tokens);
  }
}

}  // namespace oscarkv::testing
