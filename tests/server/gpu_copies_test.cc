// Opening the GPU tier: what happens when the device cannot be had.
#include "server/gpu_copies.h"

#include <memory>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/support/fake_device_memory.h"
#include "tests/support/status_matchers.h"

#include "oscarkv/v1/server_config.pb.h"

namespace oscarkv::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using Made = absl::StatusOr<std::unique_ptr<DeviceMemory>>;

class GpuCopiesTest : public ::testing::Test {
 protected:
  GpuCopiesTest() {
    config_.set_capacity("32MiB");
    config_.set_staging("off");
  }

  absl::StatusOr<GpuCopies> Open(const absl::Status& of_the_device) {
    return OpenGpuCopies(
        config_, {},
        [&](const DeviceMemoryOptions& options) -> Made {
          asked_for_ = options;
          if (!of_the_device.ok()) return of_the_device;
          return std::make_unique<FakeDeviceMemory>(options.bytes, faults_);
        },
        logger_);
  }

  v1::GpuTierConfig config_;
  DeviceMemoryOptions asked_for_;
  const std::shared_ptr<DeviceFaults> faults_ = std::make_shared<DeviceFaults>();
  const Logger logger_{LogLevel::kInfo, LogFormat::kJson};
};

TEST_F(GpuCopiesTest, OpensWhatIsAskedFor) {
  config_.set_device(3);
  const auto copies = Open(absl::OkStatus());
  ASSERT_OK(copies);
  EXPECT_EQ(asked_for_.bytes, 32u << 20);
  EXPECT_EQ(asked_for_.device, 3u);
  const TierStats stats = copies->copies->Stats();
  EXPECT_EQ(stats.kind, TierKind::kGpu);
  EXPECT_EQ(stats.capacity_bytes, 32u << 20);
  EXPECT_EQ(stats.degraded, "");
  EXPECT_THAT(copies->handle, IsOkAndHolds(::testing::StartsWith("fake:")));
}

TEST_F(GpuCopiesTest, StagingLiesBesideThem) {
  EXPECT_EQ(Open(absl::OkStatus())->staging, nullptr);
  config_.set_staging("16MiB");
  const auto copies = Open(absl::OkStatus());
  ASSERT_OK(copies);
  ASSERT_NE(copies->staging, nullptr);
  EXPECT_EQ(copies->staging->bytes(), 16u << 20);
  EXPECT_THAT(copies->staging->handle(), IsOkAndHolds(::testing::StartsWith("fake:")));
}

TEST_F(GpuCopiesTest, ADeviceThatDoesNotShareIsUsedAloneAndSaysWhy) {
  config_.set_staging("16MiB");
  faults_->ForbidSharing(absl::UnavailableError("CUDA, sharing device memory: not supported"));
  ::testing::internal::CaptureStderr();
  const auto copies = Open(absl::OkStatus());
  const std::string log = ::testing::internal::GetCapturedStderr();
  ASSERT_OK(copies);
  EXPECT_EQ(copies->copies->Stats().degraded, "");
  ASSERT_NE(copies->staging, nullptr);
  for (const auto* handle : {&copies->handle, &copies->staging->handle()})
    EXPECT_THAT(*handle, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("not supported")));
  EXPECT_THAT(log, AllOf(HasSubstr("the GPU tier is open"), HasSubstr("not supported")));
}

TEST_F(GpuCopiesTest, WithoutTheDeviceTheServerServes) {
  ::testing::internal::CaptureStderr();
  const auto copies = Open(absl::ResourceExhaustedError("allocating 33554432 bytes"));
  const std::string log = ::testing::internal::GetCapturedStderr();
  ASSERT_OK(copies);
  EXPECT_EQ(copies->copies->Stats().degraded, "allocating 33554432 bytes");
  EXPECT_THAT(copies->handle, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(log, AllOf(HasSubstr("warning"), HasSubstr("serving from host memory alone"),
                         HasSubstr("allocating 33554432 bytes")));
}

TEST_F(GpuCopiesTest, ADeviceThatIsRequiredIsAnErrorWithoutIt) {
  config_.set_required(true);
  EXPECT_THAT(Open(absl::UnavailableError("there is no device 0")),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("there is no device 0")));
  EXPECT_THAT(Open(absl::ResourceExhaustedError("full")),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("full")));
}

TEST_F(GpuCopiesTest, ABuildWithoutCudaIsAlwaysAnError) {
  EXPECT_THAT(Open(absl::UnimplementedError("no CUDA")),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("no CUDA")));
}

}  // namespace
}  // namespace oscarkv::testing
