// Transforms fitted to moments: what their algebra promises.
#include "kernels/calibrate/fit.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "gmock/gmock.h"
#include <gtest/gtest.h>

#include "kernels/base/dtype.h"
#include "kernels/calibrate/inspect.h"
#include "kernels/calibrate/score.h"
#include "tests/calibrate/synthetic_dump.h"

namespace oscarkv::calibrate {
namespace {

using Eigen::MatrixXd;
using testing::RandomMoment;
using testing::RandomRows;

double MaxAbs(const MatrixXd& matrix) { return matrix.cwiseAbs().maxCoeff(); }

MatrixXd Identity(uint32_t dim) { return MatrixXd::Identity(dim, dim); }

// max / mean of the diagonal of R' C R: 1 when energy is spread evenly over the new channels.
double Unevenness(const MatrixXd& rotation, const MatrixXd& moment) {
  const Eigen::VectorXd diagonal = (rotation.transpose() * moment * rotation).diagonal();
  return diagonal.maxCoeff() / diagonal.mean();
}

// What an evenly spread quantiser's error costs: tr(A' C A) tr(A^-1 W A^-T).
double Objective(const MatrixPair& pair, const MatrixXd& rows, const MatrixXd& weight) {
  return (pair.forward.transpose() * rows * pair.forward).trace() *
         (pair.inverse * weight * pair.inverse.transpose()).trace();
}

TEST(MixingMatrixTest, IsOrthogonalForEveryHeadDim) {
  for (uint32_t dim = 16; dim <= 256; dim += 16) {
    const MatrixXd h = MixingMatrix(dim);
    EXPECT_LE(MaxAbs(h * h.transpose() - Identity(dim)), 1e-12) << dim;
    if (std::has_single_bit(dim)) {
      EXPECT_LE(MaxAbs(h.cwiseAbs() - MatrixXd::Constant(dim, dim, 1.0 / std::sqrt(dim))), 1e-12);
      EXPECT_EQ(h, h.transpose());
    } else {
      // Of a size that has no Hadamard matrix here: still no entry above twice the even share.
      EXPECT_LE(MaxAbs(h), 1.5 / std::sqrt(dim)) << dim;
    }
  }
}

TEST(OscarPermutationTest, ReversesBitsFromTheEnd) {
  EXPECT_THAT(OscarPermutation(8), ::testing::ElementsAre(7, 3, 5, 1, 6, 2, 4, 0));
  const std::vector<uint32_t> of_128 = OscarPermutation(128);
  EXPECT_THAT(std::vector<uint32_t>(of_128.begin(), of_128.begin() + 8),
              ::testing::ElementsAre(127, 63, 95, 31, 111, 47, 79, 15));
  for (uint32_t dim = 16; dim <= 256; dim += 16) {
    std::vector<uint32_t> sorted = OscarPermutation(dim);
    std::sort(sorted.begin(), sorted.end());
    for (uint32_t i = 0; i < dim; ++i) ASSERT_EQ(sorted[i], i) << dim;
  }
}

TEST(FitOscarTest, IsEigenvectorsThenHadamardThenPermutation) {
  constexpr uint32_t kDim = 64;
  const MatrixXd moment = RandomMoment(kDim, 1);
  const MatrixXd u = Eigen::SelfAdjointEigenSolver<MatrixXd>(moment).eigenvectors();
  const MatrixXd mixed = u * MixingMatrix(kDim);

  const MatrixPair pair = FitOscar(moment);

  const std::vector<uint32_t> permutation = OscarPermutation(kDim);
  for (uint32_t j = 0; j < kDim; ++j)
    EXPECT_LE(MaxAbs(pair.forward.col(j) - mixed.col(permutation[j])), 1e-12);
  EXPECT_EQ(pair.inverse, pair.forward.transpose());
}

TEST(FitOscarTest, SpreadsEnergyEvenlyWhereHadamardAloneDoesNot) {
  for (const uint32_t dim : {16u, 64u, 128u, 256u}) {
    const MatrixXd moment = RandomMoment(dim, dim);
    EXPECT_LE(Unevenness(FitOscar(moment).forward, moment), 1.0 + 1e-6);
    EXPECT_GT(Unevenness(Identity(dim), moment), 1.05);
    EXPECT_GT(Unevenness(FitHadamard(dim).forward, moment), 1.05);
  }
}

TEST(FitOscarTest, IsOrthogonalAsStoredAndAfterACastToBf16) {
  constexpr uint32_t kDim = 128;
  const MatrixPair pair = FitOscar(RandomMoment(kDim, 2));
  const SideTransform side = ToSideTransform(pair, Eigen::RowVectorXd::Zero(kDim), 0.96f);
  EXPECT_LE(Inspect({side}).inversion_error, 1e-6);
  EXPECT_NEAR(Inspect({side}).condition, 1.0, 1e-6);
  const MatrixXd rounded = pair.forward.unaryExpr([](double value) {
    return static_cast<double>(Bf16ToFloat(FloatToBf16(static_cast<float>(value))));
  });
  const MatrixXd error = rounded * rounded.transpose() - Identity(kDim);
  EXPECT_LE(MaxAbs(error), 3e-3);
  EXPECT_LE(Eigen::SelfAdjointEigenSolver<MatrixXd>(error).eigenvalues().cwiseAbs().maxCoeff(),
            6e-3);
}

TEST(FitOscarTest, LogitsDoNotChangeWithTheRotation) {
  const MatrixPair pair = FitOscar(RandomMoment(128, 3));
  const Eigen::MatrixXf rotation = pair.forward.cast<float>();
  const Eigen::MatrixXf q = RandomRows(50, 128, 4);
  const Eigen::MatrixXf k = RandomRows(60, 128, 5);
  const Eigen::MatrixXf exact = q * k.transpose();
  const Eigen::MatrixXf rotated = (q * rotation) * (k * rotation).transpose();
  EXPECT_LE((rotated - exact).norm() / exact.norm(), 1e-5f);
}

// With a group a head row the permutation only decides which channels share a byte; with smaller
// groups it decides who shares a scale.
TEST(FitOscarTest, ThePermutationMattersOnlyForGroups) {
  constexpr uint32_t kDim = 128;
  RowMatrix rows = RandomRows(20, kDim, 6);
  for (uint32_t j = 0; j < kDim; ++j) rows.col(j) *= 1.0f + static_cast<float>(j) / 16.0f;
  const std::vector<uint32_t> permutation = OscarPermutation(kDim);
  RowMatrix permuted(rows.rows(), kDim);
  for (uint32_t j = 0; j < kDim; ++j) permuted.col(j) = rows.col(permutation[j]);
  for (const uint32_t group : {0u, 32u}) {
    const RowMatrix plain = ThroughQuantizer(rows, 2, group, 0.96f, ParamsDType::kFp32);
    const RowMatrix other = ThroughQuantizer(permuted, 2, group, 0.96f, ParamsDType::kFp32);
    RowMatrix expected(rows.rows(), kDim);
    for (uint32_t j = 0; j < kDim; ++j) expected.col(j) = plain.col(permutation[j]);
    EXPECT_EQ(other == expected, group == 0) << group;
  }
}

TEST(FitOscarTest, HeadsInUnrelatedBasesNeedRotationsOfTheirOwn) {
  constexpr uint32_t kDim = 64;
  MatrixXd shared = MatrixXd::Zero(kDim, kDim);
  for (uint32_t head = 0; head < 4; ++head) shared += RandomMoment(kDim, 10 + head) / 4;
  for (uint32_t head = 0; head < 4; ++head) {
    const MatrixXd moment = RandomMoment(kDim, 10 + head);
    EXPECT_LE(Unevenness(FitOscar(moment).forward, moment), 1.0 + 1e-6);
    EXPECT_GT(Unevenness(FitOscar(shared).forward, moment), 1.3);
  }
}

TEST(GeometricMeanTest, HasItsDefiningProperties) {
  const MatrixXd a = RandomMoment(32, 20);
  const MatrixXd b = RandomMoment(32, 21);
  const MatrixXd mean = GeometricMean(a, b);
  EXPECT_LE(MaxAbs(mean - GeometricMean(b, a)) / MaxAbs(mean), 1e-9);
  EXPECT_LE(MaxAbs(mean * a.inverse() * mean - b) / MaxAbs(b), 1e-9);
  EXPECT_LE(MaxAbs(GeometricMean(a, a) - a) / MaxAbs(a), 1e-9);
}

TEST(FitBalancedTest, InvertsAndReachesTheLeastPossible) {
  for (const uint32_t dim : {32u, 48u, 128u}) {
    const MatrixXd rows = RandomMoment(dim, 30 + dim);
    const MatrixXd weight = RandomMoment(dim, 31 + dim);
    const MatrixPair pair = FitBalanced(rows, weight, 1e6);
    EXPECT_LE(MaxAbs(pair.forward * pair.inverse - Identity(dim)), 1e-9);
    // The least over all invertible matrices is (sum sqrt eig(C W))^2.
    const Eigen::VectorXd eigenvalues = (rows * weight).eigenvalues().real();
    const double least = std::pow(eigenvalues.cwiseMax(0.0).cwiseSqrt().sum(), 2);
    EXPECT_NEAR(Objective(pair, rows, weight) / least, 1.0, 1e-3);
    EXPECT_LT(Objective(pair, rows, weight), 0.9 * Objective(FitHadamard(dim), rows, weight));
    EXPECT_LT(Objective(pair, rows, weight), 0.9 * Objective(FitOscar(weight), rows, weight));
  }
}

TEST(FitBalancedTest, NothingNearItIsBetter) {
  constexpr uint32_t kDim = 32;
  const MatrixXd rows = RandomMoment(kDim, 40);
  const MatrixXd weight = RandomMoment(kDim, 41);
  const MatrixPair pair = FitBalanced(rows, weight, 1e6);
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const MatrixXd step = RandomRows(kDim, kDim, seed).cast<double>() * 0.05;
    MatrixPair moved;
    moved.forward = pair.forward * (Identity(kDim) + step);
    moved.inverse = moved.forward.inverse();
    EXPECT_GT(Objective(moved, rows, weight), Objective(pair, rows, weight));
  }
}

TEST(FitBalancedTest, KeepsTheEnergyOfTheRows) {
  const MatrixXd rows = RandomMoment(64, 50);
  const MatrixPair pair = FitBalanced(rows, RandomMoment(64, 51), 30.0);
  EXPECT_NEAR((pair.forward.transpose() * rows * pair.forward).trace() / rows.trace(), 1.0, 1e-6);
}

TEST(FitBalancedTest, HoldsTheConditionNumber) {
  const MatrixXd rows = RandomMoment(64, 60);
  const MatrixXd weight = RandomMoment(64, 61);
  const double free = ConditionNumber(FitBalanced(rows, weight, 1e9).forward);
  EXPECT_GT(free, 10.0);
  double objective = 0.0;
  for (const double most : {1e6, 10.0, 3.0, 1.0}) {
    const MatrixPair pair = FitBalanced(rows, weight, most);
    // What the bound leaves is used in full.
    EXPECT_NEAR(ConditionNumber(pair.forward) / std::min(most, free), 1.0, 1e-3);
    EXPECT_LE(MaxAbs(pair.forward * pair.inverse - Identity(64)), 1e-9);
    EXPECT_GE(Objective(pair, rows, weight), objective);  // freedom given up costs
    objective = Objective(pair, rows, weight);
  }
}

TEST(FitBalancedTest, SurvivesMomentsWithoutFullRank) {
  MatrixXd rows = MatrixXd::Zero(32, 32);
  rows(3, 3) = 5.0;
  const MatrixPair pair = FitBalanced(rows, MatrixXd::Zero(32, 32), 30.0);
  EXPECT_TRUE(pair.forward.allFinite() && pair.inverse.allFinite());
  EXPECT_LE(MaxAbs(pair.forward * pair.inverse - Identity(32)), 1e-6);
}

TEST(InspectTest, FindsTheWorstHead) {
  const MatrixXd scaled = Eigen::VectorXd::LinSpaced(16, 1.0, 8.0).asDiagonal();
  const Eigen::RowVectorXd none = Eigen::RowVectorXd::Zero(16);
  SideTransform bad = ToSideTransform({scaled, scaled.inverse()}, none, 0.0f);
  EXPECT_NEAR(Inspect({bad}).condition, 8.0, 1e-6);
  EXPECT_LE(Inspect({bad}).inversion_error, 1e-6);
  bad.inverse[5] += 0.25f;
  const SideFacts facts = Inspect({ToSideTransform(FitHadamard(16), none, 0.0f), bad});
  EXPECT_NEAR(facts.condition, 8.0, 1e-6);
  EXPECT_NEAR(facts.inversion_error, 0.25, 1e-6);
}

// Keys with four loud channels of constant sign, against queries that look exactly where a Hadamard
// matrix gathers them. Error of the scores relative to what they vary by.
class AdversarialKeys {
 public:
  explicit AdversarialKeys(float amplitude) : keys_(RandomRows(4096, kDim, 70)) {
    std::mt19937 random(71);
    std::normal_distribution<float> normal;
    for (Eigen::Index token = 0; token < keys_.rows(); ++token) {
      for (const int channel : {3, 70})
        keys_(token, channel) -= amplitude * (1 + 0.05f * normal(random));
      for (const int channel : {21, 104})
        keys_(token, channel) += amplitude * (1 + 0.05f * normal(random));
    }
    RowMatrix queries = RandomRows(2048, kDim, 72);
    for (const int channel : {3 ^ 21 ^ 70, 3 ^ 21 ^ 104, 3 ^ 70 ^ 104, 21 ^ 70 ^ 104})
      queries.col(channel) *= std::sqrt(40.0f);
    const MatrixXd q = queries.cast<double>();
    moment_ = q.transpose() * q / static_cast<double>(q.rows());
  }

  double Error(const MatrixXd& rotation, float clip_ratio) const {
    const Eigen::MatrixXf r = rotation.cast<float>();
    const RowMatrix read =
        ThroughQuantizer(keys_ * r, 2, 0, clip_ratio, ParamsDType::kFp32) * r.transpose();
    const MatrixXd error = (read - keys_).cast<double>();
    const MatrixXd centred = (keys_.rowwise() - keys_.colwise().mean().eval()).cast<double>();
    return (error * moment_).cwiseProduct(error).sum() /
           (centred * moment_).cwiseProduct(centred).sum();
  }
  MatrixXd Oscar() const { return FitOscar(moment_).forward; }

  static constexpr uint32_t kDim = 128;

 private:
  RowMatrix keys_;
  MatrixXd moment_;
};

TEST(MethodOrderTest, RotatingByTheQueriesHelpsWhereHadamardGathersLoudChannels) {
  const AdversarialKeys keys(24.0f);
  const double naive = keys.Error(Identity(AdversarialKeys::kDim), 0.0f);
  const double hadamard = keys.Error(FitHadamard(AdversarialKeys::kDim).forward, 0.0f);
  const double oscar = keys.Error(keys.Oscar(), 0.96f);
  EXPECT_GT(naive, 3 * hadamard);
  EXPECT_GT(hadamard, 3 * oscar);
  EXPECT_NEAR(naive, 51, 3);
  EXPECT_NEAR(hadamard, 12.2, 0.6);
}

TEST(MethodOrderTest, AndDoesNotWhereItHasNothingToGather) {
  const AdversarialKeys keys(8.0f);
  const double hadamard = keys.Error(FitHadamard(AdversarialKeys::kDim).forward, 0.96f);
  EXPECT_NEAR(hadamard, 0.45, 0.02);
  EXPECT_NEAR(keys.Error(keys.Oscar(), 0.96f) / hadamard, 1.0, 0.08);
}

}  // namespace
}  // namespace oscarkv::calibrate
