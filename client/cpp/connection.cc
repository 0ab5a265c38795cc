#include "client/cpp/connection.h"

#include <algorithm>
#include <utility>

#include "absl/random/random.h"
#include "absl/time/clock.h"

#include "proto/convert/convert.h"

namespace oscarkv::client {
namespace {

constexpr absl::Duration kRetryWait = absl::Milliseconds(10);

// Whether the server answered at all: then the breaker has no reason to open.
bool IsAnswer(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kInternal:
      return false;
    default:
      return true;
  }
}

}  // namespace

// A session stream and the thread that waits for its end.
class Connection::SessionStream {
 public:
  SessionStream(const WireStubs& stubs, const std::string& name) {
    stream_ = stubs.cache->Session(&context_);
    v1::SessionRequest request;
    request.set_client_name(name);
    thread_ = std::thread([this, request] { Run(request); });
  }

  ~SessionStream() {
    context_.TryCancel();
    thread_.join();
  }

  // The session's id, waiting for it until the deadline; 0 when there is none (any more).
  uint64_t WaitForId(absl::Duration timeout) {
    const absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(this, &SessionStream::Known), timeout);
    return ended_ ? 0 : id_;
  }

  bool ended() {
    const absl::MutexLock lock(&mutex_);
    return ended_;
  }

 private:
  bool Known() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ended_ || id_ != 0; }

  void Run(const v1::SessionRequest& request) {
    v1::SessionReply reply;
    if (stream_->Write(request)) {
      while (stream_->Read(&reply)) {
        const absl::MutexLock lock(&mutex_);
        id_ = reply.session_id();
      }
    }
    stream_->Finish().ok();  // how it ended does not matter: its leases are gone
    const absl::MutexLock lock(&mutex_);
    ended_ = true;
  }

  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SessionRequest, v1::SessionReply>> stream_;
  absl::Mutex mutex_;
  uint64_t id_ ABSL_GUARDED_BY(mutex_) = 0;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

Connection::Connection(const ClientOptions& options)
    : options_(options), breaker_(options.breaker), tasks_(options.async_threads) {}

Connection::~Connection() {
  const absl::MutexLock lock(&stopping_mutex_);
  stopping_ = true;
}

const WireStubs& Connection::stubs() {
  const absl::MutexLock lock(&mutex_);
  if (stubs_ == nullptr) stubs_ = std::make_unique<WireStubs>(MakeWireStubs(options_.endpoint));
  return *stubs_;
}

bool Connection::WaitBeforeRetry(int attempt, absl::Time deadline) {
  absl::BitGen random;
  const absl::Duration wait = kRetryWait * (1 << attempt) * absl::Uniform(random, 0.5, 1.5);
  if (absl::Now() + wait >= deadline) return false;
  const absl::MutexLock lock(&stopping_mutex_);
  return !stopping_mutex_.AwaitWithTimeout(absl::Condition(&stopping_), wait);
}

absl::Status Connection::Call(absl::Duration timeout,
                              absl::FunctionRef<grpc::Status(grpc::ClientContext*)> attempt) {
  calls_.fetch_add(1, std::memory_order_relaxed);
  if (!breaker_.Allow(absl::Now())) {
    refused_.fetch_add(1, std::memory_order_relaxed);
    return absl::UnavailableError(
        "the store did not answer lately; it is asked again after a pause");
  }
  const absl::Time deadline = absl::Now() + timeout;
  absl::Status status;
  for (int number = 0;; ++number) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(deadline));
    status = FromGrpcStatus(attempt(&context));
    if (!absl::IsUnavailable(status) || number + 1 >= options_.attempts ||
        !WaitBeforeRetry(number, deadline))
      break;
    retries_.fetch_add(1, std::memory_order_relaxed);
  }
  if (IsAnswer(status)) {
    breaker_.OnSuccess();
  } else {
    failures_.fetch_add(1, std::memory_order_relaxed);
    breaker_.OnFailure(absl::Now());
  }
  return status;
}

uint64_t Connection::Session(absl::Duration timeout) {
  const WireStubs& wire = stubs();
  SessionStream* stream = nullptr;
  std::unique_ptr<SessionStream> ended;  // destroyed, and so joined, without the lock
  {
    const absl::MutexLock lock(&mutex_);
    if (session_ != nullptr && session_->ended()) ended = std::move(session_);
    if (session_ == nullptr) session_ = std::make_unique<SessionStream>(wire, options_.name);
    stream = session_.get();
  }
  return stream->WaitForId(timeout);
}

ClientCounters Connection::counters() const {
  const auto load = [](const std::atomic<uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  };
  return {.calls = load(calls_),
          .failures = load(failures_),
          .retries = load(retries_),
          .reopens = load(reopens_),
          .refused_by_breaker = load(refused_),
          .corrupt_pages = load(corrupt_pages_)};
}

}  // namespace oscarkv::client
