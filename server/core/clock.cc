#include "server/core/clock.h"

#include <chrono>

namespace oscarkv {

absl::Duration SystemClock::Now() const {
  return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

}  // namespace oscarkv
