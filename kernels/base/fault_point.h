// Named places in the program where tests let something happen: a kill, a pause, a fault. They are
// in every build, so that what is tested is what runs: a place costs one load of a line that nobody
// writes, and stands where a message or a page is handled, never in a loop over bytes. What happens
// there is not in the program: only what a test links in sets a handler
// (tests/support/fault_from_environment.cc), and nothing outside of the process can.
#ifndef OSCARKV_KERNELS_BASE_FAULT_POINT_H_
#define OSCARKV_KERNELS_BASE_FAULT_POINT_H_

#include <atomic>
#include <string_view>

namespace oscarkv {

using FaultHandler = void (*)(std::string_view point);

namespace internal {
inline std::atomic<FaultHandler> fault_handler = nullptr;
}  // namespace internal

// By tests. Called on any thread, perhaps on many at once.
inline void SetFaultHandler(FaultHandler handler) { internal::fault_handler.store(handler); }

// `point`: "part.what has just been done", of which nothing that follows has been.
inline void FaultPoint(std::string_view point) {
  const FaultHandler handler = internal::fault_handler.load(std::memory_order_relaxed);
  if (handler != nullptr) handler(point);
}

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_BASE_FAULT_POINT_H_
