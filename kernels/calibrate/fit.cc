#include "kernels/calibrate/fit.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>

namespace oscarkv::calibrate {
namespace {

using Eigen::MatrixXd;
using Solver = Eigen::SelfAdjointEigenSolver<MatrixXd>;

// Keeps moments of few or degenerate samples invertible.
constexpr double kRidge = 1e-7;

MatrixXd Regularized(const MatrixXd& moment) {
  const double mean = std::max(moment.trace() / static_cast<double>(moment.rows()), 1e-30);
  return 0.5 * (moment + moment.transpose()) +
         kRidge * mean * MatrixXd::Identity(moment.rows(), moment.cols());
}

// f(eigenvalue) of a symmetric matrix.
MatrixXd Power(const MatrixXd& matrix, double exponent) {
  const Solver solver(matrix);
  const Eigen::VectorXd values = solver.eigenvalues().cwiseMax(1e-300).array().pow(exponent);
  return solver.eigenvectors() * values.asDiagonal() * solver.eigenvectors().transpose();
}

uint32_t BitReverse(uint32_t value, uint32_t bits) {
  uint32_t reversed = 0;
  for (uint32_t bit = 0; bit < bits; ++bit) reversed |= ((value >> bit) & 1u) << (bits - 1 - bit);
  return reversed;
}

}  // namespace

MatrixXd MixingMatrix(uint32_t dim) {
  const uint32_t power = dim & (~dim + 1);  // the largest power of two that divides dim
  const uint32_t odd = dim / power;
  MatrixXd matrix(dim, dim);
  const double scale = 1.0 / std::sqrt(static_cast<double>(dim));
  for (uint32_t i = 0; i < dim; ++i) {
    for (uint32_t j = 0; j < dim; ++j) {
      const double sign = std::popcount((i / odd) & (j / odd)) % 2 == 0 ? 1.0 : -1.0;
      const double angle =
          2.0 * std::numbers::pi * static_cast<double>((i % odd) * (j % odd) % odd) / odd;
      matrix(i, j) = sign * scale * (std::cos(angle) + std::sin(angle));
    }
  }
  return matrix;
}

std::vector<uint32_t> OscarPermutation(uint32_t dim) {
  std::vector<uint32_t> permutation(dim);
  const auto bits = static_cast<uint32_t>(std::countr_zero(dim));
  for (uint32_t j = 0; j < dim; ++j)
    permutation[j] = std::has_single_bit(dim) ? dim - 1 - BitReverse(j, bits) : j;
  return permutation;
}

MatrixPair FitOscar(const MatrixXd& moment) {
  const Solver solver(0.5 * (moment + moment.transpose()));
  const auto dim = static_cast<uint32_t>(moment.rows());
  const MatrixXd mixed = solver.eigenvectors() * MixingMatrix(dim);
  const std::vector<uint32_t> permutation = OscarPermutation(dim);
  MatrixPair pair{MatrixXd(dim, dim), {}};
  for (uint32_t j = 0; j < dim; ++j) pair.forward.col(j) = mixed.col(permutation[j]);
  pair.inverse = pair.forward.transpose();
  return pair;
}

MatrixPair FitHadamard(uint32_t dim) {
  const MatrixXd matrix = MixingMatrix(dim);
  return {matrix, matrix.transpose()};
}

MatrixXd GeometricMean(const MatrixXd& a, const MatrixXd& b) {
  const MatrixXd root = Power(a, 0.5);
  const MatrixXd inverse_root = Power(a, -0.5);
  const MatrixXd inner = inverse_root * b * inverse_root;
  return root * Power(0.5 * (inner + inner.transpose()), 0.5) * root;
}

MatrixPair FitBalanced(const MatrixXd& rows, const MatrixXd& weight, double condition_max) {
  const MatrixXd regular = Regularized(rows);
  const MatrixXd mean = GeometricMean(Power(regular, -1.0), Regularized(weight));
  const Solver solver(0.5 * (mean + mean.transpose()));
  const double floor = solver.eigenvalues().maxCoeff() / (condition_max * condition_max);
  Eigen::VectorXd root = solver.eigenvalues().cwiseMax(floor).cwiseSqrt();
  // The scale of T is free: keep the energy of the rows, so that scales stay in the range of the
  // params.
  const MatrixXd shaped = solver.eigenvectors() * root.asDiagonal();
  root *= std::sqrt(regular.trace() / (shaped.transpose() * regular * shaped).trace());
  const MatrixXd mixing = MixingMatrix(static_cast<uint32_t>(rows.rows()));
  return {
      solver.eigenvectors() * root.asDiagonal() * mixing,
      mixing.transpose() * root.cwiseInverse().asDiagonal() * solver.eigenvectors().transpose()};
}

double ConditionNumber(const MatrixXd& matrix) {
  // Of the Gram matrix, in double: exact enough up to about 1e6, and far faster than a singular
  // value decomposition.
  const Eigen::VectorXd values =
      Solver(matrix.transpose() * matrix, Eigen::EigenvaluesOnly).eigenvalues();
  return std::sqrt(values.maxCoeff() / std::max(values.minCoeff(), 1e-300));
}

SideTransform ToSideTransform(const MatrixPair& pair, const Eigen::RowVectorXd& offset,
                              float clip_ratio) {
  using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const auto dim = static_cast<uint32_t>(pair.forward.rows());
  SideTransform side;
  side.dim = dim;
  side.clip_ratio = clip_ratio;
  side.forward.resize(size_t{dim} * dim);
  side.inverse.resize(size_t{dim} * dim);
  side.offset.resize(dim);
  Eigen::Map<RowMajor>(side.forward.data(), dim, dim) = pair.forward.cast<float>();
  Eigen::Map<RowMajor>(side.inverse.data(), dim, dim) = pair.inverse.cast<float>();
  Eigen::Map<Eigen::RowVectorXf>(side.offset.data(), dim) = offset.cast<float>();
  return side;
}

}  // namespace oscarkv::calibrate
