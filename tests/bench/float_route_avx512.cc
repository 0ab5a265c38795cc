#define OSCARKV_EIGEN_NAMESPACE EigenForAvx512
#include "tests/bench/float_route.inc"

const FloatRoute kFloatRouteAvx512 = {&Encode, &Decode, &PeakFma};

}  // namespace oscarkv::bench
