#include "server/rpc/transform_registry.h"

#include <optional>
#include <string>

#include "absl/strings/escaping.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/base/sha256.h"
#include "kernels/codec/transform_file.h"
#include "tests/support/status_matchers.h"

namespace oscarkv {
namespace {

using ::oscarkv::testing::IsOkAndHolds;
using ::oscarkv::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr Geometry kGeometry = {.layers = 2,
                                .kv_heads = 2,
                                .k_head_dim = 16,
                                .v_head_dim = 32,
                                .page_tokens = 4,
                                .dtype = DType::kBf16};

// Files of different clip ratios differ.
std::string MakeFile(float clip) {
  return SerializeTransformFile(*MakeHadamardTransformSet(kGeometry, clip, clip), "{}");
}
std::string HashOf(const std::string& file) { return Sha256Of(AsBytes(file)); }

absl::StatusOr<bool> Add(TransformRegistry& registry, const std::string& file) {
  TransformUpload upload(registry);
  if (absl::Status status = upload.Append(file); !status.ok()) return status;
  return registry.Add(HashOf(file), upload);
}

TEST(TransformRegistryTest, ServesWhatWasAdded) {
  TransformRegistry registry(1 << 20);
  const std::string file = MakeFile(0.9f);
  EXPECT_EQ(registry.Find(HashOf(file)), nullptr);
  EXPECT_THAT(Add(registry, file), IsOkAndHolds(false));
  const auto found = registry.Find(HashOf(file));
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->file, file);
  EXPECT_OK(found->set.CheckFits(kGeometry));
}

TEST(TransformRegistryTest, AgainIsSuccessAndTakesNoRoom) {
  TransformRegistry registry(1 << 20);
  const std::string file = MakeFile(0.9f);
  ASSERT_OK(Add(registry, file));
  EXPECT_THAT(Add(registry, file), IsOkAndHolds(true));
  EXPECT_EQ(registry.bytes(), file.size());
}

TEST(TransformRegistryTest, RefusesOtherBytesThanAnnouncedNamingBoth) {
  TransformRegistry registry(1 << 20);
  const std::string file = MakeFile(0.9f);
  TransformUpload upload(registry);
  ASSERT_OK(upload.Append(file));
  const std::string announced(32, '\x01');
  EXPECT_THAT(registry.Add(announced, upload),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr(absl::BytesToHexString(HashOf(file))),
                             HasSubstr(absl::BytesToHexString(announced)))));
  EXPECT_EQ(registry.Find(announced), nullptr);
}

TEST(TransformRegistryTest, RefusesWhatIsNoTransformFile) {
  TransformRegistry registry(1 << 20);
  EXPECT_THAT(Add(registry, "not a file"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(registry.bytes(), 0u);
}

TEST(TransformRegistryTest, UploadsCountUntilTheyEnd) {
  const std::string file = MakeFile(0.9f);
  TransformRegistry registry(file.size() + 100);
  std::optional<TransformUpload> upload(std::in_place, registry);
  ASSERT_OK(upload->Append(std::string(200, 'x')));
  EXPECT_EQ(registry.bytes(), 200u);
  EXPECT_THAT(Add(registry, file),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("200 of")));
  EXPECT_THAT(registry.CheckRoom(file.size()), StatusIs(absl::StatusCode::kResourceExhausted));
  upload.reset();
  EXPECT_EQ(registry.bytes(), 0u);
  EXPECT_OK(Add(registry, file));
}

TEST(TransformRegistryTest, TheFirstOfTwoUploadsOfASetWins) {
  TransformRegistry registry(1 << 20);
  const std::string file = MakeFile(0.9f);
  {
    TransformUpload first(registry);
    TransformUpload second(registry);
    ASSERT_OK(first.Append(file));
    ASSERT_OK(second.Append(file));
    EXPECT_THAT(registry.Add(HashOf(file), second), IsOkAndHolds(false));
    EXPECT_THAT(registry.Add(HashOf(file), first), IsOkAndHolds(true));
    EXPECT_EQ(registry.bytes(), 2 * file.size());
  }
  EXPECT_EQ(registry.bytes(), file.size());
}

}  // namespace
}  // namespace oscarkv
