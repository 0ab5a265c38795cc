// The CPU implementation, compiled once for each instruction set and chosen at run time (Highway).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/codec/oscar/cpu_prepared.h"
#include "kernels/codec/oscar/format.h"
#include "kernels/codec/oscar/row_kernels.h"

#define HWY_WANT_AVX3_DL
#define HWY_DISABLED_TARGETS HWY_SSSE3
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/codec/oscar/cpu_kernels.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
//
#include "hwy/highway.h"
//
#undef OSCARKV_HAVE_VECTORS
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
#define OSCARKV_HAVE_VECTORS 0
#else
#define OSCARKV_HAVE_VECTORS 1
#include "kernels/codec/oscar/cpu_decode-inl.h"
#include "kernels/codec/oscar/cpu_encode-inl.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace oscarkv {
namespace HWY_NAMESPACE {

#if OSCARKV_HAVE_VECTORS

class CpuKernels final : public RowKernels {
 public:
  std::string_view name() const override { return name_; }
  std::unique_ptr<const PreparedTransform> Prepare(const SideTransform& transform) const override {
    return std::make_unique<CpuTransform>(transform);
  }
  void Encode(const RowFormat& format, const PreparedTransform* transform, DType dtype,
              std::span<const std::byte* const> rows, std::byte* codes, std::byte* params,
              EncodeReport* report) const override {
    EncodeRows(format, static_cast<const CpuTransform*>(transform), dtype, rows, codes, params,
               report);
  }
  void Decode(const RowFormat& format, const PreparedTransform* transform, const std::byte* codes,
              const std::byte* params, DType dtype,
              std::span<std::byte* const> rows) const override {
    DecodeRows(format, static_cast<const CpuTransform*>(transform), codes, params, dtype, rows);
  }

 private:
  const std::string name_ = std::string("cpu/") + hwy::TargetName(HWY_TARGET);
};

const RowKernels& Kernels() {
  static const CpuKernels kernels;
  return kernels;
}

#endif

}  // namespace HWY_NAMESPACE
}  // namespace oscarkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace oscarkv {

namespace {

// For processors without any of the vector instruction sets: the reference's loops, as the compiler
// makes them.
class PortableKernels final : public RowKernels {
 public:
  std::string_view name() const override { return "cpu/portable"; }
  std::unique_ptr<const PreparedTransform> Prepare(const SideTransform& transform) const override {
    return ReferenceRowKernels().Prepare(transform);
  }
  void Encode(const RowFormat& format, const PreparedTransform* transform, DType dtype,
              std::span<const std::byte* const> rows, std::byte* codes, std::byte* params,
              EncodeReport* report) const override {
    ReferenceRowKernels().Encode(format, transform, dtype, rows, codes, params, report);
  }
  void Decode(const RowFormat& format, const PreparedTransform* transform, const std::byte* codes,
              const std::byte* params, DType dtype,
              std::span<std::byte* const> rows) const override {
    ReferenceRowKernels().Decode(format, transform, codes, params, dtype, rows);
  }
};

}  // namespace

std::vector<const RowKernels*> AllCpuRowKernels() {
  static const PortableKernels portable;
  const int64_t supported = hwy::SupportedTargets();
  std::vector<const RowKernels*> kernels;
  const auto add = [&](int64_t target, const RowKernels& set) {
    if ((supported & target) != 0) kernels.push_back(&set);
  };
#if HWY_TARGETS & HWY_AVX3_DL
  add(HWY_AVX3_DL, N_AVX3_DL::Kernels());
#endif
#if HWY_TARGETS & HWY_AVX3
  add(HWY_AVX3, N_AVX3::Kernels());
#endif
#if HWY_TARGETS & HWY_AVX2
  add(HWY_AVX2, N_AVX2::Kernels());
#endif
#if HWY_TARGETS & HWY_SSE4
  add(HWY_SSE4, N_SSE4::Kernels());
#endif
#if defined(HWY_NEON) && (HWY_TARGETS & HWY_NEON)
  add(HWY_NEON, N_NEON::Kernels());
#endif
  kernels.push_back(&portable);
  return kernels;
}

const RowKernels& CpuRowKernels() {
  static const RowKernels& best = *AllCpuRowKernels().front();
  return best;
}

}  // namespace oscarkv
#endif  // HWY_ONCE
