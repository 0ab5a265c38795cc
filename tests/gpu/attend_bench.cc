// Attention of one new token over 2-bit pages, 32 query heads over 8 KV heads of 128, pages of 64.
#include <array>
#include <random>
#include <utility>

#include "kernels/attention/attend.h"
#include "kernels/codec/oscar/format.h"
#include "kernels/codec/page_layout.h"
#include "kernels/device/buffer.h"
#include "kernels/device/status.h"
#include "tests/codec/codec_testing.h"
#include "tests/codec/page_testing.h"
#include "tests/gpu/gpu_bench.h"
#include "tests/gpu/gpu_cache.h"

namespace oscarkv::testing {
namespace {

using device::DeviceBuffer;

constexpr uint32_t kQueryHeads = 32;
constexpr uint32_t kDim = kQwen3.k_head_dim;
constexpr uint32_t kPageTokens = kQwen3.page_tokens;

struct Setting {
  uint32_t requests;
  uint32_t length;
  uint32_t wide_pages;  // of each request: one sink page, the others recent

  std::string Name() const {
    return "attend/requests:" + std::to_string(requests) + "/length:" + std::to_string(length) +
           (wide_pages > 0 ? "/wide:" + std::to_string(wide_pages) : "");
  }
};

// Pages of Gaussian rows, many times over in one stretch of memory.
struct Pool {
  std::unique_ptr<cuda::Attention> attention;
  size_t packed_bytes = 0;
  size_t wide_bytes = 0;
  size_t packed_count = 0;
  size_t wide_count = 0;
  DeviceBuffer packed;
  DeviceBuffer wide;

  explicit Pool(size_t packed_tokens) {
    CodecSpec spec;
    spec.transform_hash = std::string(32, 't');
    const auto transforms = RotationSet(kQwen3, 0.9f);
    const auto cpu = OrDie(MakePageCodec(CodecBackend::kCpu, kQwen3, spec, transforms));
    attention = OrDie(cuda::Attention::Create(kQwen3, spec, *transforms, kQueryHeads));
    constexpr int64_t kDistinct = 64;
    EngineCache source(EngineLayout::kTokenMajor, kQwen3, DType::kBf16, kDistinct * kPageTokens);
    source.FillGaussian(1);
    std::array<Bytes, 2> bytes;
    for (int64_t page = 0; page < kDistinct; ++page) {
      std::vector<int64_t> slots(kPageTokens);
      for (int64_t i = 0; i < kPageTokens; ++i)
        slots[static_cast<size_t>(i)] = page * kPageTokens + i;
      for (Encoding encoding : {Encoding::kPacked, Encoding::kWide}) {
        const Bytes one = EncodePage(*cpu, encoding, source, slots).bytes;
        Bytes& all = bytes[encoding == Encoding::kPacked ? 0 : 1];
        all.insert(all.end(), one.begin(), one.end());
      }
    }
    packed_bytes = bytes[0].size() / kDistinct;
    wide_bytes = bytes[1].size() / kDistinct;
    packed_count = packed_tokens / kPageTokens;
    wide_count = 10 * kDistinct;
    packed = Repeated(bytes[0], packed_count * packed_bytes);
    wide = Repeated(bytes[1], wide_count * wide_bytes);
  }
};

// One call's tables on the device.
struct Call {
  std::vector<DeviceBuffer> memory;
  cuda::AttendBatch batch;

  Call(const Pool& pool, const Setting& setting, size_t& next, std::mt19937& random) {
    std::vector<cuda::AttendPage> table;
    std::vector<uint32_t> first{0};
    const uint32_t pages = setting.length / kPageTokens;
    for (uint32_t request = 0; request < setting.requests; ++request) {
      for (uint32_t page = 0; page < pages; ++page) {
        const bool wide =
            setting.wide_pages > 0 && (page == 0 || page + setting.wide_pages > pages);
        const size_t number = wide ? random() % pool.wide_count : next++ % pool.packed_count;
        table.push_back({.bytes = wide ? pool.wide.data() + number * pool.wide_bytes
                                       : pool.packed.data() + number * pool.packed_bytes,
                         .position = page * kPageTokens,
                         .tokens = kPageTokens,
                         .encoding = wide ? Encoding::kWide : Encoding::kPacked});
      }
      first.push_back(static_cast<uint32_t>(table.size()));
    }
    std::vector<uint32_t> lengths(setting.requests, setting.length);
    const size_t elements = size_t{setting.requests} * kQueryHeads * kDim;
    std::normal_distribution<float> normal;
    Bytes queries(elements * 2);
    for (size_t i = 0; i < elements; ++i)
      StoreElement(queries.data() + 2 * i, DType::kBf16, normal(random));
    const auto put = [&](auto& host) {
      memory.push_back(OrDie(DeviceBuffer::CopyOf(std::span(host))));
      return memory.back().data();
    };
    batch.requests = setting.requests;
    batch.softmax_scale = 0.088388f;
    batch.pages = reinterpret_cast<const cuda::AttendPage*>(put(table));
    batch.first_page = reinterpret_cast<const uint32_t*>(put(first));
    batch.lengths = reinterpret_cast<const uint32_t*>(put(lengths));
    batch.queries = put(queries);
    batch.output = put(queries);
  }
};

void BenchSetting(Bench& bench, const Pool& pool, const Setting& setting) {
  const uint32_t packed = setting.length - setting.wide_pages * kPageTokens;
  Least least;
  least.bytes = setting.requests * (static_cast<double>(pool.packed_bytes) / kPageTokens * packed +
                                    static_cast<double>(pool.wide_bytes) * setting.wide_pages);
  least.operations = 2.0 * 2.0 * kDim * kQueryHeads * setting.requests * setting.length;
  std::mt19937 random(5);
  size_t next = 0;
  std::vector<Call> memory;
  for (size_t i = 0; i < Bench::RotationFor(least).calls; ++i)
    memory.emplace_back(pool, setting, next, random);
  const size_t workspace_bytes = pool.attention->WorkspaceBytes(setting.requests, 1);
  const auto workspace = OrDie(DeviceBuffer::Allocate(workspace_bytes));
  OrDie(pool.attention->InitWorkspace(workspace.data(), workspace_bytes, nullptr));
  OrDie(device::ToStatus(cudaDeviceSynchronize(), "clearing counters"));
  std::vector<Enqueue> calls;
  calls.reserve(memory.size());
  for (const Call& call : memory) {
    calls.emplace_back([&](cudaStream_t stream) {
      return pool.attention->Attend(call.batch, workspace.data(), workspace_bytes, stream);
    });
  }
  bench.Measure(setting.Name(), least, calls);
}

}  // namespace

void BenchAttention(Bench& bench) {
  std::vector<Setting> settings;
  for (uint32_t wide : {0u, 5u}) {
    for (uint32_t length : {4096u, 8192u, 32768u, 65536u, 81920u, 131072u, 262144u})
      settings.push_back({1, length, wide});
    for (const auto& [requests, length] :
         std::initializer_list<std::pair<uint32_t, uint32_t>>{{8, 32768}, {32, 4096}, {32, 32768}})
      settings.push_back({requests, length, wide});
  }
  std::erase_if(settings, [&](const Setting& setting) { return !bench.Wants(setting.Name()); });
  if (settings.empty()) return;
  const Pool pool(size_t{2} << 20);
  for (const Setting& setting : settings) BenchSetting(bench, pool, setting);
}

}  // namespace oscarkv::testing
