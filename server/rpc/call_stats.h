// Counts and durations of calls, by method and status code; what /metrics shows of the services.
#ifndef OSCARKV_SERVER_RPC_CALL_STATS_H_
#define OSCARKV_SERVER_RPC_CALL_STATS_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <string_view>

#include "absl/time/time.h"

#include "kernels/base/latency_histogram.h"

namespace oscarkv {

enum class Method : uint8_t {
  kOpenNamespace,
  kPutTransformSet,
  kGetTransformSet,
  kSession,
  kLookup,
  kReleaseLease,
  kPut,
  kGet,
  kTouch,
  kDelete,
  kList,
  kClear,
  kStats,
  kDrain,
  kVerify,
  kShareDevice,
  kHoldPages,
  kEndHold,
  kOpenPeer,
  kSendPages,
  kBeginPush,
  kEndPush,
  kDeleteTransformSet,
  kPersist,
};
inline constexpr size_t kMethods = 24;
inline constexpr size_t kStatusCodes = 17;  // of gRPC, 0..16
std::string_view MethodName(Method method);

// Thread-safe. Counters are relaxed: each is read on its own.
class CallStats {
 public:
  void Record(Method method, int code, absl::Duration duration) {
    const size_t slot =
        code >= 0 && code < static_cast<int>(kStatusCodes) ? static_cast<size_t>(code) : 2;
    counts_[static_cast<size_t>(method)][slot].fetch_add(1, std::memory_order_relaxed);
    latencies_[static_cast<size_t>(method)].Record(duration);
  }
  uint64_t count(Method method, size_t code) const {
    return counts_[static_cast<size_t>(method)][code].load(std::memory_order_relaxed);
  }
  LatencyHistogram::Snapshot latency(Method method) const {
    return latencies_[static_cast<size_t>(method)].Take();
  }

 private:
  std::array<std::array<std::atomic<uint64_t>, kStatusCodes>, kMethods> counts_{};
  std::array<LatencyHistogram, kMethods> latencies_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_RPC_CALL_STATS_H_
