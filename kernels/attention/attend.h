// Decode attention over pages: a few new tokens a request against its whole KV, most of it PACKED
// pages that stay packed (their codes go to the tensor cores as they are), the rest WIDE.
//
// Logits of PACKED keys are q . (y T_k^-1 + m_k) = (T_k^-1 q) . y + q . m_k, and their values' sum
// is (sum p y) T_v^-1 + (sum p) m_v: queries are transformed once, outputs transformed back once.
// Checksums are not verified here: whoever brought a page in did that.
#ifndef OSCARKV_KERNELS_ATTENTION_ATTEND_H_
#define OSCARKV_KERNELS_ATTENTION_ATTEND_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "cuda_runtime_api.h"
#include "kernels/codec/geometry.h"
#include "kernels/codec/transform_set.h"

namespace oscarkv::cuda {

inline constexpr uint32_t kAttendRequestsMax = 256;
inline constexpr uint32_t kAttendNewTokensMax = 8;
inline constexpr uint32_t kAttendRatioMax = 16;  // query heads for each KV head

// An entry of the block table: a whole page (all layers and heads) and what it holds.
struct AttendPage {
  const std::byte* bytes = nullptr;  // device memory, 16-byte aligned
  uint32_t position = 0;             // in the sequence, of the page's first token
  uint16_t tokens = 0;               // in use, at most page_tokens
  Encoding encoding = Encoding::kPacked;
};
static_assert(sizeof(AttendPage) == 16);

// Pointers are device memory, and stay until the stream has passed. What they point to is read when
// the work runs, so a captured graph serves batches that change.
struct AttendBatch {
  uint32_t layer = 0;
  uint32_t requests = 0;    // 1..kAttendRequestsMax
  uint32_t new_tokens = 1;  // of each request, 1..kAttendNewTokensMax
  float softmax_scale = 0.0f;
  const AttendPage* pages = nullptr;     // of all requests, in any order within one
  const uint32_t* first_page = nullptr;  // [requests + 1]: where each request's pages begin
  // [requests]: tokens of the sequence, the new ones included; new token i sees positions up to
  // length - new_tokens + i. Their K and V are in the pages.
  const uint32_t* lengths = nullptr;
  const std::byte* queries = nullptr;  // model dtype [requests][new_tokens][q_heads][head dim]
  std::byte* output = nullptr;         // likewise; zero where a token sees nothing
  // [requests][new_tokens][q_heads], natural; may be null. Within 2^-14 + 2^-13 softmax_scale |y|
  // |q| of exact arithmetic on the same pages: |y| the greatest sum of magnitudes of a PACKED key
  // in the transformed basis, |q| the greatest sum of magnitudes that an element of the transformed
  // query is made of. (Transformed queries are rounded to 2^-14 of |q|, of which 2^-16 are the
  // matrix' own rounding; products and sums over tokens are good to 2^-14 together.)
  float* log_sum_exp = nullptr;
};

// Immutable and thread-safe. Works on the device that was current when it was made.
class Attention {
 public:
  // Copies the transforms to the device. kInvalidArgument: a shape that no kernel was built for
  // (the message lists those that exist); kFailedPrecondition: transforms that do not fit;
  // otherwise the device's errors.
  static absl::StatusOr<std::unique_ptr<Attention>> Create(const Geometry& geometry,
                                                           const CodecSpec& spec,
                                                           const TransformSet& transforms,
                                                           uint32_t q_heads);
  virtual ~Attention() = default;

  // Device memory that calls need for as long as they run, 256-byte aligned. Enough for smaller
  // batches too, of as many new tokens or fewer.
  virtual size_t WorkspaceBytes(uint32_t requests, uint32_t new_tokens) const = 0;

  // Enqueues what makes a workspace fit for its first call: its counters become zero (memory of
  // zeros is fit as it is). Calls leave them so; needed again only after one that did not come to
  // its end, for a device error.
  virtual absl::Status InitWorkspace(std::byte* workspace, size_t workspace_bytes,
                                     cudaStream_t stream) const = 0;

  // Only enqueues: allocates nothing, waits for nothing, can be captured into a graph. Calls that
  // may overlap need a workspace each. kInvalidArgument: arguments out of range, null or
  // misaligned, and nothing was enqueued.
  virtual absl::Status Attend(const AttendBatch& batch, std::byte* workspace,
                              size_t workspace_bytes, cudaStream_t stream) const = 0;
};

}  // namespace oscarkv::cuda

#endif  // OSCARKV_KERNELS_ATTENTION_ATTEND_H_
