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

  // In the codec's form, one a head, without clip.
  std::vector<SideTransform> Build(uint32_t heads) const;
};

enum class Side { kK, kV };

// All candidates that `options` allow, at least one. K is balanced against the queries, V against
// attention's output. `identity`, `hadamard` and `oscar` alone mean the published form (shared by
// the heads of a layer, no offset) unless the options say otherwise.
std::vector<Candidate> MakeCandidates(Side side, const LayerMoments& moments,
                                      const CalibrateOptions& options);

// T = I, no clip: plain INT2.
Candidate NaiveCandidate(uint32_t dim);

}  // namespace oscarkv::calibrate

#endif  // OSCARKV_KERNELS_CALIBRATE_CANDIDATES_H_
