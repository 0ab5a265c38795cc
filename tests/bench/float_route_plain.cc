#define OSCARKV_EIGEN_NAMESPACE EigenForPlain
#include "tests/bench/float_route.inc"

const FloatRoute kFloatRoutePlain = {&Encode, &Decode, &PeakFma};

}  // namespace oscarkv::bench
