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
#include "client/cpp/stored_pages.h"
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

// Another sink, of which the state is told what it has taken.
class FollowedSink final : public PageSink {
 public:
  FollowedSink(PageSink& sink, PendingFetch::State& state) : sink_(sink), state_(state) {}

  uint64_t pages() const override { return sink_.pages(); }
  // The sink's, cut into those that are wanted together.
  std::vector<BlockRange> LayerGroups(BlockRange layers) const override;
  absl::Status Begin(BlockRange layers, BlockRange heads) override {
    return sink_.Begin(layers, heads);
  }
  absl::StatusOr<MutableByteView> Room(uint32_t page, Encoding encoding, BlockRange layers,
                                       uint64_t bytes) override {
    return sink_.Room(page, encoding, layers, bytes);
  }
  absl::Status Take(std::span<const uint32_t> block_crc32c) override {
    return sink_.Take(block_crc32c);
  }
  absl::Status TakeFrom(uint32_t page, Encoding encoding, BlockRange layers, ByteView bytes,
                        std::span<const uint32_t> block_crc32c) override {
    return sink_.TakeFrom(page, encoding, layers, bytes, block_crc32c);
  }
  DevicePages* device_pages() override { return sink_.device_pages(); }
  absl::Status EndLayers(BlockRange layers, uint32_t pages) override {
    OSCARKV_RETURN_IF_ERROR(sink_.EndLayers(layers, pages));
    state_.EndLayers(layers, pages);
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<absl::Status>> Finish() override { return sink_.Finish(); }
  void Abandon(const absl::Status& reason) override { sink_.Abandon(reason); }

 private:
  PageSink& sink_;
  PendingFetch::State& state_;
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_PENDING_FETCH_STATE_H_
