// Pages written once and kept: every implementation reads and writes them, byte for byte.
//   codec_golden_test --write FOLDER     writes them anew (only together with a new format version)
// A file holds the page's bytes followed by its block checksums, little-endian. The input of a case
// is made of integers alone, so that it is the same on every machine and with every library.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/codec/page_codec.h"
#include "tests/codec/codec_testing.h"
#include "tests/codec/engine_cache.h"
#include "tests/codec/page_testing.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

struct GoldenCase {
  const char* name;
  Encoding encoding;
  Geometry geometry;
  std::vector<LayerBits> bits;
  uint32_t group;
  ParamsDType params;
  float k_clip;
  float v_clip;
};

std::vector<GoldenCase> Cases() {
  const Geometry plain{.layers = 1,
                       .kv_heads = 1,
                       .k_head_dim = 128,
                       .v_head_dim = 128,
                       .page_tokens = 8,
                       .dtype = DType::kBf16};
  const Geometry mixed{.layers = 2,
                       .kv_heads = 2,
                       .k_head_dim = 64,
                       .v_head_dim = 48,
                       .page_tokens = 5,
                       .dtype = DType::kFp16};
  const Geometry narrow{.layers = 1,
                        .kv_heads = 2,
                        .k_head_dim = 256,
                        .v_head_dim = 16,
                        .page_tokens = 3,
                        .dtype = DType::kFp32};
  constexpr auto packed = Encoding::kPacked;
  return {
      {"int2_fp16_clip", packed, plain, {{2, 2}}, 0, ParamsDType::kFp16, 0.96f, 0.92f},
      {"int2_fp32", packed, plain, {{2, 2}}, 0, ParamsDType::kFp32, 0.0f, 0.0f},
      {"int2_fp16_group32", packed, plain, {{2, 2}}, 32, ParamsDType::kFp16, 0.9f, 0.9f},
      {"layers_differ_group16", packed, mixed, {{4, 2}, {2, 4}}, 16, ParamsDType::kFp16, 0.85f, 0},
      {"int4_fp32_narrow", packed, narrow, {{4, 4}}, 0, ParamsDType::kFp32, 0.95f, 0.0f},
      {"wide_fp16", Encoding::kWide, mixed, {{2, 2}}, 0, ParamsDType::kFp16, 0.0f, 0.0f},
  };
}

// Multiples of 1/64 in -16..16 with now and then something special, from a 64-bit generator written
// out here.
class ExactRows {
 public:
  std::vector<float> Next(uint32_t dim) {
    std::vector<float> row(dim);
    for (float& value : row)
      value = static_cast<float>(static_cast<int64_t>(Random() % 2048) - 1024) / 64.0f;
    const uint64_t kind = rows_++ % 7;
    if (kind == 3) row.assign(dim, 0.75f);                           // constant
    if (kind == 4) row[Random() % dim] = 0x1p15f;                    // an outlier
    if (kind == 5) row[5] = std::numeric_limits<float>::infinity();  // not finite
    return row;
  }

 private:
  uint64_t Random() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  uint64_t state_ = 0x9e3779b97f4a7c15u;
  uint64_t rows_ = 0;
};

void FillExactly(EngineCache& cache, const Geometry& geometry) {
  ExactRows rows;
  for (uint32_t block = 0; block < geometry.blocks(); ++block) {
    for (KvSide side : {KvSide::kK, KvSide::kV}) {
      const uint32_t dim = side == KvSide::kK ? geometry.k_head_dim : geometry.v_head_dim;
      for (int64_t slot = 0; slot < geometry.page_tokens; ++slot)
        cache.Write(side, block / geometry.kv_heads, block % geometry.kv_heads, slot,
                    rows.Next(dim));
    }
  }
}

std::unique_ptr<PageCodec> Codec(const GoldenCase& golden, CodecBackend backend) {
  CodecSpec spec;
  spec.bits = golden.bits;
  spec.group = golden.group;
  spec.params = golden.params;
  auto codec = MakePageCodec(backend, golden.geometry, spec,
                             IdentitySet(golden.geometry, golden.k_clip, golden.v_clip));
  EXPECT_OK(codec);
  return *std::move(codec);
}

std::vector<int64_t> AllSlots(const GoldenCase& golden) {
  std::vector<int64_t> slots(golden.geometry.page_tokens);
  for (size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<int64_t>(i);
  return slots;
}

EncodedPage MakePage(const GoldenCase& golden, CodecBackend backend) {
  EngineCache cache(EngineLayout::kTokenMajor, golden.geometry, golden.geometry.dtype,
                    golden.geometry.page_tokens);
  FillExactly(cache, golden.geometry);
  return EncodePage(*Codec(golden, backend), golden.encoding, cache, AllSlots(golden));
}

Bytes FileOf(const EncodedPage& page) {
  Bytes file = page.bytes;
  const auto crcs = std::as_bytes(std::span(page.crcs));
  file.insert(file.end(), crcs.begin(), crcs.end());
  return file;
}

std::string PathOf(std::string_view folder, const GoldenCase& golden) {
  return std::string(folder) + "/" + golden.name + ".page";
}

Bytes ReadGolden(const GoldenCase& golden) {
  std::ifstream file(PathOf(OSCARKV_GOLDEN_DIR, golden), std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const auto view = std::as_bytes(std::span(bytes));
  return {view.begin(), view.end()};
}

class GoldenTest : public ::testing::TestWithParam<GoldenCase> {};

TEST_P(GoldenTest, EveryImplementationWritesThisPage) {
  const Bytes golden = ReadGolden(GetParam());
  ASSERT_FALSE(golden.empty()) << "no file " << PathOf(OSCARKV_GOLDEN_DIR, GetParam());
  EXPECT_EQ(FileOf(MakePage(GetParam(), CodecBackend::kReference)), golden);
  EXPECT_EQ(FileOf(MakePage(GetParam(), CodecBackend::kCpu)), golden);
}

TEST_P(GoldenTest, EveryImplementationReadsThisPageToTheSameValues) {
  const GoldenCase& golden = GetParam();
  const Bytes file = ReadGolden(golden);
  const auto reference = Codec(golden, CodecBackend::kReference);
  const uint64_t page_bytes = reference->layout(golden.encoding).page_bytes();
  ASSERT_EQ(file.size(), page_bytes + uint64_t{4} * golden.geometry.blocks());
  EncodedPage page{{file.begin(), file.begin() + static_cast<std::ptrdiff_t>(page_bytes)}, {}, {}};
  for (uint32_t block = 0; block < golden.geometry.blocks(); ++block)
    page.crcs.push_back(LoadLe<uint32_t>(file.data() + page_bytes + 4 * size_t{block}));
  EngineCache a(EngineLayout::kNhd, golden.geometry, DType::kFp32, golden.geometry.page_tokens);
  EngineCache b(EngineLayout::kNhd, golden.geometry, DType::kFp32, golden.geometry.page_tokens);
  // In the basis that pages are stored in, where reading is exact.
  const DecodeBasis basis =
      golden.encoding == Encoding::kPacked ? DecodeBasis::kTransformed : reference->engine_basis();
  ASSERT_OK(DecodePage(*reference, golden.encoding, page, basis, a, AllSlots(golden)));
  ASSERT_OK(DecodePage(*Codec(golden, CodecBackend::kCpu), golden.encoding, page, basis, b,
                       AllSlots(golden)));
  for (uint32_t layer = 0; layer < golden.geometry.layers; ++layer) {
    const Rows x = FromBytes(a.memory()[layer], 1, DType::kFp32);
    const Rows y = FromBytes(b.memory()[layer], 1, DType::kFp32);
    for (size_t i = 0; i < x.values.size(); ++i) {
      if (!(std::isnan(x.values[i]) && std::isnan(y.values[i]))) {
        ASSERT_EQ(x.values[i], y.values[i]);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Pages, GoldenTest, ::testing::ValuesIn(Cases()),
                         [](const auto& golden) { return std::string(golden.param.name); });

int WriteAll(std::string_view folder) {
  for (const GoldenCase& golden : Cases()) {
    const Bytes bytes = FileOf(MakePage(golden, CodecBackend::kReference));
    std::ofstream file(PathOf(folder, golden), std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
    if (!file) {
      std::fprintf(stderr, "cannot write %s\n", PathOf(folder, golden).c_str());
      return 1;
    }
    std::printf("%s: %zu bytes\n", PathOf(folder, golden).c_str(), bytes.size());
  }
  return 0;
}

}  // namespace
}  // namespace oscarkv::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc == 3 && std::string_view(argv[1]) == "--write")
    return oscarkv::testing::WriteAll(argv[2]);
  return RUN_ALL_TESTS();
}
