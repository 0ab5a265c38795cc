// Device memory behind CUDA. Copies in, checks and copies out have streams of their own, so that
// the check of one page runs beside the copy of the next, and the bus is used in both directions;
// two take turns each way, so that one copy begins as the other ends.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

#include "cuda_runtime_api.h"
#include "kernels/base/checksum.h"
#include "kernels/base/status_macros.h"
#include "kernels/codec/oscar/cuda_checksum.h"
#include "kernels/device/buffer.h"
#include "kernels/device/device.h"
#include "kernels/device/shared_memory.h"
#include "kernels/device/status.h"
#include "kernels/device/stream.h"
#include "server/tier/device_memory.h"

namespace oscarkv {
namespace {

using device::DeviceBuffer;
using device::Event;
using device::PinnedBuffer;
using device::PinnedRange;
using device::Stream;

constexpr uint64_t kRegionBytes = 64 << 20;     // of the host arena, page-locked at a time
constexpr uint64_t kCrcBufferBytes = 16 << 10;  // most pages have fewer checksums
constexpr uint64_t kProbeBytes = 4096;

// The host arena in regions that are page-locked when a copy first comes from them. Where that
// fails copies go on from ordinary memory, slower, and it is not tried again. Thread-safe.
class HostRegions {
 public:
  explicit HostRegions(MutableByteView arena)
      : arena_(arena), regions_((arena.size() + kRegionBytes - 1) / kRegionBytes) {}

  // Calls `copy` with the parts of `bytes`, none of which crosses a region's end: one copy may not
  // span two page-locked ranges.
  template <typename Copy>
  absl::Status ForEachPart(ByteView bytes, const Copy& copy) {
    const bool inside = !arena_.empty() && bytes.data() >= arena_.data() &&
                        bytes.data() < arena_.data() + arena_.size();
    if (!inside) return copy(bytes);
    auto offset = static_cast<uint64_t>(bytes.data() - arena_.data());
    while (!bytes.empty()) {
      const uint64_t region = offset / kRegionBytes;
      MakeReady(region);
      const uint64_t count = std::min<uint64_t>(bytes.size(), (region + 1) * kRegionBytes - offset);
      OSCARKV_RETURN_IF_ERROR(copy(bytes.first(count)));
      bytes = bytes.subspan(count);
      offset += count;
    }
    return absl::OkStatus();
  }

  uint64_t pinned_bytes() const { return pinned_bytes_.load(std::memory_order_relaxed); }

 private:
  void MakeReady(uint64_t region) ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::MutexLock lock(&mutex_);
    if (failed_ || !regions_[region].bytes().empty()) return;
    const uint64_t first = region * kRegionBytes;
    const MutableByteView bytes =
        arena_.subspan(first, std::min(kRegionBytes, arena_.size() - first));
    auto pinned = PinnedRange::Pin(bytes);
    failed_ = !pinned.ok();
    if (failed_) return;
    regions_[region] = *std::move(pinned);
    pinned_bytes_.fetch_add(bytes.size(), std::memory_order_relaxed);
  }

  const MutableByteView arena_;
  absl::Mutex mutex_;
  std::vector<PinnedRange> regions_ ABSL_GUARDED_BY(mutex_);
  bool failed_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<uint64_t> pinned_bytes_{0};  // read by Stats of any thread
};

// Page-locked buffers that checks write their results to, used again and again.
class CrcBuffers {
 public:
  absl::StatusOr<PinnedBuffer> Take(uint64_t bytes) {
    if (bytes > kCrcBufferBytes) return PinnedBuffer::Allocate(bytes);
    if (free_.empty()) return PinnedBuffer::Allocate(kCrcBufferBytes);
    PinnedBuffer buffer = std::move(free_.back());
    free_.pop_back();
    return buffer;
  }
  void Return(PinnedBuffer buffer) {
    if (buffer.bytes().size() == kCrcBufferBytes) free_.push_back(std::move(buffer));
  }

 private:
  std::vector<PinnedBuffer> free_;
};

class CudaTransfer final : public PendingTransfer {
 public:
  explicit CudaTransfer(Event done) : done_(std::move(done)) {}
  CudaTransfer(Event done, PinnedBuffer results, std::span<uint32_t> crcs, CrcBuffers* buffers)
      : done_(std::move(done)), results_(std::move(results)), crcs_(crcs), buffers_(buffers) {}
  ~CudaTransfer() override {
    if (!waited_) Wait().IgnoreError();  // nobody asks how it ended
  }

  absl::Status Wait() override {
    waited_ = true;
    OSCARKV_RETURN_IF_ERROR(done_.Synchronize());
    if (buffers_ == nullptr) return absl::OkStatus();
    std::memcpy(crcs_.data(), results_.bytes().data(), crcs_.size_bytes());
    buffers_->Return(std::move(results_));
    return absl::OkStatus();
  }

 private:
  const Event done_;
  PinnedBuffer results_;
  const std::span<uint32_t> crcs_;
  CrcBuffers* const buffers_ = nullptr;
  bool waited_ = false;
};

class CudaMemory final : public DeviceMemory {
 public:
  static absl::StatusOr<std::unique_ptr<CudaMemory>> Create(const DeviceMemoryOptions& options) {
    return Create(static_cast<int>(options.device), options.bytes,
                  std::make_shared<HostRegions>(options.host_arena));
  }
  static absl::StatusOr<std::unique_ptr<CudaMemory>> Create(int number, uint64_t bytes,
                                                            std::shared_ptr<HostRegions> host) {
    OSCARKV_RETURN_IF_ERROR(device::CheckDevice(number));
    const device::DeviceScope scope(number);
    OSCARKV_RETURN_IF_ERROR(scope.status());
    OSCARKV_ASSIGN_OR_RETURN(std::string name, device::DeviceName(number));
    OSCARKV_ASSIGN_OR_RETURN(DeviceBuffer arena, DeviceBuffer::Allocate(bytes));
    std::vector<Stream> streams;
    while (streams.size() < kStreams) {
      OSCARKV_ASSIGN_OR_RETURN(Stream stream, Stream::Create());
      streams.push_back(std::move(stream));
    }
    std::unique_ptr<CudaMemory> memory(new CudaMemory(number, std::move(name), std::move(host),
                                                      std::move(arena), std::move(streams)));
    OSCARKV_RETURN_IF_ERROR(Annotate(memory->Try(), "trying the device"));
    return memory;
  }

  uint64_t bytes() const override { return arena_.size(); }
  std::string device_name() const override { return name_; }
  uint64_t pinned_host_bytes() const override { return host_->pinned_bytes(); }

  absl::StatusOr<std::unique_ptr<PendingTransfer>> CopyIn(uint64_t offset, ByteView from,
                                                          std::span<const TierPieces> check,
                                                          std::span<uint32_t> crcs) override {
    return LeaveNothing(StartIn(arena_.data() + offset, from, check, crcs));
  }
  absl::StatusOr<std::unique_ptr<PendingTransfer>> CopyOut(uint64_t offset,
                                                           MutableByteView to) override {
    return LeaveNothing(StartOut(arena_.data() + offset, to));
  }
  std::byte* address() const override { return arena_.data(); }
  absl::StatusOr<std::string> Handle() const override {
    const device::DeviceScope scope(device_);
    OSCARKV_RETURN_IF_ERROR(scope.status());
    return device::HandleOf(arena_);
  }
  absl::StatusOr<std::unique_ptr<DeviceMemory>> Beside(uint64_t bytes) override {
    return Create(device_, bytes, host_);
  }

 private:
  // Which way each of streams_ goes.
  static constexpr size_t kIn = 0;
  static constexpr size_t kOut = 1;
  static constexpr size_t kCheck = 2;
  static constexpr size_t kStreams = 3;

  CudaMemory(int number, std::string name, std::shared_ptr<HostRegions> host, DeviceBuffer arena,
             std::vector<Stream> streams)
      : device_(number),
        name_(std::move(name)),
        host_(std::move(host)),
        arena_(std::move(arena)),
        streams_(std::move(streams)) {}

  using Started = absl::StatusOr<std::unique_ptr<PendingTransfer>>;

  // A start that failed half way has work on a stream for which nobody waits: it ends here, while
  // the caller's memory is there.
  Started LeaveNothing(Started started) {
    if (started.ok()) return started;
    for (const Stream& stream : streams_)
      stream.Synchronize().IgnoreError();  // `started` says what is wrong
    return started;
  }

  Started StartIn(std::byte* slot, ByteView from, std::span<const TierPieces> check,
                  std::span<uint32_t> crcs) {
    const device::DeviceScope scope(device_);
    OSCARKV_RETURN_IF_ERROR(scope.status());
    const Stream& in = streams_[kIn];
    const Stream& checks = streams_[kCheck];
    std::byte* to = slot;
    OSCARKV_RETURN_IF_ERROR(host_->ForEachPart(from, [&](ByteView part) {
      const cudaError_t error =
          cudaMemcpyAsync(to, part.data(), part.size(), cudaMemcpyHostToDevice, in.get());
      to += part.size();
      return device::ToStatus(error, "copying a page in");
    }));
    OSCARKV_ASSIGN_OR_RETURN(Event copied, MarkIn(in));
    if (check.empty()) return std::make_unique<CudaTransfer>(std::move(copied));

    OSCARKV_ASSIGN_OR_RETURN(PinnedBuffer results, crc_buffers_.Take(crcs.size_bytes()));
    OSCARKV_RETURN_IF_ERROR(copied.MakeWait(checks.get()));
    auto* next = reinterpret_cast<uint32_t*>(results.bytes().data());
    for (const TierPieces& run : check) {
      OSCARKV_RETURN_IF_ERROR(
          cuda::Checksum(slot + run.offset, run.bytes, run.count, next, checks.get()));
      next += run.count;
    }
    OSCARKV_ASSIGN_OR_RETURN(Event checked, MarkIn(checks));
    return std::make_unique<CudaTransfer>(std::move(checked), std::move(results), crcs,
                                          &crc_buffers_);
  }

  Started StartOut(const std::byte* slot, MutableByteView to) {
    const device::DeviceScope scope(device_);
    OSCARKV_RETURN_IF_ERROR(scope.status());
    const Stream& out = streams_[kOut];
    uint64_t done = 0;
    OSCARKV_RETURN_IF_ERROR(host_->ForEachPart(to, [&](ByteView part) {
      const cudaError_t error = cudaMemcpyAsync(to.data() + done, slot + done, part.size(),
                                                cudaMemcpyDeviceToHost, out.get());
      done += part.size();
      return device::ToStatus(error, "copying a page out");
    }));
    OSCARKV_ASSIGN_OR_RETURN(Event copied, MarkIn(out));
    return std::make_unique<CudaTransfer>(std::move(copied));
  }

  static absl::StatusOr<Event> MarkIn(const Stream& stream) {
    OSCARKV_ASSIGN_OR_RETURN(Event event,
                             Event::Create(Event::Timing::kOff, Event::Waiting::kSleep));
    OSCARKV_RETURN_IF_ERROR(event.Record(stream.get()));
    return event;
  }

  // One page in, checked, and out again: a device without our kernels is found out at the start.
  absl::Status Try() {
    std::vector<std::byte> bytes(std::min<uint64_t>(kProbeBytes, arena_.size()) / 4 * 4);
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 37 + 11);
    const TierPieces all{0, bytes.size(), 1};
    uint32_t crc = 0;
    OSCARKV_ASSIGN_OR_RETURN(auto in, CopyIn(0, bytes, {&all, 1}, {&crc, 1}));
    OSCARKV_RETURN_IF_ERROR(in->Wait());
    if (crc == Crc32c(bytes)) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat(name_, ": expected crc32c ",
                                            absl::Hex(Crc32c(bytes), absl::kZeroPad8), ", found ",
                                            absl::Hex(crc, absl::kZeroPad8)));
  }

  const int device_;
  const std::string name_;
  const std::shared_ptr<HostRegions> host_;
  CrcBuffers crc_buffers_;
  const DeviceBuffer arena_;
  const std::vector<Stream> streams_;
};

}  // namespace

absl::Status DeviceMemorySupported() { return absl::OkStatus(); }

absl::StatusOr<std::unique_ptr<DeviceMemory>> MakeDeviceMemory(const DeviceMemoryOptions& options) {
  auto memory = CudaMemory::Create(options);
  if (memory.ok() || absl::IsResourceExhausted(memory.status())) return memory;
  return absl::UnavailableError(memory.status().message());
}

}  // namespace oscarkv
