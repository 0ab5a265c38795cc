// The CPU implementation, compiled once for each instruction set and chosen at run time (Highway).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/codec/oscar/cpu_prepared.h"
#include "kernels/codec/oscar/format.h"
#include "kernels/codec/oscar/row_kernels.h"

#define HWY_WANT_AVX3_DL
#define HWY_COMPILE_ALL_ATTAINABLE
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/codec/oscar/cpu_kernels.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
//
#include "hwy/highway.h"
//
#include "kernels/codec/oscar/cpu_decode-inl.h"
#include "kernels/codec/oscar/cpu_encode-inl.h"

HWY_BEFORE_NAMESPACE();
namespace oscarkv {
namespace HWY_NAMESPACE {

class CpuKernels final : public RowKernels {
 public:
  std::string_view name() const override { return name_; }
  std::unique_ptr<const PreparedTransform> Prepare(const SideTransform& transform) const override {
    return std::make_unique<CpuTransform>(transform);
  }
  void Encode(const RowFormat& format, const PreparedTransform* transform, DType dtype,
              std::span<const std::byte* const> rows, std::byte* codes, std::byte* params,
              EncodeReport* report) const override {
    EncodeRows(format, static_cast<const CpuTransform*>(transform), dtype, rows, codes, params, report);
  }
  void Decode(const RowFormat& format, const PreparedTransform* transform, const std::byte* codes,
              const std::byte* params, DType dtype, std::span<std::byte* const> rows) const override {
    DecodeRows(format, static_cast<const CpuTransform*>(transform), codes, params, dtype, rows);
  }

 private:
  const std::string name_ = std::string("cpu/") + hwy::TargetName(HWY_TARGET);
};

const RowKernels& Kernels() {
  static const CpuKernels kernels;
  return kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace oscarkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace oscarkv {

std::vector<const RowKernels*> AllCpuRowKernels() {
  std::vector<const RowKernels*> kernels;
  const int64_t supported = hwy::SupportedTargets();
  static_cast<void>(supported);
#if HWY_TARGETS & HWY_AVX3_DL
  if ((supported & HWY_AVX3_DL) != 0) kernels.push_back(&N_AVX3_DL::Kernels());
#endif
#if HWY_TARGETS & HWY_AVX3
  if ((supported & HWY_AVX3) != 0) kernels.push_back(&N_AVX3::Kernels());
#endif
#if HWY_TARGETS & HWY_AVX2
  if ((supported & HWY_AVX2) != 0) kernels.push_back(&N_AVX2::Kernels());
#endif
#if defined(HWY_NEON) && (HWY_TARGETS & HWY_NEON)
  if ((supported & HWY_NEON) != 0) kernels.push_back(&N_NEON::Kernels());
#endif
#if HWY_TARGETS & HWY_EMU128
  kernels.push_back(&N_EMU128::Kernels());
#endif
  return kernels;
}

const RowKernels& CpuRowKernels() {
  static const RowKernels& best = *AllCpuRowKernels().front();
  return best;
}

}  // namespace oscarkv
#endif  // HWY_ONCE
