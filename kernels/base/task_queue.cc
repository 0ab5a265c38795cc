#include "kernels/base/task_queue.h"

#include <utility>

namespace oscarkv {

TaskQueue::~TaskQueue() {
  std::vector<std::thread> threads;
  {
    const absl::MutexLock lock(&mutex_);
    stopping_ = true;
    threads.swap(threads_);
  }
  for (std::thread& thread : threads) thread.join();
}

void TaskQueue::Add(absl::AnyInvocable<void() &&> task) {
  const absl::MutexLock lock(&mutex_);
  tasks_.push_back(std::move(task));
  while (static_cast<int>(threads_.size()) < thread_count_)
    threads_.emplace_back([this] { Run(); });
}

void TaskQueue::Run() {
  while (true) {
    absl::AnyInvocable<void() &&> task;
    {
      const absl::MutexLock lock(&mutex_, absl::Condition(this, &TaskQueue::HasWork));
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    std::move(task)();
  }
}

}  // namespace oscarkv
