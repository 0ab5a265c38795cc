// The log of corrupt pages. A client that puts corrupt pages without end, or a disk that dies, must
// not flood it: what is left out is counted, and the count is logged.
#ifndef OSCARKV_SERVER_CORRUPT_LOG_H_
#define OSCARKV_SERVER_CORRUPT_LOG_H_

#include <array>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "kernels/base/log.h"
#include "server/core/clock.h"
#include "server/core/corrupt_page.h"

namespace oscarkv {

// Thread-safe.
class CorruptLog {
 public:
  // A line for each of so many pages within so long; of each CorruptAt, so that what clients put
  // leaves none out of what was found in memory or on disk.
  static constexpr uint64_t kPagesMax = 100;
  static constexpr absl::Duration kWithin = absl::Seconds(10);

  // Both are borrowed.
  CorruptLog(const Logger& logger, const Clock& clock) : logger_(logger), clock_(clock) {}

  // Logs the page, or counts it. O(1), and no line is made of one that is counted.
  void Log(const CorruptPage& page);
  // Logs how many pages were left out, of each time that is over. To be called now and then, as
  // there may be no page after them.
  void LogLeftOut();

 private:
  struct Window {
    absl::Duration begin;
    uint64_t pages = 0;
  };
  // Ends the window if its time is over; returns how many pages it left out.
  static uint64_t EndIfOver(Window& window, absl::Duration now);
  void LogCount(CorruptAt at, uint64_t pages) const;

  const Logger& logger_;
  const Clock& clock_;
  absl::Mutex mutex_;
  std::array<Window, kCorruptAts> windows_ ABSL_GUARDED_BY(mutex_);  // [CorruptAt]
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORRUPT_LOG_H_
