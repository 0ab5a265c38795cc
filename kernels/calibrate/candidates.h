// The transforms that calibration compares for one side of one layer.
#ifndef OSCARKV_KERNELS_CALIBRATE_CANDIDATES_H_
#define OSCARKV_KERNELS_CALIBRATE_CANDIDATES_H_

#include <string>
#include <vector>

#include "kernels/calibrate/calibrate.h"
#include "kernels/calibrate/fit.h"
#include "kernels/calibrate/moments.h"

namespace oscarkv::calibrate {

struct Candidate {
  std::string method;
  std::vector<MatrixPair> pairs;            // one for all heads, or one a head
  std::vector<Eigen::RowVectorXd> offsets;  // one a head, or none

  // In the codec's form, with a clip ratio: one for all heads, or one a head.
  std::vector<SideTransform> Build(float clip_ratio) const;
};

enum class Side { kK, kV };

// All candidates that `options` allow. K's balance against the queries, V's against attention's
// output.
std::vector<Candidate> MakeCandidates(Side side, const LayerMoments& moments,
                                      const CalibrateOptions& options);

// T = I, no clip: plain INT2.
Candidate NaiveCandidate(uint32_t dim);

}  // namespace oscarkv::calibrate

#endif  // OSCARKV_KERNELS_CALIBRATE_CANDIDATES_H_
