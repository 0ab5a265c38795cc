#include "kernels/codec/oscar/cuda_page_codec.h"

#include <algorithm>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "kernels/codec/oscar/cuda_decode.h"
#include "kernels/codec/oscar/cuda_encode.h"
#include "kernels/codec/oscar/cuda_transforms.h"
#include "kernels/codec/oscar/cuda_wide.h"
#include "kernels/device/buffer.h"
#include "kernels/device/status.h"

namespace oscarkv::cuda {
namespace {

using device::DeviceBuffer;

constexpr uint32_t kBlockBytesMax = 24 << 10;  // eight of them stand in shared memory

// The tasks that one kernel does: rows of one shape.
struct TaskList {
  RowShape shape;
  std::vector<DecodeTask> tasks;  // by layer
  DeviceBuffer on_device;
};

using TaskLists = std::vector<TaskList>;

void AddTask(TaskLists& lists, uint32_t layer, uint32_t first_side, const RowShape& shape) {
  auto list = std::find_if(lists.begin(), lists.end(),
                           [&](const TaskList& it) { return it.shape == shape; });
  if (list == lists.end()) {
    lists.push_back({.shape = shape, .tasks = {}, .on_device = {}});
    list = lists.end() - 1;
  }
  list->tasks.push_back({static_cast<uint16_t>(layer), static_cast<uint16_t>(first_side)});
}

// A list's tasks of a range of layers.
struct TaskRange {
  const DecodeTask* on_device;
  std::span<const DecodeTask> tasks;
};

TaskRange TasksOf(const TaskList& list, BlockRange layers) {
  const auto before = [](const DecodeTask& task, uint32_t layer) { return task.layer < layer; };
  const auto first = std::lower_bound(list.tasks.begin(), list.tasks.end(), layers.first, before);
  const auto last = std::lower_bound(first, list.tasks.end(), layers.first + layers.count, before);
  return {list.on_device.as<DecodeTask>() + (first - list.tasks.begin()), {first, last}};
}

class Codec final : public CudaPageCodec {
 public:
  Codec(PageLayout wide, PageLayout packed, bool can_pack)
      : CudaPageCodec(std::move(wide), std::move(packed), can_pack) {}

  absl::Status PrepareWide();
  absl::Status PreparePacked(const TransformSet& transforms);
  absl::Status Decode(const DeviceDecodeBatch& batch, DecodeBasis basis,
                      const DeviceEngineView& destination, cudaStream_t stream) const override;
  absl::Status Encode(const DeviceEngineView& source, const DeviceEncodeBatch& batch,
                      cudaStream_t stream) const override;

 private:
  absl::StatusOr<DeviceSide> PrepareSide(const SideLayout& place,
                                         const std::vector<SideTransform>& heads);
  absl::StatusOr<EncodeSide> PrepareForwardSide(const SideLayout& place,
                                                const std::vector<SideTransform>& heads);
  void AddTasks(uint32_t layer, const BlockLayout& block);
  template <typename Batch>
  absl::Status Check(const Batch& batch, const DeviceEngineView& engine) const;
  WideArguments ArgumentsOfWide(const DeviceEngineView& engine) const;
  // Of rows that the encode kernels transform.
  DType forward_dtype() const {
    return geometry().dtype == DType::kFp16 ? DType::kFp16 : DType::kBf16;
  }

  WideShape wide_shape_;
  std::vector<DeviceLayer> layers_;
  std::vector<EncodeLayer> encode_layers_;
  TaskLists decode_lists_;
  TaskLists encode_lists_;
  std::vector<DeviceBuffer> transforms_;  // what DeviceSide and EncodeSide point to
  DeviceBuffer layers_on_device_;
  DeviceBuffer encode_layers_on_device_;
  DeviceBuffer crc_fold_;
  DeviceBuffer crc_;
  DeviceBuffer crc_powers_;
  DeviceBuffer crc_multiples_;
};

absl::StatusOr<DeviceSide> Codec::PrepareSide(const SideLayout& place,
                                              const std::vector<SideTransform>& heads) {
  const PreparedInverse prepared = PrepareInverse(heads, place.bits, place.group);
  OSCARKV_ASSIGN_OR_RETURN(DeviceBuffer fragments,
                           DeviceBuffer::CopyOf(std::span(prepared.fragments)));
  OSCARKV_ASSIGN_OR_RETURN(DeviceBuffer columns, DeviceBuffer::CopyOf(std::span(prepared.columns)));
  OSCARKV_ASSIGN_OR_RETURN(DeviceBuffer scales, DeviceBuffer::CopyOf(std::span(prepared.scales)));
  const DeviceSide side = {.rows_offset = static_cast<uint32_t>(place.rows_offset),
                           .params_offset = static_cast<uint32_t>(place.params_offset),
                           .group = place.group,
                           .per_head = heads.size() > 1 ? 1u : 0u,
                           .fragments = fragments.as<uint2>(),
                           .columns = columns.as<float>(),
                           .scales = scales.as<float>()};
  transforms_.push_back(std::move(fragments));
  transforms_.push_back(std::move(columns));
  transforms_.push_back(std::move(scales));
  return side;
}

absl::StatusOr<EncodeSide> Codec::PrepareForwardSide(const SideLayout& place,
                                                     const std::vector<SideTransform>& heads) {
  const PreparedForward prepared =
      PrepareForward(heads, place.bits, forward_dtype() == DType::kBf16);
  OSCARKV_ASSIGN_OR_RETURN(DeviceBuffer matrices,
                           DeviceBuffer::CopyOf(std::span(prepared.matrices)));
  OSCARKV_ASSIGN_OR_RETURN(DeviceBuffer numbers, DeviceBuffer::CopyOf(std::span(prepared.heads)));
  const EncodeSide side = {.rows_offset = static_cast<uint32_t>(place.rows_offset),
                           .params_offset = static_cast<uint32_t>(place.params_offset),
                           .group = place.group,
                           .per_head = heads.size() > 1 ? 1u : 0u,
                           .matrices = matrices.as<std::byte>(),
                           .heads = numbers.as<ForwardHead>()};
  transforms_.push_back(std::move(matrices));
  transforms_.push_back(std::move(numbers));
  return side;
}

void Codec::AddTasks(uint32_t layer, const BlockLayout& block) {
  RowShape k{block.k.dim, block.k.bits, block.k.group, 1};
  const RowShape v{block.v.dim, block.v.bits, block.v.group, 1};
  AddTask(encode_lists_, layer, 0, k);
  AddTask(encode_lists_, layer, 1, v);
  if (k == v && TakesBothSides(k.dim)) {
    k.sides = 2;
    AddTask(decode_lists_, layer, 0, k);
  } else {
    AddTask(decode_lists_, layer, 0, k);
    AddTask(decode_lists_, layer, 1, v);
  }
}

absl::Status Codec::PrepareWide() {
  const BlockLayout& block = layout(Encoding::kWide).block(0);
  wide_shape_.stride_vectors = static_cast<uint32_t>(block.stride / 16);
  wide_shape_.crc_start = CrcMultiply(0xffffffffu, CrcPower(block.bytes / 4));
  wide_shape_.page_tokens = geometry().page_tokens;
  for (uint32_t side = 0; side < 2; ++side) {
    const auto row_vectors = static_cast<uint32_t>((side == 0 ? block.k : block.v).row_bytes / 16);
    wide_shape_.row_vectors[side] = row_vectors;
    wide_shape_.side_vectors[side] = row_vectors * geometry().page_tokens;
  }
  const CrcFold fold = MakeCrcFold();
  OSCARKV_ASSIGN_OR_RETURN(crc_fold_, DeviceBuffer::CopyOf(std::span(&fold, 1)));
  return absl::OkStatus();
}

absl::Status Codec::PreparePacked(const TransformSet& transforms) {
  uint64_t strides = 0;
  uint32_t words = 0;
  for (uint32_t layer = 0; layer < geometry().layers; ++layer) {
    const BlockLayout& block = layout(Encoding::kPacked).block(layer);
    for (const SideLayout* side : {&block.k, &block.v}) {
      if (HasDecodeKernel(side->dim, side->bits)) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          "layer ", layer, ": no device kernel for rows of ", side->dim, " elements of ",
          side->bits, " bits; there are 64, 128 and 256 elements of ", "2 and 4 bits"));
    }
    if (block.stride > kBlockBytesMax) {
      return absl::InvalidArgumentError(absl::StrCat("layer ", layer, ": a block has ",
                                                     block.stride, " bytes, device kernels take ",
                                                     kBlockBytesMax, " at most"));
    }
    DeviceLayer device_layer = {
        .strides_before = strides,
        .stride = static_cast<uint32_t>(block.stride),
        .content_words = static_cast<uint32_t>(block.bytes / 4),
        .crc_start = CrcMultiply(0xffffffffu, CrcPower(block.bytes / 4)),
        .side = {},
    };
    OSCARKV_ASSIGN_OR_RETURN(device_layer.side[0], PrepareSide(block.k, transforms.layer(layer).k));
    OSCARKV_ASSIGN_OR_RETURN(device_layer.side[1], PrepareSide(block.v, transforms.layer(layer).v));
    EncodeLayer encode_layer = {.strides_before = strides,
                                .stride = device_layer.stride,
                                .content_words = device_layer.content_words,
                                .crc_constant = ~device_layer.crc_start,
                                .side = {}};
    OSCARKV_ASSIGN_OR_RETURN(encode_layer.side[0],
                             PrepareForwardSide(block.k, transforms.layer(layer).k));
    OSCARKV_ASSIGN_OR_RETURN(encode_layer.side[1],
                             PrepareForwardSide(block.v, transforms.layer(layer).v));
    layers_.push_back(device_layer);
    encode_layers_.push_back(encode_layer);
    AddTasks(layer, block);
    strides += block.stride;
    words = std::max(words, device_layer.content_words);
  }
  for (TaskLists* lists : {&decode_lists_, &encode_lists_}) {
    for (TaskList& list : *lists) {
      OSCARKV_ASSIGN_OR_RETURN(list.on_device, DeviceBuffer::CopyOf(std::span(list.tasks)));
    }
  }
  OSCARKV_ASSIGN_OR_RETURN(layers_on_device_, DeviceBuffer::CopyOf(std::span(layers_)));
  OSCARKV_ASSIGN_OR_RETURN(encode_layers_on_device_,
                           DeviceBuffer::CopyOf(std::span(encode_layers_)));
  const std::vector<uint32_t> powers = MakeCrcPowers(words);
  OSCARKV_ASSIGN_OR_RETURN(crc_powers_, DeviceBuffer::CopyOf(std::span(powers)));
  const CrcMultiples multiples = MakeCrcMultiples();
  OSCARKV_ASSIGN_OR_RETURN(crc_multiples_, DeviceBuffer::CopyOf(std::span(&multiples, 1)));
  const CrcTables tables = MakeCrcTables();
  OSCARKV_ASSIGN_OR_RETURN(crc_, DeviceBuffer::CopyOf(std::span(&tables, 1)));
  return absl::OkStatus();
}

absl::string_view Name(DType dtype) {
  const std::string_view name = DTypeName(dtype);
  return {name.data(), name.size()};
}

absl::Status CheckSide(const DeviceEngineSide& side, absl::string_view which) {
  if (side.layer_base == nullptr)
    return absl::InvalidArgumentError(absl::StrCat(which, ": no layer base pointers"));
  if (side.dtype != DType::kBf16 && side.dtype != DType::kFp16) {
    return absl::InvalidArgumentError(
        absl::StrCat(which, ": dtype must be bf16 or fp16, found ", Name(side.dtype)));
  }
  if (((side.block_stride | side.token_stride | side.head_stride) & 15) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(which, ": strides must be multiples of 16 bytes, found ", side.block_stride,
                     ", ", side.token_stride, ", ", side.head_stride));
  }
  return absl::OkStatus();
}

template <typename Batch>
absl::Status Codec::Check(const Batch& batch, const DeviceEngineView& engine) const {
  if (batch.encoding == Encoding::kPacked && !can_pack())
    return absl::FailedPreconditionError("PACKED needs a transform set, and the codec has none");
  OSCARKV_RETURN_IF_ERROR(CheckBlockRange("layers", batch.layers, geometry().layers));
  OSCARKV_RETURN_IF_ERROR(CheckBlockRange("heads", batch.heads, geometry().kv_heads));
  OSCARKV_RETURN_IF_ERROR(CheckSide(engine.k, "K"));
  OSCARKV_RETURN_IF_ERROR(CheckSide(engine.v, "V"));
  if (engine.k.dtype != engine.v.dtype)
    return absl::InvalidArgumentError("K and V of an engine must have one dtype");
  if (batch.encoding == Encoding::kWide && engine.k.dtype != geometry().dtype) {
    return absl::InvalidArgumentError(
        absl::StrCat("WIDE pages hold ", Name(geometry().dtype), ", the engine's cache ",
                     Name(engine.k.dtype), ": the device moves bf16 to bf16 and fp16 to fp16"));
  }
  if (engine.block_tokens == 0) return absl::InvalidArgumentError("block_tokens must be positive");
  if (batch.page_bytes == nullptr || batch.slots == nullptr || batch.block_crc32c == nullptr ||
      batch.status == nullptr) {
    return absl::InvalidArgumentError("a pointer of the batch is null");
  }
  return absl::OkStatus();
}

WideArguments Codec::ArgumentsOfWide(const DeviceEngineView& engine) const {
  return {.shape = wide_shape_,
          .fold = crc_fold_.as<CrcFold>(),
          .side = {engine.k, engine.v},
          .block_tokens = engine.block_tokens,
          .slots = engine.slots};
}

absl::Status Codec::Decode(const DeviceDecodeBatch& batch, DecodeBasis basis,
                           const DeviceEngineView& destination, cudaStream_t stream) const {
  OSCARKV_RETURN_IF_ERROR(Check(batch, destination));
  if (batch.encoding == Encoding::kWide && basis != engine_basis()) {
    return absl::InvalidArgumentError(
        absl::StrCat("WIDE pages are in the ",
                     basis == DecodeBasis::kModel ? "transformed basis" : "model's basis",
                     ", and the device writes them as they are stored"));
  }
  if (batch.pages == 0) return absl::OkStatus();
  if (batch.encoding == Encoding::kWide)
    return LaunchWideDecode(ArgumentsOfWide(destination), batch, stream);
  const CodecSpec& spec = layout(Encoding::kPacked).spec();
  for (const TaskList& list : decode_lists_) {
    const TaskRange range = TasksOf(list, batch.layers);
    if (range.tasks.empty()) continue;
    uint32_t block_bytes = 0;
    for (const DecodeTask& task : range.tasks)
      block_bytes = std::max(block_bytes, layers_[task.layer].stride);
    const DecodeArguments arguments = {
        .layers = layers_on_device_.as<DeviceLayer>(),
        .tasks = range.on_device,
        .crc = crc_.as<CrcTables>(),
        .batch = batch,
        .strides_before_range = layers_[batch.layers.first].strides_before,
        .side = {destination.k, destination.v},
        .page_tokens = geometry().page_tokens,
        .block_tokens = destination.block_tokens,
        .slots = destination.slots,
        .fp32_params = spec.params == ParamsDType::kFp32,
        .transform = basis == DecodeBasis::kModel};
    OSCARKV_RETURN_IF_ERROR(LaunchDecode(arguments, list.shape, destination.k.dtype == DType::kBf16,
                                         static_cast<uint32_t>(range.tasks.size()), block_bytes,
                                         stream));
  }
  return absl::OkStatus();
}

absl::Status Codec::Encode(const DeviceEngineView& source, const DeviceEncodeBatch& batch,
                           cudaStream_t stream) const {
  OSCARKV_RETURN_IF_ERROR(Check(batch, source));
  if (source.slots == 0) return absl::InvalidArgumentError("an engine without slots");
  if (batch.pages == 0) return absl::OkStatus();
  if (batch.encoding == Encoding::kWide)
    return LaunchWideEncode(ArgumentsOfWide(source), batch, stream);
  if (batch.counts == nullptr) return absl::InvalidArgumentError("the batch has no counts");
  const CodecSpec& spec = layout(Encoding::kPacked).spec();
  const bool transform = spec.wide_basis == WideBasis::kModel;
  if (transform && source.k.dtype != forward_dtype()) {
    return absl::InvalidArgumentError(absl::StrCat("transforms were prepared for rows of ",
                                                   Name(forward_dtype()), ", found ",
                                                   Name(source.k.dtype)));
  }
  const size_t blocks = size_t{batch.pages} * batch.layers.count * batch.heads.count;
  OSCARKV_RETURN_IF_ERROR(
      device::ToStatus(cudaMemsetAsync(batch.block_crc32c, 0, blocks * sizeof(uint32_t), stream),
                       "clearing checksums"));
  for (const TaskList& list : encode_lists_) {
    const TaskRange range = TasksOf(list, batch.layers);
    if (range.tasks.empty()) continue;
    const EncodeArguments arguments = {
        .layers = encode_layers_on_device_.as<EncodeLayer>(),
        .tasks = range.on_device,
        .crc = crc_.as<CrcTables>(),
        .crc_multiples = crc_multiples_.as<CrcMultiples>(),
        .crc_powers = crc_powers_.as<uint32_t>(),
        .batch = batch,
        .strides_before_range = encode_layers_[batch.layers.first].strides_before,
        .side = {source.k, source.v},
        .page_tokens = geometry().page_tokens,
        .block_tokens = source.block_tokens,
        .slots = source.slots,
        .fp32_params = spec.params == ParamsDType::kFp32,
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
  auto codec = std::make_unique<Codec>(std::move(wide), std::move(packed), transforms != nullptr);
  OSCARKV_RETURN_IF_ERROR(codec->PrepareWide());
  if (transforms != nullptr) OSCARKV_RETURN_IF_ERROR(codec->PreparePacked(*transforms));
  return codec;
}

}  // namespace oscarkv::cuda
