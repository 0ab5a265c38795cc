#include "client/cpp/pending_fetch.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"

#include "client/cpp/pending_fetch_state.h"
#include "kernels/base/status_macros.h"

namespace oscarkv::client {
namespace {

FetchRequest WithOwn(FetchRequest request, std::span<const std::string> keys,
                     std::span<const int64_t> slots) {
  request.keys = keys;
  request.slots = slots;
  return request;
}

absl::Status NotYet() { return absl::DeadlineExceededError("the fetch is still on its way"); }

}  // namespace

PendingFetch::State::State(const FetchRequest& request, uint32_t layers, StartFetchOptions options)
    : keys_(request.keys.begin(), request.keys.end()),
      slots_(request.slots.begin(), request.slots.end()),
      request_(WithOwn(request, keys_, slots_)),
      options_(std::move(options)),
      event_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      layer_pages_(layers) {}

PendingFetch::State::~State() {
  if (event_fd_ >= 0) close(event_fd_);
}

void PendingFetch::State::Signal() const {
  // It fails only when nobody has read for 2^64 signals, or there is no descriptor.
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(event_fd_, &one, sizeof(one));
}

bool PendingFetch::State::Begin(CallGroup* calls) {
  const absl::MutexLock lock(&mutex_);
  if (!cancelled_) calls_ = calls;
  return !cancelled_;
}

void PendingFetch::State::EndLayers(BlockRange layers, uint32_t pages) {
  {
    const absl::MutexLock lock(&mutex_);
    for (uint32_t i = 0; i < layers.count; ++i) layer_pages_[layers.first + i] = pages;
    Signal();  // whoever sees the layers finds the descriptor readable
  }
  if (options_.on_layers) options_.on_layers(layers, pages);
}

void PendingFetch::State::LetGoOfCalls() {
  const absl::MutexLock lock(&mutex_);
  calls_ = nullptr;
}

void PendingFetch::State::End(absl::StatusOr<FetchReport> report) {
  if (options_.done) options_.done(report);
  options_ = {};  // what its functions hold may be the caller's
  const absl::MutexLock lock(&mutex_);
  report_ = std::move(report);
  Signal();
}

void PendingFetch::State::Cancel() {
  const absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  if (calls_ != nullptr) calls_->Cancel();
}

absl::StatusOr<uint32_t> PendingFetch::State::AwaitLayer(uint32_t layer, absl::Duration timeout) {
  const absl::MutexLock lock(&mutex_);
  if (layer >= layer_pages_.size()) return 0;
  const auto known = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return layer_pages_[layer].has_value() || Done();
  };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&known), timeout)) return NotYet();
  return layer_pages_[layer].value_or(0);
}

absl::StatusOr<FetchReport> PendingFetch::State::Await(absl::Duration timeout) {
  const absl::MutexLock lock(&mutex_);
  if (!mutex_.AwaitWithTimeout(absl::Condition(this, &State::Done), timeout)) return NotYet();
  return *report_;
}

void PendingFetch::State::AwaitEnd() {
  const absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &State::Done));
}

bool PendingFetch::State::done() {
  const absl::MutexLock lock(&mutex_);
  return Done();
}

PendingFetch::PendingFetch(std::shared_ptr<State> state) : state_(std::move(state)) {}

PendingFetch::~PendingFetch() {
  state_->Cancel();
  state_->AwaitEnd();
}

absl::StatusOr<uint32_t> PendingFetch::AwaitLayer(uint32_t layer, absl::Duration timeout) const {
  return state_->AwaitLayer(layer, timeout);
}
absl::StatusOr<FetchReport> PendingFetch::Await(absl::Duration timeout) const {
  return state_->Await(timeout);
}
bool PendingFetch::done() const { return state_->done(); }
int PendingFetch::event_fd() const { return state_->event_fd(); }
void PendingFetch::Cancel() { state_->Cancel(); }

std::vector<BlockRange> FollowedSink::LayerGroups(BlockRange layers) const {
  std::vector<BlockRange> groups;
  for (const BlockRange group : sink().LayerGroups(layers)) {
    const uint32_t most = state_.layers_at_once() == 0 ? group.count : state_.layers_at_once();
    for (uint32_t at = 0; at < group.count; at += most)
      groups.push_back({group.first + at, std::min(most, group.count - at)});
  }
  return groups;
}

}  // namespace oscarkv::client
