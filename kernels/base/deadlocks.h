// Whether Abseil looks for deadlocks in this process.
#ifndef OSCARKV_KERNELS_BASE_DEADLOCKS_H_
#define OSCARKV_KERNELS_BASE_DEADLOCKS_H_

#include "absl/synchronization/mutex.h"

namespace oscarkv {

// A distribution's Abseil looks for deadlocks at every lock, over a graph of all of them with a
// lock of its own, which gRPC's threads meet at. Builds for development go on looking.
inline void LookForNoDeadlocks() {
#ifdef NDEBUG
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
#endif
}

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_BASE_DEADLOCKS_H_
