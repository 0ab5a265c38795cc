// Memory that another process maps: what it may do with it, and what it may have been handed
// instead. The other process is this one, by the descriptor it would have got.
#include "proto/local/shared_region.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/support/open_descriptors.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using absl::StatusCode;
using Access = SharedRegion::Access;
using Others = SharedRegion::Others;

constexpr uint64_t kBytes = 64 << 10;

Descriptor Handed(const SharedRegion& region) { return Descriptor(dup(region.descriptor())); }

// The same memory, opened again for writing, as its user can.
Descriptor OpenedForWriting(int descriptor) {
  const std::string path = absl::StrCat("/proc/self/fd/", descriptor);
  return Descriptor(open(path.c_str(), O_RDWR | O_CLOEXEC));
}

bool CanMap(int descriptor, int protection) {
  void* address = mmap(nullptr, kBytes, protection, MAP_SHARED, descriptor, 0);
  if (address == MAP_FAILED) return false;
  munmap(address, kBytes);
  return true;
}

// memfd_create with the seals.
Descriptor Memory(uint64_t bytes, int seals) {
  Descriptor memory(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_EQ(ftruncate(memory.number(), static_cast<off_t>(bytes)), 0);
  EXPECT_EQ(fcntl(memory.number(), F_ADD_SEALS, seals), 0);
  return memory;
}

TEST(SharedRegionTest, WhatOneWritesTheOtherReads) {
  absl::StatusOr<SharedRegion> mine = SharedRegion::Create("test", kBytes, Others::kRead);
  ASSERT_OK(mine);
  const absl::StatusOr<SharedRegion> theirs =
      SharedRegion::Map(Handed(*mine), kBytes, Access::kRead);
  ASSERT_OK(theirs);
  ASSERT_EQ(theirs->bytes().size(), kBytes);
  EXPECT_NE(theirs->bytes().data(), mine->bytes().data());
  EXPECT_TRUE(std::ranges::all_of(theirs->bytes(), [](std::byte b) { return b == std::byte{}; }));
  mine->writable()[kBytes - 1] = std::byte{42};
  EXPECT_EQ(theirs->bytes()[kBytes - 1], std::byte{42});
}

TEST(SharedRegionTest, OthersWriteWhatTheMakerOnlyReads) {
  const absl::StatusOr<SharedRegion> mine = SharedRegion::Create("test", kBytes, Others::kWrite);
  ASSERT_OK(mine);
  const absl::StatusOr<SharedRegion> theirs =
      SharedRegion::Map(Handed(*mine), kBytes, Access::kWrite);
  ASSERT_OK(theirs);
  theirs->writable()[7] = std::byte{42};
  EXPECT_EQ(mine->bytes()[7], std::byte{42});
  EXPECT_DEATH(mine->writable()[7] = std::byte{1}, "");
}

TEST(SharedRegionTest, WhatOthersReadTheyCannotWriteByAnyMeans) {
  absl::StatusOr<SharedRegion> mine = SharedRegion::Create("test", kBytes, Others::kRead);
  ASSERT_OK(mine);
  const Descriptor again = OpenedForWriting(mine->descriptor());
  for (const int number : {mine->descriptor(), again.number()}) {
    if (number < 0) continue;  // the system does not even open it
    EXPECT_TRUE(CanMap(number, PROT_READ));
    EXPECT_FALSE(CanMap(number, PROT_READ | PROT_WRITE));
    void* mapped = mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, number, 0);
    ASSERT_NE(mapped, MAP_FAILED);
    EXPECT_NE(mprotect(mapped, kBytes, PROT_READ | PROT_WRITE), 0);
    EXPECT_NE(madvise(mapped, kBytes, MADV_REMOVE), 0);
    munmap(mapped, kBytes);
    EXPECT_LT(pwrite(number, "x", 1, 0), 0);
    EXPECT_NE(fallocate(number, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
    EXPECT_NE(ftruncate(number, 4096), 0);
    EXPECT_NE(ftruncate(number, 2 * kBytes), 0);
    EXPECT_NE(fcntl(number, F_ADD_SEALS, F_SEAL_WRITE), 0);
  }
  EXPECT_THAT(SharedRegion::Map(Handed(*mine), kBytes, Access::kWrite),
              StatusIs(StatusCode::kResourceExhausted));
  mine->writable()[0] = std::byte{1};  // the maker still can
}

TEST(SharedRegionTest, WhatOthersWriteKeepsItsSize) {
  const absl::StatusOr<SharedRegion> mine = SharedRegion::Create("test", kBytes, Others::kWrite);
  ASSERT_OK(mine);
  EXPECT_NE(ftruncate(mine->descriptor(), 4096), 0);
  EXPECT_NE(ftruncate(mine->descriptor(), 2 * kBytes), 0);
  EXPECT_NE(fcntl(mine->descriptor(), F_ADD_SEALS, F_SEAL_WRITE), 0);
  EXPECT_TRUE(CanMap(mine->descriptor(), PROT_READ | PROT_WRITE));
}

TEST(SharedRegionTest, TheMemoryOutlivesItsMaker) {
  Descriptor handed;
  {
    absl::StatusOr<SharedRegion> mine = SharedRegion::Create("test", kBytes, Others::kRead);
    ASSERT_OK(mine);
    mine->writable()[0] = std::byte{42};
    handed = Handed(*mine);
  }
  const absl::StatusOr<SharedRegion> theirs =
      SharedRegion::Map(std::move(handed), kBytes, Access::kRead);
  ASSERT_OK(theirs);
  EXPECT_EQ(theirs->bytes()[0], std::byte{42});
}

TEST(SharedRegionTest, NothingIsLeftOfIt) {
  const size_t before = OpenDescriptors();
  {
    absl::StatusOr<SharedRegion> mine = SharedRegion::Create("test", kBytes, Others::kRead);
    ASSERT_OK(mine);
    SharedRegion moved = *std::move(mine);
    moved = SharedRegion();
    EXPECT_EQ(moved.bytes().size(), 0u);
    EXPECT_OK(SharedRegion::Create("test", kBytes, Others::kWrite));
    EXPECT_THAT(SharedRegion::Map(Memory(kBytes, F_SEAL_SHRINK), kBytes, Access::kRead),
                StatusIs(StatusCode::kInvalidArgument));
  }
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST(SharedRegionTest, SizesThatAreNoneAreRefused) {
  for (const uint64_t bytes : {uint64_t{0}, ~uint64_t{0}, uint64_t{1} << 63}) {
    EXPECT_THAT(SharedRegion::Create("test", bytes, Others::kRead),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr(absl::StrCat(bytes))));
  }
}

TEST(SharedRegionTest, ADescriptorOfSomethingElseIsRefused) {
  EXPECT_THAT(
      SharedRegion::Map(Descriptor(open("/dev/zero", O_RDWR | O_CLOEXEC)), kBytes, Access::kRead),
      StatusIs(StatusCode::kInvalidArgument, HasSubstr("not of a memfd")));
  EXPECT_THAT(SharedRegion::Map(Descriptor(open("/proc/self/exe", O_RDONLY | O_CLOEXEC)), kBytes,
                                Access::kRead),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("not of a memfd")));
  EXPECT_THAT(SharedRegion::Map(Descriptor(), kBytes, Access::kRead),
              StatusIs(StatusCode::kInvalidArgument));
}

TEST(SharedRegionTest, MemoryThatCouldBeCutShortIsRefused) {
  for (const int seals : {0, F_SEAL_SHRINK, F_SEAL_GROW}) {
    EXPECT_THAT(SharedRegion::Map(Memory(kBytes, seals), kBytes, Access::kRead),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("not sealed")));
  }
}

TEST(SharedRegionTest, MemoryOfAnotherSizeIsRefused) {
  for (const uint64_t said : {uint64_t{0}, kBytes - 1, kBytes + 1, ~uint64_t{0}}) {
    EXPECT_THAT(SharedRegion::Map(Memory(kBytes, F_SEAL_SHRINK | F_SEAL_GROW), said, Access::kRead),
                StatusIs(StatusCode::kInvalidArgument,
                         AllOf(HasSubstr(absl::StrCat("expected a memfd of ", said)),
                               HasSubstr(absl::StrCat("found ", kBytes)))));
  }
}

}  // namespace
}  // namespace oscarkv::testing
