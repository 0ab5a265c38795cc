#include "kernels/attention/attend.h"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "kernels/attention/attend_kernels.h"
#include "kernels/base/status_macros.h"
#include "kernels/codec/page_layout.h"
#include "kernels/device/buffer.h"

namespace oscarkv::cuda {
namespace {

using device::DeviceBuffer;

constexpr float kLog2E = 1.4426950408889634f;
constexpr uint32_t kPageElementsMax = 16384;  // of a head's K: shared memory holds no more

// Matrices of one side of a layer on the device.
struct LayerSide {
  DeviceBuffer matrix;
  DeviceBuffer offset;
  uint32_t per_head = 0;
};

absl::StatusOr<LayerSide> Upload(const std::vector<SideTransform>& heads, bool transposed) {
  std::vector<float> matrices;
  std::vector<float> offsets;
  for (const SideTransform& head : heads) {
    for (uint32_t i = 0; i < head.dim; ++i) {
      for (uint32_t j = 0; j < head.dim; ++j)
        matrices.push_back(head.inverse[transposed ? j * head.dim + i : i * head.dim + j]);
    }
    offsets.insert(offsets.end(), head.offset.begin(), head.offset.end());
  }
  LayerSide side;
  OSCARKV_ASSIGN_OR_RETURN(side.matrix, DeviceBuffer::CopyOf(std::span(matrices)));
  OSCARKV_ASSIGN_OR_RETURN(side.offset, DeviceBuffer::CopyOf(std::span(offsets)));
  side.per_head = heads.size() > 1 ? 1 : 0;
  return side;
}

absl::Status CheckShape(const Geometry& geometry, const CodecSpec& spec, uint32_t q_heads) {
  const uint32_t dim = geometry.k_head_dim;
  const bool known_dim = dim == geometry.v_head_dim && (dim == 64 || dim == 128 || dim == 256);
  const bool two_bits = std::all_of(spec.bits.begin(), spec.bits.end(), [](const LayerBits& it) {
    return it == LayerBits{2, 2};
  });
  const bool one_group = spec.group == 0 || spec.group == dim;
  const bool ratio = q_heads > 0 && q_heads % geometry.kv_heads == 0 &&
                     q_heads / geometry.kv_heads <= kAttendRatioMax;
  const bool pages =
      geometry.page_tokens % 8 == 0 && geometry.page_tokens * dim <= kPageElementsMax;
  if (known_dim && two_bits && one_group && ratio && pages && geometry.dtype == DType::kBf16 &&
      spec.params == ParamsDType::kFp16 && spec.wide_basis == WideBasis::kModel) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "no attention kernel for K and V of ", dim, " and ", geometry.v_head_dim,
      " elements, groups of ", spec.group, ", ", q_heads, " query heads to ", geometry.kv_heads,
      " KV heads and pages of ", geometry.page_tokens,
      " tokens: there are 64, 128 and 256 elements, the same for K and V, of 2 bits, one group a "
      "row, fp16 params, bf16 WIDE pages in the model's basis, up to ",
      kAttendRatioMax, " query heads to a KV head, and pages of multiples of 8 tokens up to ",
      kPageElementsMax, " elements of a head"));
}

// Takes parts of the workspace one after the other, 256-byte aligned.
class Carver {
 public:
  explicit Carver(std::byte* memory) : memory_(memory) {}
  template <typename T>
  T* Take(uint64_t count) {
    std::byte* part = memory_ + taken_;
    taken_ += (count * sizeof(T) + 255) / 256 * 256;
    return reinterpret_cast<T*>(part);
  }
  size_t taken() const { return taken_; }

 private:
  std::byte* memory_;
  size_t taken_ = 0;
};

class PagedAttention final : public Attention {
 public:
  PagedAttention(PageLayout wide, PageLayout packed, uint32_t q_heads)
      : wide_(std::move(wide)),
        packed_(std::move(packed)),
        dim_(packed_.geometry().k_head_dim),
        kv_heads_(packed_.geometry().kv_heads),
        ratio_(q_heads / kv_heads_) {}

  absl::Status Prepare(const TransformSet& transforms);
  size_t WorkspaceBytes(uint32_t requests, uint32_t new_tokens) const override {
    AttendArguments arguments = Plan(requests, new_tokens);
    return Carve(arguments, nullptr);
  }
  absl::Status Attend(const AttendBatch& batch, std::byte* workspace, size_t workspace_bytes,
                      cudaStream_t stream) const override;

 private:
  absl::Status Check(const AttendBatch& batch) const;
  AttendArguments Plan(uint32_t requests, uint32_t new_tokens) const;
  size_t Carve(AttendArguments& arguments, std::byte* workspace) const;

  PageLayout wide_;
  PageLayout packed_;
  uint32_t dim_;
  uint32_t kv_heads_;
  uint32_t ratio_;
  uint32_t blocks_[2] = {};  // thread blocks at once, for one and two tiles
  std::vector<LayerSide> k_;
  std::vector<LayerSide> v_;
};

absl::Status PagedAttention::Prepare(const TransformSet& transforms) {
  for (uint32_t layer = 0; layer < packed_.geometry().layers; ++layer) {
    OSCARKV_ASSIGN_OR_RETURN(LayerSide k, Upload(transforms.layer(layer).k, true));
    OSCARKV_ASSIGN_OR_RETURN(LayerSide v, Upload(transforms.layer(layer).v, false));
    k_.push_back(std::move(k));
    v_.push_back(std::move(v));
  }
  for (uint32_t rows : {kTileRows, 2 * kTileRows}) {
    const uint32_t tiles = AttendTiles(dim_, rows);
    OSCARKV_ASSIGN_OR_RETURN(
        blocks_[tiles - 1],
        AttendBlocks(dim_, tiles, static_cast<uint32_t>(packed_.block(0).stride)));
    if (blocks_[tiles - 1] > 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("pages of ", packed_.geometry().page_tokens, " tokens of ", dim_,
                     " elements do not fit the device's shared memory"));
  }
  return absl::OkStatus();
}

AttendArguments PagedAttention::Plan(uint32_t requests, uint32_t new_tokens) const {
  AttendArguments arguments = {};
  arguments.batch.requests = requests;
  arguments.batch.new_tokens = new_tokens;
  arguments.page_tokens = packed_.geometry().page_tokens;
  arguments.kv_heads = kv_heads_;
  arguments.ratio = ratio_;
  arguments.rows = ratio_ * new_tokens;
  const uint32_t item_rows = AttendTiles(dim_, arguments.rows) * kTileRows;
  arguments.groups = (arguments.rows + item_rows - 1) / item_rows;
  arguments.blocks = blocks_[item_rows / kTileRows - 1];
  return arguments;
}

size_t PagedAttention::Carve(AttendArguments& arguments, std::byte* workspace) const {
  const uint64_t tiles = AttendTiles(dim_, arguments.rows);
  const uint64_t items = uint64_t{arguments.batch.requests} * kv_heads_ * arguments.groups;
  const uint64_t rows = 2 * (items + arguments.blocks) * tiles * kTileRows;  // of all slots
  Carver carver(workspace);
  arguments.workspace = {.fragments = carver.Take<uint2>(items * tiles * (dim_ / 16) * 32),
                         .tiles = carver.Take<QueryTile>(items * tiles),
                         .maximum_sum = carver.Take<float2>(rows),
                         .outputs = carver.Take<float>(rows * dim_)};
  return carver.taken();
}

absl::Status PagedAttention::Check(const AttendBatch& batch) const {
  if (batch.layer >= packed_.geometry().layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", batch.layer, " is not within 0..", packed_.geometry().layers - 1));
  }
  if (batch.requests == 0 || batch.requests > kAttendRequestsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("requests must be 1..", kAttendRequestsMax, ", found ", batch.requests));
  }
  if (batch.new_tokens == 0 || batch.new_tokens > kAttendNewTokensMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("new tokens must be 1..", kAttendNewTokensMax, ", found ", batch.new_tokens));
  }
  if (batch.pages == nullptr || batch.first_page == nullptr || batch.lengths == nullptr ||
      batch.queries == nullptr || batch.output == nullptr) {
    return absl::InvalidArgumentError("a pointer of the batch is null");
  }
  if (((reinterpret_cast<uintptr_t>(batch.queries) | reinterpret_cast<uintptr_t>(batch.output) |
        reinterpret_cast<uintptr_t>(batch.pages)) &
       15) != 0) {
    return absl::InvalidArgumentError("pages, queries and output must be 16-byte aligned");
  }
  return absl::OkStatus();
}

absl::Status PagedAttention::Attend(const AttendBatch& batch, std::byte* workspace,
                                    size_t workspace_bytes, cudaStream_t stream) const {
  OSCARKV_RETURN_IF_ERROR(Check(batch));
  AttendArguments arguments = Plan(batch.requests, batch.new_tokens);
  const size_t needed = Carve(arguments, workspace);
  if (workspace == nullptr || workspace_bytes < needed ||
      (reinterpret_cast<uintptr_t>(workspace) & 255) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("the workspace must have ", needed,
                                                   " bytes, 256-byte aligned; found ",
                                                   workspace == nullptr ? 0 : workspace_bytes));
  }
  const auto place = [&](const PageLayout& layout) {
    const BlockLayout& block = layout.block(batch.layer);
    return AttendBlock{.layer_offset = layout.block_offset(batch.layer, 0),
                       .stride = static_cast<uint32_t>(block.stride),
                       .k_params = static_cast<uint32_t>(block.k.params_offset),
                       .v_rows = static_cast<uint32_t>(block.v.rows_offset),
                       .v_params = static_cast<uint32_t>(block.v.params_offset)};
  };
  const LayerSide& k = k_[batch.layer];
  const LayerSide& v = v_[batch.layer];
  arguments.batch = batch;
  arguments.packed = place(packed_);
  arguments.wide = place(wide_);
  arguments.scale = batch.softmax_scale * kLog2E;
  arguments.transform = {.k_inverse_transposed = k.matrix.as<float>(),
                         .k_offset = k.offset.as<float>(),
                         .v_inverse = v.matrix.as<float>(),
                         .v_offset = v.offset.as<float>(),
                         .k_per_head = k.per_head,
                         .v_per_head = v.per_head};
  const uint32_t tiles = AttendTiles(dim_, arguments.rows);
  OSCARKV_RETURN_IF_ERROR(LaunchPrepareQueries(arguments, dim_, tiles, stream));
  OSCARKV_RETURN_IF_ERROR(LaunchAttend(arguments, dim_, tiles, stream));
  return LaunchMerge(arguments, dim_, tiles, stream);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Attention>> Attention::Create(const Geometry& geometry,
                                                             const CodecSpec& spec,
                                                             const TransformSet& transforms,
                                                             uint32_t q_heads) {
  OSCARKV_ASSIGN_OR_RETURN(PageLayout wide, PageLayout::Create(geometry, spec, Encoding::kWide));
  OSCARKV_ASSIGN_OR_RETURN(PageLayout packed,
                           PageLayout::Create(geometry, spec, Encoding::kPacked));
  OSCARKV_RETURN_IF_ERROR(CheckShape(geometry, spec, q_heads));
  OSCARKV_RETURN_IF_ERROR(transforms.CheckFits(geometry));
  auto attention = std::make_unique<PagedAttention>(std::move(wide), std::move(packed), q_heads);
  OSCARKV_RETURN_IF_ERROR(attention->Prepare(transforms));
  return attention;
}

}  // namespace oscarkv::cuda
