// What the rotations that calibration fits do to rows, weights and scores, and what the codec makes
// of them.
#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"

#include "Eigen/Dense"
#include "kernels/calibrate/fit.h"
#include "tests/codec/codec_testing.h"

namespace oscarkv::testing {
namespace {

using calibrate::FitHadamard;
using calibrate::FitOscar;
using calibrate::MatrixPair;
using calibrate::MixingMatrix;
using calibrate::OscarPermutation;
using Eigen::MatrixXd;
using Eigen::MatrixXf;

MatrixXd Gaussian(Eigen::Index rows, Eigen::Index columns, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  return MatrixXd::NullaryExpr(rows, columns, [&] { return normal(random); });
}

// A symmetric positive definite matrix whose spectrum falls like a key's.
MatrixXd RandomMoment(uint32_t dim, uint64_t seed) {
  const MatrixXd basis = Eigen::HouseholderQR<MatrixXd>(Gaussian(dim, dim, seed)).householderQ();
  Eigen::VectorXd spectrum(dim);
  for (uint32_t i = 0; i < dim; ++i) spectrum[i] = 50.0 * std::exp(-0.1 * i) + 0.05;
  return basis * spectrum.asDiagonal() * basis.transpose();
}

MatrixXf InBf16(const MatrixXf& matrix) {
  return matrix.unaryExpr([](float x) { return Bf16ToFloat(FloatToBf16(x)); });
}

double RelativeError(const MatrixXf& expected, const MatrixXf& found) {
  return static_cast<double>((expected - found).norm() / expected.norm());
}
double MaxRelativeError(const MatrixXf& expected, const MatrixXf& found) {
  return static_cast<double>((expected - found).cwiseAbs().maxCoeff() /
                             expected.cwiseAbs().maxCoeff());
}

Rows ToRows(const MatrixXf& matrix) {
  Rows rows{static_cast<uint32_t>(matrix.cols()), {}};
  for (Eigen::Index i = 0; i < matrix.rows(); ++i) {
    for (Eigen::Index j = 0; j < matrix.cols(); ++j) rows.values.push_back(matrix(i, j));
  }
  return rows;
}

TEST(RotationTest, IsOrthogonalInFloatAndNearlySoInBf16) {
  for (uint32_t dim : {64u, 128u, 256u}) {
    const MatrixPair pair = FitOscar(RandomMoment(dim, dim));
    const MatrixXf rotation = pair.forward.cast<float>();
    const MatrixXd exact = rotation.cast<double>();
    const MatrixXd identity = MatrixXd::Identity(dim, dim);
    EXPECT_LE((exact * exact.transpose() - identity).cwiseAbs().maxCoeff(), 1e-6);
    const MatrixXd halves = InBf16(rotation).cast<double>();
    const MatrixXd error = halves * halves.transpose() - identity;
    EXPECT_LE(error.cwiseAbs().maxCoeff(), 3e-3);
    EXPECT_LE(Eigen::JacobiSVD<MatrixXd>(error).singularValues()(0), 6e-3);
  }
}

TEST(PermutationTest, IsBitReversalFromTheEnd) {
  EXPECT_EQ(OscarPermutation(8), (std::vector<uint32_t>{7, 3, 5, 1, 6, 2, 4, 0}));
  const std::vector<uint32_t> wide = OscarPermutation(128);
  EXPECT_EQ(std::vector<uint32_t>(wide.begin(), wide.begin() + 8),
            (std::vector<uint32_t>{127, 63, 95, 31, 111, 47, 79, 15}));
  for (uint32_t dim = 16; dim <= 256; dim *= 2) {
    const int bits = std::countr_zero(dim);
    const std::vector<uint32_t> permutation = OscarPermutation(dim);
    for (uint32_t j = 0; j < dim; ++j) {
      uint32_t reversed = 0;
      for (int bit = 0; bit < bits; ++bit) reversed |= ((j >> bit) & 1u) << (bits - 1 - bit);
      EXPECT_EQ(permutation[j], dim - 1 - reversed);
    }
  }
}

TEST(PermutationTest, ChangesNoValueOfAWholeRowGroupButThoseOfSmallerGroups) {
  constexpr uint32_t kDim = 128;
  const Rows plain = KeyLikeRows(kDim, 100, 2);
  Rows permuted = plain;
  const std::vector<uint32_t> permutation = OscarPermutation(kDim);
  for (size_t row = 0; row < plain.count(); ++row) {
    for (uint32_t j = 0; j < kDim; ++j) permuted.row(row)[j] = plain.row(row)[permutation[j]];
  }
  for (const RowKernels* kernels : AllKernels()) {
    const auto encode = [&](const RowFormat& format, const Rows& rows) {
      return Encode(*kernels, format, nullptr, DType::kFp32, ToBytes(rows, DType::kFp32));
    };
    const RowFormat whole = Format(kDim, 2, 0, ParamsDType::kFp32, 0.96f);
    const Encoded a = encode(whole, plain);
    const Encoded b = encode(whole, permuted);
    EXPECT_EQ(a.params, b.params);
    for (size_t row = 0; row < plain.count(); ++row) {
      std::vector<uint32_t> codes_a = CodesOf(whole, a, row);
      std::vector<uint32_t> codes_b = CodesOf(whole, b, row);
      for (uint32_t j = 0; j < kDim; ++j) EXPECT_EQ(codes_b[j], codes_a[permutation[j]]);
    }
    const RowFormat small = Format(kDim, 2, 32, ParamsDType::kFp32, 0.96f);
    EXPECT_NE(encode(small, plain).params, encode(small, permuted).params);
  }
}

double MaxOverMean(const MatrixXd& matrix) {
  return matrix.diagonal().maxCoeff() / matrix.diagonal().mean();
}

TEST(RotationTest, SpreadsTheEnergyItWasFittedToEvenly) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    const MatrixXd moment = RandomMoment(128, seed);
    const MatrixXd rotation = FitOscar(moment).forward;
    EXPECT_LE(MaxOverMean(rotation.transpose() * moment * rotation), 1.0 + 1e-6);
    const MatrixXd hadamard = FitHadamard(128).forward;
    EXPECT_GT(MaxOverMean(moment), 1.05);
    EXPECT_GT(MaxOverMean(hadamard.transpose() * moment * hadamard), 1.05);
  }
}

TEST(RotationTest, SharedByHeadsInUnrelatedBasesItSpreadsTheEnergyOfNone) {
  std::vector<MatrixXd> moments;
  MatrixXd mean = MatrixXd::Zero(128, 128);
  for (uint64_t head = 0; head < 4; ++head) {
    moments.push_back(RandomMoment(128, 20 + head));
    mean += moments.back() / 4.0;
  }
  const MatrixXd shared = FitOscar(mean).forward;
  for (const MatrixXd& moment : moments) {
    const MatrixXd own = FitOscar(moment).forward;
    EXPECT_LE(MaxOverMean(own.transpose() * moment * own), 1.0 + 1e-6);
    EXPECT_GT(MaxOverMean(shared.transpose() * moment * shared), 1.2);
  }
}

TEST(RotationTest, ScoresAndValuesDoNotSeeIt) {
  const MatrixXf rotation = FitOscar(RandomMoment(128, 5)).forward.cast<float>();
  const MatrixXf q = Gaussian(64, 128, 6).cast<float>();
  const MatrixXf k = Gaussian(200, 128, 7).cast<float>();
  const MatrixXf scores = q * k.transpose();
  EXPECT_LE(RelativeError(scores, (q * rotation) * (k * rotation).transpose()), 1e-5);
  EXPECT_LE(RelativeError(k, k * rotation * rotation.transpose()), 1e-5);
  const MatrixXf halves = InBf16(rotation);
  EXPECT_LE(RelativeError(scores, InBf16(q * halves) * InBf16(k * halves).transpose()), 1e-2);
  EXPECT_LE(RelativeError(k, InBf16(k * halves) * halves.transpose()), 1e-2);
}

// Engines may fold V's rotation into the weights on both sides of attention.
TEST(RotationTest, FoldsIntoTheWeightsBeforeAndAfter) {
  constexpr Eigen::Index kHidden = 512;
  const MatrixXf rotation = FitOscar(RandomMoment(128, 8)).forward.cast<float>();
  const MatrixXf x = Gaussian(50, kHidden, 9).cast<float>();
  const MatrixXf w_v = Gaussian(128, kHidden, 10).cast<float>() / std::sqrt(float{kHidden});
  const MatrixXf w_o = Gaussian(kHidden, 128, 11).cast<float>() / std::sqrt(128.0f);
  const MatrixXf folded_v = rotation.transpose() * w_v;
  const MatrixXf folded_o = w_o * rotation;
  const MatrixXf v = x * w_v.transpose();
  EXPECT_LE(MaxRelativeError(v * rotation, x * folded_v.transpose()), 1e-5);
  EXPECT_LE(MaxRelativeError(v * w_o.transpose(), (v * rotation) * folded_o.transpose()), 1e-5);
  const MatrixXf bf16_v = InBf16(x * InBf16(w_v).transpose());
  EXPECT_LE(
      MaxRelativeError(InBf16(bf16_v * InBf16(rotation)), InBf16(x * InBf16(folded_v).transpose())),
      2e-2);
  EXPECT_LE(MaxRelativeError(bf16_v * w_o.transpose(),
                             InBf16(bf16_v * InBf16(rotation)) * InBf16(folded_o).transpose()),
            2e-2);
}

TEST(RotationTest, FoldedRowsGiveTheCodesOfRowsThatTheCodecRotates) {
  const MatrixXf rotation = FitOscar(RandomMoment(128, 12)).forward.cast<float>();
  const SideTransform transform =
      calibrate::ToSideTransform({rotation.cast<double>(), rotation.transpose().cast<double>()},
                                 Eigen::RowVectorXd::Zero(128), 0.0f);
  const MatrixXf x = Gaussian(400, 256, 13).cast<float>();
  const MatrixXf w = Gaussian(128, 256, 14).cast<float>() / 16.0f;
  const MatrixXf plain = x * w.transpose();
  const MatrixXf folded = x * (rotation.transpose() * w).transpose();
  const RowFormat format = Format(128, 2, 0, ParamsDType::kFp16, 0.92f);
  for (const RowKernels* kernels : AllKernels()) {
    const Encoded a =
        Encode(*kernels, format, &transform, DType::kFp32, ToBytes(ToRows(plain), DType::kFp32));
    const Encoded b =
        Encode(*kernels, format, nullptr, DType::kFp32, ToBytes(ToRows(folded), DType::kFp32));
    size_t different = 0;
    for (size_t row = 0; row < 400; ++row) {
      const std::vector<uint32_t> codes_a = CodesOf(format, a, row);
      const std::vector<uint32_t> codes_b = CodesOf(format, b, row);
      for (uint32_t i = 0; i < 128; ++i) different += codes_a[i] != codes_b[i] ? 1u : 0u;
    }
    EXPECT_LE(different, 400u * 128 / 1000);
  }
}

TEST(MixingMatrixTest, IsOrthogonalForEveryHeadDim) {
  for (uint32_t dim = 16; dim <= 256; dim += 16) {
    const MatrixXd mixing = MixingMatrix(dim);
    EXPECT_LE((mixing * mixing.transpose() - MatrixXd::Identity(dim, dim)).cwiseAbs().maxCoeff(),
              1e-12);
  }
}

}  // namespace
}  // namespace oscarkv::testing
