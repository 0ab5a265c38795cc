#include "client/gpu/gpu_pusher.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "client/gpu/engine_bounds.h"
#include "kernels/base/status_macros.h"
#include "kernels/device/device.h"
#include "kernels/device/status.h"

namespace oscarkv::client {

using device::DeviceScope;
using device::Event;
using device::ToStatus;
using Counts = MirroredArray<cuda::DeviceEncodeCounts>;

namespace {

absl::Status NotBegun() {
  return absl::FailedPreconditionError("no push is under way: Begin one first");
}

}  // namespace

GpuPusher::GpuPusher(std::unique_ptr<Staging> staging, Event encoded, Counts counts)
    : staging_(std::move(staging)), encoded_(std::move(encoded)), counts_(std::move(counts)) {}

absl::StatusOr<std::unique_ptr<GpuPusher>> GpuPusher::Create(
    std::shared_ptr<const cuda::CudaPageCodec> codec, const GpuTransferOptions& options) {
  OSCARKV_ASSIGN_OR_RETURN(std::unique_ptr<Staging> staging,
                           Staging::Create(std::move(codec), options));
  OSCARKV_ASSIGN_OR_RETURN(Event encoded, Event::Create());
  OSCARKV_ASSIGN_OR_RETURN(Counts counts, Counts::Allocate(1));
  return std::unique_ptr<GpuPusher>(
      new GpuPusher(std::move(staging), std::move(encoded), std::move(counts)));
}

GpuPusher::~GpuPusher() {
  const DeviceScope scope(staging_->device());
  if (active_) staging_->Drain().IgnoreError();  // nobody is left to be told
}

absl::Status GpuPusher::Begin(const PushOrigin& origin, cudaStream_t stream) {
  const Geometry& geometry = staging_->geometry();
  OSCARKV_RETURN_IF_ERROR(CheckDevice(origin.cache, staging_->device()));
  const uint64_t pages = origin.slots.size() / geometry.page_tokens;
  OSCARKV_RETURN_IF_ERROR(CheckSlots(origin.slots, pages, geometry.page_tokens, /*least=*/0,
                                     origin.cache.view().slots));
  const DeviceScope scope(staging_->device());
  OSCARKV_RETURN_IF_ERROR(scope.status());
  if (active_) OSCARKV_RETURN_IF_ERROR(staging_->Drain());
  active_ = false;
  OSCARKV_RETURN_IF_ERROR(
      staging_->Begin({{0, geometry.layers}, {0, geometry.kv_heads}}, origin.slots, stream));
  OSCARKV_RETURN_IF_ERROR(
      ToStatus(cudaMemsetAsync(counts_.on_device(), 0, sizeof(cuda::DeviceEncodeCounts),
                               staging_->codes().get()),
               "clearing counts"));
  active_ = true;
  cache_ = &origin.cache;
  pages_ = static_cast<uint32_t>(pages);
  rows_ = 0;
  pending_.clear();
  return absl::OkStatus();
}

absl::Status GpuPusher::Add(uint32_t first_page, std::span<const HostPageRoom> rooms) {
  if (!active_) return NotBegun();
  if (first_page + uint64_t{rooms.size()} > pages_) {
    return absl::InvalidArgumentError(
        absl::StrCat("pages ", first_page, " + ", rooms.size(), ": the push has ", pages_));
  }
  const DeviceScope scope(staging_->device());
  OSCARKV_RETURN_IF_ERROR(scope.status());
  std::vector<Encoding> encodings;
  for (const HostPageRoom& room : rooms) encodings.push_back(room.encoding);
  for (TransferStep step : PlanByPages(layouts(), encodings, options().stage_bytes)) {
    const auto of_step = rooms.subspan(step.first_page, step.pages);
    step.first_page += first_page;
    OSCARKV_RETURN_IF_ERROR(AddStep(step, of_step));
  }
  return absl::OkStatus();
}

absl::Status GpuPusher::AddStep(const TransferStep& step, std::span<const HostPageRoom> rooms) {
  const Geometry& geometry = staging_->geometry();
  const cudaStream_t copies = staging_->copies().get();
  const cudaStream_t codes = staging_->codes().get();
  OSCARKV_ASSIGN_OR_RETURN(const StagedStep place, staging_->Next(step, codes));
  OSCARKV_RETURN_IF_ERROR(staging_->SendTable(step, place, Staging::Table::kPointers, codes));
  const cuda::DeviceEncodeBatch encode = {
      .encoding = step.encoding,
      .layers = step.layers,
      .heads = {0, geometry.kv_heads},
      .pages = step.pages,
      .page_bytes = place.pointers,
      .slots = staging_->slots().on_device() + uint64_t{step.first_page} * geometry.page_tokens,
      .block_crc32c = place.crcs,
      .status = staging_->statuses().on_device() + place.first_block,
      .counts = counts_.on_device()};
  OSCARKV_RETURN_IF_ERROR(staging_->codec().Encode(cache_->view(), encode, codes));
  OSCARKV_RETURN_IF_ERROR(staging_->ready(place).Record(codes));
  OSCARKV_RETURN_IF_ERROR(staging_->ready(place).MakeWait(copies));

  const uint64_t blocks = uint64_t{step.layers.count} * geometry.kv_heads;
  CopyBatch& batch = staging_->batch();
  for (uint32_t page = 0; page < step.pages; ++page) {
    batch.Add(rooms[page].bytes + step.offset, place.memory + page * step.bytes, step.bytes);
    pending_.push_back({.source = place.host_crcs + page * blocks,
                        .count = blocks,
                        .destination = rooms[page].block_crc32c +
                                       uint64_t{step.layers.first} * geometry.kv_heads});
  }
  OSCARKV_RETURN_IF_ERROR(batch.Enqueue(copies));
  OSCARKV_RETURN_IF_ERROR(
      ToStatus(cudaMemcpyAsync(place.host_crcs, place.crcs, place.blocks * sizeof(uint32_t),
                               cudaMemcpyDeviceToHost, copies),
               "copying checksums"));
  rows_ += uint64_t{step.pages} * blocks * geometry.page_tokens * 2;
  return staging_->free(place).Record(copies);
}

absl::Status GpuPusher::WaitEncoded(cudaStream_t stream) {
  if (!active_) return NotBegun();
  OSCARKV_RETURN_IF_ERROR(device::CheckStream(stream, device(), "the stream that waits"));
  const DeviceScope scope(device());
  OSCARKV_RETURN_IF_ERROR(scope.status());
  OSCARKV_RETURN_IF_ERROR(encoded_.Record(staging_->codes().get()));
  return encoded_.MakeWait(stream);
}

absl::StatusOr<EncodeReport> GpuPusher::WaitCopied() {
  if (!active_) return NotBegun();
  const DeviceScope scope(device());
  OSCARKV_RETURN_IF_ERROR(scope.status());
  const absl::Status collected = ToStatus(
      cudaMemcpyAsync(counts_.host(), counts_.on_device(), sizeof(cuda::DeviceEncodeCounts),
                      cudaMemcpyDeviceToHost, staging_->codes().get()),
      "copying counts");
  OSCARKV_RETURN_IF_ERROR(staging_->Drain());
  OSCARKV_RETURN_IF_ERROR(collected);
  for (const PendingCrcs& crcs : pending_) std::copy_n(crcs.source, crcs.count, crcs.destination);
  pending_.clear();
  const cuda::DeviceEncodeCounts& counts = *counts_.host();
  return EncodeReport{.rows = rows_,
                      .constant_rows = counts.constant_rows,
                      .nonfinite_rows = counts.nonfinite_rows,
                      .overflow_rows = counts.overflow_rows};
}

absl::StatusOr<EncodeReport> GpuPusher::Finish() {
  auto result = WaitCopied();
  active_ = false;
  return result;
}

}  // namespace oscarkv::client
