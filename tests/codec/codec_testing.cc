#include "tests/codec/codec_testing.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "Eigen/Dense"
#include "kernels/calibrate/fit.h"
#include "kernels/codec/oscar/format.h"

namespace oscarkv::testing {
namespace {

Eigen::MatrixXd RandomOrthogonal(uint32_t dim, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  Eigen::MatrixXd matrix(dim, dim);
  for (uint32_t i = 0; i < dim; ++i) {
    for (uint32_t j = 0; j < dim; ++j) matrix(i, j) = normal(random);
  }
  return Eigen::HouseholderQR<Eigen::MatrixXd>(matrix).householderQ();
}

template <typename T>
std::vector<const std::byte*> RowPointers(const T& bytes, size_t row_bytes) {
  std::vector<const std::byte*> rows;
  for (size_t at = 0; at < bytes.size(); at += row_bytes) rows.push_back(bytes.data() + at);
  return rows;
}

}  // namespace

std::vector<const RowKernels*> AllKernels() {
  std::vector<const RowKernels*> all = {&ReferenceRowKernels()};
  for (const RowKernels* kernels : AllCpuRowKernels()) all.push_back(kernels);
  return all;
}

std::string TestName(const RowKernels& kernels) {
  std::string name(kernels.name());
  std::replace_if(
      name.begin(), name.end(), [](char c) { return std::isalnum(c) == 0; }, '_');
  return name;
}

Rows GaussianRows(uint32_t dim, size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  Rows rows{dim, std::vector<float>(dim * count)};
  for (float& value : rows.values) value = normal(random);
  return rows;
}

Rows KeyLikeRows(uint32_t dim, size_t count, uint64_t seed) {
  std::mt19937_64 random(seed ^ 0x6b65);
  std::normal_distribution<float> normal;
  std::vector<float> mean(dim), gain(dim);
  for (uint32_t i = 0; i < dim; ++i) {
    mean[i] = 3.0f * normal(random);
    gain[i] = std::exp(normal(random));
  }
  Rows rows = GaussianRows(dim, count, seed);
  for (size_t row = 0; row < count; ++row) {
    for (uint32_t i = 0; i < dim; ++i) {
      const float outlier = random() % 500 == 0 ? 20.0f : 1.0f;
      rows.row(row)[i] = mean[i] + gain[i] * outlier * rows.row(row)[i];
    }
  }
  return rows;
}

Bytes ToBytes(const Rows& rows, DType dtype) {
  Bytes bytes(rows.values.size() * DTypeBytes(dtype));
  for (size_t i = 0; i < rows.values.size(); ++i)
    StoreElement(bytes.data() + i * DTypeBytes(dtype), dtype, rows.values[i]);
  return bytes;
}

Rows FromBytes(const Bytes& bytes, uint32_t dim, DType dtype) {
  Rows rows{dim, std::vector<float>(bytes.size() / DTypeBytes(dtype))};
  for (size_t i = 0; i < rows.values.size(); ++i)
    rows.values[i] = LoadElement(bytes.data() + i * DTypeBytes(dtype), dtype);
  return rows;
}

SideTransform IdentityTransform(uint32_t dim) {
  const Eigen::MatrixXd identity = Eigen::MatrixXd::Identity(dim, dim);
  return calibrate::ToSideTransform({identity, identity}, Eigen::RowVectorXd::Zero(dim), 0.0f);
}

SideTransform RandomRotation(uint32_t dim, uint64_t seed) {
  const Eigen::MatrixXd rotation = RandomOrthogonal(dim, seed);
  return calibrate::ToSideTransform({rotation, rotation.transpose()}, Eigen::RowVectorXd::Zero(dim),
                                    0.0f);
}

SideTransform RandomBalanced(uint32_t dim, double condition, uint64_t seed) {
  const Eigen::MatrixXd basis = RandomOrthogonal(dim, seed);
  const Eigen::MatrixXd mixing = calibrate::MixingMatrix(dim);
  Eigen::VectorXd root(dim);
  for (uint32_t i = 0; i < dim; ++i) root[i] = std::pow(condition, i / (dim - 1.0) - 0.5);
  Eigen::RowVectorXd offset(dim);
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  for (uint32_t i = 0; i < dim; ++i) offset[i] = 2.0 * normal(random);
  return calibrate::ToSideTransform(
      {basis * root.asDiagonal() * mixing,
       mixing.transpose() * root.cwiseInverse().asDiagonal() * basis.transpose()},
      offset, 0.0f);
}

bool Encoded::operator==(const Encoded& other) const {
  return codes == other.codes && params == other.params && report.rows == other.report.rows &&
         report.constant_rows == other.report.constant_rows &&
         report.nonfinite_rows == other.report.nonfinite_rows &&
         report.overflow_rows == other.report.overflow_rows;
}

RowFormat Format(uint32_t dim, uint32_t bits, uint32_t group, ParamsDType params,
                 float clip_ratio) {
  return {.dim = dim,
          .bits = bits,
          .group = group == 0 ? dim : group,
          .clip_index = ClipIndex(clip_ratio, dim),
          .params = params};
}

size_t CodeBytes(const RowFormat& format) { return size_t{format.dim} * format.bits / 8; }
size_t ParamsBytes(const RowFormat& format) {
  return size_t{format.dim / format.group} * 2 * ParamBytes(format.params);
}

Encoded Encode(const RowKernels& kernels, const RowFormat& format, const SideTransform* transform,
               DType dtype, const Bytes& rows) {
  const auto pointers = RowPointers(rows, size_t{format.dim} * DTypeBytes(dtype));
  const auto prepared = transform == nullptr ? nullptr : kernels.Prepare(*transform);
  // What was in the buffers must not show.
  Encoded encoded{Bytes(pointers.size() * CodeBytes(format), std::byte{0xa5}),
                  Bytes(pointers.size() * ParamsBytes(format), std::byte{0x5a}),
                  {}};
  kernels.Encode(format, prepared.get(), dtype, pointers, encoded.codes.data(),
                 encoded.params.data(), &encoded.report);
  return encoded;
}

Bytes Decode(const RowKernels& kernels, const RowFormat& format, const SideTransform* transform,
             DType dtype, const Encoded& encoded) {
  const size_t count = encoded.codes.size() / CodeBytes(format);
  const size_t row_bytes = size_t{format.dim} * DTypeBytes(dtype);
  Bytes bytes(count * row_bytes, std::byte{0xa5});
  std::vector<std::byte*> pointers;
  for (size_t row = 0; row < count; ++row) pointers.push_back(bytes.data() + row * row_bytes);
  const auto prepared = transform == nullptr ? nullptr : kernels.Prepare(*transform);
  kernels.Decode(format, prepared.get(), encoded.codes.data(), encoded.params.data(), dtype,
                 pointers);
  return bytes;
}

std::vector<uint32_t> CodesOf(const RowFormat& format, const Encoded& encoded, size_t row) {
  const std::byte* bytes = encoded.codes.data() + row * CodeBytes(format);
  const size_t stride = CodeBytes(format);
  std::vector<uint32_t> codes;
  for (size_t i = 0; i < format.dim; ++i) {
    const auto byte = static_cast<uint32_t>(bytes[i % stride]);
    codes.push_back((byte >> (i / stride * format.bits)) & ((1u << format.bits) - 1));
  }
  return codes;
}

Pair ParamsOf(const RowFormat& format, const Encoded& encoded, size_t row, uint32_t group) {
  const std::byte* bytes = encoded.params.data() + row * ParamsBytes(format) +
                           size_t{group} * 2 * ParamBytes(format.params);
  if (format.params == ParamsDType::kFp32)
    return {static_cast<double>(LoadLe<float>(bytes)),
            static_cast<double>(LoadLe<float>(bytes + 4))};
  return {static_cast<double>(Fp16ToFloat(LoadLe<uint16_t>(bytes))),
          static_cast<double>(Fp16ToFloat(LoadLe<uint16_t>(bytes + 2)))};
}

uint32_t Crc32(std::span<const std::byte> bytes) {
  uint32_t crc = 0xffffffffu;
  for (const std::byte byte : bytes) {
    crc ^= static_cast<uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1u)));
  }
  return ~crc;
}

}  // namespace oscarkv::testing
