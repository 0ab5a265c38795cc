// Made-up activations as dumps on disk, for tests of calibration.
#ifndef OSCARKV_TESTS_CALIBRATE_SYNTHETIC_DUMP_H_
#define OSCARKV_TESTS_CALIBRATE_SYNTHETIC_DUMP_H_

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include <Eigen/Dense>

#include "kernels/calibrate/dump.h"

namespace oscarkv::calibrate::testing {

// One layer's Q, K and V: a matrix [tokens, dim] for each head.
struct Activations {
  std::vector<RowMatrix> q, k, v;

  uint64_t tokens() const { return static_cast<uint64_t>(k[0].rows()); }
  // Tokens `first`..`first + count` alone.
  Activations Slice(Eigen::Index first, Eigen::Index count) const;
};

// Normal rows whose channels have gains of their own, K with a mean; `q_heads` query heads on
// `kv_heads` KV heads.
Activations MakeActivations(uint32_t tokens, uint32_t q_heads, uint32_t kv_heads, uint32_t k_dim,
                            uint32_t v_dim, uint32_t seed);

// Writes a file of sequences of `lengths` tokens (which add up; none: one sequence) into the test's
// own folder and returns its path.
std::string WriteLayer(const std::string& name, const Activations& layer,
                       const std::vector<int64_t>& lengths = {});

// Opened again; fails the test when that fails.
LayerDump OpenLayer(const std::string& name, const Activations& layer,
                    const std::vector<int64_t>& lengths = {});

RowMatrix RandomRows(Eigen::Index rows, Eigen::Index columns, uint32_t seed);
// Symmetric positive definite, with eigenvalues spread over some orders of magnitude.
Eigen::MatrixXd RandomMoment(uint32_t dim, uint32_t seed);

}  // namespace oscarkv::calibrate::testing

#endif  // OSCARKV_TESTS_CALIBRATE_SYNTHETIC_DUMP_H_
