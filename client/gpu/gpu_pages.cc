#include "client/gpu/gpu_pages.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "kernels/device/device.h"
#include "kernels/device/status.h"

namespace oscarkv::client {
namespace {

// How often each page is asked for, a share of its layers each time, so that an engine can begin
// before the last of them are there. The first layer comes on its own.
constexpr uint32_t kShares = 4;
// Less than this comes all at once: no layer of it is worth a call of its own.
constexpr uint64_t kSharesWorthBytes = 4 << 20;

// What is not kept takes turns: one is received into while another is decoded.
constexpr size_t kSlotsInTurn = 2;

bool Same(BlockRange a, BlockRange b) { return a.first == b.first && a.count == b.count; }

}  // namespace

absl::StatusOr<std::unique_ptr<GpuPageSink>> GpuPageSink::Create(
    std::shared_ptr<const cuda::CudaPageCodec> codec, const GpuTransferOptions& options) {
  OSCARKV_ASSIGN_OR_RETURN(std::unique_ptr<GpuFetcher> fetcher,
                           GpuFetcher::Create(std::move(codec), options));
  std::vector<Receiver> receivers;
  for (uint32_t stage = 0; stage < options.stages; ++stage) {
    OSCARKV_ASSIGN_OR_RETURN(device::PinnedBuffer memory,
                             device::PinnedBuffer::Allocate(options.stage_bytes));
    receivers.push_back({.memory = std::move(memory)});
  }
  return std::unique_ptr<GpuPageSink>(new GpuPageSink(std::move(fetcher), std::move(receivers)));
}

absl::Status GpuPageSink::Start(const FetchTarget& target, cudaStream_t stream) {
  OSCARKV_RETURN_IF_ERROR(fetcher_->Begin(target, stream));
  pages_ = target.slots.size() / fetcher_->layouts().wide.geometry().page_tokens;
  part_ = target.part;
  step_ = {};
  crcs_.clear();
  in_place_.clear();
  LetGo();
  slot_steps_.assign(slot_steps_.size(), std::nullopt);  // the fetch before has ended
  slot_kept_.assign(slot_kept_.size(), false);
  for (Receiver& receiver : receivers_) receiver.used = false;
  return absl::OkStatus();
}

std::vector<BlockRange> GpuPageSink::LayerGroups(BlockRange layers) const {
  const PageLayouts layouts = fetcher_->layouts();
  const uint64_t all = pages_ * layouts.packed.range_bytes(layers, part_.heads);
  const bool fits =
      layouts.wide.range_bytes(layers, part_.heads) <= fetcher_->options().stage_bytes;
  if (all < kSharesWorthBytes && fits) return {layers};
  return GroupsThatFit(fetcher_->layouts(), part_, layers, (layers.count + kShares - 1) / kShares,
                       fetcher_->options().stage_bytes);
}

absl::Status GpuPageSink::Begin(BlockRange layers, BlockRange heads) {
  if (Same(layers, part_.layers) && Same(heads, part_.heads)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "the fetch is of layers ", layers.first, " + ", layers.count, " and heads ", heads.first,
      " + ", heads.count, ", it was started for ", part_.layers.first, " + ", part_.layers.count,
      " and ", part_.heads.first, " + ", part_.heads.count));
}

bool GpuPageSink::GoesOn(uint32_t page, const TransferStep& next) const {
  return step_.encoding == next.encoding && Same(step_.layers, next.layers) &&
         step_.first_page + step_.pages == page &&
         step_.stage_bytes() + next.bytes <= fetcher_->options().stage_bytes;
}

absl::StatusOr<MutableByteView> GpuPageSink::Room(uint32_t page, Encoding encoding,
                                                  BlockRange layers, uint64_t bytes) {
  const TransferStep next = {
      .encoding = encoding, .first_page = page, .layers = layers, .bytes = bytes};
  if (step_.pages > 0 && (!in_place_.empty() || !GoesOn(page, next)))
    OSCARKV_RETURN_IF_ERROR(Flush());
  Receiver& receiver = receivers_[receiver_];
  if (step_.pages == 0) {
    if (receiver.used) OSCARKV_RETURN_IF_ERROR(fetcher_->WaitCopied(receiver.step));
    receiver.used = false;
    step_ = next;
  }
  return receiver.memory.bytes().subspan(step_.stage_bytes(), bytes);
}

absl::Status GpuPageSink::Take(std::span<const uint32_t> block_crc32c) {
  crcs_.insert(crcs_.end(), block_crc32c.begin(), block_crc32c.end());
  ++step_.pages;
  return absl::OkStatus();
}

absl::Status GpuPageSink::ReceiveOverNccl(const comm::NcclOptions& options,
                                          const comm::SlotShape& slots) {
  OSCARKV_ASSIGN_OR_RETURN(auto fabric, comm::MakeNcclFabric(options));
  return ReceiveOver(std::move(fabric), slots);
}

absl::Status GpuPageSink::ReceiveOver(std::unique_ptr<comm::PeerFabric> fabric,
                                      const comm::SlotShape& slots) {
  if (peer_ != nullptr) return absl::FailedPreconditionError("there is a receiver");
  OSCARKV_RETURN_IF_ERROR(comm::AgreeOnSlots(slots, slots.bytes()).status());
  const device::DeviceScope scope(fetcher_->device());
  OSCARKV_RETURN_IF_ERROR(scope.status());
  OSCARKV_ASSIGN_OR_RETURN(slot_memory_, device::DeviceBuffer::Allocate(slots.bytes()));
  peer_ = std::make_unique<PeerLink>(std::move(fabric), slot_memory_.data(), slots);
  slot_steps_.resize(slots.slots);
  slot_kept_.resize(slots.slots);
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> GpuPageSink::ReceiveSlot() {
  if (step_.pages > 0) OSCARKV_RETURN_IF_ERROR(Flush());
  do {
    slot_ = (slot_ + 1) % slot_steps_.size();
  } while (slot_kept_[slot_]);
  if (slot_steps_[slot_].has_value())
    OSCARKV_RETURN_IF_ERROR(fetcher_->WaitDecoded(*slot_steps_[slot_]));
  slot_steps_[slot_].reset();
  return slot_ * peer_->shape().slot_bytes;
}

bool GpuPageSink::MayKeepSlot() const {
  return slot_kept_.size() >=
         kSlotsInTurn + 1 + static_cast<size_t>(std::ranges::count(slot_kept_, true));
}

void GpuPageSink::KeepSlot() { slot_kept_[slot_] = true; }

absl::Status GpuPageSink::Open(const std::string& handle) {
  if (handle == handle_) return absl::OkStatus();
  const device::DeviceScope scope(fetcher_->device());
  OSCARKV_RETURN_IF_ERROR(scope.status());
  OSCARKV_ASSIGN_OR_RETURN(device::OpenedMemory opened, device::OpenedMemory::Open(handle));
  closing_.push_back(std::exchange(opened_, std::move(opened)));
  handle_ = handle;
  return absl::OkStatus();
}

void GpuPageSink::Keep(uint32_t first, uint32_t count, std::unique_ptr<PagesHold> hold) {
  kept_.push_back({first, count, std::move(hold)});
}

absl::Status GpuPageSink::TakeAt(uint32_t page, const DevicePlace& place,
                                 std::span<const uint32_t> block_crc32c) {
  const TransferStep next = {
      .encoding = place.encoding, .first_page = page, .layers = place.layers, .bytes = place.bytes};
  if (step_.pages > 0 && (in_place_.empty() || !GoesOn(page, next)))
    OSCARKV_RETURN_IF_ERROR(Flush());
  if (step_.pages == 0) step_ = next;
  const bool received = place.memory == DevicePlace::Memory::kReceived;
  in_place_.push_back((received ? slot_memory_.data() : opened_.data()) + place.offset);
  in_slot_ = received;
  return Take(block_crc32c);
}

absl::Status GpuPageSink::Flush() {
  if (in_place_.empty()) return FlushReceived();
  const size_t blocks = crcs_.size() / step_.pages;
  std::vector<HostPage> pages;
  for (size_t page = 0; page < in_place_.size(); ++page)
    pages.push_back({step_.encoding, in_place_[page], crcs_.data() + page * blocks});
  OSCARKV_ASSIGN_OR_RETURN(const uint64_t step, fetcher_->AddInPlace(step_, pages));
  if (in_slot_) slot_steps_[slot_] = step;
  step_ = {};
  crcs_.clear();
  in_place_.clear();
  return absl::OkStatus();
}

absl::Status GpuPageSink::FlushReceived() {
  Receiver& receiver = receivers_[receiver_];
  const size_t blocks = crcs_.size() / step_.pages;
  std::vector<HostPage> pages;
  for (uint32_t page = 0; page < step_.pages; ++page) {
    pages.push_back({step_.encoding, receiver.memory.bytes().data() + page * step_.bytes,
                     crcs_.data() + page * blocks});
  }
  OSCARKV_ASSIGN_OR_RETURN(receiver.step, fetcher_->Add(step_, pages));
  receiver.used = true;
  receiver_ = (receiver_ + 1) % receivers_.size();
  step_ = {};
  crcs_.clear();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<absl::Status>> GpuPageSink::Finish() {
  auto pages = fetcher_->Finish();
  if (pages.ok()) {
    // Everything has been read: what was in its place until now was the page.
    for (Kept& kept : kept_) {
      const absl::Status ended = kept.hold->End();
      if (ended.ok()) continue;
      for (size_t page = kept.first;
           page < std::min<size_t>(pages->size(), kept.first + kept.count); ++page) {
        if ((*pages)[page].ok()) (*pages)[page] = absl::AbortedError(ended.message());
      }
    }
  }
  LetGo();
  return pages;
}

void GpuPageSink::Abandon(const absl::Status& reason) {
  fetcher_->Abandon(reason);
  LetGo();
}

void GpuPageSink::LetGo() {
  kept_.clear();
  closing_.clear();
}

absl::Status GpuPageSink::EndLayers(BlockRange layers, uint32_t) {
  if (step_.pages > 0) OSCARKV_RETURN_IF_ERROR(Flush());
  step_ = {};
  return fetcher_->EndLayers(layers);
}

absl::StatusOr<std::unique_ptr<GpuPageSource>> GpuPageSource::Create(
    std::shared_ptr<const cuda::CudaPageCodec> codec, const GpuTransferOptions& options) {
  const uint64_t bytes =
      std::max(options.stage_bytes * options.stages, codec->layout(Encoding::kWide).page_bytes());
  OSCARKV_ASSIGN_OR_RETURN(std::unique_ptr<GpuPusher> pusher,
                           GpuPusher::Create(std::move(codec), options));
  OSCARKV_ASSIGN_OR_RETURN(device::PinnedBuffer memory, device::PinnedBuffer::Allocate(bytes));
  OSCARKV_ASSIGN_OR_RETURN(device::Stream stream, device::Stream::Create());
  return std::unique_ptr<GpuPageSource>(
      new GpuPageSource(std::move(pusher), std::move(memory), std::move(stream)));
}

absl::Status GpuPageSource::SendOverNccl(const comm::NcclOptions& options) {
  OSCARKV_ASSIGN_OR_RETURN(auto fabric, comm::MakeNcclFabric(options));
  return SendOver(std::move(fabric));
}

absl::Status GpuPageSource::SendOver(std::unique_ptr<comm::PeerFabric> fabric) {
  if (link_ != nullptr) return absl::FailedPreconditionError("there is a sender");
  OSCARKV_RETURN_IF_ERROR(TakeDeviceMemory());
  link_ =
      std::make_unique<PeerLink>(std::move(fabric), device_memory_.data(),
                                 comm::SlotShape{.slots = 1, .slot_bytes = device_memory_.size()});
  return absl::OkStatus();
}

absl::Status GpuPageSource::TakeDeviceMemory() {
  if (device_memory_.size() > 0) return absl::OkStatus();
  const device::DeviceScope scope(pusher_->device());
  OSCARKV_RETURN_IF_ERROR(scope.status());
  OSCARKV_ASSIGN_OR_RETURN(device_memory_, device::DeviceBuffer::Allocate(memory_.bytes().size()));
  return absl::OkStatus();
}

absl::Status GpuPageSource::Start(const PushOrigin& origin, cudaStream_t stream) {
  OSCARKV_RETURN_IF_ERROR(pusher_->Begin(origin, stream));
  pages_ = origin.slots.size() / pusher_->layouts().wide.geometry().page_tokens;
  reported_ = {};
  return absl::OkStatus();
}

absl::StatusOr<std::span<const EncodedPage>> GpuPageSource::Encode(
    uint32_t first, std::span<const Encoding> encodings, EncodeReport* report) {
  return EncodeInto(memory_.bytes(), first, encodings, report);
}

absl::StatusOr<std::span<const EncodedPage>> GpuPageSource::EncodeOnDevice(
    uint32_t first, std::span<const Encoding> encodings, EncodeReport* report) {
  OSCARKV_RETURN_IF_ERROR(TakeDeviceMemory());
  return EncodeInto({device_memory_.data(), device_memory_.size()}, first, encodings, report);
}

absl::StatusOr<std::span<const EncodedPage>> GpuPageSource::BringToHost() {
  const device::DeviceScope scope(pusher_->device());
  OSCARKV_RETURN_IF_ERROR(scope.status());
  const ByteView last = encoded_.back().bytes;
  const auto bytes = static_cast<size_t>(last.data() + last.size() - device_memory_.data());
  OSCARKV_RETURN_IF_ERROR(
      device::ToStatus(cudaMemcpyAsync(memory_.bytes().data(), device_memory_.data(), bytes,
                                       cudaMemcpyDeviceToHost, stream_.get()),
                       "copying encoded pages"));
  OSCARKV_RETURN_IF_ERROR(stream_.Synchronize());
  for (EncodedPage& page : encoded_)
    page.bytes = {memory_.bytes().data() + (page.bytes.data() - device_memory_.data()),
                  page.bytes.size()};
  return std::span<const EncodedPage>(encoded_);
}

absl::Status GpuPageSource::OpenStaging(const std::string& handle) {
  if (handle == handle_) return absl::OkStatus();
  const device::DeviceScope scope(pusher_->device());
  OSCARKV_RETURN_IF_ERROR(scope.status());
  OSCARKV_ASSIGN_OR_RETURN(staging_, device::OpenedMemory::Open(handle));
  handle_ = handle;
  return absl::OkStatus();
}

absl::Status GpuPageSource::Write(std::span<const Placed> pages) {
  const device::DeviceScope scope(pusher_->device());
  OSCARKV_RETURN_IF_ERROR(scope.status());
  for (const Placed& placed : pages) {
    OSCARKV_RETURN_IF_ERROR(
        device::ToStatus(cudaMemcpyAsync(staging_.writable() + placed.offset, placed.page.data(),
                                         placed.page.size(), cudaMemcpyDefault, stream_.get()),
                         "writing to the server's memory"));
  }
  return stream_.Synchronize();
}

absl::StatusOr<std::span<const EncodedPage>> GpuPageSource::EncodeInto(
    MutableByteView memory, uint32_t first, std::span<const Encoding> encodings,
    EncodeReport* report) {
  const PageLayouts layouts = pusher_->layouts();
  const uint32_t blocks = layouts.wide.geometry().blocks();
  crcs_.resize(encodings.size() * blocks);
  encoded_.clear();
  std::vector<HostPageRoom> rooms;
  uint64_t used = 0;
  for (const Encoding encoding : encodings) {
    const uint64_t bytes = layouts.of(encoding).page_bytes();
    if (used + bytes > memory.size()) break;
    std::byte* room = memory.data() + used;
    uint32_t* crcs = crcs_.data() + rooms.size() * blocks;
    rooms.push_back({encoding, room, crcs});
    encoded_.push_back({encoding, {room, bytes}, {crcs, blocks}});
    used += bytes;
  }
  OSCARKV_RETURN_IF_ERROR(pusher_->Add(first, rooms));
  OSCARKV_ASSIGN_OR_RETURN(const EncodeReport now, pusher_->WaitCopied());
  report->rows += now.rows - reported_.rows;
  report->constant_rows += now.constant_rows - reported_.constant_rows;
  report->nonfinite_rows += now.nonfinite_rows - reported_.nonfinite_rows;
  report->overflow_rows += now.overflow_rows - reported_.overflow_rows;
  reported_ = now;
  return std::span<const EncodedPage>(encoded_);
}

}  // namespace oscarkv::client
