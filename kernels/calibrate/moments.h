// Second moments and means of a layer's Q, K and V, accumulated in double over a stream of tokens.
#ifndef OSCARKV_KERNELS_CALIBRATE_MOMENTS_H_
#define OSCARKV_KERNELS_CALIBRATE_MOMENTS_H_

#include <vector>

#include "absl/status/statusor.h"
#include <Eigen/Dense>

#include "kernels/calibrate/dump.h"

namespace oscarkv::calibrate {

// Of one KV head. Matrices are second moments about zero, E[x' x] over row vectors x.
struct HeadMoments {
  Eigen::MatrixXd q;  // of the queries that read this head, all positions
  Eigen::MatrixXd k;  // positions >= sink_tokens
  Eigen::RowVectorXd k_mean;
  Eigen::MatrixXd v;  // positions >= sink_tokens
  Eigen::RowVectorXd v_mean;
  Eigen::MatrixXd v_scored;  // OSCAR's "sst": v weighted by w_t = k_t (Q'Q) k_t', all positions,
                             // weights summing to N
};

struct LayerMoments {
  uint64_t tokens = 0;      // all positions
  uint64_t kv_samples = 0;  // positions >= sink_tokens, of each head
  std::vector<HeadMoments> heads;
};

// Reads `sequences` of the dump twice (the weights of v_scored need Q's moments) in chunks of
// bounded size. kInvalidArgument names what is not finite.
absl::StatusOr<LayerMoments> AccumulateMoments(const LayerDump& dump,
                                               const std::vector<Sequence>& sequences,
                                               uint64_t sink_tokens);

}  // namespace oscarkv::calibrate

#endif  // OSCARKV_KERNELS_CALIBRATE_MOMENTS_H_
