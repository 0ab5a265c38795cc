#include "kernels/codec/oscar/cuda_page_codec.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "kernels/codec/oscar/cuda_check.h"
#include "kernels/codec/oscar/cuda_decode.h"
#include "kernels/codec/oscar/cuda_encode.h"
#include "kernels/codec/oscar/cuda_move.h"
#include "kernels/codec/oscar/cuda_prepared.h"
#include "kernels/device/status.h"

namespace oscarkv::cuda {
namespace {

// Both halves of a word; of fp16 and of bf16 it is a NaN.
constexpr uint32_t kNanPair[] = {0x7e007e00u, 0x7fc07fc0u};

template <typename Kind>
MoveArguments<Kind> ArgumentsOf(const PreparedBlock& block, uint32_t page_tokens) {
  MoveArguments<Kind> arguments;
  arguments.content_words = static_cast<uint32_t>(block.layout.bytes / 4);
  arguments.stride_vectors = static_cast<uint32_t>(block.layout.stride / 16);
  arguments.fold = block.fold.as<CrcFold>();
  arguments.crc_rows = block.crc_rows.as<uint32_t>();
  arguments.crc_start = block.crc_start;
  arguments.page_tokens = page_tokens;
  return arguments;
}

class Codec final : public CudaPageCodec {
 public:
  Codec(PageLayout wide, PageLayout packed, bool can_pack, int device)
      : CudaPageCodec(std::move(wide), std::move(packed), can_pack), device_(device) {}

  absl::Status Prepare(const TransformSet* transforms);
  absl::Status Decode(const DeviceDecodeBatch& batch, DecodeBasis basis,
                      const DeviceEngineView& destination, cudaStream_t stream) const override;
  absl::Status Encode(const DeviceEngineView& source, const DeviceEncodeBatch& batch,
                      cudaStream_t stream) const override;
  absl::Status Emit(const DeviceDecodeBatch& batch, const DevicePoolView& destination,
                    cudaStream_t stream) const override;
  absl::Status Ingest(const DevicePoolView& source, const DeviceEncodeBatch& batch,
                      cudaStream_t stream) const override;

 private:
  template <typename Kind>
  MoveArguments<Kind> ArgumentsOfWide(const DeviceEngineView& engine) const;
  template <typename Batch>
  absl::Status MoveWide(const DeviceEngineView& engine, const Batch& batch,
                        cudaStream_t stream) const;
  absl::StatusOr<MoveArguments<PoolKind>> ArgumentsOfPool(const DevicePoolView& pool,
                                                          BlockRange layers) const;
  absl::Status DecodePacked(const DeviceDecodeBatch& batch, DecodeBasis basis,
                            const DeviceEngineView& destination, cudaStream_t stream) const;
  absl::Status EncodePacked(const DeviceEngineView& source, const DeviceEncodeBatch& batch,
                            cudaStream_t stream) const;
  const CodecSpec& spec() const { return layout(Encoding::kPacked).spec(); }

  int device_;
  PreparedBlock wide_;
  std::optional<PreparedBlock> pool_;  // of layers with 2 bits for K and for V
  PreparedPacked packed_;
};

// A block that the threads of SmallWideKind hold.
bool IsSmall(const BlockLayout& block) {
  return block.bytes <= uint64_t{SmallWideKind::kThreads} * SmallWideKind::kHeld * 16;
}

bool IsPoolBlock(const BlockLayout& block) { return block.k.bits == 2 && block.v.bits == 2; }

absl::Status Codec::Prepare(const TransformSet* transforms) {
  const BlockLayout& wide = layout(Encoding::kWide).block(0);  // of all layers
  OSCARKV_ASSIGN_OR_RETURN(
      wide_, PrepareBlock(wide, IsSmall(wide) ? SmallWideKind::kThreads : WideKind::kThreads));
  if (transforms == nullptr) return absl::OkStatus();
  const PageLayout& packed = layout(Encoding::kPacked);
  OSCARKV_ASSIGN_OR_RETURN(packed_, PreparePacked(packed, *transforms));
  for (uint32_t layer = 0; layer < geometry().layers && !pool_.has_value(); ++layer) {
    if (!IsPoolBlock(packed.block(layer))) continue;
    OSCARKV_ASSIGN_OR_RETURN(pool_, PrepareBlock(packed.block(layer), PoolKind::kThreads));
  }
  return absl::OkStatus();
}

template <typename Kind>
MoveArguments<Kind> Codec::ArgumentsOfWide(const DeviceEngineView& engine) const {
  auto arguments = ArgumentsOf<Kind>(wide_, geometry().page_tokens);
  const uint32_t nan = kNanPair[engine.k.dtype == DType::kBf16 ? 1 : 0];
  for (uint32_t i = 0; i < Kind::kParts; ++i) {
    const SideLayout& side = i == 0 ? wide_.layout.k : wide_.layout.v;
    const DeviceEngineSide& from = i == 0 ? engine.k : engine.v;
    arguments.part[i] = {.layer_base = from.layer_base,
                         .block_stride = from.block_stride,
                         .token_stride = from.token_stride,
                         .head_stride = from.head_stride,
                         .first_word = static_cast<uint32_t>(side.rows_offset / 4),
                         .row_words = MakeDivisor(static_cast<uint32_t>(side.row_bytes / 4)),
                         .alignment = 16,
                         .absent = {nan, nan}};
  }
  arguments.block_tokens = MakeDivisor(engine.block_tokens);
  arguments.slots = engine.slots;
  arguments.absent_status = kBadSlot;
  return arguments;
}

template <typename Batch>
absl::Status Codec::MoveWide(const DeviceEngineView& engine, const Batch& batch,
                             cudaStream_t stream) const {
  OSCARKV_RETURN_IF_ERROR(CheckWide(*this, engine));
  if (batch.pages == 0) return absl::OkStatus();
  return IsSmall(wide_.layout) ? LaunchMove(ArgumentsOfWide<SmallWideKind>(engine), batch, stream)
                               : LaunchMove(ArgumentsOfWide<WideKind>(engine), batch, stream);
}

absl::StatusOr<MoveArguments<PoolKind>> Codec::ArgumentsOfPool(const DevicePoolView& pool,
                                                               BlockRange layers) const {
  if (pool.params != spec().params) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the pool's scales and zeros are ", pool.params == ParamsDType::kFp16 ? "fp16" : "fp32",
        ", the namespace's are not: they are moved as they are"));
  }
  for (uint32_t layer = layers.first; layer < layers.first + layers.count; ++layer) {
    const BlockLayout& block = layout(Encoding::kPacked).block(layer);
    if (IsPoolBlock(block)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", layer, ": a pool has 2 bits for K and V, the namespace ",
                     block.k.bits, " and ", block.v.bits));
  }
  auto arguments = ArgumentsOf<PoolKind>(*pool_, geometry().page_tokens);
  const bool fp16 = pool.params == ParamsDType::kFp16;
  const auto part = [&](const DevicePoolTensor& tensor, uint64_t offset, uint64_t row_bytes,
                        uint32_t even, uint32_t odd) {
    const bool vectors =
        ((tensor.slot_stride | tensor.head_stride) & 15) == 0 && (offset | row_bytes) % 16 == 0;
    return MovePart{.layer_base = tensor.layer_base,
                    .block_stride = tensor.slot_stride,
                    .token_stride = 0,
                    .head_stride = tensor.head_stride,
                    .first_word = static_cast<uint32_t>(offset / 4),
                    .row_words = MakeDivisor(static_cast<uint32_t>(row_bytes / 4)),
                    .alignment = vectors ? 16u : 4u,
                    .absent = {even, odd}};
  };
  // A NaN scale and a zero of +0 (FORMAT.md, step 2).
  const uint32_t nan = fp16 ? 0x7e00u : 0x7fc00000u;
  const SideLayout& k = pool_->layout.k;
  const SideLayout& v = pool_->layout.v;
  arguments.part[0] = part(pool.k_codes, k.rows_offset, k.row_bytes, 0, 0);
  arguments.part[1] = part(pool.k_params, k.params_offset, k.params_row_bytes, nan, fp16 ? nan : 0);
  arguments.part[2] = part(pool.v_codes, v.rows_offset, v.row_bytes, 0, 0);
  arguments.part[3] = part(pool.v_params, v.params_offset, v.params_row_bytes, nan, fp16 ? nan : 0);
  arguments.slots = pool.slots;
  arguments.absent_status = kBadSlot | kNonFiniteRows;
  return arguments;
}

absl::Status Codec::Decode(const DeviceDecodeBatch& batch, DecodeBasis basis,
                           const DeviceEngineView& destination, cudaStream_t stream) const {
  OSCARKV_RETURN_IF_ERROR(CheckBatch(*this, batch));
  OSCARKV_RETURN_IF_ERROR(CheckEngine(destination));
  OSCARKV_RETURN_IF_ERROR(CheckStream(stream, device_));
  if (batch.encoding == Encoding::kPacked) return DecodePacked(batch, basis, destination, stream);
  if (basis != engine_basis()) {
    return absl::InvalidArgumentError(
        absl::StrCat("WIDE pages are in the ",
                     basis == DecodeBasis::kModel ? "transformed basis" : "model's basis",
                     ", and the device writes them as they are stored"));
  }
  return MoveWide(destination, batch, stream);
}

absl::Status Codec::Encode(const DeviceEngineView& source, const DeviceEncodeBatch& batch,
                           cudaStream_t stream) const {
  OSCARKV_RETURN_IF_ERROR(CheckBatch(*this, batch));
  OSCARKV_RETURN_IF_ERROR(CheckEngine(source));
  OSCARKV_RETURN_IF_ERROR(CheckStream(stream, device_));
  if (source.slots == 0) return absl::InvalidArgumentError("an engine without slots");
  if (batch.encoding == Encoding::kPacked) return EncodePacked(source, batch, stream);
  return MoveWide(source, batch, stream);
}

absl::Status Codec::Emit(const DeviceDecodeBatch& batch, const DevicePoolView& destination,
                         cudaStream_t stream) const {
  OSCARKV_RETURN_IF_ERROR(CheckBatch(*this, batch));
  OSCARKV_RETURN_IF_ERROR(CheckPool(destination));
  OSCARKV_RETURN_IF_ERROR(CheckStream(stream, device_));
  if (batch.encoding != Encoding::kPacked)
    return absl::InvalidArgumentError("a pool's pages are PACKED, found WIDE");
  OSCARKV_ASSIGN_OR_RETURN(const auto arguments, ArgumentsOfPool(destination, batch.layers));
  if (batch.pages == 0) return absl::OkStatus();
  return LaunchMove(arguments, batch, stream);
}

absl::Status Codec::Ingest(const DevicePoolView& source, const DeviceEncodeBatch& batch,
                           cudaStream_t stream) const {
  OSCARKV_RETURN_IF_ERROR(CheckBatch(*this, batch));
  OSCARKV_RETURN_IF_ERROR(CheckPool(source));
  OSCARKV_RETURN_IF_ERROR(CheckStream(stream, device_));
  if (batch.encoding != Encoding::kPacked)
    return absl::InvalidArgumentError("a pool's pages are PACKED, found WIDE");
  OSCARKV_ASSIGN_OR_RETURN(const auto arguments, ArgumentsOfPool(source, batch.layers));
  if (batch.pages == 0) return absl::OkStatus();
  return LaunchMove(arguments, batch, stream);
}

absl::Status Codec::DecodePacked(const DeviceDecodeBatch& batch, DecodeBasis basis,
                                 const DeviceEngineView& destination, cudaStream_t stream) const {
  if (batch.pages == 0) return absl::OkStatus();
  for (const TaskList& list : packed_.decode_lists) {
    const TaskRange range = TasksOf(list, batch.layers);
    if (range.tasks.empty()) continue;
    uint32_t stage_bytes = 0;
    for (const DecodeTask& task : range.tasks)
      stage_bytes = std::max(stage_bytes, packed_.layers[task.layer].stride);
    const DecodeArguments arguments = {
        .layers = packed_.layers_on_device.as<DeviceLayer>(),
        .tasks = range.on_device,
        .task_count = static_cast<uint32_t>(range.tasks.size()),
        .blocks = static_cast<uint32_t>(range.tasks.size() * batch.heads.count * batch.pages),
        .crc = packed_.fold.as<CrcFold>(),
        .batch = batch,
        .strides_before_range = packed_.layers[batch.layers.first].strides_before,
        .side = {destination.k, destination.v},
        .stage_bytes = stage_bytes,
        .stages = 0,
        .page_tokens = geometry().page_tokens,
        .block_tokens = destination.block_tokens,
        .slots = destination.slots,
        .fp32_params = spec().params == ParamsDType::kFp32};
    const bool to_bf16 = destination.k.dtype == DType::kBf16;
    OSCARKV_RETURN_IF_ERROR(basis == DecodeBasis::kModel
                                ? LaunchDecode(arguments, list.shape, to_bf16, stream)
                                : LaunchDequantise(arguments, list.shape, to_bf16, stream));
  }
  return absl::OkStatus();
}

absl::Status Codec::EncodePacked(const DeviceEngineView& source, const DeviceEncodeBatch& batch,
                                 cudaStream_t stream) const {
  const bool transform = engine_basis() == DecodeBasis::kModel;
  const DType forward_dtype = ForwardDType(geometry());
  if (transform && source.k.dtype != forward_dtype) {
    return absl::InvalidArgumentError(
        absl::StrCat("transforms were prepared for rows of ",
                     forward_dtype == DType::kBf16 ? "bf16, found fp16" : "fp16, found bf16"));
  }
  if (batch.pages == 0) return absl::OkStatus();
  const size_t blocks = size_t{batch.pages} * batch.layers.count * batch.heads.count;
  OSCARKV_RETURN_IF_ERROR(
      device::ToStatus(cudaMemsetAsync(batch.block_crc32c, 0, blocks * sizeof(uint32_t), stream),
                       "clearing checksums"));
  for (const TaskList& list : packed_.encode_lists) {
    const TaskRange range = TasksOf(list, batch.layers);
    if (range.tasks.empty()) continue;
    const EncodeArguments arguments = {
        .layers = packed_.encode_layers_on_device.as<EncodeLayer>(),
        .tasks = range.on_device,
        .crc = packed_.crc_tables.as<CrcTables>(),
        .crc_multiples = packed_.crc_multiples.as<CrcMultiples>(),
        .crc_powers = packed_.crc_powers.as<uint32_t>(),
        .batch = batch,
        .strides_before_range = packed_.encode_layers[batch.layers.first].strides_before,
        .side = {source.k, source.v},
        .page_tokens = geometry().page_tokens,
        .block_tokens = source.block_tokens,
        .slots = source.slots,
        .fp32_params = spec().params == ParamsDType::kFp32,
        .transform = transform,
        .bf16 = source.k.dtype == DType::kBf16};
    OSCARKV_RETURN_IF_ERROR(
        LaunchEncode(arguments, list.shape, static_cast<uint32_t>(range.tasks.size()), stream));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaPageCodec>> CudaPageCodec::Create(
    const Geometry& geometry, const CodecSpec& spec, const TransformSet* transforms) {
  OSCARKV_ASSIGN_OR_RETURN(PageLayout wide, PageLayout::Create(geometry, spec, Encoding::kWide));
  OSCARKV_ASSIGN_OR_RETURN(PageLayout packed,
                           PageLayout::Create(geometry, spec, Encoding::kPacked));
  if (transforms != nullptr) OSCARKV_RETURN_IF_ERROR(transforms->CheckFits(geometry));
  int device = 0;
  OSCARKV_RETURN_IF_ERROR(device::ToStatus(cudaGetDevice(&device), "asking for a device"));
  auto codec =
      std::make_unique<Codec>(std::move(wide), std::move(packed), transforms != nullptr, device);
  OSCARKV_RETURN_IF_ERROR(codec->Prepare(transforms));
  return codec;
}

}  // namespace oscarkv::cuda
