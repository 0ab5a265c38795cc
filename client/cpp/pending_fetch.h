// A fetch on its way, layer by layer.
#ifndef OSCARKV_CLIENT_CPP_PENDING_FETCH_H_
#define OSCARKV_CLIENT_CPP_PENDING_FETCH_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "client/cpp/client.h"

namespace oscarkv::client {

// What Namespace::StartFetch returns. Thread-safe. Outlives the namespace if need be.
class PendingFetch {
 public:
  class State;
  explicit PendingFetch(std::shared_ptr<State> state);
  // Cancels, and returns when nobody writes to the cache any more.
  ~PendingFetch();
  PendingFetch(const PendingFetch&) = delete;
  PendingFetch& operator=(const PendingFetch&) = delete;

  // How many pages, from the first on, are whole in `layer`, waiting for it; 0 for one that did not
  // come or was not asked for. kDeadlineExceeded: not known yet.
  absl::StatusOr<uint32_t> AwaitLayer(uint32_t layer, absl::Duration timeout) const;
  // What Fetch returns, waiting for it. kDeadlineExceeded: not known yet.
  absl::StatusOr<FetchReport> Await(absl::Duration timeout) const;
  bool done() const;
  // An eventfd of this object's: readable when layers have come and when the fetch has ended. What
  // is read from it does not matter; it does not block.
  int event_fd() const;
  // Ends the fetch soon, whatever the store does: the page that is being decoded is the last that
  // is written. Its report says CANCELLED, unless it had ended before.
  void Cancel();

 private:
  const std::shared_ptr<State> state_;
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_PENDING_FETCH_H_
