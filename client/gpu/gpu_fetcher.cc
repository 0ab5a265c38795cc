#include "client/gpu/gpu_fetcher.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "client/gpu/engine_bounds.h"
#include "kernels/base/status_macros.h"
#include "kernels/device/device.h"

namespace oscarkv::client {

using device::DeviceScope;
using device::Event;

namespace {

absl::Status NotBegun() {
  return absl::FailedPreconditionError("no fetch is under way: Begin one first");
}

}  // namespace

GpuFetcher::GpuFetcher(std::unique_ptr<Staging> staging, std::vector<Event> layer_events)
    : staging_(std::move(staging)), layer_events_(std::move(layer_events)) {}

absl::StatusOr<std::unique_ptr<GpuFetcher>> GpuFetcher::Create(
    std::shared_ptr<const cuda::CudaPageCodec> codec, const GpuTransferOptions& options) {
  OSCARKV_ASSIGN_OR_RETURN(std::unique_ptr<Staging> staging,
                           Staging::Create(std::move(codec), options));
  std::vector<Event> events;
  for (uint32_t layer = 0; layer < staging->geometry().layers; ++layer) {
    OSCARKV_ASSIGN_OR_RETURN(Event event, Event::Create());
    events.push_back(std::move(event));
  }
  return std::unique_ptr<GpuFetcher>(new GpuFetcher(std::move(staging), std::move(events)));
}

GpuFetcher::~GpuFetcher() { Abandon(absl::CancelledError("the fetcher is being destroyed")); }

absl::Status GpuFetcher::Begin(const FetchTarget& target, cudaStream_t stream) {
  if (active_) return absl::FailedPreconditionError("a fetch is under way: Finish it first");
  const Geometry& geometry = staging_->geometry();
  OSCARKV_RETURN_IF_ERROR(CheckDevice(target.cache, staging_->device()));
  OSCARKV_RETURN_IF_ERROR(CheckPart(target.part, geometry));
  const uint64_t pages = target.slots.size() / geometry.page_tokens;
  OSCARKV_RETURN_IF_ERROR(CheckSlots(target.slots, pages, geometry.page_tokens, /*least=*/-1,
                                     target.cache.view().slots));
  const DeviceScope scope(staging_->device());
  OSCARKV_RETURN_IF_ERROR(scope.status());
  OSCARKV_RETURN_IF_ERROR(staging_->Begin(target.part, target.slots, stream));
  active_ = true;
  cache_ = &target.cache;
  part_ = target.part;
  pages_ = static_cast<uint32_t>(pages);
  pages_added_ = 0;
  steps_.clear();
  const absl::MutexLock lock(&mutex_);
  progress_ = {.begun = true,
               .ended = false,
               .layers = part_.layers,
               .layers_enqueued = 0,
               .error = absl::OkStatus()};
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> GpuFetcher::Add(const TransferStep& step,
                                         std::span<const HostPage> pages) {
  return AddStep(step, pages, Where::kHost);
}

absl::StatusOr<uint64_t> GpuFetcher::AddInPlace(const TransferStep& step,
                                                std::span<const HostPage> pages) {
  return AddStep(step, pages, Where::kDevice);
}

absl::StatusOr<uint64_t> GpuFetcher::AddStep(const TransferStep& step,
                                             std::span<const HostPage> pages, Where where) {
  if (!active_) return NotBegun();
  if (pages.size() != step.pages || step.first_page + uint64_t{step.pages} > pages_) {
    return absl::InvalidArgumentError(absl::StrCat("a step of pages ", step.first_page, " + ",
                                                   step.pages, ": found ", pages.size(),
                                                   " of them, the fetch has ", pages_));
  }
  const DeviceScope scope(staging_->device());
  OSCARKV_RETURN_IF_ERROR(scope.status());
  OSCARKV_ASSIGN_OR_RETURN(const StagedStep place, staging_->Next(step, staging_->copies().get()));
  const uint64_t blocks = uint64_t{step.layers.count} * part_.heads.count;
  CopyBatch& batch = staging_->batch();
  for (uint32_t page = 0; page < step.pages; ++page) {
    std::copy_n(pages[page].block_crc32c, blocks, place.host_crcs + page * blocks);
    if (where == Where::kDevice) {
      place.host_pointers[page] = const_cast<std::byte*>(pages[page].bytes);  // decoding reads only
    } else {
      batch.Add(place.memory + page * step.bytes, pages[page].bytes, step.bytes);
    }
  }
  // On the same stream: on another one small copies stand behind the pages of the steps that
  // follow.
  OSCARKV_RETURN_IF_ERROR(
      staging_->SendTable(step, place, Staging::Table::kPointersAndCrcs, staging_->copies().get()));
  if (where == Where::kHost) OSCARKV_RETURN_IF_ERROR(batch.Enqueue(staging_->copies().get()));
  OSCARKV_RETURN_IF_ERROR(staging_->ready(place).Record(staging_->copies().get()));
  OSCARKV_RETURN_IF_ERROR(staging_->ready(place).MakeWait(staging_->codes().get()));

  const cuda::DeviceDecodeBatch decode = {
      .encoding = step.encoding,
      .layers = step.layers,
      .heads = part_.heads,
      .pages = step.pages,
      .page_bytes = place.pointers,
      .slots = staging_->slots().on_device() +
               uint64_t{step.first_page} * staging_->geometry().page_tokens,
      .block_crc32c = place.crcs,
      .status = staging_->statuses().on_device() + place.first_block};
  OSCARKV_RETURN_IF_ERROR(staging_->codec().Decode(decode, staging_->codec().engine_basis(),
                                                   cache_->view(), staging_->codes().get()));
  OSCARKV_RETURN_IF_ERROR(staging_->free(place).Record(staging_->codes().get()));
  steps_.push_back({step, place.first_block});
  pages_added_ = std::max(pages_added_, step.first_page + step.pages);
  return place.number;
}

absl::Status GpuFetcher::EndLayers(BlockRange layers) {
  if (!active_) return NotBegun();
  OSCARKV_RETURN_IF_ERROR(CheckPart({layers, part_.heads}, staging_->geometry()));
  const DeviceScope scope(staging_->device());
  OSCARKV_RETURN_IF_ERROR(scope.status());
  for (uint32_t layer = layers.first; layer < layers.first + layers.count; ++layer)
    OSCARKV_RETURN_IF_ERROR(layer_events_[layer].Record(staging_->codes().get()));
  const absl::MutexLock lock(&mutex_);
  progress_.layers_enqueued = layers.first + layers.count - part_.layers.first;
  return absl::OkStatus();
}

absl::Status GpuFetcher::WaitCopied(uint64_t step) {
  return staging_->ready({.number = step}).Synchronize();
}

absl::Status GpuFetcher::WaitDecoded(uint64_t step) {
  return staging_->free({.number = step}).Synchronize();
}

// The link waits for the first step to be enqueued: shorter ones have it begin sooner.
uint64_t GpuFetcher::StageBytesOf(BlockRange group) const {
  if (group.first != part_.layers.first) return options().stage_bytes;
  return std::max(options().stage_bytes / 4, LargestPiece(layouts()));
}

absl::Status GpuFetcher::AddGroup(BlockRange group, std::span<const Encoding> encodings,
                                  std::span<const HostPage> pages) {
  std::vector<HostPage> pieces;
  for (const TransferStep& step :
       PlanByLayers(layouts(), encodings, part_, {&group, 1}, StageBytesOf(group))) {
    const uint64_t first_crc = uint64_t{step.layers.first - part_.layers.first} * part_.heads.count;
    pieces.clear();
    for (const HostPage& page : pages.subspan(step.first_page, step.pages))
      pieces.push_back({page.encoding, page.bytes + step.offset, page.block_crc32c + first_crc});
    OSCARKV_RETURN_IF_ERROR(Add(step, pieces).status());
  }
  return EndLayers(group);
}

absl::Status GpuFetcher::AddAll(std::span<const HostPage> pages) {
  if (!active_) return NotBegun();
  if (pages.size() != pages_) {
    return absl::InvalidArgumentError(
        absl::StrCat("the fetch is of ", pages_, " pages, found ", pages.size()));
  }
  std::vector<Encoding> encodings;
  for (const HostPage& page : pages) encodings.push_back(page.encoding);
  // Pieces of less than a quarter would be enqueued more slowly than the link takes them: the first
  // layer would not come sooner.
  const uint32_t first_layers = LayersOfPiece(layouts(), part_, options().piece_bytes / 4);
  const uint32_t layers_at_once = LayersOfPiece(layouts(), part_, options().piece_bytes);
  for (const BlockRange group : LayerGroups(part_.layers, first_layers, layers_at_once)) {
    absl::Status status = AddGroup(group, encodings, pages);
    if (status.ok()) continue;
    Abandon(status);
    return status;
  }
  return absl::OkStatus();
}

absl::Status GpuFetcher::WaitLayer(uint32_t layer, cudaStream_t stream) {
  {
    const absl::MutexLock lock(&mutex_);
    if (!progress_.begun) return absl::FailedPreconditionError("no fetch was begun");
    const BlockRange layers = progress_.layers;
    if (layer < layers.first || layer - layers.first >= layers.count) {
      return absl::InvalidArgumentError(absl::StrCat("layer must be ", layers.first, "..",
                                                     layers.first + layers.count - 1, ", found ",
                                                     layer));
    }
    const auto reached = [this, layer]()
                             ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return Reached(layer); };
    mutex_.Await(absl::Condition(&reached));
    // A fetch that ended well before this layer had no page left, and has waited for all it did.
    if (progress_.layers_enqueued <= layer - layers.first) return progress_.error;
  }
  OSCARKV_RETURN_IF_ERROR(device::CheckStream(stream, device(), "the stream that waits"));
  const DeviceScope scope(device());
  OSCARKV_RETURN_IF_ERROR(scope.status());
  return layer_events_[layer].MakeWait(stream);
}

void GpuFetcher::End(const absl::Status& error) {
  active_ = false;
  const absl::MutexLock lock(&mutex_);
  progress_.ended = true;
  progress_.error = error;
}

absl::StatusOr<std::vector<absl::Status>> GpuFetcher::Results() const {
  const DeviceScope scope(staging_->device());
  OSCARKV_RETURN_IF_ERROR(scope.status());
  const absl::Status collected = staging_->CollectStatuses();
  OSCARKV_RETURN_IF_ERROR(staging_->Drain());
  OSCARKV_RETURN_IF_ERROR(collected);
  const std::span words(staging_->statuses().host(), staging_->blocks());
  std::vector<absl::Status> pages(pages_added_);
  const auto bad = FirstMarked(steps_, words, part_.heads, pages_added_, cuda::kBadChecksum);
  for (size_t page = 0; page < pages.size(); ++page) {
    if (!bad[page]) continue;
    pages[page] = absl::DataLossError(absl::StrCat("page ", page, ": the checksum of layer ",
                                                   bad[page]->layer, ", head ", bad[page]->head,
                                                   " is wrong"));
  }
  return pages;
}

absl::StatusOr<std::vector<absl::Status>> GpuFetcher::Finish() {
  if (!active_) return NotBegun();
  auto results = Results();
  End(results.status());
  return results;
}

void GpuFetcher::Abandon(const absl::Status& reason) {
  if (!active_) return;
  const DeviceScope scope(staging_->device());
  // What it ended with does not matter any more: the next fetch will meet it again.
  staging_->Drain().IgnoreError();
  End(reason);
}

}  // namespace oscarkv::client
