// Holds every implementation to the worked example of FORMAT.md, read out of the document itself.
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"

#include "kernels/codec/page_codec.h"
#include "tests/codec/codec_testing.h"
#include "tests/codec/page_testing.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

// The blocks ```hex NAME ... ``` of FORMAT.md, by name.
std::map<std::string, Bytes> ReadExample() {
  std::ifstream file(OSCARKV_SOURCE_DIR "/kernels/codec/FORMAT.md");
  std::map<std::string, Bytes> blocks;
  Bytes* open = nullptr;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("```")) {
      open = line.starts_with("```hex ") ? &blocks[line.substr(7)] : nullptr;
      continue;
    }
    if (open == nullptr) continue;
    for (size_t at = 0; at + 1 < line.size();) {
      if (line[at] == ' ') {
        ++at;
        continue;
      }
      open->push_back(static_cast<std::byte>(std::stoul(line.substr(at, 2), nullptr, 16)));
      at += 2;
    }
  }
  return blocks;
}

uint32_t BigEndian(const Bytes& bytes) {
  uint32_t value = 0;
  for (std::byte byte : bytes) value = value << 8 | static_cast<uint32_t>(byte);
  return value;
}

class FormatExampleTest : public ::testing::TestWithParam<CodecBackend> {
 protected:
  static Geometry ExampleGeometry() {
    return {.layers = 1,
            .kv_heads = 1,
            .k_head_dim = 16,
            .v_head_dim = 16,
            .page_tokens = 2,
            .dtype = DType::kBf16};
  }
  void SetUp() override {
    CodecSpec spec;
    spec.bits[0] = {.k = 2, .v = 4};
    spec.group = 16;
    auto codec = MakePageCodec(GetParam(), ExampleGeometry(), spec,
                               IdentitySet(ExampleGeometry(), 0.9f, 0.0f));
    ASSERT_OK(codec);
    codec_ = *std::move(codec);
    for (const char* name : {"k-input", "v-input", "packed-page", "packed-crc", "k-decoded",
                             "v-decoded", "wide-crc"}) {
      ASSERT_FALSE(example_[name].empty()) << "FORMAT.md has no block " << name;
    }
    for (int64_t token = 0; token < 2; ++token) {
      for (KvSide side : {KvSide::kK, KvSide::kV}) {
        const Bytes& input = example_[side == KvSide::kK ? "k-input" : "v-input"];
        ASSERT_EQ(input.size(), 64u);
        std::copy_n(input.begin() + token * 32, 32, cache_.Row(side, 0, 0, token).begin());
      }
    }
  }

  std::map<std::string, Bytes> example_ = ReadExample();
  std::unique_ptr<PageCodec> codec_;
  EngineCache cache_{EngineLayout::kTokenMajor, ExampleGeometry(), DType::kBf16, 2};
};

TEST_P(FormatExampleTest, PackedPageIsTheOneInTheText) {
  const EncodedPage page = EncodePage(*codec_, Encoding::kPacked, cache_, {0, 1});
  EXPECT_EQ(page.bytes, example_["packed-page"]);
  EXPECT_EQ(page.crcs[0], BigEndian(example_["packed-crc"]));
}

TEST_P(FormatExampleTest, PackedPageReadsBackAsInTheText) {
  const EncodedPage page{example_["packed-page"], {BigEndian(example_["packed-crc"])}, {}};
  for (DecodeBasis basis : {DecodeBasis::kTransformed, DecodeBasis::kModel}) {
    EngineCache found(EngineLayout::kTokenMajor, ExampleGeometry(), DType::kBf16, 2);
    ASSERT_OK(DecodePage(*codec_, Encoding::kPacked, page, basis, found, {0, 1}));
    const std::vector<Bytes> memory = found.memory();
    Bytes expected = example_["k-decoded"];
    expected.insert(expected.end(), example_["v-decoded"].begin(), example_["v-decoded"].end());
    if (basis == DecodeBasis::kTransformed) {
      EXPECT_EQ(memory[0], expected);
    } else {
      // T is the identity: the same within the bound of bf16.
      const Rows a = FromBytes(expected, 16, DType::kBf16);
      const Rows b = FromBytes(memory[0], 16, DType::kBf16);
      for (size_t i = 0; i < a.values.size(); ++i)
        EXPECT_NEAR(a.values[i], b.values[i], 4.5f * 0x1p-5f);
    }
  }
}

TEST_P(FormatExampleTest, WidePageIsTheInput) {
  const EncodedPage page = EncodePage(*codec_, Encoding::kWide, cache_, {0, 1});
  Bytes expected = example_["k-input"];
  expected.insert(expected.end(), example_["v-input"].begin(), example_["v-input"].end());
  EXPECT_EQ(page.bytes, expected);
  EXPECT_EQ(page.crcs[0], BigEndian(example_["wide-crc"]));
}

INSTANTIATE_TEST_SUITE_P(Backends, FormatExampleTest,
                         ::testing::Values(CodecBackend::kReference, CodecBackend::kCpu),
                         [](const auto& backend) {
                           return backend.param == CodecBackend::kReference ? "reference" : "cpu";
                         });

}  // namespace
}  // namespace oscarkv::testing
