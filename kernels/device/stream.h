// Owners of streams and events. Move-only; destroying one that was moved from does nothing. Their
// raw handles are borrowed by value. Not thread-safe, as CUDA's own handles are not owned twice.
#ifndef OSCARKV_KERNELS_DEVICE_STREAM_H_
#define OSCARKV_KERNELS_DEVICE_STREAM_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "cuda_runtime_api.h"

namespace oscarkv::device {

// A stream of the current device that does not wait for the default stream.
class Stream {
 public:
  static absl::StatusOr<Stream> Create();
  Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept;
  ~Stream();

  cudaStream_t get() const { return stream_; }
  // Waits until everything enqueued so far is done; returns what it ended with.
  absl::Status Synchronize() const;

 private:
  explicit Stream(cudaStream_t stream) : stream_(stream) {}
  cudaStream_t stream_ = nullptr;
};

// A point in a stream.
class Event {
 public:
  enum class Timing { kOff, kOn };
  enum class Waiting { kSpin, kSleep };  // of Synchronize
  static absl::StatusOr<Event> Create(Timing timing = Timing::kOff,
                                      Waiting waiting = Waiting::kSpin);
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&& other) noexcept;
  ~Event();

  cudaEvent_t get() const { return event_; }
  absl::Status Record(cudaStream_t stream) const;
  // Work enqueued on `stream` from now on waits for the recorded point; the caller does not.
  absl::Status MakeWait(cudaStream_t stream) const;
  absl::Status Synchronize() const;
  absl::StatusOr<bool> Done() const;
  // Milliseconds from `start` to this event, both made with Timing::kOn and reached.
  absl::StatusOr<float> MillisecondsSince(const Event& start) const;

 private:
  explicit Event(cudaEvent_t event) : event_(event) {}
  cudaEvent_t event_ = nullptr;
};

}  // namespace oscarkv::device

#endif  // OSCARKV_KERNELS_DEVICE_STREAM_H_
