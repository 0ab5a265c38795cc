// The back ends of block I/O through their contract, and the choice among them.
#include "server/tier/disk/block_io.h"

#include <cerrno>

#include "gtest/gtest.h"

#include "server/tier/disk/posix_io.h"
#include "server/tier/disk/uring_io.h"
#include "tests/support/faulty_io.h"
#include "tests/support/status_matchers.h"
#include "tests/tier/disk/block_io_contract.h"

namespace oscarkv::testing {
namespace {

std::unique_ptr<BlockIo> UringOrNull(const UringIoOptions& options) {
  auto io = UringIo::Create(options);
  return io.ok() ? *std::move(io) : nullptr;
}

[[maybe_unused]] const int kRegistered =
    RegisterBlockIoContract({"pread", [] { return std::make_unique<PosixIo>(); }}) +
    RegisterBlockIoContract({"io_uring", [] { return UringOrNull({}); }}) +
    RegisterBlockIoContract(
        {"io_uring_shallow", [] { return UringOrNull({.depth = 1, .rings_max = 1}); }}) +
    RegisterBlockIoContract({"faulty_without_faults", [] {
                               return std::make_unique<FaultyIo>(std::make_unique<PosixIo>(), 1);
                             }});

TEST(BlockIoTest, ErrorsHaveTheirCodes) {
  EXPECT_THAT(IoError(ENOSPC, "write"),
              StatusIs(absl::StatusCode::kResourceExhausted, "write: No space left on device"));
  EXPECT_THAT(IoError(EDQUOT, "write"), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(IoError(EIO, "write"), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(IoError(EROFS, "write"), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(IoError(EBADF, "write"), StatusIs(absl::StatusCode::kUnavailable));
}

TEST(BlockIoTest, AutomaticChoiceTakesUringWhereTheKernelHasIt) {
  const auto chosen = MakeBlockIo(IoBackend::kAuto);
  ASSERT_OK(chosen);
  const bool uring = UringOrNull({}) != nullptr;
  EXPECT_EQ(chosen->io->name(), uring ? "io_uring" : "pread");
  EXPECT_EQ(chosen->why_not_uring.empty(), uring);
}

TEST(BlockIoTest, BackendsAreNamed) {
  const auto chosen = MakeBlockIo(IoBackend::kPosix);
  ASSERT_OK(chosen);
  EXPECT_EQ(chosen->io->name(), "pread");
  EXPECT_EQ(ParseIoBackend("auto"), IoBackend::kAuto);
  EXPECT_EQ(ParseIoBackend("io_uring"), IoBackend::kUring);
  EXPECT_EQ(ParseIoBackend("pread"), IoBackend::kPosix);
  EXPECT_EQ(ParseIoBackend("aio"), std::nullopt);
}

TEST(UringIoTest, RefusesNoDepthAndNoRings) {
  EXPECT_THAT(UringIo::Create({.depth = 0}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(UringIo::Create({.rings_max = 0}), StatusIs(absl::StatusCode::kInvalidArgument));
  // More than any kernel gives.
  EXPECT_THAT(UringIo::Create({.depth = 1u << 30}), StatusIs(absl::StatusCode::kUnavailable));
}

}  // namespace
}  // namespace oscarkv::testing
