// What a pending fetch and the thread that fetches share. Included by the client's own sources
// only.
#ifndef OSCARKV_CLIENT_CPP_PENDING_FETCH_STATE_H_
#define OSCARKV_CLIENT_CPP_PENDING_FETCH_STATE_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

#include "client/cpp/call_group.h"
#include "client/cpp/pending_fetch.h"
#include "client/cpp/sink_around.h"
#include "kernels/base/status_macros.h"

namespace oscarkv::client {

// Thread-safe.
class PendingFetch::State {
 public:
  // `layers`: of the model. Copies the request, so that only the view is the caller's to keep.
  State(const FetchRequest& request, uint32_t layers, StartFetchOptions options);
  ~State();

  const FetchRequest& request() const { return request_; }
  uint32_t layers_at_once() const { return options_.layers_at_once; }

  // By the thread that fetches. False: it was cancelled, nothing is to be done. `calls` is
  // cancelled when the fetch is, until End.
  bool Begin(CallGroup* calls) ABSL_LOCKS_EXCLUDED(mutex_);
  void EndLayers(BlockRange layers, uint32_t pages) ABSL_LOCKS_EXCLUDED(mutex_);
  // The fetch's calls are over.
  void LetGoOfCalls() ABSL_LOCKS_EXCLUDED(mutex_);
  void End(absl::StatusOr<FetchReport> report) ABSL_LOCKS_EXCLUDED(mutex_);

  void Cancel() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<uint32_t> AwaitLayer(uint32_t layer, absl::Duration timeout)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<FetchReport> Await(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mutex_);
  void AwaitEnd() ABSL_LOCKS_EXCLUDED(mutex_);
  bool done() ABSL_LOCKS_EXCLUDED(mutex_);
  int event_fd() const { return event_fd_; }

 private:
  bool Done() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return report_.has_value(); }
  void Signal() const;

  const std::vector<std::string> keys_;
  const std::vector<int64_t> slots_;
  const FetchRequest request_;
  StartFetchOptions options_;  // its functions are called by the thread that fetches
  const int event_fd_;

  absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  CallGroup* calls_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::vector<std::optional<uint32_t>> layer_pages_ ABSL_GUARDED_BY(mutex_);  // [layers]
  std::optional<absl::StatusOr<FetchReport>> report_ ABSL_GUARDED_BY(mutex_);
};

// Tells the state what the sink has taken.
class FollowedSink final : public SinkAround {
 public:
  FollowedSink(PageSink& sink, PendingFetch::State& state) : SinkAround(sink), state_(state) {}

  // The sink's, cut into those that are wanted together.
  std::vector<BlockRange> LayerGroups(BlockRange layers) const override;
  absl::Status EndLayers(BlockRange layers, uint32_t pages) override {
    OSCARKV_RETURN_IF_ERROR(sink().EndLayers(layers, pages));
    state_.EndLayers(layers, pages);
    return absl::OkStatus();
  }

 private:
  PendingFetch::State& state_;
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_PENDING_FETCH_STATE_H_
