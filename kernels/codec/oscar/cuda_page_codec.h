// Pages between an engine's paged KV cache in GPU memory and page bytes in memory that the GPU
// reaches: the device's counterpart of PageCodec (kernels/codec/page_codec.h). Calls only enqueue
// work on the caller's stream: they allocate nothing, wait for nothing, and can be captured into a
// CUDA graph.
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_CUDA_PAGE_CODEC_H_
#define OSCARKV_KERNELS_CODEC_OSCAR_CUDA_PAGE_CODEC_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "cuda_runtime_api.h"
#include "kernels/codec/page_codec.h"
#include "kernels/codec/page_layout.h"
#include "kernels/codec/transform_set.h"

namespace oscarkv::cuda {

// EngineSide with what it points to in device memory. Rows are 16-byte aligned: so are
// `layer_base`'s pointers and all strides.
struct DeviceEngineSide {
  std::byte* const* layer_base =
      nullptr;               // [layers]; the array and what it points to: device memory
  int64_t block_stride = 0;  // bytes
  int64_t token_stride = 0;
  int64_t head_stride = 0;
  DType dtype = DType::kBf16;  // bf16 or fp16
};

// A worker's cache on the device; the same for all layers.
struct DeviceEngineView {
  DeviceEngineSide k;
  DeviceEngineSide v;
  uint32_t block_tokens = 1;
  uint32_t slots = 0;
};

// What a status word holds, bits. A block with kBadChecksum was not written.
inline constexpr uint32_t kBadChecksum = 1;
inline constexpr uint32_t kNonFiniteRows = 2;  // PACKED rows that read back as NaN (FORMAT.md)
inline constexpr uint32_t kBadSlot = 4;        // a slot beyond the cache: that token was left out
                                               // (decode), or its rows read back as NaN (encode)
inline constexpr uint32_t kBadPointer = 8;     // the page's or the engine's layer's is null or not
                                               // 16-byte aligned: nothing was moved

// Pages of one encoding to decode; all pointers are device memory (or pinned host memory that the
// device reaches), and stay until the stream has passed.
struct DeviceDecodeBatch {
  Encoding encoding = Encoding::kPacked;
  BlockRange layers;  // the part of each page that its bytes hold
  BlockRange heads;
  uint32_t pages = 0;
  const std::byte* const* page_bytes = nullptr;  // [pages], 16-byte aligned
  const int64_t* slots = nullptr;          // [pages][page_tokens]; negative: leave the token out
  const uint32_t* block_crc32c = nullptr;  // [pages][layers.count][heads.count]
  uint32_t* status = nullptr;              // [pages][layers.count][heads.count]; bits are added
};

// What encoding met, as EncodeReport has it; numbers are added.
struct DeviceEncodeCounts {
  uint64_t constant_rows = 0;
  uint64_t nonfinite_rows = 0;
  uint64_t overflow_rows = 0;
};

// Pages of one encoding to write; pointers as in DeviceDecodeBatch.
struct DeviceEncodeBatch {
  Encoding encoding = Encoding::kPacked;
  BlockRange layers;  // the part of each page that is written
  BlockRange heads;
  uint32_t pages = 0;
  std::byte* const* page_bytes = nullptr;  // [pages], 16-byte aligned; wholly written
  const int64_t* slots = nullptr;          // [pages][page_tokens]
  uint32_t* block_crc32c = nullptr;        // [pages][layers.count][heads.count], device memory
  uint32_t* status = nullptr;              // likewise; kNonFiniteRows and kBadSlot are added
  DeviceEncodeCounts* counts = nullptr;    // one; not needed for WIDE pages
};

// One tensor of the reference engine's INT2 pool, [slots][heads] of rows that follow each other
// without gaps, for each layer. Code rows are dim / 4 bytes, rows of scales and zeros dim / group
// pairs; both are 4-byte aligned, and moved 16 bytes at a time where pointers, strides and rows are
// multiples of 16.
struct DevicePoolTensor {
  std::byte* const* layer_base =
      nullptr;              // [layers]; the array and what it points to: device memory
  int64_t slot_stride = 0;  // bytes
  int64_t head_stride = 0;
};

// The pool: `k_buffer` and `v_buffer`, `k_scales_zeros` and `v_scales_zeros`.
struct DevicePoolView {
  DevicePoolTensor k_codes;
  DevicePoolTensor k_params;
  DevicePoolTensor v_codes;
  DevicePoolTensor v_params;
  ParamsDType params = ParamsDType::kFp32;
  uint32_t slots = 0;
};

// Immutable and thread-safe. Works on the device that was current when it was made.
//
// WIDE rows of any head dim are moved as they are, bit for bit, between pages of bf16 or fp16 and
// engines of the same dtype. PACKED rows have 64, 128 or 256 elements.
class CudaPageCodec {
 public:
  // Copies the transforms to the device. They may be null: then only WIDE pages can be encoded and
  // decoded. kInvalidArgument: head dims, bits or groups for which no kernel was built (the message
  // lists those that exist), or a page with too large a block; kFailedPrecondition: transforms that
  // do not fit; otherwise the device's errors.
  static absl::StatusOr<std::unique_ptr<CudaPageCodec>> Create(const Geometry& geometry,
                                                               const CodecSpec& spec,
                                                               const TransformSet* transforms);
  virtual ~CudaPageCodec() = default;

  const PageLayout& layout(Encoding encoding) const {
    return encoding == Encoding::kWide ? wide_ : packed_;
  }
  const Geometry& geometry() const { return wide_.geometry(); }
  bool can_pack() const { return can_pack_; }
  // As PageCodec's: the basis that WIDE pages and the engines' caches are in.
  DecodeBasis engine_basis() const {
    return wide_.spec().wide_basis == WideBasis::kModel ? DecodeBasis::kModel
                                                        : DecodeBasis::kTransformed;
  }

  // All calls: kInvalidArgument when the stream or the thread is on another device, or a host-side
  // pointer or stride is misaligned.

  // Verifies each block's checksum, then writes its tokens where the engine keeps them, in the
  // model's basis or as stored. kInvalidArgument: ranges, strides or dtypes that do not fit, WIDE
  // pages in another basis than engine_basis(); kFailedPrecondition: PACKED pages of a codec
  // without transforms; nothing was enqueued then. Errors of the launch otherwise.
  virtual absl::Status Decode(const DeviceDecodeBatch& batch, DecodeBasis basis,
                              const DeviceEngineView& destination, cudaStream_t stream) const = 0;

  // Writes the slots' rows to pages, with each block's padding and checksum: as they are (WIDE), or
  // transformed (unless wide_basis says that the engine has done so), clipped, quantised and packed
  // (PACKED). Errors as Decode's; rows that are transformed must be of the geometry's dtype.
  virtual absl::Status Encode(const DeviceEngineView& source, const DeviceEncodeBatch& batch,
                              cudaStream_t stream) const = 0;

  // PACKED pages of 2 bits from and to the reference engine's pool: bytes as they are, in pages
  // with padding and checksums. kInvalidArgument also: layers of other bits, params of another
  // dtype than the namespace's, WIDE pages. `counts` of the batch stay as they are; a row of a slot
  // that is nowhere is one that reads back as NaN, and its block has kNonFiniteRows too.
  virtual absl::Status Ingest(const DevicePoolView& source, const DeviceEncodeBatch& batch,
                              cudaStream_t stream) const = 0;
  virtual absl::Status Emit(const DeviceDecodeBatch& batch, const DevicePoolView& destination,
                            cudaStream_t stream) const = 0;

 protected:
  CudaPageCodec(PageLayout wide, PageLayout packed, bool can_pack)
      : wide_(std::move(wide)), packed_(std::move(packed)), can_pack_(can_pack) {}

 private:
  PageLayout wide_;
  PageLayout packed_;
  bool can_pack_;
};

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_CUDA_PAGE_CODEC_H_
