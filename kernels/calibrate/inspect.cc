#include "kernels/calibrate/inspect.h"

#include <algorithm>

#include "kernels/calibrate/dump.h"
#include "kernels/calibrate/fit.h"

namespace oscarkv::calibrate {

SideFacts Inspect(const std::vector<SideTransform>& heads) {
  SideFacts facts;
  for (const SideTransform& head : heads) {
    const Eigen::Map<const RowMatrix> stored_forward(head.forward.data(), head.dim, head.dim);
    const Eigen::Map<const RowMatrix> stored_inverse(head.inverse.data(), head.dim, head.dim);
    const Eigen::MatrixXd forward = stored_forward.cast<double>();
    const Eigen::MatrixXd difference =
        forward * stored_inverse.cast<double>() - Eigen::MatrixXd::Identity(head.dim, head.dim);
    facts.condition = std::max(facts.condition, ConditionNumber(forward));
    facts.inversion_error = std::max(facts.inversion_error, difference.cwiseAbs().maxCoeff());
  }
  return facts;
}

}  // namespace oscarkv::calibrate
