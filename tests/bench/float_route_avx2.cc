#define OSCARKV_EIGEN_NAMESPACE EigenForAvx2
#include "tests/bench/float_route.inc"

const FloatRoute kFloatRouteAvx2 = {&Encode, &Decode, &PeakFma};

}  // namespace oscarkv::bench
