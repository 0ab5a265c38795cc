// Directories that are another's, of another version, in use, or half there.
#include "server/tier/disk/disk_directory.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/tier/disk/posix_io.h"
#include "tests/support/faulty_io.h"
#include "tests/support/scoped_folder.h"
#include "tests/support/status_matchers.h"
#include "tests/tier/disk/disk_pages.h"

namespace oscarkv::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class DiskDirectoryTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<DiskStore>> Open() {
    return DiskStore::Open(options_, std::make_unique<PosixIo>());
  }
  // With four segments and pages in the first two.
  void Make() {
    auto store = Open();
    ASSERT_OK(store);
    for (uint64_t i = 0; i < 20; ++i) ASSERT_OK(WriteOne(**store, TestDiskPage(i, 60'000)));
  }
  std::string Path(const std::string& name) const { return options_.directory.path + "/" + name; }

  ScopedFolder folder_;
  DiskStoreOptions options_ = TestOptions(folder_.file("tier"));
};

TEST_F(DiskDirectoryTest, OptionsOutOfRangeAreInvalid) {
  const DiskStoreOptions good = options_;
  options_.directory.capacity_bytes = kTestSegmentBytes;
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kInvalidArgument,
                               HasSubstr("a capacity of 1048576 bytes holds 0 segments")));
  options_ = good;
  options_.directory.segment_bytes = kTestSegmentBytes + 1;
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("segment_bytes")));
  options_ = good;
  options_.directory.owner = std::string(65, 'x');
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("owner")));
  options_ = good;
  options_.directory.path = "";
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kInvalidArgument));
  options_ = good;
  options_.rewritten_share_max = 0.6;
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(DiskStore::Open(good, nullptr), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(DiskDirectoryTest, AFolderThatCannotBeMadeIsAnError) {
  options_.directory.path = folder_.file("no/such/folder");
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("No such file")));
}

TEST_F(DiskDirectoryTest, TwoServersOnOneDirectoryAreRefusedNamingBoth) {
  const auto first = Open();
  ASSERT_OK(first);
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kUnavailable,
                               AllOf(HasSubstr("in use by 'test' (process "),
                                     HasSubstr("; 'test' (process "))));
}

TEST_F(DiskDirectoryTest, AnotherServersDirectoryIsRefusedNamingBoth) {
  Make();
  options_.directory.owner = "somebody else";
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kFailedPrecondition,
                               HasSubstr("belongs to 'test', this is 'somebody else'")));
  options_.directory.owner = "test";
  EXPECT_OK(Open());
}

TEST_F(DiskDirectoryTest, AnotherVersionIsRefusedNamingBoth) {
  Make();
  const int file = open(Path("superblock").c_str(), O_RDWR);
  const uint32_t version = 2;
  ASSERT_EQ(pwrite(file, &version, 4, 8), 4);
  close(file);
  EXPECT_THAT(Open(),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("in version 2 of the format, this program has version 1")));
}

TEST_F(DiskDirectoryTest, AnotherSegmentSizeIsRefusedNamingBoth) {
  Make();
  options_.directory.segment_bytes = 2 * kTestSegmentBytes;
  options_.directory.capacity_bytes *= 2;
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kFailedPrecondition,
                               HasSubstr("segments of 1048576 bytes, asked for are 2097152")));
  options_.directory.segment_bytes = 0;  // whatever it has
  EXPECT_OK(Open());
}

TEST_F(DiskDirectoryTest, ADamagedSuperblockIsDataLoss) {
  Make();
  const int file = open(Path("superblock").c_str(), O_RDWR);
  ASSERT_EQ(pwrite(file, "x", 1, 20), 1);
  close(file);
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("superblock")));
  ASSERT_EQ(truncate(Path("superblock").c_str(), 100), 0);
  EXPECT_FALSE(Open().ok());
}

TEST_F(DiskDirectoryTest, SegmentsWithoutASuperblockAreRefused) {
  Make();
  std::filesystem::remove(Path("superblock"));
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kFailedPrecondition,
                               HasSubstr("4 segments and no superblock: it was deleted in part")));
}

TEST_F(DiskDirectoryTest, AMissingSegmentIsMadeAnewAndTheRestIsWhole) {
  Make();
  std::filesystem::remove(Path("segment-000000"));
  std::filesystem::remove(Path("segment-000003"));
  const auto store = Open();
  ASSERT_OK(store);
  EXPECT_EQ((*store)->Stats().segments_made, 2u);
  EXPECT_EQ((*store)->Stats().pages, 4u);  // of the second segment
  EXPECT_EQ(ReadOne(**store, TestKey(18)).body, BodyOf(18, 60'000));
  EXPECT_TRUE(std::filesystem::exists(Path("segment-000000")));
}

TEST_F(DiskDirectoryTest, ATruncatedSegmentIsAllocatedAgain) {
  Make();
  ASSERT_EQ(truncate(Path("segment-000000").c_str(), 500'000), 0);
  const auto store = Open();
  ASSERT_OK(store);
  EXPECT_EQ(std::filesystem::file_size(Path("segment-000000")), kTestSegmentBytes);
  // Its table was at its end.
  EXPECT_EQ((*store)->Stats().pages, 4u);
  for (uint64_t i = 100; i < 180; ++i) ASSERT_OK(WriteOne(**store, TestDiskPage(i, 60'000)));
}

TEST_F(DiskDirectoryTest, ASegmentOfAnotherDirectoryIsEmpty) {
  Make();
  const std::string path = options_.directory.path;
  options_.directory.path = folder_.file("other");
  Make();
  std::filesystem::copy_file(path + "/segment-000000", Path("segment-000000"),
                             std::filesystem::copy_options::overwrite_existing);
  std::filesystem::copy_file(Path("segment-000001"), Path("segment-000002"),
                             std::filesystem::copy_options::overwrite_existing);
  const auto store = Open();
  ASSERT_OK(store);
  EXPECT_EQ((*store)->Stats().pages, 4u);
}

TEST_F(DiskDirectoryTest, CapacityMayChangeBetweenOpenings) {
  Make();
  options_.directory.capacity_bytes = 6 * kTestSegmentBytes + 3 * kDiskBlockBytes;
  {
    const auto store = Open();
    ASSERT_OK(store);
    EXPECT_EQ((*store)->Stats().segments, 6u);
    EXPECT_EQ((*store)->Stats().pages, 20u);
  }
  options_.directory.capacity_bytes = 2 * kTestSegmentBytes + 3 * kDiskBlockBytes;
  const auto store = Open();
  ASSERT_OK(store);
  EXPECT_EQ((*store)->Stats().segments, 2u);
  EXPECT_EQ((*store)->Stats().pages, 20u);
  EXPECT_FALSE(std::filesystem::exists(Path("segment-000002")));
  // Both are full, and there is no free one: room is made all the same.
  for (uint64_t i = 100; i < 150; ++i) ASSERT_OK(WriteOne(**store, TestDiskPage(i, 60'000)));
  EXPECT_OK(ReadOne(**store, TestKey(149)).status);
}

TEST_F(DiskDirectoryTest, AFullDiskAtOpeningIsAnErrorAndStaysOpenable) {
  auto io = std::make_unique<FaultyIo>(std::make_unique<PosixIo>(), 1);
  io->SetFaults({.allocate_no_space = 1000});
  EXPECT_THAT(DiskStore::Open(options_, std::move(io)),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("segment-000000")));
  EXPECT_OK(Open());
}

TEST_F(DiskDirectoryTest, OtherFilesAreLeftAlone) {
  Make();
  for (const char* name : {"segment-7", "segment-0000001", "notes"})
    close(open(Path(name).c_str(), O_CREAT | O_WRONLY, 0600));
  EXPECT_OK(Open());
  EXPECT_TRUE(std::filesystem::exists(Path("segment-7")));
  EXPECT_TRUE(std::filesystem::exists(Path("notes")));
}

}  // namespace
}  // namespace oscarkv::testing
