// The page codec on the CPU: walks blocks and token slots, and leaves the rows to RowKernels.
#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "kernels/base/checksum.h"
#include "kernels/base/status_macros.h"
#include "kernels/codec/oscar/format.h"
#include "kernels/codec/oscar/row_kernels.h"
#include "kernels/codec/page_codec.h"

namespace oscarkv {
namespace {

// The rows of one head at the slots of a page; null for slots left out.
std::vector<std::byte*> RowPointers(const EngineSide& side, uint32_t block_tokens, uint32_t layer,
                                    uint32_t head, std::span<const int64_t> slots) {
  std::vector<std::byte*> rows(slots.size());
  std::byte* base = side.layer_base[layer] + int64_t{head} * side.head_stride;
  for (size_t token = 0; token < slots.size(); ++token) {
    const int64_t slot = slots[token];
    if (slot < 0) continue;
    rows[token] =
        base + slot / block_tokens * side.block_stride + slot % block_tokens * side.token_stride;
  }
  return rows;
}

void CopyElements(const std::byte* source, DType from, std::byte* destination, DType to,
                  uint32_t dim) {
  if (from == to) {
    std::memcpy(destination, source, size_t{dim} * DTypeBytes(from));
    return;
  }
  for (size_t i = 0; i < dim; ++i) {
    StoreElement(destination + i * DTypeBytes(to), to,
                 LoadElement(source + i * DTypeBytes(from), from));
  }
}

// Takes WIDE rows from the basis they are stored in to the other one (FORMAT.md, "WIDE blocks").
class BasisChange {
 public:
  BasisChange(const SideTransform& transform, DecodeBasis to)
      : matrix_(to == DecodeBasis::kModel ? transform.inverse : transform.forward),
        start_(transform.offset) {
    if (to == DecodeBasis::kModel) return;
    const uint32_t dim = transform.dim;
    std::fill(start_.begin(), start_.end(), 0.0f);
    for (uint32_t i = 0; i < dim; ++i) {
      for (uint32_t j = 0; j < dim; ++j) start_[j] -= transform.offset[i] * matrix_[i * dim + j];
    }
  }

  void Apply(const std::byte* source, DType from, std::byte* destination, DType to) const {
    const size_t dim = start_.size();
    std::vector<float> sums = start_;
    for (size_t i = 0; i < dim; ++i) {
      const float element = LoadElement(source + i * DTypeBytes(from), from);
      for (size_t j = 0; j < dim; ++j) sums[j] += element * matrix_[i * dim + j];
    }
    for (size_t j = 0; j < dim; ++j) StoreElement(destination + j * DTypeBytes(to), to, sums[j]);
  }

 private:
  const std::vector<float>& matrix_;
  std::vector<float> start_;  // what a row of zeros becomes
};

// One head's transform as the kernels want it.
struct PreparedSide {
  uint32_t clip_index = 0;
  std::unique_ptr<const PreparedTransform> transform;
};

class HostPageCodec final : public PageCodec {
 public:
  HostPageCodec(PageLayout wide, PageLayout packed, const RowKernels& kernels,
                std::shared_ptr<const TransformSet> transforms)
      : PageCodec(std::move(wide), std::move(packed), transforms != nullptr),
        kernels_(kernels),
        transforms_(std::move(transforms)) {
    if (transforms_ == nullptr) return;
    k_.reserve(geometry().layers);
    v_.reserve(geometry().layers);
    for (uint32_t layer = 0; layer < geometry().layers; ++layer) {
      k_.push_back(PrepareHeads(transforms_->layer(layer).k));
      v_.push_back(PrepareHeads(transforms_->layer(layer).v));
    }
  }

  std::string_view backend() const override { return kernels_.name(); }

 private:
  std::vector<PreparedSide> PrepareHeads(const std::vector<SideTransform>& heads) const {
    std::vector<PreparedSide> prepared;
    prepared.reserve(heads.size());
    for (const SideTransform& head : heads) {
      prepared.push_back({ClipIndex(head.clip_ratio, head.dim), kernels_.Prepare(head)});
    }
    return prepared;
  }

  static const PreparedSide& Pick(const std::vector<PreparedSide>& heads, uint32_t head) {
    return heads.size() == 1 ? heads[0] : heads[head];
  }

  RowFormat FormatOf(const SideLayout& side, const PreparedSide& prepared) const {
    return {.dim = side.dim,
            .bits = side.bits,
            .group = side.group,
            .clip_index = prepared.clip_index,
            .params = layout(Encoding::kPacked).spec().params};
  }

  void DoEncode(const EngineView& source, const EncodeItem& item,
                EncodeReport* report) const override {
    const PageLayout& page = layout(item.encoding);
    for (uint32_t layer = 0; layer < geometry().layers; ++layer) {
      const BlockLayout& block = page.block(layer);
      for (uint32_t head = 0; head < geometry().kv_heads; ++head) {
        std::byte* bytes = item.page.data() + page.block_offset(layer, head);
        const auto k_rows = RowPointers(source.k, source.block_tokens, layer, head, item.slots);
        const auto v_rows = RowPointers(source.v, source.block_tokens, layer, head, item.slots);
        if (item.encoding == Encoding::kWide) {
          EncodeWide(block.k, source.k.dtype, k_rows, bytes);
          EncodeWide(block.v, source.v.dtype, v_rows, bytes);
          report->rows += 2 * k_rows.size();
        } else {
          EncodePacked(block.k, Pick(k_[layer], head), source.k.dtype, k_rows, bytes, report);
          EncodePacked(block.v, Pick(v_[layer], head), source.v.dtype, v_rows, bytes, report);
        }
        std::memset(bytes + block.bytes, 0, block.stride - block.bytes);
        item.block_crc32c[layer * geometry().kv_heads + head] = Crc32c({bytes, block.bytes});
      }
    }
  }

  void EncodeWide(const SideLayout& side, DType dtype, std::span<std::byte* const> rows,
                  std::byte* block) const {
    std::byte* destination = block + side.rows_offset;
    for (const std::byte* row : rows) {
      CopyElements(row, dtype, destination, geometry().dtype, side.dim);
      destination += side.row_bytes;
    }
  }

  void EncodePacked(const SideLayout& side, const PreparedSide& prepared, DType dtype,
                    std::span<std::byte* const> rows, std::byte* block,
                    EncodeReport* report) const {
    kernels_.Encode(FormatOf(side, prepared), InputTransform(prepared), dtype,
                    {rows.data(), rows.size()}, block + side.rows_offset,
                    block + side.params_offset, report);
  }

  // Engines with rotated caches hand over rows that are transformed already.
  const PreparedTransform* InputTransform(const PreparedSide& prepared) const {
    return engine_basis() == DecodeBasis::kTransformed ? nullptr : prepared.transform.get();
  }

  // Calls visit(layer, head, number of the block within the range, offset of the block within the
  // range's bytes).
  template <typename Visitor>
  void ForEachBlock(const DecodeItem& item, Visitor&& visit) const {
    const PageLayout& page = layout(item.encoding);
    uint64_t offset = 0;
    size_t number = 0;
    for (uint32_t layer = item.layers.first; layer < item.layers.first + item.layers.count;
         ++layer) {
      for (uint32_t head = item.heads.first; head < item.heads.first + item.heads.count; ++head) {
        visit(layer, head, number++, offset);
        offset += page.block(layer).stride;
      }
    }
  }

  absl::Status VerifyBlocks(const DecodeItem& item) const {
    absl::Status result;
    ForEachBlock(item, [&](uint32_t layer, uint32_t head, size_t number, uint64_t offset) {
      if (!result.ok()) return;
      const uint32_t found =
          Crc32c(item.bytes.subspan(offset, layout(item.encoding).block(layer).bytes));
      if (found == item.block_crc32c[number]) return;
      result = absl::DataLossError(
          absl::StrCat("block of layer ", layer, ", head ", head, ": checksum expected ",
                       absl::Hex(item.block_crc32c[number], absl::kZeroPad8), ", found ",
                       absl::Hex(found, absl::kZeroPad8)));
    });
    return result;
  }

  void DoDecode(DecodeItem& item, DecodeBasis basis, const EngineView& destination) const override {
    item.result = VerifyBlocks(item);
    if (!item.result.ok()) return;
    ForEachBlock(item, [&](uint32_t layer, uint32_t head, size_t, uint64_t offset) {
      const BlockLayout& block = layout(item.encoding).block(layer);
      const std::byte* bytes = item.bytes.data() + offset;
      const auto k_rows =
          RowPointers(destination.k, destination.block_tokens, layer, head, item.slots);
      const auto v_rows =
          RowPointers(destination.v, destination.block_tokens, layer, head, item.slots);
      if (item.encoding == Encoding::kWide) {
        const bool as_stored = basis == engine_basis();
        DecodeWide(block.k, as_stored ? nullptr : &transforms_->k(layer, head), basis, bytes,
                   destination.k.dtype, k_rows);
        DecodeWide(block.v, as_stored ? nullptr : &transforms_->v(layer, head), basis, bytes,
                   destination.v.dtype, v_rows);
      } else {
        DecodePacked(block.k, Pick(k_[layer], head), basis, bytes, destination.k.dtype, k_rows);
        DecodePacked(block.v, Pick(v_[layer], head), basis, bytes, destination.v.dtype, v_rows);
      }
    });
  }

  // `transform` is null when the rows are in `basis` already.
  void DecodeWide(const SideLayout& side, const SideTransform* transform, DecodeBasis basis,
                  const std::byte* block, DType dtype, std::span<std::byte* const> rows) const {
    std::optional<BasisChange> change;
    if (transform != nullptr) change.emplace(*transform, basis);
    const std::byte* source = block + side.rows_offset;
    for (std::byte* row : rows) {
      if (row != nullptr && change.has_value()) {
        change->Apply(source, geometry().dtype, row, dtype);
      } else if (row != nullptr) {
        CopyElements(source, geometry().dtype, row, dtype, side.dim);
      }
      source += side.row_bytes;
    }
  }

  void DecodePacked(const SideLayout& side, const PreparedSide& prepared, DecodeBasis basis,
                    const std::byte* block, DType dtype, std::span<std::byte* const> rows) const {
    kernels_.Decode(FormatOf(side, prepared),
                    basis == DecodeBasis::kModel ? prepared.transform.get() : nullptr,
                    block + side.rows_offset, block + side.params_offset, dtype, rows);
  }

  const RowKernels& kernels_;
  const std::shared_ptr<const TransformSet> transforms_;
  std::vector<std::vector<PreparedSide>> k_;  // [layers][1 or kv_heads]
  std::vector<std::vector<PreparedSide>> v_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PageCodec>> MakePageCodec(
    CodecBackend backend, const Geometry& geometry, const CodecSpec& spec,
    std::shared_ptr<const TransformSet> transforms) {
  OSCARKV_ASSIGN_OR_RETURN(PageLayout wide, PageLayout::Create(geometry, spec, Encoding::kWide));
  OSCARKV_ASSIGN_OR_RETURN(PageLayout packed,
                           PageLayout::Create(geometry, spec, Encoding::kPacked));
  if (transforms != nullptr) OSCARKV_RETURN_IF_ERROR(transforms->CheckFits(geometry));
  const RowKernels& kernels =
      backend == CodecBackend::kReference ? ReferenceRowKernels() : CpuRowKernels();
  return std::make_unique<HostPageCodec>(std::move(wide), std::move(packed), kernels,
                                         std::move(transforms));
}

}  // namespace oscarkv
