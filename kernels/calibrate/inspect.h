// What can be told of transforms by looking at them, whoever made them.
#ifndef OSCARKV_KERNELS_CALIBRATE_INSPECT_H_
#define OSCARKV_KERNELS_CALIBRATE_INSPECT_H_

#include <vector>

#include "kernels/codec/transform_set.h"

namespace oscarkv::calibrate {

struct SideFacts {
  double condition = 1.0;        // of the forward matrix; greatest over heads
  double inversion_error = 0.0;  // max |T T^-1 - I| as stored, over heads
};

// Of one side of one layer. Costs about dim^3 for each head.
SideFacts Inspect(const std::vector<SideTransform>& heads);

}  // namespace oscarkv::calibrate

#endif  // OSCARKV_KERNELS_CALIBRATE_INSPECT_H_
