// What fetch and push stand on: a ring of stages in device memory between host pages and the codec,
// two streams, and the tables that the codec reads. Everything is made at creation.
#ifndef OSCARKV_CLIENT_GPU_STAGING_H_
#define OSCARKV_CLIENT_GPU_STAGING_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "client/gpu/transfer_plan.h"
#include "kernels/codec/oscar/cuda_page_codec.h"
#include "kernels/device/buffer.h"
#include "kernels/device/stream.h"

namespace oscarkv::client {

// What a fetcher or pusher takes for itself when it is made.
struct GpuTransferOptions {
  uint32_t pages_max = 4096;          // of one transfer; about 3 KiB of pinned memory and of device
                                      // memory for each page
  uint64_t stage_bytes = 16u << 20;   // device memory of a stage; more keeps the link busier, less
                                      // has the last bytes decoded sooner
  uint32_t stages = 4;                // how many: one is copied while another is coded
  uint64_t piece_bytes = 256u << 10;  // of a page are copied at once in a fetch, after its first
                                      // layers; the link is slower with smaller ones
};

// An array that exists in pinned host memory and in device memory.
template <typename T>
class MirroredArray {
 public:
  MirroredArray() = default;
  static absl::StatusOr<MirroredArray> Allocate(size_t count) {
    MirroredArray array;
    auto host = device::PinnedBuffer::Allocate(count * sizeof(T));
    if (!host.ok()) return host.status();
    auto on_device = device::DeviceBuffer::Allocate(count * sizeof(T));
    if (!on_device.ok()) return on_device.status();
    array.host_ = *std::move(host);
    array.device_ = *std::move(on_device);
    return array;
  }
  T* host() const { return reinterpret_cast<T*>(host_.bytes().data()); }
  T* on_device() const { return device_.as<T>(); }

 private:
  device::PinnedBuffer host_;
  device::DeviceBuffer device_;
};

// Copies that are enqueued together.
class CopyBatch {
 public:
  explicit CopyBatch(size_t copies_max);
  void Add(void* destination, const void* source, size_t bytes);
  // Enqueues and forgets what was added.
  absl::Status Enqueue(cudaStream_t stream);

 private:
  std::vector<void*> destinations_;
  std::vector<const void*> sources_;
  std::vector<size_t> bytes_;
};

// A step's place in the ring and in the tables. A table is one run of bytes, so that one copy moves
// it: pointers [pages], then checksums [pages][layers.count][heads.count].
struct StagedStep {
  uint64_t number = 0;  // of the transfer's steps
  std::byte* memory = nullptr;
  std::byte** pointers = nullptr;  // on the device, and
  uint32_t* crcs = nullptr;
  std::byte** host_pointers = nullptr;  // pinned
  uint32_t* host_crcs = nullptr;
  uint64_t first_block = 0;  // of its status words
  uint64_t blocks = 0;
};

// Not thread-safe: its owner's calls are one after another.
class Staging {
 public:
  // kInvalidArgument: options out of range, or a stage that does not take one layer of a page;
  // kResourceExhausted: no room on the device, or memory that cannot be pinned.
  static absl::StatusOr<std::unique_ptr<Staging>> Create(
      std::shared_ptr<const cuda::CudaPageCodec> codec, const GpuTransferOptions& options);

  const cuda::CudaPageCodec& codec() const { return *codec_; }
  const Geometry& geometry() const { return codec_->geometry(); }
  PageLayouts layouts() const {
    return {codec_->layout(Encoding::kWide), codec_->layout(Encoding::kPacked)};
  }
  const GpuTransferOptions& options() const { return options_; }
  int device() const { return device_; }

  // Starts a transfer of that part of pages whose slots these are: what it does to the cache comes
  // after what is on `stream`.
  absl::Status Begin(const TransferPart& part, std::span<const int64_t> slots, cudaStream_t stream);
  // A stage for the next step, with the pages' places in it as pointers; enqueues that `user`, one
  // of the two streams, waits until the stage's last step has left it. kInvalidArgument: a step
  // that fits no stage, or more steps than whole pages have.
  absl::StatusOr<StagedStep> Next(const TransferStep& step, cudaStream_t user);
  // Enqueues a copy of the step's table to the device: the pointers, and the checksums if they are
  // wanted. Apart from the copies of pages: between those of a batch, small
  // ones have the driver wait for each.
  enum class Table { kPointers, kPointersAndCrcs };
  absl::Status SendTable(const TransferStep& step, const StagedStep& place, Table what,
                         cudaStream_t stream);

  // The streams: copies over the link, and the codec's work.
  const device::Stream& copies() const { return copies_; }
  const device::Stream& codes() const { return codes_; }
  // One for each stage: its first half is done (copied in, or encoded); it is free.
  const device::Event& ready(const StagedStep& place) const {
    return ready_[place.number % ready_.size()];
  }
  const device::Event& free(const StagedStep& place) const {
    return free_[place.number % free_.size()];
  }

  CopyBatch& batch() { return batch_; }
  const MirroredArray<int64_t>& slots() const { return slots_; }
  const MirroredArray<uint32_t>& statuses() const { return statuses_; }
  uint64_t blocks() const { return blocks_; }  // of all steps so far

  // Enqueues that the status words come to the host.
  absl::Status CollectStatuses();
  // Waits for both streams, whatever becomes of them.
  absl::Status Drain();

 private:
  Staging(std::shared_ptr<const cuda::CudaPageCodec> codec, const GpuTransferOptions& options,
          device::Stream copies, device::Stream codes, device::Event begun);
  absl::Status Allocate();

  const std::shared_ptr<const cuda::CudaPageCodec> codec_;
  const GpuTransferOptions options_;
  int device_ = 0;
  device::DeviceBuffer ring_;
  MirroredArray<std::byte> tables_;   // of all steps
  MirroredArray<int64_t> slots_;      // [pages_max][page_tokens]
  MirroredArray<uint32_t> statuses_;  // [pages_max * blocks], by step
  CopyBatch batch_;
  device::Stream copies_;
  device::Stream codes_;
  device::Event begun_;
  std::vector<device::Event> ready_;
  std::vector<device::Event> free_;
  uint64_t stage_stride_ = 0;
  TransferPart part_;
  uint64_t steps_ = 0;
  uint64_t table_bytes_max_ = 0;
  uint64_t table_bytes_ = 0;  // used
  uint64_t blocks_ = 0;
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_GPU_STAGING_H_
