// Encoded pages from host memory into a worker's cache on the GPU: the link carries encoded bytes,
// layer by layer, while the GPU verifies and decodes those that have arrived. Knows no network.
#ifndef OSCARKV_CLIENT_GPU_GPU_FETCHER_H_
#define OSCARKV_CLIENT_GPU_GPU_FETCHER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

#include "client/gpu/gpu_cache.h"
#include "client/gpu/staging.h"
#include "client/gpu/transfer_plan.h"
#include "kernels/codec/oscar/cuda_page_codec.h"

namespace oscarkv::client {

// A page, or the part of it that a transfer moves, in host memory (or in a device's: AddInPlace):
// the blocks in page order, and a checksum for each, in host memory. Copies of pinned memory run at
// the link's speed beside everything else; those of other memory are right, and slow.
struct HostPage {
  Encoding encoding = Encoding::kPacked;
  const std::byte* bytes = nullptr;
  const uint32_t* block_crc32c = nullptr;
};

// Where the pages of a fetch go.
struct FetchTarget {
  const GpuCache& cache;                // of this fetcher's device; it and its memory must stay
                                        // until Finish
  TransferPart part;                    // of each page
  std::span<const int64_t> slots = {};  // [pages][page_tokens]; -1 leaves a token out; copied
};

// One fetch at a time, from Begin to Finish; make a fetcher for each that runs beside another.
// Thread-safe in this: WaitLayer may be called by other threads than the one that fetches. Works on
// the device that was current when it was made, whichever is current later.
class GpuFetcher {
 public:
  // Takes all the memory, streams and events that it will use. Errors as Staging::Create's.
  static absl::StatusOr<std::unique_ptr<GpuFetcher>> Create(
      std::shared_ptr<const cuda::CudaPageCodec> codec, const GpuTransferOptions& options = {});
  // Waits for what is under way.
  ~GpuFetcher();

  const GpuTransferOptions& options() const { return staging_->options(); }
  PageLayouts layouts() const { return staging_->layouts(); }
  int device() const { return staging_->device(); }

  // Starts a fetch; the cache is written after what `stream` holds now. kInvalidArgument: slots,
  // part or cache that do not fit, a stream of another device, more than options.pages_max pages;
  // kFailedPrecondition: a fetch is under way.
  absl::Status Begin(const FetchTarget& target, cudaStream_t stream);
  // Enqueues a step: `pages` are its pages, `bytes` and `block_crc32c` those of its layers and the
  // part's heads. Layers come in order. Returns the number of the step. Waits for nothing.
  absl::StatusOr<uint64_t> Add(const TransferStep& step, std::span<const HostPage> pages);
  // The same of pages that lie in device memory, this device's or one that it reaches: they are
  // decoded where they are, and have to stay there until Finish.
  absl::StatusOr<uint64_t> AddInPlace(const TransferStep& step, std::span<const HostPage> pages);
  // All steps of these layers were added.
  absl::Status EndLayers(BlockRange layers);
  // Waits until the step's host memory has been read.
  absl::Status WaitCopied(uint64_t step);
  // Waits until the step has been decoded: memory that it was decoded from in place is free.
  absl::Status WaitDecoded(uint64_t step);

  // All steps of pages that are there already, one for each page of the target; their memory must
  // stay until Finish. A failure ends the fetch.
  absl::Status AddAll(std::span<const HostPage> pages);

  // Has `stream` wait until the layer of all pages that came is in the cache. The caller waits only
  // until the fetching thread has got that far. Pages were not looked at yet: what Finish says of
  // them counts. The reason that a fetch was abandoned for, where that was before this layer;
  // kFailedPrecondition without a fetch.
  absl::Status WaitLayer(uint32_t layer, cudaStream_t stream);

  // Ends the fetch: waits until all is done, and says for each page added whether it is whole in
  // the cache: kDataLoss names its first block whose checksum is wrong. Such blocks were not
  // written, the page's others were. Any other error is the whole fetch's: kUnavailable when the
  // device is lost.
  absl::StatusOr<std::vector<absl::Status>> Finish();
  // Ends the fetch early, for the reason given, which WaitLayer hands on; waits as Finish does.
  void Abandon(const absl::Status& reason);

 private:
  GpuFetcher(std::unique_ptr<Staging> staging, std::vector<device::Event> layer_events);
  enum class Where { kHost, kDevice };  // a step's pages
  absl::StatusOr<uint64_t> AddStep(const TransferStep& step, std::span<const HostPage> pages,
                                   Where where);
  uint64_t StageBytesOf(BlockRange group) const;
  absl::Status AddGroup(BlockRange group, std::span<const Encoding> encodings,
                        std::span<const HostPage> pages);
  absl::StatusOr<std::vector<absl::Status>> Results() const;
  // Where WaitLayer stands.
  struct Progress {
    bool begun = false;
    bool ended = false;
    BlockRange layers;  // of the fetch
    uint32_t layers_enqueued = 0;
    absl::Status error;
  };
  bool Reached(uint32_t layer) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return progress_.ended || progress_.layers_enqueued > layer - progress_.layers.first;
  }
  void End(const absl::Status& error) ABSL_LOCKS_EXCLUDED(mutex_);

  const std::unique_ptr<Staging> staging_;
  const std::vector<device::Event> layer_events_;  // [layers]
  // Of the fetch under way.
  bool active_ = false;
  const GpuCache* cache_ = nullptr;
  TransferPart part_;
  uint32_t pages_ = 0;        // that slots were given for
  uint32_t pages_added_ = 0;  // as far as steps went
  std::vector<StepWords> steps_;
  absl::Mutex mutex_;
  Progress progress_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_GPU_GPU_FETCHER_H_
