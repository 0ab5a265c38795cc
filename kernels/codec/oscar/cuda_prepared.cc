#include "kernels/codec/oscar/cuda_prepared.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "kernels/codec/oscar/cuda_transforms.h"

namespace oscarkv::cuda {
namespace {

using device::DeviceBuffer;

constexpr uint32_t kBlockBytesMax = 24 << 10;  // eight of them stand in shared memory

uint32_t CrcStart(const BlockLayout& block) {
  return CrcMultiply(0xffffffffu, CrcPower(block.bytes / 4));
}

// Words from the end of a message to the end of its last step.
uint32_t WordsAfter(const BlockLayout& block, uint32_t step) {
  const auto words = static_cast<uint32_t>(block.bytes / 4);
  return (words + step - 1) / step * step - words;
}

absl::StatusOr<DeviceSide> PrepareSide(const SideLayout& place,
                                       const std::vector<SideTransform>& heads,
                                       std::vector<DeviceBuffer>& buffers) {
  const PreparedInverse prepared = PrepareInverse(heads, place.bits, place.group);
  OSCARKV_ASSIGN_OR_RETURN(DeviceBuffer matrices,
                           DeviceBuffer::CopyOf(std::span(prepared.matrices)));
  OSCARKV_ASSIGN_OR_RETURN(DeviceBuffer columns, DeviceBuffer::CopyOf(std::span(prepared.columns)));
  OSCARKV_ASSIGN_OR_RETURN(DeviceBuffer scales, DeviceBuffer::CopyOf(std::span(prepared.scales)));
  const DeviceSide side = {.rows_offset = static_cast<uint32_t>(place.rows_offset),
                           .params_offset = static_cast<uint32_t>(place.params_offset),
                           .group = place.group,
                           .per_head = heads.size() > 1 ? 1u : 0u,
                           .matrices = matrices.as<std::byte>(),
                           .columns = columns.as<float>(),
                           .scales = scales.as<float>()};
  buffers.push_back(std::move(matrices));
  buffers.push_back(std::move(columns));
  buffers.push_back(std::move(scales));
  return side;
}

absl::StatusOr<EncodeSide> PrepareForwardSide(const SideLayout& place, DType dtype,
                                              const std::vector<SideTransform>& heads,
                                              std::vector<DeviceBuffer>& buffers) {
  const PreparedForward prepared = PrepareForward(heads, place.bits, dtype == DType::kBf16);
  OSCARKV_ASSIGN_OR_RETURN(DeviceBuffer matrices,
                           DeviceBuffer::CopyOf(std::span(prepared.matrices)));
  OSCARKV_ASSIGN_OR_RETURN(DeviceBuffer numbers, DeviceBuffer::CopyOf(std::span(prepared.heads)));
  const EncodeSide side = {.rows_offset = static_cast<uint32_t>(place.rows_offset),
                           .params_offset = static_cast<uint32_t>(place.params_offset),
                           .group = place.group,
                           .per_head = heads.size() > 1 ? 1u : 0u,
                           .matrices = matrices.as<std::byte>(),
                           .heads = numbers.as<ForwardHead>()};
  buffers.push_back(std::move(matrices));
  buffers.push_back(std::move(numbers));
  return side;
}

void AddTask(std::vector<TaskList>& lists, uint32_t layer, uint32_t first_side,
             const RowShape& shape) {
  auto list = std::find_if(lists.begin(), lists.end(),
                           [&](const TaskList& it) { return it.shape == shape; });
  if (list == lists.end()) {
    lists.push_back({.shape = shape, .tasks = {}, .on_device = {}});
    list = lists.end() - 1;
  }
  list->tasks.push_back({static_cast<uint16_t>(layer), static_cast<uint16_t>(first_side)});
}

void AddTasks(PreparedPacked& packed, uint32_t layer, const BlockLayout& block) {
  RowShape k{block.k.dim, block.k.bits, block.k.group, 1};
  const RowShape v{block.v.dim, block.v.bits, block.v.group, 1};
  AddTask(packed.encode_lists, layer, 0, k);
  AddTask(packed.encode_lists, layer, 1, v);
  if (k == v && TakesBothSides(k.dim)) {
    k.sides = 2;
    AddTask(packed.decode_lists, layer, 0, k);
  } else {
    AddTask(packed.decode_lists, layer, 0, k);
    AddTask(packed.decode_lists, layer, 1, v);
  }
}

absl::Status CheckBlock(uint32_t layer, const BlockLayout& block) {
  for (const SideLayout* side : {&block.k, &block.v}) {
    if (HasDecodeKernel(side->dim, side->bits)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", layer, ": no device kernel for rows of ", side->dim, " elements of ",
                     side->bits, " bits; there are 64, 128 and 256 elements of 2 and 4 bits"));
  }
  if (block.stride <= kBlockBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("layer ", layer, ": a block has ", block.stride,
                                                 " bytes, device kernels take ", kBlockBytesMax,
                                                 " at most"));
}

}  // namespace

absl::StatusOr<PreparedBlock> PrepareBlock(const BlockLayout& layout, uint32_t threads) {
  const uint32_t step = threads * 4;
  const CrcFold fold = MakeCrcFold(step);
  const std::vector<uint32_t> rows = MakeCrcRows(threads / 32, WordsAfter(layout, step));
  PreparedBlock block{.layout = layout, .crc_start = CrcStart(layout), .fold = {}, .crc_rows = {}};
  OSCARKV_ASSIGN_OR_RETURN(block.fold, DeviceBuffer::CopyOf(std::span(&fold, 1)));
  OSCARKV_ASSIGN_OR_RETURN(block.crc_rows, DeviceBuffer::CopyOf(std::span(rows)));
  return block;
}

TaskRange TasksOf(const TaskList& list, BlockRange layers) {
  const auto before = [](const DecodeTask& task, uint32_t layer) { return task.layer < layer; };
  const auto first = std::lower_bound(list.tasks.begin(), list.tasks.end(), layers.first, before);
  const auto last = std::lower_bound(first, list.tasks.end(), layers.first + layers.count, before);
  return {list.on_device.as<DecodeTask>() + (first - list.tasks.begin()), {first, last}};
}

absl::StatusOr<PreparedPacked> PreparePacked(const PageLayout& layout,
                                             const TransformSet& transforms) {
  PreparedPacked packed;
  const DType forward_dtype = ForwardDType(layout.geometry());
  uint64_t strides = 0;
  uint32_t words = 0;
  for (uint32_t layer = 0; layer < layout.geometry().layers; ++layer) {
    const BlockLayout& block = layout.block(layer);
    OSCARKV_RETURN_IF_ERROR(CheckBlock(layer, block));
    const auto stride = static_cast<uint32_t>(block.stride);
    const auto content_words = static_cast<uint32_t>(block.bytes / 4);
    const uint32_t crc_start = CrcStart(block);
    DeviceLayer decode = {.strides_before = strides,
                          .stride = stride,
                          .content_words = content_words,
                          .crc_start = crc_start,
                          .crc_rows = {},
                          .side = {}};
    const std::vector<uint32_t> rows = MakeCrcRows(1, WordsAfter(block, kWarpFoldWords));
    std::copy(rows.begin(), rows.end(), decode.crc_rows);
    EncodeLayer encode = {.strides_before = strides,
                          .stride = stride,
                          .content_words = content_words,
                          .crc_constant = ~crc_start,
                          .side = {}};
    for (uint32_t side = 0; side < 2; ++side) {
      const SideLayout& place = side == 0 ? block.k : block.v;
      const std::vector<SideTransform>& heads =
          side == 0 ? transforms.layer(layer).k : transforms.layer(layer).v;
      OSCARKV_ASSIGN_OR_RETURN(decode.side[side], PrepareSide(place, heads, packed.transforms));
      OSCARKV_ASSIGN_OR_RETURN(encode.side[side],
                               PrepareForwardSide(place, forward_dtype, heads, packed.transforms));
    }
    packed.layers.push_back(decode);
    packed.encode_layers.push_back(encode);
    AddTasks(packed, layer, block);
    strides += block.stride;
    words = std::max(words, content_words);
  }
  for (std::vector<TaskList>* lists : {&packed.decode_lists, &packed.encode_lists}) {
    for (TaskList& list : *lists) {
      OSCARKV_ASSIGN_OR_RETURN(list.on_device, DeviceBuffer::CopyOf(std::span(list.tasks)));
    }
  }
  OSCARKV_ASSIGN_OR_RETURN(packed.layers_on_device, DeviceBuffer::CopyOf(std::span(packed.layers)));
  OSCARKV_ASSIGN_OR_RETURN(packed.encode_layers_on_device,
                           DeviceBuffer::CopyOf(std::span(packed.encode_layers)));
  const CrcFold fold = MakeCrcFold(kWarpFoldWords);
  OSCARKV_ASSIGN_OR_RETURN(packed.fold, DeviceBuffer::CopyOf(std::span(&fold, 1)));
  const CrcTables tables = MakeCrcTables();
  OSCARKV_ASSIGN_OR_RETURN(packed.crc_tables, DeviceBuffer::CopyOf(std::span(&tables, 1)));
  const CrcMultiples multiples = MakeCrcMultiples();
  OSCARKV_ASSIGN_OR_RETURN(packed.crc_multiples, DeviceBuffer::CopyOf(std::span(&multiples, 1)));
  const std::vector<uint32_t> powers = MakeCrcPowers(words);
  OSCARKV_ASSIGN_OR_RETURN(packed.crc_powers, DeviceBuffer::CopyOf(std::span(powers)));
  return packed;
}

}  // namespace oscarkv::cuda
