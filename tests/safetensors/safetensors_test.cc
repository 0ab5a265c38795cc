#include "kernels/safetensors/safetensors.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"

namespace oscarkv {
namespace {

using ::oscarkv::testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string FileOf(const std::string& header, size_t data_bytes) {
  std::string file(8, '\0');
  StoreLe(reinterpret_cast<std::byte*>(file.data()), uint64_t{header.size()});
  return file + header + std::string(data_bytes, '\x01');
}

// The message with which a header over some bytes of data is refused.
absl::Status Refusal(const std::string& header, size_t data_bytes) {
  const std::string file = FileOf(header, data_bytes);
  return Safetensors::Parse(AsBytes(file)).status();
}

std::string Entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

TEST(SafetensorsTest, ReadsBackWhatItWrote) {
  const std::vector<float> values = {1.0f, -2.0f, 3.5f, 0.0f, 5.0f, 6.0f};
  const std::vector<int64_t> lengths = {4, 2};
  const std::vector<Tensor> tensors = {
      {"q", "F32", {2, 3}, std::as_bytes(std::span(values))},
      {"seq_lens", "I64", {2}, std::as_bytes(std::span(lengths))},
      {"empty", "BF16", {0, 7}, {}},
  };
  const std::string file = SerializeSafetensors(tensors, {{"b", "2"}, {"a", "\"quoted\"\n"}});

  const auto parsed = Safetensors::Parse(AsBytes(file));

  ASSERT_OK(parsed);
  EXPECT_EQ(parsed->tensors().size(), 3u);
  EXPECT_EQ(parsed->metadata().at("a"), "\"quoted\"\n");
  const auto q = parsed->Get("q", "F32", 2);
  ASSERT_OK(q);
  EXPECT_THAT(q->shape, ElementsAre(2, 3));
  EXPECT_EQ(q->elements(), 6u);
  EXPECT_EQ(AsText(q->bytes), AsText(std::as_bytes(std::span(values))));
}

TEST(SafetensorsTest, WritesTheSameBytesForTheSameContentsAndAlignsTheData) {
  const std::vector<uint8_t> byte = {7};
  const std::vector<Tensor> tensors = {{"x", "U8", {1}, std::as_bytes(std::span(byte))}};

  const std::string file = SerializeSafetensors(tensors, {{"k", "v"}, {"a", "b"}});

  EXPECT_EQ(file, SerializeSafetensors(tensors, {{"a", "b"}, {"k", "v"}}));
  EXPECT_EQ((file.size() - 1) % 8, 0u);
  EXPECT_THAT(file, HasSubstr(R"({"__metadata__":{"a":"b","k":"v"},"x":{"dtype":"U8")"));
}

TEST(SafetensorsTest, GetNamesWhatIsThereAndWhatDiffers) {
  const std::string file = FileOf("{" + Entry("k", "F16", "[2,3]", "[0,12]") + "}", 12);
  const auto parsed = Safetensors::Parse(AsBytes(file));
  ASSERT_OK(parsed);
  EXPECT_THAT(parsed->Get("v"), StatusIs(absl::StatusCode::kNotFound,
                                         AllOf(HasSubstr("no tensor 'v'"), HasSubstr("1: k"))));
  EXPECT_THAT(parsed->Get("k", "F32", 2),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("'k'"), HasSubstr("F32"), HasSubstr("F16 [2, 3]"))));
  EXPECT_THAT(parsed->Get("k", "F16", 3), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(SafetensorsTest, RefusesTruncatedFiles) {
  const std::string file = FileOf("{" + Entry("k", "U8", "[16]", "[0,16]") + "}", 16);
  ASSERT_OK(Safetensors::Parse(AsBytes(file)));
  for (size_t bytes = 0; bytes < file.size(); ++bytes) {
    EXPECT_THAT(Safetensors::Parse(AsBytes(std::string_view(file).substr(0, bytes))),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << bytes;
  }
}

TEST(SafetensorsTest, RefusesHeaderLengthsThatPassTheFileOrTheLimit) {
  std::string file = FileOf("{}", 8);
  for (const uint64_t length : {uint64_t{11}, kSafetensorsHeaderBytesMax + 1, ~uint64_t{0}}) {
    StoreLe(reinterpret_cast<std::byte*>(file.data()), length);
    EXPECT_THAT(Safetensors::Parse(AsBytes(file)),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(std::to_string(length))));
  }
}

struct BadHeader {
  const char* what;
  std::string header;
  size_t data_bytes;
  const char* message;
};

TEST(SafetensorsTest, RefusesMalformedHeadersAndNamesTheTensor) {
  const std::string good = Entry("a", "U8", "[4]", "[0,4]");
  const std::vector<BadHeader> cases = {
      {"not JSON", "{\"a\":", 0, "no JSON"},
      {"not an object", "[]", 0, "not a JSON object"},
      {"trailing text", "{}x", 0, "no JSON"},
      {"dtype unknown", "{" + Entry("a", "F31", "[1]", "[0,4]") + "}", 4, "unknown dtype 'F31'"},
      {"dtype no text", R"({"a":{"dtype":4,"shape":[],"data_offsets":[0,1]}})", 1, "'a'"},
      {"shape missing", R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1, "no \"shape\""},
      {"shape negative", "{" + Entry("a", "U8", "[-1]", "[0,4]") + "}", 4, "unexpected -1"},
      {"shape fractional", "{" + Entry("a", "U8", "[1.5]", "[0,4]") + "}", 4, "unexpected 1.5"},
      {"shape nested", "{" + Entry("a", "U8", "[[1]]", "[0,4]") + "}", 4, "an array"},
      {"one offset", "{" + Entry("a", "U8", "[4]", "[0]") + "}", 4, "1 numbers, expected 2"},
      {"key unknown", R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}})", 1,
       "unknown key"},
      {"name twice", "{" + good + "," + good + "}", 4, "'a' comes twice"},
      {"key twice", R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1,
       "\"dtype\" comes twice"},
      {"metadata no text", R"({"__metadata__":{"a":1}})", 0, "__metadata__"},
      {"product wrong", "{" + Entry("a", "F32", "[3]", "[0,4]") + "}", 4, "has 12 bytes"},
      {"product overflows", "{" + Entry("a", "F32", "[4294967296,4294967296]", "[0,0]") + "}", 0,
       "overflows"},
      {"range reversed", "{" + Entry("a", "U8", "[0]", "[4,0]") + "}", 4, "do not lie within"},
      {"range past the end", "{" + Entry("a", "U8", "[8]", "[0,8]") + "}", 4, "do not lie within"},
      {"range wraps", "{" + Entry("a", "U8", "[2]", "[18446744073709551615,1]") + "}", 4,
       "do not lie within"},
      {"overlap", "{" + good + "," + Entry("b", "U8", "[4]", "[2,6]") + "}", 6, "overlap"},
      {"hole", "{" + good + "," + Entry("b", "U8", "[4]", "[5,9]") + "}", 9, "gap"},
      {"tail", "{" + good + "}", 5, "1 bytes after the last tensor"},
  };
  for (const BadHeader& bad : cases) {
    EXPECT_THAT(Refusal(bad.header, bad.data_bytes),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(bad.message)))
        << bad.what;
  }
}

TEST(SafetensorsTest, RefusesDeeplyNestedHeadersWithoutBuildingThem) {
  const std::string nested = "{\"a\":" + std::string(size_t{1} << 22, '[');
  EXPECT_THAT(Refusal(nested, 0), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace oscarkv
