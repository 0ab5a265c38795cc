#include "kernels/safetensors/writer.h"

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/safetensors/safetensors.h"
#include "tests/support/status_matchers.h"

namespace oscarkv {
namespace {

using ::oscarkv::testing::StatusIs;
using ::testing::HasSubstr;

std::string PathOf(const std::string& name) { return ::testing::TempDir() + "/" + name; }

TEST(SafetensorsWriterTest, StreamsTensorsInTurnsIntoTheBytesOfOneGo) {
  const std::string a(100, 'a'), b(64, 'b');
  const std::vector<TensorSpec> specs = {{"a", "U8", {100}}, {"b", "F32", {4, 4}}};
  const std::string path = PathOf("streamed.safetensors");
  std::filesystem::remove(path);  // of an earlier run
  auto writer = SafetensorsWriter::Create(path, specs, {{"key", "value"}});
  ASSERT_OK(writer);

  ASSERT_OK(writer->Append(1, AsBytes(b).first(16)));
  ASSERT_OK(writer->Append(0, AsBytes(a).first(60)));
  ASSERT_OK(writer->Append(1, AsBytes(b).subspan(16)));
  ASSERT_OK(writer->Append(0, AsBytes(a).subspan(60)));
  EXPECT_FALSE(std::filesystem::exists(path));
  ASSERT_OK(writer->Finish());

  const auto file = MappedFile::Open(path);
  ASSERT_OK(file);
  const std::vector<Tensor> whole = {{"a", "U8", {100}, AsBytes(a)},
                                     {"b", "F32", {4, 4}, AsBytes(b)}};
  EXPECT_EQ(AsText((*file)->bytes()), SerializeSafetensors(whole, {{"key", "value"}}));
}

TEST(SafetensorsWriterTest, RefusesWhatIsNoTensor) {
  const std::string path = PathOf("refused.safetensors");
  const auto refusal = [&](std::vector<TensorSpec> specs) {
    return SafetensorsWriter::Create(path, specs, {}).status();
  };
  EXPECT_THAT(refusal({{"a", "U8", {1}}, {"a", "U8", {1}}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'a'")));
  EXPECT_THAT(refusal({{"", "U8", {1}}}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(refusal({{"__metadata__", "U8", {1}}}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(refusal({{"a", "F5", {1}}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("F5")));
  EXPECT_THAT(refusal({{"a", "F64", {1ull << 62, 16}}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("too large")));
  EXPECT_THAT(SafetensorsWriter::Create("/nonexistent/x", std::vector<TensorSpec>(), {}),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/nonexistent/x")));
}

TEST(SafetensorsWriterTest, ChecksEveryTensorsLength) {
  const std::vector<TensorSpec> specs = {{"a", "U8", {4}}};
  const std::string path = PathOf("short.safetensors");
  auto writer = SafetensorsWriter::Create(path, specs, {});
  ASSERT_OK(writer);
  EXPECT_THAT(writer->Append(1, {}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(writer->Append(0, AsBytes(std::string_view("12345"))),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("room for 4")));
  ASSERT_OK(writer->Append(0, AsBytes(std::string_view("123"))));
  EXPECT_THAT(writer->Finish(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("'a' lacks 1")));
  ASSERT_OK(writer->Append(0, AsBytes(std::string_view("4"))));
  ASSERT_OK(writer->Finish());
  EXPECT_THAT(writer->Finish(), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST(SafetensorsWriterTest, AbandonedFilesDisappear) {
  const std::string path = PathOf("abandoned.safetensors");
  {
    auto writer = SafetensorsWriter::Create(path, std::vector<TensorSpec>{{"a", "U8", {4}}}, {});
    ASSERT_OK(writer);
    SafetensorsWriter moved = *std::move(writer);
    ASSERT_OK(moved.Append(0, AsBytes(std::string_view("1"))));
  }
  for (const auto& entry : std::filesystem::directory_iterator(::testing::TempDir())) {
    EXPECT_EQ(entry.path().string().find("abandoned.safetensors"), std::string::npos);
  }
}

}  // namespace
}  // namespace oscarkv
