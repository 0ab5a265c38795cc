// Waits before a store that was too busy for a page is asked again. Included by the client's own
// sources only.
#ifndef OSCARKV_CLIENT_CPP_BUSY_WAIT_H_
#define OSCARKV_CLIENT_CPP_BUSY_WAIT_H_

#include <algorithm>

#include "absl/random/random.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

#include "client/cpp/namespace_impl.h"

namespace oscarkv::client {

// Of one fetch or push; each wait is longer than the one before, until something got on.
class BusyWait {
 public:
  // Both are borrowed.
  BusyWait(Namespace::Impl& space, const CallGroup& group, absl::Time deadline)
      : space_(space), group_(group), deadline_(deadline) {}

  void GotOn() { wait_ = kFirst; }
  // Waits. False: it is too late for another answer, so the last one stands; or it was cancelled.
  bool Wait() {
    absl::BitGen random;
    const absl::Duration rest = wait_ * absl::Uniform(random, 0.5, 1.5);
    if (absl::Now() + rest >= deadline_ || group_.WaitCancelled(rest)) return false;
    wait_ = std::min(2 * wait_, kMost);
    space_.connection()->CountBusyRetry();
    return true;
  }

 private:
  static constexpr absl::Duration kFirst = absl::Milliseconds(10);
  static constexpr absl::Duration kMost = absl::Milliseconds(320);

  Namespace::Impl& space_;
  const CallGroup& group_;
  const absl::Time deadline_;
  absl::Duration wait_ = kFirst;
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_BUSY_WAIT_H_
