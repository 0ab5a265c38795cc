// Wakes a thread that waits for work. A ring while nobody waits is remembered.
#ifndef OSCARKV_SERVER_CORE_BELL_H_
#define OSCARKV_SERVER_CORE_BELL_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace oscarkv {

// Thread-safe; calls nobody under its lock. Every thread that waits hears a ring.
class Bell {
 public:
  void Ring() {
    absl::MutexLock lock(&mutex_);
    ++rings_;
  }
  // Nobody waits from now on.
  void Stop() {
    absl::MutexLock lock(&mutex_);
    stopped_ = true;
  }
  bool stopped() {
    absl::MutexLock lock(&mutex_);
    return stopped_;
  }
  // Until it has rung more often than `heard`, which becomes the number of rings, or was stopped;
  // false then.
  bool Await(uint64_t* heard) {
    absl::MutexLock lock(&mutex_);
    const auto rung = [this, heard]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return stopped_ || rings_ != *heard;
    };
    mutex_.Await(absl::Condition(&rung));
    *heard = rings_;
    return !stopped_;
  }
  // For `pause`, whether it rings or not; false when it was stopped.
  bool Pause(absl::Duration pause) {
    absl::MutexLock lock(&mutex_);
    return !mutex_.AwaitWithTimeout(absl::Condition(&stopped_), pause);
  }

 private:
  absl::Mutex mutex_;
  uint64_t rings_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_BELL_H_
