// Time, injected: what the store knows of it is one monotonic reading, so that tests move it by
// hand.
#ifndef OSCARKV_SERVER_CORE_CLOCK_H_
#define OSCARKV_SERVER_CORE_CLOCK_H_

#include "absl/time/time.h"

namespace oscarkv {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // Monotonic; its zero means nothing, only differences do. Never goes back.
  virtual absl::Duration Now() const = 0;
};

// The machine's monotonic clock.
class SystemClock final : public Clock {
 public:
  absl::Duration Now() const override;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_CLOCK_H_
