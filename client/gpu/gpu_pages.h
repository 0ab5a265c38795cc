// A store's pages to and from a cache on the GPU: what Namespace::FetchTo and PushFrom
// (client/cpp/client.h) are given. Knows no network itself.
#ifndef OSCARKV_CLIENT_GPU_GPU_PAGES_H_
#define OSCARKV_CLIENT_GPU_GPU_PAGES_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "client/cpp/device_pages.h"
#include "client/cpp/device_source.h"
#include "client/cpp/peer_link.h"
#include "client/cpp/stored_pages.h"
#include "client/gpu/gpu_cache.h"
#include "client/gpu/gpu_fetcher.h"
#include "client/gpu/gpu_pusher.h"
#include "kernels/codec/oscar/cuda_page_codec.h"
#include "kernels/comm/nccl_fabric.h"
#include "kernels/comm/slots.h"
#include "kernels/device/buffer.h"
#include "kernels/device/shared_memory.h"
#include "kernels/device/stream.h"

namespace oscarkv::client {

// Receives pages into pinned memory and has them copied and decoded from there while the next ones
// arrive; or has them decoded where they are, if a server of the host shares its GPU's memory. One
// fetch after another: Start, then Namespace::FetchTo. WaitLayer may be called by other threads
// from Start on.
class GpuPageSink final : public PageSink, private DevicePages {
 public:
  // Takes all that it will use: a GpuFetcher's share, and as much pinned memory as the stages have.
  // Errors as GpuFetcher::Create's.
  static absl::StatusOr<std::unique_ptr<GpuPageSink>> Create(
      std::shared_ptr<const cuda::CudaPageCodec> codec, const GpuTransferOptions& options = {});

  // Has pages come over NCCL, too, where a server's GPU has them and may send them: `slots` groups
  // of pages at once, of at most `slot_bytes` each, which takes that much memory of the device.
  // Once, before the first fetch. kUnavailable: there is no NCCL.
  absl::Status ReceiveOverNccl(const comm::NcclOptions& options, const comm::SlotShape& slots);
  // The same over another fabric.
  absl::Status ReceiveOver(std::unique_ptr<comm::PeerFabric> fabric, const comm::SlotShape& slots);

  // Says where the next fetch goes; the cache is written after what `stream` holds now. The fetch
  // must be of the target's layers and heads. Errors as GpuFetcher::Begin's.
  absl::Status Start(const FetchTarget& target, cudaStream_t stream);
  // As GpuFetcher::WaitLayer.
  absl::Status WaitLayer(uint32_t layer, cudaStream_t stream) {
    return fetcher_->WaitLayer(layer, stream);
  }

  uint64_t pages() const override { return pages_; }
  std::vector<BlockRange> LayerGroups(BlockRange layers) const override;
  absl::Status Begin(BlockRange layers, BlockRange heads) override;
  absl::StatusOr<MutableByteView> Room(uint32_t page, Encoding encoding, BlockRange layers,
                                       uint64_t bytes) override;
  absl::Status Take(std::span<const uint32_t> block_crc32c) override;
  absl::Status EndLayers(BlockRange layers, uint32_t pages) override;
  absl::StatusOr<std::vector<absl::Status>> Finish() override;
  void Abandon(const absl::Status& reason) override;
  DevicePages* device_pages() override { return this; }

 private:
  // Host memory of a stage, and the step that was copied from it last.
  struct Receiver {
    device::PinnedBuffer memory;
    bool used = false;
    uint64_t step = 0;
  };
  GpuPageSink(std::unique_ptr<GpuFetcher> fetcher, std::vector<Receiver> receivers)
      : fetcher_(std::move(fetcher)), receivers_(std::move(receivers)) {}
  absl::Status Open(const std::string& handle) override;
  void Keep(uint32_t first, uint32_t count, std::unique_ptr<PagesHold> hold) override;
  absl::Status TakeAt(uint32_t page, const DevicePlace& place,
                      std::span<const uint32_t> block_crc32c) override;
  PeerLink* receiver() override { return peer_.get(); }
  bool receives() const override { return peer_ != nullptr; }
  absl::StatusOr<uint64_t> ReceiveSlot() override;
  bool MayKeepSlot() const override;
  void KeepSlot() override;
  // Whether a page goes on the step that is being filled.
  bool GoesOn(uint32_t page, const TransferStep& next) const;
  absl::Status Flush();
  absl::Status FlushReceived();
  void LetGo();

  const std::unique_ptr<GpuFetcher> fetcher_;
  std::vector<Receiver> receivers_;  // [options.stages]
  // Of a server, opened by that handle; and those before it, until nothing is read there.
  std::string handle_;
  device::OpenedMemory opened_;
  std::vector<device::OpenedMemory> closing_;
  // Slots of pages that are sent here; the receiver goes before its memory.
  device::DeviceBuffer slot_memory_;
  std::unique_ptr<PeerLink> peer_;
  std::vector<std::optional<uint64_t>> slot_steps_;  // [slots], that was decoded from each last
  size_t slot_ = 0;                                  // given last
  std::vector<bool> slot_kept_;                      // [slots], for the fetch under way
  // Of the fetch under way.
  uint64_t pages_ = 0;
  TransferPart part_;
  // The step that is being filled; its pages have one size.
  size_t receiver_ = 0;
  TransferStep step_;
  std::vector<uint32_t> crcs_;              // of its pages so far
  std::vector<const std::byte*> in_place_;  // its pages, if they are read where they are
  bool in_slot_ = false;                    // and that is a slot
  struct Kept {
    uint32_t first = 0;
    uint32_t count = 0;
    std::unique_ptr<PagesHold> hold;
  };
  std::vector<Kept> kept_;
};

// Encodes pages into pinned memory, from where they are sent; or into memory of the device, from
// where they go to a server's GPU that takes them. One push after another: Start, then
// Namespace::PushFrom, after which the engine may write to the pages again.
class GpuPageSource final : public PageSource, private DeviceSource {
 public:
  // Takes all that it will use: a GpuPusher's share, and as much pinned memory as its stages have,
  // or a WIDE page. Errors as GpuPusher::Create's.
  static absl::StatusOr<std::unique_ptr<GpuPageSource>> Create(
      std::shared_ptr<const cuda::CudaPageCodec> codec, const GpuTransferOptions& options = {});

  // Has pages go over NCCL, too, where a server's GPU takes them: groups of at most what the pinned
  // memory has, for which as much of the device's is taken. Once, before the first push.
  // kUnavailable: there is no NCCL.
  absl::Status SendOverNccl(const comm::NcclOptions& options);
  // The same over another fabric.
  absl::Status SendOver(std::unique_ptr<comm::PeerFabric> fabric);

  // Says where the next push comes from; the cache is read after what `stream` holds now. Errors as
  // GpuPusher::Begin's.
  absl::Status Start(const PushOrigin& origin, cudaStream_t stream);

  uint64_t pages() const override { return pages_; }
  absl::StatusOr<std::span<const EncodedPage>> Encode(uint32_t first,
                                                      std::span<const Encoding> encodings,
                                                      EncodeReport* report) override;
  DeviceSource* device_source() override { return this; }

 private:
  GpuPageSource(std::unique_ptr<GpuPusher> pusher, device::PinnedBuffer memory,
                device::Stream stream)
      : pusher_(std::move(pusher)), memory_(std::move(memory)), stream_(std::move(stream)) {}
  absl::StatusOr<std::span<const EncodedPage>> EncodeOnDevice(uint32_t first,
                                                              std::span<const Encoding> encodings,
                                                              EncodeReport* report) override;
  absl::StatusOr<std::span<const EncodedPage>> BringToHost() override;
  absl::Status OpenStaging(const std::string& handle) override;
  absl::Status Write(std::span<const Placed> pages) override;
  PeerLink* sender() override { return link_.get(); }
  // Of the device, as much as the pinned memory; taken when it is first needed.
  absl::Status TakeDeviceMemory();
  // Into that memory, of the host or of the device.
  absl::StatusOr<std::span<const EncodedPage>> EncodeInto(MutableByteView memory, uint32_t first,
                                                          std::span<const Encoding> encodings,
                                                          EncodeReport* report);

  const std::unique_ptr<GpuPusher> pusher_;
  const device::PinnedBuffer memory_;
  const device::Stream stream_;  // of copies from the device's memory
  device::DeviceBuffer device_memory_;
  std::unique_ptr<PeerLink> link_;  // goes before that memory
  std::string handle_;              // of a server's staging memory
  device::OpenedMemory staging_;
  // Of the push under way.
  uint64_t pages_ = 0;
  EncodeReport reported_;
  std::vector<uint32_t> crcs_;
  std::vector<EncodedPage> encoded_;
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_GPU_GPU_PAGES_H_
