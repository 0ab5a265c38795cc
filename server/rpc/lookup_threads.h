// Serves look-ups and releases of leases on a queue and threads of their own: they never wait
// behind pages, whatever moves.
#ifndef OSCARKV_SERVER_RPC_LOOKUP_THREADS_H_
#define OSCARKV_SERVER_RPC_LOOKUP_THREADS_H_

#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include <grpcpp/grpcpp.h>

#include "server/rpc/cache_service.h"

namespace oscarkv {

// Used by one thread.
class LookupThreads {
 public:
  // Before `builder` builds the server that `service` is registered with. The service is borrowed.
  LookupThreads(CacheService& service, grpc::ServerBuilder& builder);
  ~LookupThreads();
  LookupThreads(const LookupThreads&) = delete;
  LookupThreads& operator=(const LookupThreads&) = delete;

  // Once the server has been built.
  void Start();
  // After the server's Shutdown, or when it was not built.
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  class Slot;
  void Run();

  CacheService& service_;
  const std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<std::thread> threads_;
  // gRPC takes nothing for a queue that is shut down: held, shared, while a slot asks for a call.
  absl::Mutex mutex_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_RPC_LOOKUP_THREADS_H_
