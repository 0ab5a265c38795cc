// Pages from a worker's cache on the GPU into host memory, encoded: the mirror of GpuFetcher. Knows
// no network.
#ifndef OSCARKV_CLIENT_GPU_GPU_PUSHER_H_
#define OSCARKV_CLIENT_GPU_GPU_PUSHER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "client/gpu/gpu_cache.h"
#include "client/gpu/staging.h"
#include "client/gpu/transfer_plan.h"
#include "kernels/codec/oscar/cuda_page_codec.h"
#include "kernels/codec/page_codec.h"

namespace oscarkv::client {

// Room for a whole page in host memory. Pinned memory is filled at the link's speed.
struct HostPageRoom {
  Encoding encoding = Encoding::kPacked;
  std::byte* bytes = nullptr;        // layout(encoding).page_bytes()
  uint32_t* block_crc32c = nullptr;  // [layers * kv_heads]
};

// Where the pages of a push come from.
struct PushOrigin {
  const GpuCache& cache;                // of this pusher's device; it must stay until Finish
  std::span<const int64_t> slots = {};  // [pages][page_tokens]; copied
};

// One push at a time, from Begin to Finish or the next Begin. Not thread-safe. Works on the device
// that was current when it was made.
class GpuPusher {
 public:
  // Takes all the memory, streams and events that it will use. Errors as Staging::Create's.
  static absl::StatusOr<std::unique_ptr<GpuPusher>> Create(
      std::shared_ptr<const cuda::CudaPageCodec> codec, const GpuTransferOptions& options = {});
  // Waits for what is under way.
  ~GpuPusher();

  const GpuTransferOptions& options() const { return staging_->options(); }
  PageLayouts layouts() const { return staging_->layouts(); }
  int device() const { return staging_->device(); }

  // Starts a push, and ends one that nobody finished; the cache is read after what `stream` holds
  // now. Errors as GpuFetcher::Begin's.
  absl::Status Begin(const PushOrigin& origin, cudaStream_t stream);
  // Enqueues the encoding of pages first_page.. of the origin into their rooms. Waits for nothing.
  absl::Status Add(uint32_t first_page, std::span<const HostPageRoom> rooms);
  // Has `stream` wait until the pages added so far have been read: the engine may write there then.
  absl::Status WaitEncoded(cudaStream_t stream);
  // Waits until the pages added so far are in their rooms, checksums with them, and says what
  // encoding met. kUnavailable when the device is lost.
  absl::StatusOr<EncodeReport> WaitCopied();
  // The same, and ends the push.
  absl::StatusOr<EncodeReport> Finish();

 private:
  GpuPusher(std::unique_ptr<Staging> staging, device::Event encoded,
            MirroredArray<cuda::DeviceEncodeCounts> counts);
  absl::Status AddStep(const TransferStep& step, std::span<const HostPageRoom> rooms);

  const std::unique_ptr<Staging> staging_;
  const device::Event encoded_;
  const MirroredArray<cuda::DeviceEncodeCounts> counts_;  // one
  // Of the push under way.
  struct PendingCrcs {
    const uint32_t* source = nullptr;  // pinned
    uint64_t count = 0;
    uint32_t* destination = nullptr;
  };
  bool active_ = false;
  const GpuCache* cache_ = nullptr;
  uint32_t pages_ = 0;
  uint64_t rows_ = 0;
  std::vector<PendingCrcs> pending_;
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_GPU_GPU_PUSHER_H_
