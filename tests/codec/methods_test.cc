// How the methods order on rows made to tell them apart: the score is what their quantisation error
// does to the queries' logits, sum e' C_Q e / sum (k - mean)' C_Q (k - mean).
#include <cmath>
#include <optional>
#include <random>
#include <vector>

#include "gtest/gtest.h"

#include "Eigen/Dense"
#include "kernels/calibrate/fit.h"
#include "tests/codec/codec_testing.h"

namespace oscarkv::testing {
namespace {

using calibrate::MatrixPair;
using Eigen::MatrixXd;
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr uint32_t kDim = 128;

// Rows through the codec's quantiser: rotated in bf16, encoded, decoded, rotated back.
MatrixXd Through(const MatrixXd& keys, const std::optional<MatrixPair>& rotation, float clip) {
  MatrixXd rotated = keys;
  if (rotation.has_value()) rotated *= rotation->forward;
  Rows rows{kDim, std::vector<float>(static_cast<size_t>(keys.size()))};
  Eigen::Map<RowMajor>(rows.values.data(), keys.rows(), kDim) = rotated.cast<float>();
  const RowFormat format = Format(kDim, 2, 0, ParamsDType::kFp32, clip);
  const RowKernels& kernels = CpuRowKernels();
  const Encoded encoded =
      Encode(kernels, format, nullptr, DType::kBf16, ToBytes(rows, DType::kBf16));
  Rows back =
      FromBytes(Decode(kernels, format, nullptr, DType::kFp32, encoded), kDim, DType::kFp32);
  MatrixXd found = Eigen::Map<RowMajor>(back.values.data(), keys.rows(), kDim).cast<double>();
  if (rotation.has_value()) found *= rotation->inverse;
  return found;
}

double ScoreError(const MatrixXd& keys, const MatrixXd& found, const MatrixXd& q_moment) {
  const MatrixXd error = found - keys;
  const MatrixXd spread = keys.rowwise() - keys.colwise().mean();
  return (error * q_moment).cwiseProduct(error).sum() /
         (spread * q_moment).cwiseProduct(spread).sum();
}

struct Adversary {
  MatrixXd keys;
  MatrixXd q_moment;
  MatrixXd k_moment;
};

// Four outlier channels whose Walsh patterns pile up where a plain Hadamard matrix puts them
// together, and queries that look exactly there.
Adversary MakeAdversary(double amplitude, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  const auto gauss = [&] { return normal(random); };
  Adversary adversary;
  adversary.keys = MatrixXd::NullaryExpr(4096, kDim, gauss);
  for (Eigen::Index token = 0; token < 4096; ++token) {
    for (int channel : {3, 70}) adversary.keys(token, channel) -= amplitude * (1 + 0.05 * gauss());
    for (int channel : {21, 104})
      adversary.keys(token, channel) += amplitude * (1 + 0.05 * gauss());
  }
  MatrixXd queries = MatrixXd::NullaryExpr(2048, kDim, gauss);
  for (int channel : {3 ^ 70 ^ 21, 3 ^ 21 ^ 104, 3 ^ 70 ^ 104, 21 ^ 70 ^ 104})
    queries.col(channel) *= std::sqrt(40.0);
  adversary.q_moment = queries.transpose() * queries / 2048.0;
  adversary.k_moment = adversary.keys.transpose() * adversary.keys / 4096.0;
  return adversary;
}

TEST(MethodsTest, RotationsFittedToTheQueriesBearOutliersThatHadamardPilesUp) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    const Adversary a = MakeAdversary(24.0, seed);
    const auto score = [&](const std::optional<MatrixPair>& rotation, float clip) {
      return ScoreError(a.keys, Through(a.keys, rotation, clip), a.q_moment);
    };
    const MatrixPair hadamard = calibrate::FitHadamard(kDim);
    const MatrixPair oscar = calibrate::FitOscar(a.q_moment);
    const double naive = score(std::nullopt, 0.0f);
    const double plain = score(hadamard, 0.0f);
    const double clipped = score(hadamard, 0.96f);
    const double fitted = score(oscar, 0.96f);
    EXPECT_GT(naive, 3.0 * plain);
    EXPECT_GT(plain, 3.0 * fitted);
    EXPECT_NEAR(naive, 51.0, 2.5);
    EXPECT_NEAR(score(std::nullopt, 0.96f), 6.55, 0.5);
    EXPECT_NEAR(plain, 12.2, 0.6);
    EXPECT_NEAR(clipped, 8.95, 0.5);
    EXPECT_NEAR(score(calibrate::FitOscar(a.k_moment), 0.96f), 1.68, 0.15);
    EXPECT_NEAR(fitted, 2.85, 0.7);
  }
}

TEST(MethodsTest, WithoutStrongOutliersHadamardIsAsGood) {
  // No method wins everywhere: which is why calibration compares.
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    const Adversary a = MakeAdversary(8.0, seed);
    const auto score = [&](const MatrixPair& rotation) {
      return ScoreError(a.keys, Through(a.keys, rotation, 0.96f), a.q_moment);
    };
    EXPECT_NEAR(score(calibrate::FitHadamard(kDim)), 0.45, 0.03);
    EXPECT_NEAR(score(calibrate::FitOscar(a.q_moment)), 0.46, 0.04);
  }
}

}  // namespace
}  // namespace oscarkv::testing
