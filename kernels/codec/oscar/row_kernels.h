// The arithmetic of OSCAR on the rows of one head: transform, clip, quantise, pack, and back. The
// seam between the page codec, which knows pages and engines, and processors. Implementations:
// reference (plain loops) and cpu (Highway).
#ifndef OSCARKV_KERNELS_CODEC_OSCAR_ROW_KERNELS_H_
#define OSCARKV_KERNELS_CODEC_OSCAR_ROW_KERNELS_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/base/bytes.h"
#include "kernels/base/dtype.h"
#include "kernels/codec/geometry.h"
#include "kernels/codec/page_codec.h"
#include "kernels/codec/transform_set.h"

namespace oscarkv {

// How rows are held; the same for all rows of a (layer, side).
struct RowFormat {
  uint32_t dim = 0;         // a multiple of 16, up to 256
  uint32_t bits = 2;        // 2 or 4
  uint32_t group = 0;       // divides dim
  uint32_t clip_index = 0;  // ClipIndex(ratio, dim); dim - 1 for no clip
  ParamsDType params = ParamsDType::kFp16;
};

// A transform in the form an implementation wants it (padded, re-ordered, split in halves).
class PreparedTransform {
 public:
  virtual ~PreparedTransform() = default;
};

// Stateless and thread-safe. Arguments are trusted: PageCodec has checked them.
class RowKernels {
 public:
  virtual ~RowKernels() = default;
  virtual std::string_view name() const = 0;
  virtual std::unique_ptr<const PreparedTransform> Prepare(
      const SideTransform& transform) const = 0;

  // Row i is read from rows[i] (dim elements of `dtype`), transformed unless `transform` is null,
  // and written as dim * bits / 8 bytes at codes + i * that, and dim / group pairs at params + i *
  // the pairs' bytes.
  virtual void Encode(const RowFormat& format, const PreparedTransform* transform, DType dtype,
                      std::span<const std::byte* const> rows, std::byte* codes, std::byte* params,
                      EncodeReport* report) const = 0;

  // The reverse; with a null `transform` rows are written in the transformed basis. A null rows[i]
  // is left out.
  virtual void Decode(const RowFormat& format, const PreparedTransform* transform,
                      const std::byte* codes, const std::byte* params, DType dtype,
                      std::span<std::byte* const> rows) const = 0;
};

const RowKernels& ReferenceRowKernels();
// The best of the instruction sets this processor has.
const RowKernels& CpuRowKernels();
// One for every instruction set compiled in that this processor has, best first; for tests and
// benchmarks.
std::vector<const RowKernels*> AllCpuRowKernels();

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_CODEC_OSCAR_ROW_KERNELS_H_
