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

#include "client/cpp/call_group.h"
#include "client/cpp/circuit_breaker.h"
#include "client/cpp/client.h"
#include "client/cpp/fetch_times.h"
#include "client/cpp/unary_call.h"
#include "client/cpp/wire.h"
#include "kernels/base/task_queue.h"

namespace oscarkv::client {

class Paths;

// Thread-safe.
class Connection {
 public:
  explicit Connection(const ClientOptions& options);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  const ClientOptions& options() const { return options_; }

  // Runs `attempt` with a fresh call until it succeeds, its error is final, or the deadline has
  // come. UNAVAILABLE is tried again after a jittered wait. Asks and feeds the breaker: while it is
  // open the answer is UNAVAILABLE at once. CANCELLED once the group is.
  absl::Status Call(CallGroup& group, absl::Time deadline,
                    absl::FunctionRef<grpc::Status(UnaryCall&)> attempt);
  // The same of one message.
  absl::Status Call(CallGroup& group, absl::Time deadline, const char* method,
                    const google::protobuf::MessageLite& request,
                    google::protobuf::MessageLite* reply);
  // A call that belongs to no namespace.
  absl::Status Call(absl::Duration timeout, const char* method,
                    const google::protobuf::MessageLite& request,
                    google::protobuf::MessageLite* reply);

  // The same for a call that moves pages, on a channel for that.
  absl::Status Transfer(
      CallGroup& group, absl::Time deadline,
      absl::FunctionRef<grpc::Status(const std::shared_ptr<grpc::Channel>&)> attempt);

  // Connections for pages, one after the other; how many there are.
  std::shared_ptr<grpc::Channel> NextBulkChannel() ABSL_LOCKS_EXCLUDED(mutex_);
  size_t bulk_channels() const { return bulk_channels_max_; }

  // What a call would be told at once: CANCELLED after Close, UNAVAILABLE while the breaker is
  // open.
  absl::Status CheckCallable() const;

  // Ends the session. Calls from now on are CANCELLED.
  void Close();

  // The id of this client's live session, opened when there is none; 0 when that fails until the
  // deadline.
  uint64_t Session(absl::Time deadline);
  // What the server said when that session was opened; likewise.
  std::optional<v1::SessionReply> AwaitSession(absl::Time deadline);

  Paths& paths() { return *paths_; }
  FetchTimes& fetch_times() { return fetch_times_; }

  // Runs a push of `pages` pages behind those that wait, unless `bytes` more are too many: then it
  // counts as dropped, and false.
  bool RunPush(uint64_t pages, uint64_t bytes, absl::AnyInvocable<void() &&> task)
      ABSL_LOCKS_EXCLUDED(push_mutex_);
  // Until no push waits or is under way.
  bool AwaitPushes(absl::Duration timeout) const ABSL_LOCKS_EXCLUDED(push_mutex_);

  // Runs a task on the client's threads.
  void RunAsync(absl::AnyInvocable<void() &&> task) { tasks_.Add(std::move(task)); }

  ClientCounters counters() const;
  void CountReopen() { reopens_.fetch_add(1, std::memory_order_relaxed); }
  void CountBusyRetry() { busy_retries_.fetch_add(1, std::memory_order_relaxed); }
  void CountCorruptPage() { corrupt_pages_.fetch_add(1, std::memory_order_relaxed); }

 private:
  class SessionStream;
  absl::Status Repeat(CallGroup& group, absl::Time deadline, grpc::Channel& channel,
                      absl::FunctionRef<grpc::Status()> attempt);
  // For look-ups and control; made by the first call.
  std::shared_ptr<grpc::Channel> channel() ABSL_LOCKS_EXCLUDED(mutex_);
  bool NoPush() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(push_mutex_) { return queued_pushes_ == 0; }

  const ClientOptions options_;
  const size_t bulk_channels_max_;
  CircuitBreaker breaker_;
  absl::Mutex mutex_;
  std::shared_ptr<grpc::Channel> channel_ ABSL_GUARDED_BY(mutex_);
  // Pages have connections of their own: look-ups do not queue behind them, and are not held up by
  // one that is stuck.
  std::vector<std::shared_ptr<grpc::Channel>> bulk_channels_ ABSL_GUARDED_BY(mutex_);
  size_t next_bulk_channel_ ABSL_GUARDED_BY(mutex_) = 0;
  std::shared_ptr<SessionStream> session_ ABSL_GUARDED_BY(mutex_);
  // Counters: relaxed, each is read on its own.
  std::atomic<uint64_t> calls_ = 0;
  std::atomic<uint64_t> failures_ = 0;
  std::atomic<uint64_t> retries_ = 0;
  std::atomic<uint64_t> busy_retries_ = 0;
  std::atomic<uint64_t> reopens_ = 0;
  std::atomic<uint64_t> refused_ = 0;
  std::atomic<uint64_t> corrupt_pages_ = 0;
  std::atomic<bool> closed_ = false;
  FetchTimes fetch_times_;
  const std::unique_ptr<Paths> paths_;
  mutable absl::Mutex push_mutex_;
  uint64_t queued_pushes_ ABSL_GUARDED_BY(push_mutex_) = 0;
  uint64_t queued_push_bytes_ ABSL_GUARDED_BY(push_mutex_) = 0;
  uint64_t pushes_dropped_ ABSL_GUARDED_BY(push_mutex_) = 0;
  uint64_t pages_dropped_ ABSL_GUARDED_BY(push_mutex_) = 0;
  uint64_t bytes_dropped_ ABSL_GUARDED_BY(push_mutex_) = 0;
  // Last: their threads use what is above. Fetches do not wait behind pushes.
  TaskQueue push_tasks_{1};
  TaskQueue tasks_;
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_CONNECTION_H_
