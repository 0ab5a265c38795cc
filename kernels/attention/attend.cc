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
#include "kernels/device/status.h"

namespace oscarkv::cuda {
namespace {

using device::DeviceBuffer;

constexpr float kLog2E = 1.4426950408889634f;
constexpr uint32_t kPageElementsMax = 16384;  // of a head's K: shared memory holds no more

// Matrices of one side of a layer on the device.
struct LayerSide {
  DeviceBuffer fragments;
  DeviceBuffer offset;
  uint32_t per_head = 0;

  AttendMatrix matrix() const {
    return {.fragments = fragments.as<uint4>(), .offset = offset.as<float>(), .per_head = per_head};
  }
};

// A matrix as AttendMatrix has it; transposed: out_i = sum_j inverse_ji in_j.
void AddFragments(const SideTransform& side, bool transposed, std::vector<uint32_t>& fragments) {
  const uint32_t dim = side.dim;
  const auto part = [&](uint32_t i, uint32_t j, uint32_t which) -> uint32_t {
    const float entry = side.inverse[transposed ? j * dim + i : i * dim + j];
    const uint16_t first = FloatToBf16(entry);
    return which == 0 ? first : FloatToBf16(entry - Bf16ToFloat(first));
  };
  for (uint32_t row = 0; row < dim; row += 16) {
    for (uint32_t column = 0; column < dim; column += 16) {
      for (uint32_t which = 0; which < 2; ++which) {
        for (uint32_t lane = 0; lane < 32; ++lane) {
          for (uint32_t word = 0; word < 4; ++word) {
            const uint32_t i = row + lane / 4 + word % 2 * 8;
            const uint32_t j = column + lane % 4 * 2 + word / 2 * 8;
            fragments.push_back(part(i, j, which) | part(i, j + 1, which) << 16);
          }
        }
      }
    }
  }
}

absl::StatusOr<LayerSide> Upload(const std::vector<SideTransform>& heads, bool transposed) {
  std::vector<uint32_t> fragments;
  std::vector<float> offsets;
  for (const SideTransform& head : heads) {
    AddFragments(head, transposed, fragments);
    offsets.insert(offsets.end(), head.offset.begin(), head.offset.end());
  }
  LayerSide side;
  OSCARKV_ASSIGN_OR_RETURN(side.fragments, DeviceBuffer::CopyOf(std::span(fragments)));
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
  const bool dtype = geometry.dtype == DType::kBf16 || geometry.dtype == DType::kFp16;
  if (known_dim && two_bits && one_group && ratio && pages && dtype &&
      spec.wide_basis == WideBasis::kModel) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "no attention kernel for K and V of ", dim, " and ", geometry.v_head_dim,
      " elements, groups of ", spec.group, ", ", q_heads, " query heads to ", geometry.kv_heads,
      " KV heads and pages of ", geometry.page_tokens, " tokens of ",
      std::string(DTypeName(geometry.dtype)),
      ": there are 64, 128 and 256 elements, the same for K and V, of 2 bits, one group a row, "
      "bf16 or fp16 WIDE pages in the model's basis, up to ",
      kAttendRatioMax, " query heads to a KV head, and pages of multiples of 8 tokens up to ",
      kPageElementsMax, " elements of a head"));
}

// Calls with one of the head dims there are.
template <typename F>
auto ForDim(uint32_t dim, F&& call) {
  if (dim == 64) return call(std::integral_constant<uint32_t, 64>());
  if (dim == 128) return call(std::integral_constant<uint32_t, 128>());
  return call(std::integral_constant<uint32_t, 256>());
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
  PagedAttention(PageLayout wide, PageLayout packed, bool fp32_params, uint32_t q_heads)
      : wide_(std::move(wide)),
        packed_(std::move(packed)),
        dim_(packed_.geometry().k_head_dim),
        kv_heads_(packed_.geometry().kv_heads),
        ratio_(q_heads / kv_heads_),
        fp32_params_(fp32_params) {}

  absl::Status Prepare(const TransformSet& transforms);
  size_t WorkspaceBytes(uint32_t requests, uint32_t new_tokens) const override {
    AttendArguments arguments = Plan(requests, new_tokens);
    return Carve(arguments, nullptr);
  }
  absl::Status InitWorkspace(std::byte* workspace, size_t workspace_bytes,
                             cudaStream_t stream) const override;
  absl::Status Attend(const AttendBatch& batch, std::byte* workspace, size_t workspace_bytes,
                      cudaStream_t stream) const override;

 private:
  // Of any batch: counters have a place of their own in every workspace, whatever its calls.
  uint64_t CountersMost() const {
    const uint32_t groups_most =
        ratio_ * kAttendNewTokensMax / 8;  // items have as many rows or more
    return uint64_t{kAttendRequestsMax} * kv_heads_ * groups_most;
  }
  absl::Status Check(const AttendBatch& batch) const;
  AttendShape ShapeFor(uint32_t new_tokens) const {
    return {.dim = dim_,
            .item_rows = AttendItemRows(dim_, ratio_ * new_tokens),
            .fp32_params = fp32_params_};
  }
  // Of a page in a thread block: where its tokens are no whole number of tiles, the last tile's
  // loads reach beyond the block, and not into the next page, which may be on its way there.
  uint32_t StageBytes() const {
    const auto block_bytes = static_cast<uint32_t>(packed_.block(0).stride);
    if (packed_.geometry().page_tokens % kTileTokens == 0) return block_bytes;
    return block_bytes + kTileTokens * (dim_ / 4 + (fp32_params_ ? 8 : 4));
  }
  AttendArguments Plan(uint32_t requests, uint32_t new_tokens) const;
  size_t Carve(AttendArguments& arguments, std::byte* workspace) const;

  PageLayout wide_;
  PageLayout packed_;
  uint32_t dim_;
  uint32_t kv_heads_;
  uint32_t ratio_;
  bool fp32_params_;
  AttendPlaces places_[kAttendNewTokensMax] = {};  // for so many new tokens, less one
  std::vector<LayerSide> k_;
  std::vector<LayerSide> v_;
};

absl::Status PagedAttention::Prepare(const TransformSet& transforms) {
  for (uint32_t layer = 0; layer < packed_.geometry().layers; ++layer) {
    OSCARKV_ASSIGN_OR_RETURN(LayerSide k, Upload(transforms.layer(layer).k, false));
    OSCARKV_ASSIGN_OR_RETURN(LayerSide v, Upload(transforms.layer(layer).v, true));
    k_.push_back(std::move(k));
    v_.push_back(std::move(v));
  }
  for (uint32_t tokens = 1; tokens <= kAttendNewTokensMax; ++tokens) {
    AttendPlaces& places = places_[tokens - 1];
    OSCARKV_ASSIGN_OR_RETURN(places,
                             ForDim(dim_, [&]<uint32_t D>(std::integral_constant<uint32_t, D>) {
                               return PrepareAttend<D>(ShapeFor(tokens), StageBytes());
                             }));
    if (places.blocks > 0) continue;
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
  const uint32_t item_rows = AttendItemRows(dim_, arguments.rows);
  arguments.groups = (arguments.rows + item_rows - 1) / item_rows;
  arguments.places = places_[new_tokens - 1].blocks;
  arguments.stages = places_[new_tokens - 1].stages;
  arguments.stage_bytes = StageBytes();
  const uint32_t splits = arguments.places / (kv_heads_ * arguments.groups);
  arguments.splits_of_one = splits >= 4 ? splits : 0;
  arguments.bf16 = packed_.geometry().dtype == DType::kBf16 ? 1 : 0;
  return arguments;
}

size_t PagedAttention::Carve(AttendArguments& arguments, std::byte* workspace) const {
  const uint64_t items = uint64_t{arguments.batch.requests} * kv_heads_ * arguments.groups;
  const uint64_t chunks = items + uint64_t{arguments.places} * kAttendRoundsBeyond;
  const uint64_t rows = chunks * AttendItemRows(dim_, arguments.rows);
  Carver carver(workspace);
  arguments.workspace = {.finished = carver.Take<uint32_t>(CountersMost()),
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
  const auto misaligned = [](const auto* pointer, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes != 0;
  };
  if (misaligned(batch.queries, 16) || misaligned(batch.output, 16) ||
      misaligned(batch.pages, 16)) {
    return absl::InvalidArgumentError("pages, queries and output must be 16-byte aligned");
  }
  if (misaligned(batch.first_page, 4) || misaligned(batch.lengths, 4) ||
      misaligned(batch.log_sum_exp, 4)) {
    return absl::InvalidArgumentError("first_page, lengths and log_sum_exp must be 4-byte aligned");
  }
  return absl::OkStatus();
}

absl::Status PagedAttention::InitWorkspace(std::byte* workspace, size_t workspace_bytes,
                                           cudaStream_t stream) const {
  const size_t bytes = CountersMost() * sizeof(uint32_t);
  if (workspace == nullptr || workspace_bytes < bytes) {
    return absl::InvalidArgumentError(absl::StrCat("the workspace must have ", bytes,
                                                   " bytes at the least; found ",
                                                   workspace == nullptr ? 0 : workspace_bytes));
  }
  return device::ToStatus(cudaMemsetAsync(workspace, 0, bytes, stream), "clearing counters");
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
  arguments.batch = batch;
  arguments.packed = place(packed_);
  arguments.wide = place(wide_);
  arguments.scale = batch.softmax_scale * kLog2E;
  arguments.k = k_[batch.layer].matrix();
  arguments.v = v_[batch.layer].matrix();
  return ForDim(dim_, [&]<uint32_t D>(std::integral_constant<uint32_t, D>) {
    return LaunchAttend<D>(arguments, ShapeFor(batch.new_tokens), stream);
  });
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
  auto attention = std::make_unique<PagedAttention>(std::move(wide), std::move(packed),
                                                    spec.params == ParamsDType::kFp32, q_heads);
  OSCARKV_RETURN_IF_ERROR(attention->Prepare(transforms));
  return attention;
}

}  // namespace oscarkv::cuda
