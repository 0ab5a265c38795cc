// Transforms fitted to second moments. Row-vector convention throughout: y = (x - m) T.
#ifndef OSCARKV_KERNELS_CALIBRATE_FIT_H_
#define OSCARKV_KERNELS_CALIBRATE_FIT_H_

#include <cstdint>
#include <vector>

#include <Eigen/Dense>

#include "kernels/codec/transform_set.h"

namespace oscarkv::calibrate {

// A matrix and its inverse, in double.
struct MatrixPair {
  Eigen::MatrixXd forward;
  Eigen::MatrixXd inverse;
};

// An orthogonal matrix whose entries are as equal as can be. Sylvester's for powers of two;
// otherwise the Kronecker product of Sylvester's of the largest power of two and the Hartley matrix
// of the odd part.
Eigen::MatrixXd MixingMatrix(uint32_t dim);

// OSCAR's permutation P, which gathers columns: perm[j] = dim - 1 - bitreverse(j) for powers of
// two, the identity otherwise.
std::vector<uint32_t> OscarPermutation(uint32_t dim);

// OSCAR's rotation R = U H P, U the eigenvectors of `moment`, ascending. The inverse is R'.
MatrixPair FitOscar(const Eigen::MatrixXd& moment);

MatrixPair FitHadamard(uint32_t dim);

// The transform that spreads error least when errors e of rows with second moment `rows` count as e
// W e': over all invertible A, tr(A' rows A) tr(A^-1 W A^-T) is least at A A' = rows^-1 # W, the
// matrix geometric mean; then T = U L^1/2 H of it. Eigenvalues are floored so that the condition
// number of T is at most `condition_max`.
MatrixPair FitBalanced(const Eigen::MatrixXd& rows, const Eigen::MatrixXd& weight,
                       double condition_max);

// The geometric mean of two symmetric positive definite matrices, A # B = A^1/2 (A^-1/2 B
// A^-1/2)^1/2 A^1/2.
Eigen::MatrixXd GeometricMean(const Eigen::MatrixXd& a, const Eigen::MatrixXd& b);

// Of the singular values of a matrix.
double ConditionNumber(const Eigen::MatrixXd& matrix);

SideTransform ToSideTransform(const MatrixPair& pair, const Eigen::RowVectorXd& offset,
                              float clip_ratio);

}  // namespace oscarkv::calibrate

#endif  // OSCARKV_KERNELS_CALIBRATE_FIT_H_
