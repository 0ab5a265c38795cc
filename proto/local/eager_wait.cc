#include "proto/local/eager_wait.h"

#include <sched.h>

#include <algorithm>
#include <atomic>

namespace oscarkv {
namespace {

// That this process may run on.
int Cores() {
  cpu_set_t cores;
  return sched_getaffinity(0, sizeof(cores), &cores) == 0 ? CPU_COUNT(&cores) : 1;
}

// Relaxed: a bound on what is spent, which orders nothing.
std::atomic<int> looking = 0;

bool TakePlace() {
  static const int places = Cores() / 2;
  if (looking.fetch_add(1, std::memory_order_relaxed) < places) return true;
  looking.fetch_sub(1, std::memory_order_relaxed);
  return false;
}

}  // namespace

EagerWait::Look::Look(EagerWait* waits) : waits_(waits) {
  if (waits_ == nullptr) return;
  start_ = std::chrono::steady_clock::now();
  looks_ = waits_->ahead_ == 0 && TakePlace();
}

bool EagerWait::Look::Again() {
  if (!looks_) return false;
  if (std::chrono::steady_clock::now() - start_ < kLookMax) return true;
  Stop();
  waits_->pause_ = std::min(4 * waits_->pause_ + 3, kPauseMax);
  waits_->ahead_ = waits_->pause_;
  return false;
}

void EagerWait::Look::Came() {
  if (waits_ == nullptr) return;
  const bool soon = std::chrono::steady_clock::now() - start_ <= kLookMax;
  if (!soon) {
    waits_->ahead_ = std::max(waits_->ahead_, 1u);
  } else if (looks_) {
    waits_->pause_ -= waits_->pause_ > 0 ? 1 : 0;
  } else if (waits_->ahead_ > 0) {
    --waits_->ahead_;
  }
  Stop();
}

void EagerWait::Look::Stop() {
  if (looks_) looking.fetch_sub(1, std::memory_order_relaxed);
  looks_ = false;
}

}  // namespace oscarkv
