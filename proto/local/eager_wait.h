// Waiting for another process of the host that answers soon: whoever waits looks again and again
// for a while before it sleeps. To be woken costs 10 to 50 us where the core has gone to sleep
// meanwhile, which is more than the rest of a request among neighbours takes.
#ifndef OSCARKV_PROTO_LOCAL_EAGER_WAIT_H_
#define OSCARKV_PROTO_LOCAL_EAGER_WAIT_H_

#include <chrono>
#include <cstdint>

namespace oscarkv {

// Waits for one kind of thing, one after the other, by one thread at a time. A wait looks only
// where the one before was short, and while at most half of the cores look in this process: with
// one core, never. Where it is in vain, because nothing comes soon or because others want the
// cores, it is tried ever more rarely: looking then keeps from the core who would answer.
class EagerWait {
 public:
  // A few times what sleeping and being woken cost; what a client needs to read 1 MiB.
  static constexpr std::chrono::microseconds kLookMax{100};
  // Short waits to come before looking is tried again, at most: some 0.1 s of them.
  static constexpr uint32_t kPauseMax = 4095;

  // One wait, from its construction on.
  class Look {
   public:
    // `waits` null: does not look.
    explicit Look(EagerWait* waits);
    ~Look() { Stop(); }
    Look(const Look&) = delete;
    Look& operator=(const Look&) = delete;

    // Whether to look once more; if not, sleep.
    bool Again();
    // What was waited for is here.
    void Came();

   private:
    void Stop();

    EagerWait* const waits_;
    std::chrono::steady_clock::time_point start_;
    bool looks_ = false;
  };

 private:
  uint32_t ahead_ = 1;  // short waits to come before the next that looks
  // What `ahead_` was after looking in vain: four times as many each time, and one less after each
  // time that was not in vain. So where one in 50 is, it is soon hardly tried.
  uint32_t pause_ = 0;
};

}  // namespace oscarkv

#endif  // OSCARKV_PROTO_LOCAL_EAGER_WAIT_H_
