// Files on disk: mapped, replaced whole.
#include <filesystem>
#include <fstream>
#include <string>

#include <gtest/gtest.h>

#include "kernels/safetensors/safetensors.h"
#include "tests/support/status_matchers.h"

namespace oscarkv {
namespace {

using ::oscarkv::testing::StatusIs;
using ::testing::HasSubstr;

std::string PathOf(const std::string& name) { return ::testing::TempDir() + "/" + name; }

TEST(SafetensorsFilesTest, OpensWhatWasWritten) {
  const std::string bytes(1 << 16, 'x');
  const std::vector<Tensor> tensors = {{"x", "U8", {bytes.size()}, AsBytes(bytes)}};
  const std::string path = PathOf("written.safetensors");
  ASSERT_OK(WriteFileAtomically(path, AsBytes(SerializeSafetensors(tensors, {}))));

  const auto file = OpenSafetensors(path);

  ASSERT_OK(file);
  const auto tensor = file->contents.Get("x");
  ASSERT_OK(tensor);
  EXPECT_EQ(AsText(tensor->bytes), bytes);
  MappedFile::ReleasePages(tensor->bytes);
  EXPECT_EQ(AsText(tensor->bytes), bytes) << "released pages read the same";
}

TEST(SafetensorsFilesTest, NamesThePathOfWhatCannotBeRead) {
  EXPECT_THAT(OpenSafetensors(PathOf("absent.safetensors")),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("absent.safetensors")));
  std::ofstream(PathOf("empty.safetensors")).close();
  EXPECT_THAT(OpenSafetensors(PathOf("empty.safetensors")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("empty.safetensors")));
}

TEST(SafetensorsFilesTest, LeavesNothingBehindWhenTheFileCannotBePutInPlace) {
  const std::string folder = PathOf("a_folder_in_the_way");
  std::filesystem::create_directories(folder + "/full");
  EXPECT_FALSE(WriteFileAtomically(folder, AsBytes(std::string_view("x"))).ok());
  for (const auto& entry : std::filesystem::directory_iterator(::testing::TempDir())) {
    EXPECT_EQ(entry.path().string().find("in_the_way.partial"), std::string::npos);
  }
}

}  // namespace
}  // namespace oscarkv
