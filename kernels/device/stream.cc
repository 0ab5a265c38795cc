#include "kernels/device/stream.h"

#include "kernels/device/status.h"

namespace oscarkv::device {

absl::StatusOr<Stream> Stream::Create() {
  cudaStream_t stream = nullptr;
  absl::Status status =
      ToStatus(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  if (!status.ok()) return status;
  return Stream(stream);
}

Stream& Stream::operator=(Stream&& other) noexcept {
  std::swap(stream_, other.stream_);
  return *this;
}

Stream::~Stream() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::Status Stream::Synchronize() const {
  return ToStatus(cudaStreamSynchronize(stream_), "waiting for a stream");
}

absl::StatusOr<Event> Event::Create(Timing timing, Waiting waiting) {
  cudaEvent_t event = nullptr;
  const unsigned flags = (timing == Timing::kOn ? cudaEventDefault : cudaEventDisableTiming) |
                         (waiting == Waiting::kSleep ? cudaEventBlockingSync : cudaEventDefault);
  absl::Status status = ToStatus(cudaEventCreateWithFlags(&event, flags), "making an event");
  if (!status.ok()) return status;
  return Event(event);
}

Event& Event::operator=(Event&& other) noexcept {
  std::swap(event_, other.event_);
  return *this;
}

Event::~Event() {
  if (event_ != nullptr) cudaEventDestroy(event_);
}

absl::Status Event::Record(cudaStream_t stream) const {
  return ToStatus(cudaEventRecord(event_, stream), "recording an event");
}

absl::Status Event::MakeWait(cudaStream_t stream) const {
  return ToStatus(cudaStreamWaitEvent(stream, event_), "making a stream wait");
}

absl::Status Event::Synchronize() const {
  return ToStatus(cudaEventSynchronize(event_), "waiting for an event");
}

absl::StatusOr<bool> Event::Done() const {
  const cudaError_t state = cudaEventQuery(event_);
  if (state == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  absl::Status status = ToStatus(state, "asking an event");
  if (!status.ok()) return status;
  return true;
}

absl::StatusOr<float> Event::MillisecondsSince(const Event& start) const {
  float milliseconds = 0.0f;
  absl::Status status = ToStatus(cudaEventElapsedTime(&milliseconds, start.event_, event_),
                                 "measuring between events");
  if (!status.ok()) return status;
  return milliseconds;
}

}  // namespace oscarkv::device
