// Encodes and decodes whole pages between an engine's paged KV cache and page bytes. One interface
// for every processor.
#ifndef OSCARKV_KERNELS_CODEC_PAGE_CODEC_H_
#define OSCARKV_KERNELS_CODEC_PAGE_CODEC_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "kernels/base/bytes.h"
#include "kernels/codec/geometry.h"
#include "kernels/codec/page_layout.h"
#include "kernels/codec/transform_set.h"

namespace oscarkv {

// K or V of an engine's paged cache, where the engine keeps it. The row of head h at token slot s
// of layer l starts at
//   layer_base[l] + (s / block_tokens) * block_stride + (s % block_tokens) * token_stride + h *
//   head_stride
// and its elements are contiguous. Covers SGLang's token-major pools (block_tokens 1) and vLLM's
// NHD and HND blocks.
struct EngineSide {
  std::span<std::byte* const> layer_base;  // [layers]; borrowed
  int64_t block_stride = 0;                // bytes
  int64_t token_stride = 0;
  int64_t head_stride = 0;
  DType dtype =
      DType::kBf16;  // may differ from the namespace's: values are converted, round to nearest even
};

// A worker's cache. The memory is the caller's and must outlive the call.
struct EngineView {
  EngineSide k;
  EngineSide v;
  uint32_t block_tokens = 1;
  int64_t slots = 0;  // token slots in the cache; a slot id is 0..slots-1
};

struct EncodeItem {
  Encoding encoding = Encoding::kPacked;
  std::span<const int64_t>
      slots;             // [page_tokens], where each token of the page lives in the engine
  MutableByteView page;  // layout(encoding).page_bytes(); wholly written, padding with zeros
  std::span<uint32_t> block_crc32c;  // [layers * kv_heads], written
};

struct DecodeItem {
  Encoding encoding = Encoding::kPacked;
  BlockRange layers;  // the part of the page that `bytes` holds
  BlockRange heads;
  std::span<const int64_t> slots;  // [page_tokens]; -1 leaves a token out
  ByteView bytes;                  // layout(encoding).range_bytes(layers, heads)
  std::span<const uint32_t>
      block_crc32c;     // [layers.count * heads.count], in the order of the blocks in `bytes`
  absl::Status result;  // set by Decode: kDataLoss names the block whose checksum is wrong; then
                        // none of the item's tokens were written
};

// What encoding met. Rows that cannot be held faithfully never touch other rows.
struct EncodeReport {
  uint64_t rows = 0;
  uint64_t constant_rows = 0;  // encoded exactly
  uint64_t nonfinite_rows =
      0;  // NaN or infinity: the row decodes to what FORMAT.md says, never to something plausible
  uint64_t overflow_rows = 0;  // scale or zero beyond the params dtype
};

// Which basis `Decode` writes: the model's or the transformed one. PACKED rows are stored in the
// transformed basis, WIDE rows in the spec's wide_basis; whatever is stored in the other one is
// taken over.
enum class DecodeBasis : uint8_t { kModel, kTransformed };

// Immutable and thread-safe: any number of threads may encode and decode at once.
class PageCodec {
 public:
  virtual ~PageCodec() = default;

  virtual std::string_view backend() const = 0;  // "reference", "cpu/AVX3", ...
  const PageLayout& layout(Encoding encoding) const {
    return encoding == Encoding::kWide ? wide_ : packed_;
  }
  const Geometry& geometry() const { return wide_.geometry(); }
  bool can_pack() const { return can_pack_; }  // false without a transform set: WIDE pages only
  // The basis that the namespace's engines keep their caches in, and WIDE pages with them: what
  // such an engine decodes to.
  DecodeBasis engine_basis() const {
    return wide_.spec().wide_basis == WideBasis::kModel ? DecodeBasis::kModel
                                                        : DecodeBasis::kTransformed;
  }

  // kInvalidArgument: a size, slot or view that does not match the geometry (says which item,
  // expected and found). kFailedPrecondition: PACKED asked of a codec without a transform set.
  // Nothing was written in either case. The source's rows are in the spec's wide_basis.
  absl::Status Encode(const EngineView& source, std::span<const EncodeItem> items,
                      EncodeReport* report) const;

  // Verifies every block's checksum, then writes the item's tokens. Same errors for the call, and
  // kFailedPrecondition when WIDE pages are asked for in another basis than engine_basis() of a
  // codec without a transform set; each item has its own result.
  absl::Status Decode(std::span<DecodeItem> items, DecodeBasis basis,
                      const EngineView& destination) const;

 protected:
  PageCodec(PageLayout wide, PageLayout packed, bool can_pack)
      : wide_(std::move(wide)), packed_(std::move(packed)), can_pack_(can_pack) {}

 private:
  // Arguments have been checked.
  virtual void DoEncode(const EngineView& source, const EncodeItem& item,
                        EncodeReport* report) const = 0;
  virtual void DoDecode(DecodeItem& item, DecodeBasis basis,
                        const EngineView& destination) const = 0;

  PageLayout wide_;
  PageLayout packed_;
  bool can_pack_;
};

enum class CodecBackend { kReference, kCpu };

// `transforms` may be null: then only WIDE pages can be encoded and decoded. kFailedPrecondition
// when it does not fit.
absl::StatusOr<std::unique_ptr<PageCodec>> MakePageCodec(
    CodecBackend backend, const Geometry& geometry, const CodecSpec& spec,
    std::shared_ptr<const TransformSet> transforms);

// A WIDE page seen as an engine's cache of page_tokens slots, so that pages can be decoded into
// pages. `layer_base` is storage for the view's pointers, [2 * layers], and must outlive it.
EngineView WidePageView(const PageLayout& wide, MutableByteView page,
                        std::span<std::byte*> layer_base);

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_CODEC_PAGE_CODEC_H_
