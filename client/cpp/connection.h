// One server as this client sees it: the channel, the session, retries and the circuit breaker.
#ifndef OSCARKV_CLIENT_CPP_CONNECTION_H_
#define OSCARKV_CLIENT_CPP_CONNECTION_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include <grpcpp/grpcpp.h>

#include "client/cpp/circuit_breaker.h"
#include "client/cpp/client.h"
#include "client/cpp/wire.h"
#include "kernels/base/task_queue.h"

namespace oscarkv::client {

// Thread-safe.
class Connection {
 public:
  explicit Connection(const ClientOptions& options);
  ~Connection();

  const ClientOptions& options() const { return options_; }

  // Runs `attempt` with a fresh context until it succeeds, its error is final, or the deadline of
  // now + timeout has come. UNAVAILABLE is tried again after a jittered wait. Asks and feeds the
  // breaker: while it is open the answer is UNAVAILABLE at once.
  absl::Status Call(absl::Duration timeout,
                    absl::FunctionRef<grpc::Status(grpc::ClientContext*)> attempt);

  // The stubs; made by the first call.
  const WireStubs& stubs();

  // The id of this client's live session, opened when there is none; 0 when that fails within
  // `timeout`.
  uint64_t Session(absl::Duration timeout);

  // Runs a task on the client's threads.
  void RunAsync(absl::AnyInvocable<void() &&> task) { tasks_.Add(std::move(task)); }

  ClientCounters counters() const;
  void CountReopen() { reopens_.fetch_add(1, std::memory_order_relaxed); }
  void CountCorruptPage() { corrupt_pages_.fetch_add(1, std::memory_order_relaxed); }

 private:
  class SessionStream;
  bool WaitBeforeRetry(int attempt, absl::Time deadline);

  const ClientOptions options_;
  CircuitBreaker breaker_;
  absl::Mutex mutex_;
  std::unique_ptr<WireStubs> stubs_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<SessionStream> session_ ABSL_GUARDED_BY(mutex_);
  absl::Mutex stopping_mutex_;
  bool stopping_ ABSL_GUARDED_BY(stopping_mutex_) = false;
  // Counters: relaxed, each is read on its own.
  std::atomic<uint64_t> calls_ = 0;
  std::atomic<uint64_t> failures_ = 0;
  std::atomic<uint64_t> retries_ = 0;
  std::atomic<uint64_t> reopens_ = 0;
  std::atomic<uint64_t> refused_ = 0;
  std::atomic<uint64_t> corrupt_pages_ = 0;
  TaskQueue tasks_;  // last: its threads use what is above
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_CONNECTION_H_
