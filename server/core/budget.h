// So much of something, of which only so much may be taken at once.
#ifndef OSCARKV_SERVER_CORE_BUDGET_H_
#define OSCARKV_SERVER_CORE_BUDGET_H_

#include <atomic>
#include <cstdint>
#include <limits>

namespace oscarkv {

// Thread-safe. Relaxed: it counts, and orders nothing.
class Budget {
 public:
  static constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

  explicit Budget(uint64_t most = kNoLimit) : most_(most) {}

  // Takes `amount` if it is there; returns whether it was. Never more than the limit is taken, not
  // even for a moment, unless the limit was lowered meanwhile.
  bool Take(uint64_t amount) { return TakeWithin(amount, false); }
  // The same, but who finds nothing taken may take any amount: what is larger than the budget goes
  // alone.
  bool TakeOrAlone(uint64_t amount) { return TakeWithin(amount, true); }
  void GiveBack(uint64_t amount) { taken_.fetch_sub(amount, std::memory_order_relaxed); }

  uint64_t taken() const { return taken_.load(std::memory_order_relaxed); }
  uint64_t most() const { return most_.load(std::memory_order_relaxed); }
  // May be below what is taken: then nothing more is, until enough has come back.
  void set_most(uint64_t most) { most_.store(most, std::memory_order_relaxed); }

 private:
  bool TakeWithin(uint64_t amount, bool alone) {
    const uint64_t limit = most();
    uint64_t now = taken();
    do {
      const bool fits = now <= limit && amount <= limit - now;
      if (!fits && !(alone && now == 0)) return false;
    } while (!taken_.compare_exchange_weak(now, now + amount, std::memory_order_relaxed));
    return true;
  }

  std::atomic<uint64_t> taken_{0};
  std::atomic<uint64_t> most_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_BUDGET_H_
