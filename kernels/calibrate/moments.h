// Second moments and means of a layer's Q, K and V, accumulated in double over a stream of tokens.
#ifndef OSCARKV_KERNELS_CALIBRATE_MOMENTS_H_
#define OSCARKV_KERNELS_CALIBRATE_MOMENTS_H_

#include <vector>

#include "absl/status/statusor.h"
#include <Eigen/Dense>

#include "kernels/calibrate/dump.h"

namespace oscarkv::calibrate {

// Of one KV head. Matrices are second moments about zero, E[x' x] over row vectors x. Those of
// `balanced` and the offsets are weighted by the attention that the packed region gets (README.md,
// "What the covariances are weighted by").
struct HeadMoments {
  Eigen::MatrixXd
      q_plain;  // of the queries that read this head, all positions, equal weights: OSCAR's "qqt"
  Eigen::MatrixXd v_scored;  // v weighted by w_t = k_t (Q'Q) k_t', all positions: OSCAR's "sst"
  Eigen::MatrixXd q;         // weighted by the attention a query pays to packed keys
  Eigen::MatrixXd k;  // positions >= sink_tokens, weighted by the attention a packed key gets
  Eigen::RowVectorXd k_mean;
  Eigen::MatrixXd v;  // positions >= sink_tokens, weighted by the squares of the attention
  Eigen::RowVectorXd v_mean;
};

struct LayerMoments {
  uint64_t tokens = 0;      // all positions
  uint64_t kv_samples = 0;  // positions >= sink_tokens, of each head
  std::vector<HeadMoments> heads;
};

// Reads `sequences` of the dump twice (the weights of v_scored need Q's moments) in windows of
// bounded size. Sequences too short to have a packed region count with equal weights when no other
// gives any. kInvalidArgument names what is not finite.
absl::StatusOr<LayerMoments> AccumulateMoments(const LayerDump& dump,
                                               const std::vector<Sequence>& sequences,
                                               uint64_t sink_tokens, uint64_t recent_tokens);

}  // namespace oscarkv::calibrate

#endif  // OSCARKV_KERNELS_CALIBRATE_MOMENTS_H_
