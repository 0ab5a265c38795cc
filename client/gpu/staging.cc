#include "client/gpu/staging.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "kernels/device/device.h"
#include "kernels/device/status.h"

namespace oscarkv::client {
namespace {

using device::Event;
using device::Stream;
using device::ToStatus;

uint64_t RoundUp(uint64_t bytes, uint64_t to) { return (bytes + to - 1) / to * to; }

absl::Status CheckOptions(const GpuTransferOptions& options, const PageLayouts& layouts) {
  if (options.pages_max < 1 || options.stages < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("transfer: expected pages_max of at least 1 and stages of at least 2, found ",
                     options.pages_max, " and ", options.stages));
  }
  const uint64_t least = LargestPiece(layouts);
  if (options.stage_bytes >= least) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("transfer: a stage must take one layer of a page, ", least,
                   " bytes, stage_bytes is ", options.stage_bytes));
}

}  // namespace

CopyBatch::CopyBatch(size_t copies_max) {
  destinations_.reserve(copies_max);
  sources_.reserve(copies_max);
  bytes_.reserve(copies_max);
}

void CopyBatch::Add(void* destination, const void* source, size_t bytes) {
  destinations_.push_back(destination);
  sources_.push_back(source);
  bytes_.push_back(bytes);
}

absl::Status CopyBatch::Enqueue(cudaStream_t stream) {
  cudaMemcpyAttributes attributes = {};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  size_t first = 0;
  const absl::Status status =
      ToStatus(cudaMemcpyBatchAsync(destinations_.data(), sources_.data(), bytes_.data(),
                                    destinations_.size(), &attributes, &first, 1, stream),
               "copying pages");
  destinations_.clear();
  sources_.clear();
  bytes_.clear();
  return status;
}

Staging::Staging(std::shared_ptr<const cuda::CudaPageCodec> codec,
                 const GpuTransferOptions& options, Stream copies, Stream codes, Event begun)
    : codec_(std::move(codec)),
      options_(options),
      batch_(options.pages_max),
      copies_(std::move(copies)),
      codes_(std::move(codes)),
      begun_(std::move(begun)) {}

absl::StatusOr<std::unique_ptr<Staging>> Staging::Create(
    std::shared_ptr<const cuda::CudaPageCodec> codec, const GpuTransferOptions& options) {
  OSCARKV_RETURN_IF_ERROR(
      CheckOptions(options, {codec->layout(Encoding::kWide), codec->layout(Encoding::kPacked)}));
  OSCARKV_ASSIGN_OR_RETURN(Stream copies, Stream::Create());
  OSCARKV_ASSIGN_OR_RETURN(Stream codes, Stream::Create());
  OSCARKV_ASSIGN_OR_RETURN(Event begun, Event::Create());
  std::unique_ptr<Staging> staging(new Staging(std::move(codec), options, std::move(copies),
                                               std::move(codes), std::move(begun)));
  OSCARKV_RETURN_IF_ERROR(Annotate(staging->Allocate(), "staging of transfers"));
  return staging;
}

absl::Status Staging::Allocate() {
  OSCARKV_ASSIGN_OR_RETURN(device_, device::CurrentDevice());
  const Geometry& geometry = this->geometry();
  const size_t pages = options_.pages_max;
  stage_stride_ = RoundUp(options_.stage_bytes, 256);
  OSCARKV_ASSIGN_OR_RETURN(ring_, device::DeviceBuffer::Allocate(stage_stride_ * options_.stages));
  // The most that steps need: those of one page and one layer.
  table_bytes_max_ =
      pages * geometry.layers *
      (sizeof(std::byte*) + RoundUp(geometry.kv_heads * sizeof(uint32_t), sizeof(std::byte*)));
  OSCARKV_ASSIGN_OR_RETURN(tables_, MirroredArray<std::byte>::Allocate(table_bytes_max_));
  OSCARKV_ASSIGN_OR_RETURN(slots_, MirroredArray<int64_t>::Allocate(pages * geometry.page_tokens));
  OSCARKV_ASSIGN_OR_RETURN(statuses_, MirroredArray<uint32_t>::Allocate(pages * geometry.blocks()));
  for (uint32_t stage = 0; stage < options_.stages; ++stage) {
    for (std::vector<Event>* events : {&ready_, &free_}) {
      OSCARKV_ASSIGN_OR_RETURN(Event event, Event::Create());
      events->push_back(std::move(event));
    }
  }
  return absl::OkStatus();
}

absl::Status Staging::Begin(const TransferPart& part, std::span<const int64_t> slots,
                            cudaStream_t stream) {
  const size_t pages = slots.size() / geometry().page_tokens;
  if (pages > options_.pages_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("a transfer of ", pages, " pages, options.pages_max is ", options_.pages_max));
  }
  OSCARKV_RETURN_IF_ERROR(device::CheckStream(stream, device_, "the transfer's stream"));
  part_ = part;
  steps_ = table_bytes_ = blocks_ = 0;
  OSCARKV_RETURN_IF_ERROR(begun_.Record(stream));
  OSCARKV_RETURN_IF_ERROR(begun_.MakeWait(codes_.get()));
  if (pages == 0) return absl::OkStatus();
  std::copy(slots.begin(), slots.end(), slots_.host());
  OSCARKV_RETURN_IF_ERROR(
      ToStatus(cudaMemcpyAsync(slots_.on_device(), slots_.host(), slots.size_bytes(),
                               cudaMemcpyHostToDevice, codes_.get()),
               "copying slots"));
  return ToStatus(cudaMemsetAsync(statuses_.on_device(), 0,
                                  pages * geometry().blocks() * sizeof(uint32_t), codes_.get()),
                  "clearing status words");
}

absl::StatusOr<StagedStep> Staging::Next(const TransferStep& step, cudaStream_t user) {
  const uint64_t blocks = uint64_t{step.pages} * step.layers.count * part_.heads.count;
  const uint64_t pointer_bytes = step.pages * sizeof(std::byte*);
  const uint64_t bytes = RoundUp(pointer_bytes + blocks * sizeof(uint32_t), sizeof(std::byte*));
  const bool fits = blocks_ + blocks <= uint64_t{options_.pages_max} * geometry().blocks() &&
                    table_bytes_ + bytes <= table_bytes_max_;
  if (step.pages == 0 || step.stage_bytes() > options_.stage_bytes || !fits) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a step of ", step.pages, " pages and ", step.stage_bytes(), " bytes: a stage has ",
        options_.stage_bytes, ", and the tables are for ", options_.pages_max, " pages"));
  }
  std::byte* table = tables_.on_device() + table_bytes_;
  std::byte* host_table = tables_.host() + table_bytes_;
  const StagedStep place{.number = steps_,
                         .memory = ring_.data() + steps_ % options_.stages * stage_stride_,
                         .pointers = reinterpret_cast<std::byte**>(table),
                         .crcs = reinterpret_cast<uint32_t*>(table + pointer_bytes),
                         .host_pointers = reinterpret_cast<std::byte**>(host_table),
                         .host_crcs = reinterpret_cast<uint32_t*>(host_table + pointer_bytes),
                         .first_block = blocks_,
                         .blocks = blocks};
  for (uint32_t page = 0; page < step.pages; ++page)
    place.host_pointers[page] = place.memory + page * step.bytes;
  if (steps_ >= options_.stages) OSCARKV_RETURN_IF_ERROR(free(place).MakeWait(user));
  ++steps_;
  table_bytes_ += bytes;
  blocks_ += blocks;
  return place;
}

absl::Status Staging::SendTable(const TransferStep& step, const StagedStep& place, Table what,
                                cudaStream_t stream) {
  const uint64_t crc_bytes = what == Table::kPointersAndCrcs ? place.blocks * sizeof(uint32_t) : 0;
  return ToStatus(
      cudaMemcpyAsync(place.pointers, place.host_pointers,
                      step.pages * sizeof(std::byte*) + crc_bytes, cudaMemcpyHostToDevice, stream),
      "copying a step's table");
}

absl::Status Staging::CollectStatuses() {
  if (blocks_ == 0) return absl::OkStatus();
  return ToStatus(cudaMemcpyAsync(statuses_.host(), statuses_.on_device(),
                                  blocks_ * sizeof(uint32_t), cudaMemcpyDeviceToHost, codes_.get()),
                  "copying status words");
}

absl::Status Staging::Drain() {
  const absl::Status copied = copies_.Synchronize();
  const absl::Status coded = codes_.Synchronize();
  return copied.ok() ? coded : copied;
}

}  // namespace oscarkv::client
