#include "server/tier/disk/uring_io.h"

#include <liburing.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"

namespace oscarkv {

// One ring, used by one thread at a time.
class UringIo::Ring {
 public:
  explicit Ring(uint32_t depth) : depth_(depth), error_(io_uring_queue_init(depth, &ring_, 0)) {}
  ~Ring() {
    if (error_ == 0) io_uring_queue_exit(&ring_);
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // 0, or the negative errno with which the ring could not be made, or stopped working.
  int error() const { return error_; }

  void Run(std::span<IoRequest> requests, absl::FunctionRef<void(IoRequest&)> ended) {
    std::vector<Flight> flights(requests.size());
    std::deque<Flight*> waiting;
    for (size_t i = 0; i < requests.size(); ++i) {
      flights[i].request = &requests[i];
      waiting.push_back(&flights[i]);
    }
    std::deque<Flight*> done;
    uint32_t in_flight = 0;
    while (error_ == 0 && (!waiting.empty() || in_flight > 0)) {
      bool prepared = false;
      for (; !waiting.empty() && in_flight < depth_; ++in_flight) {
        Prepare(*waiting.front());
        waiting.pop_front();
        prepared = true;
      }
      if (prepared || done.empty()) Submit(done.empty() ? 1 : 0);
      in_flight -= Reap(waiting, done);
      // What the caller does with a request takes a while: after a few, the device is given more.
      const size_t told = std::min<size_t>(done.size(), std::max(1u, depth_ / kPartsOfDepth));
      for (size_t i = 0; i < told; ++i) Tell(done, ended);
    }
    while (!done.empty()) Tell(done, ended);
    if (error_ != 0) Abandon(flights, in_flight, ended);
  }

 private:
  struct Flight {
    IoRequest* request = nullptr;
    uint64_t done = 0;  // bytes so far: the kernel may do less than it is asked
    bool told = false;
  };
  static constexpr uint32_t kPartsOfDepth = 8;

  void Prepare(Flight& flight) {
    // There is always an entry: no more are prepared than the ring is deep.
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    const IoRequest& request = *flight.request;
    std::byte* data = request.data.data() + flight.done;
    const auto bytes = static_cast<unsigned>(request.data.size() - flight.done);
    if (request.kind == IoKind::kRead) {
      io_uring_prep_read(entry, request.file, data, bytes, request.offset + flight.done);
    } else {
      io_uring_prep_write(entry, request.file, data, bytes, request.offset + flight.done);
    }
    io_uring_sqe_set_data(entry, &flight);
  }

  // Submits what was prepared and waits for `completions`.
  void Submit(unsigned completions) {
    const int submitted = io_uring_submit_and_wait(&ring_, completions);
    if (submitted >= 0 || submitted == -EINTR || submitted == -EAGAIN || submitted == -EBUSY)
      return;
    error_ = submitted;
  }

  static void Tell(std::deque<Flight*>& done, absl::FunctionRef<void(IoRequest&)> ended) {
    Flight& flight = *done.front();
    done.pop_front();
    flight.told = true;
    ended(*flight.request);
  }

  // Takes the completions that are there; returns how many requests left the ring. Those that have
  // ended are `done`, of the others the rest is `waiting`.
  uint32_t Reap(std::deque<Flight*>& waiting, std::deque<Flight*>& done) {
    uint32_t reaped = 0;
    io_uring_cqe* completion = nullptr;
    while (io_uring_peek_cqe(&ring_, &completion) == 0) {
      Flight& flight = *static_cast<Flight*>(io_uring_cqe_get_data(completion));
      const int result = completion->res;
      io_uring_cqe_seen(&ring_, completion);
      ++reaped;
      if (Ends(flight, result))
        done.push_back(&flight);
      else
        waiting.push_front(&flight);
    }
    return reaped;
  }

  // Whether the request has ended with this result; if not, the rest of it goes again.
  static bool Ends(Flight& flight, int result) {
    IoRequest& request = *flight.request;
    if (result == -EINTR || result == -EAGAIN) return false;
    if (result < 0) {
      request.status = IoError(-result, Describe(request));
      return true;
    }
    flight.done += static_cast<uint64_t>(result);
    if (flight.done < request.data.size() && result > 0) return false;
    request.status =
        flight.done == request.data.size()
            ? absl::OkStatus()
            : absl::DataLossError(absl::StrCat(Describe(request), ": ended after ", flight.done));
    return true;
  }

  // The ring takes no more: waits for what the kernel still works on, and fails the rest.
  void Abandon(std::span<Flight> flights, uint32_t in_flight,
               absl::FunctionRef<void(IoRequest&)> ended) {
    if (in_flight > 0) in_flight -= io_uring_sq_ready(&ring_);  // these it never saw
    std::deque<Flight*> unfinished;
    std::deque<Flight*> done;
    while (in_flight > 0) {
      io_uring_cqe* completion = nullptr;
      const int waited = io_uring_wait_cqe(&ring_, &completion);
      if (waited != 0 && waited != -EINTR) break;
      in_flight -= Reap(unfinished, done);
    }
    while (!done.empty()) Tell(done, ended);
    for (Flight& flight : flights) {
      if (flight.told) continue;
      flight.request->status =
          IoError(-error_, absl::StrCat("io_uring: ", Describe(*flight.request)));
      ended(*flight.request);
    }
  }

  const uint32_t depth_;
  io_uring ring_{};
  int error_;
};

UringIo::UringIo(const UringIoOptions& options, std::unique_ptr<Ring> first) : options_(options) {
  idle_.push_back(std::move(first));
}
UringIo::~UringIo() = default;

absl::StatusOr<std::unique_ptr<BlockIo>> UringIo::Create(const UringIoOptions& options) {
  if (options.depth == 0 || options.rings_max == 0)
    return absl::InvalidArgumentError("io_uring: depth and rings_max must be positive");
  auto first = std::make_unique<Ring>(options.depth);
  if (first->error() != 0) {
    return absl::UnavailableError(
        absl::StrCat("io_uring: ", std::string(IoError(-first->error(), "set-up").message())));
  }
  return std::unique_ptr<UringIo>(new UringIo(options, std::move(first)));
}

std::unique_ptr<UringIo::Ring> UringIo::TakeRing() {
  {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &UringIo::MayTakeRing));
    ++taken_;
    if (!idle_.empty()) {
      std::unique_ptr<Ring> ring = std::move(idle_.back());
      idle_.pop_back();
      return ring;
    }
  }
  return std::make_unique<Ring>(options_.depth);
}

void UringIo::ReturnRing(std::unique_ptr<Ring> ring) {
  // A ring that stopped working is not used again.
  if (ring->error() != 0) ring.reset();
  absl::MutexLock lock(&mutex_);
  --taken_;
  if (ring != nullptr) idle_.push_back(std::move(ring));
}

void UringIo::DoRun(std::span<IoRequest> requests, absl::FunctionRef<void(IoRequest&)> ended) {
  std::unique_ptr<Ring> ring = TakeRing();
  ring->Run(requests, ended);
  ReturnRing(std::move(ring));
}

}  // namespace oscarkv
