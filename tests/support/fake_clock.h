// A clock that the test moves.
#ifndef OSCARKV_TESTS_SUPPORT_FAKE_CLOCK_H_
#define OSCARKV_TESTS_SUPPORT_FAKE_CLOCK_H_

#include <atomic>
#include <cstdint>

#include "absl/time/time.h"

#include "server/core/clock.h"

namespace oscarkv::testing {

// Thread-safe.
class FakeClock final : public Clock {
 public:
  absl::Duration Now() const override { return absl::Nanoseconds(now_ns_.load()); }
  void Advance(absl::Duration by) { now_ns_.fetch_add(absl::ToInt64Nanoseconds(by)); }

 private:
  std::atomic<int64_t> now_ns_{0};
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_SUPPORT_FAKE_CLOCK_H_
