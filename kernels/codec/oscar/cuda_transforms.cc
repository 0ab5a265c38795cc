#include "kernels/codec/oscar/cuda_transforms.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/dtype.h"

namespace oscarkv::cuda {
namespace {

constexpr uint32_t kLaneDims[4] = {0, 2, 1, 3};  // of a lane's operand, in its order

constexpr int kTopExponent = 15;  // entries stay below 2^15: fp16 ends at 2^16

// The exponent of the least power of two that no magnitude passes.
int Exponent(const std::vector<float>& matrix) {
  float most = 0.0f;
  for (float value : matrix) most = std::max(most, std::fabs(value));
  int exponent = 0;
  std::frexp(most, &exponent);
  return exponent;
}

void Put(std::byte* to, uint16_t bits) {
  to[0] = static_cast<std::byte>(bits & 0xff);
  to[1] = static_cast<std::byte>(bits >> 8);
}

// Of row k and column n in a right-hand operand in panels of 64 rows (128 bytes a column),
// swizzled.
size_t SwizzledPlace(uint32_t k, uint32_t n, uint32_t columns) {
  return size_t{k / 64} * ForwardPanelBytes(columns) + n * 128 + ((k % 64 / 8) ^ (n % 8)) * 16 +
         k % 8 * 2;
}

void AppendHead(const SideTransform& transform, uint32_t bits, uint32_t group,
                PreparedInverse* prepared) {
  const uint32_t dim = transform.dim;
  const uint32_t fields = 8 / bits;
  const int scale = kTopExponent - Exponent(transform.inverse);  // of entries for the first field
  std::vector<uint16_t> operand(size_t{dim} * dim);
  std::vector<float> sums(size_t{dim / group} * dim, 0.0f);
  for (uint32_t i = 0; i < dim; ++i) {
    const int shift = static_cast<int>(bits * (i / (dim / fields)));
    for (uint32_t j = 0; j < dim; ++j) {
      const uint16_t half = FloatToFp16(std::ldexp(transform.inverse[i * dim + j], scale - shift));
      operand[i * dim + j] = half;
      sums[i / group * dim + j] += std::ldexp(Fp16ToFloat(half), shift - 24);
    }
  }
  const uint32_t columns = std::min(dim, kInverseColumns);
  const size_t start = prepared->matrices.size();
  prepared->matrices.resize(start + InverseBytes(dim));
  for (uint32_t n = 0; n < dim; ++n) {
    std::byte* half =
        prepared->matrices.data() + start + n / columns * columns * dim * sizeof(uint16_t);
    for (uint32_t k = 0; k < dim; ++k) {
      const uint32_t row = k / 16 * 16 + k % 8 / 2 * 4 + kLaneDims[k % 16 / 8 * 2 + k % 2];
      const uint32_t column = n / 32 * 32 + n % 8 / 2 * 8 + n % 32 / 8 * 2 + n % 2;
      Put(half + SwizzledPlace(k, n % columns, columns), operand[row * dim + column]);
    }
  }
  prepared->scales.push_back(std::ldexp(1.0f, 24 - scale));
  prepared->columns.insert(prepared->columns.end(), transform.offset.begin(),
                           transform.offset.end());
  prepared->columns.insert(prepared->columns.end(), sums.begin(), sums.end());
}

// The dim of y that is column `n`: thread `q` has columns 8 t + 2 q and the next of each tile t,
// and all codes of a quarter of the row's bytes.
uint32_t DimOfColumn(uint32_t n, uint32_t dim, uint32_t bits) {
  const uint32_t row_bytes = dim * bits / 8;
  const uint32_t tiles_of_field = row_bytes / 8;
  const uint32_t tile = n / 8;
  return tile / tiles_of_field * row_bytes + n % 8 / 2 * (row_bytes / 4) +
         tile % tiles_of_field * 2 + n % 2;
}

struct Halves {
  uint16_t bits;
  float value;
};

Halves Rounded(float value, bool bf16) {
  const uint16_t bits = bf16 ? FloatToBf16(value) : FloatToFp16(value);
  return {bits, bf16 ? Bf16ToFloat(bits) : Fp16ToFloat(bits)};
}

// P(|z| > x) of a standard Gaussian, and where it has a value.
double Beyond(double x) { return std::erfc(x / std::sqrt(2.0)); }
double WhereBeyond(double probability) {
  double low = 0.0;
  double high = 8.0;
  for (int i = 0; i < 60; ++i) {
    const double middle = 0.5 * (low + high);
    (Beyond(middle) > probability ? low : high) = middle;
  }
  return low;
}

void AppendForward(const SideTransform& transform, uint32_t bits, bool bf16,
                   PreparedForward* prepared) {
  constexpr double kPi = 3.14159265358979323846;
  const uint32_t dim = transform.dim;
  // fp16 operands are brought near 2^10, away from denormal numbers.
  const int scale = bf16 ? 0 : 10 - Exponent(transform.forward);
  const size_t start = prepared->matrices.size();
  prepared->matrices.resize(start + ForwardBytes(dim), std::byte{0});
  std::byte* matrix = prepared->matrices.data() + start;
  std::vector<float> minus_offset(dim);
  for (uint32_t n = 0; n < dim; ++n) {
    const uint32_t column = DimOfColumn(n, dim, bits);
    double sum = 0.0;
    for (uint32_t k = 0; k < dim; ++k) {
      const float entry = std::ldexp(transform.forward[k * dim + column], scale);
      const size_t at = SwizzledPlace(k, n, dim);
      float rest = entry;
      for (uint32_t part = 0; part < ForwardParts(dim); ++part) {
        const Halves rounded = Rounded(rest, bf16);
        Put(matrix + part * ForwardPartBytes(dim) + at, rounded.bits);
        sum += double{transform.offset[k]} * double{rounded.value};
        rest -= rounded.value;
      }
    }
    minus_offset[n] = static_cast<float>(-sum);
  }
  const int one = bf16 ? 0 : std::clamp(Exponent(minus_offset) - 14, -14, 15);
  std::byte* offset = matrix + ForwardParts(dim) * ForwardPartBytes(dim);
  for (uint32_t n = 0; n < dim; ++n) {
    float rest = std::ldexp(minus_offset[n], -one);
    for (uint32_t k = 0; k < 3; ++k) {
      const Halves term = Rounded(rest, bf16);
      Put(offset + n * 32 + (n / 4 % 2) * 16 + k * 2, term.bits);
      rest -= term.value;
    }
  }
  ForwardHead head = {.scale = std::ldexp(1.0f, -scale),
                      .one = Rounded(std::ldexp(1.0f, one), bf16).bits,
                      .above = dim - 1 - ClipIndex(transform.clip_ratio, dim),
                      .clip_guess = 1.0f,
                      .clip_density = 0.0f};
  if (head.above != 0) {
    const double at = WhereBeyond((head.above + 0.5) / dim);
    const double density = 2.0 * std::exp(-0.5 * at * at) / std::sqrt(2.0 * kPi);
    head.clip_guess = static_cast<float>(at / std::sqrt(2.0 / kPi));
    // fp16 has 1024 to 2048 numbers from half a value to the value.
    head.clip_density = static_cast<float>(dim * density * std::max(at, 0.1) / 1400.0);
  }
  prepared->heads.push_back(head);
}

}  // namespace

PreparedForward PrepareForward(const std::vector<SideTransform>& heads, uint32_t bits, bool bf16) {
  PreparedForward prepared;
  for (const SideTransform& head : heads) AppendForward(head, bits, bf16, &prepared);
  return prepared;
}

PreparedInverse PrepareInverse(const std::vector<SideTransform>& heads, uint32_t bits,
                               uint32_t group) {
  PreparedInverse prepared;
  for (const SideTransform& head : heads) AppendHead(head, bits, group, &prepared);
  return prepared;
}

}  // namespace oscarkv::cuda
