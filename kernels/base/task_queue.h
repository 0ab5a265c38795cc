// A few threads that run tasks in order. Started by the first task, joined by the destructor.
#ifndef OSCARKV_KERNELS_BASE_TASK_QUEUE_H_
#define OSCARKV_KERNELS_BASE_TASK_QUEUE_H_

#include <deque>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"

namespace oscarkv {

// Thread-safe.
class TaskQueue {
 public:
  explicit TaskQueue(int threads) : thread_count_(threads) {}
  // Runs every task that was added, then joins the threads.
  ~TaskQueue();

  void Add(absl::AnyInvocable<void() &&> task);

 private:
  void Run();
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !tasks_.empty();
  }

  const int thread_count_;
  absl::Mutex mutex_;
  std::deque<absl::AnyInvocable<void() &&>> tasks_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread> threads_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_BASE_TASK_QUEUE_H_
