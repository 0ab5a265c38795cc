#include "client/cpp/connection.h"

#include <algorithm>
#include <utility>

#include "absl/random/random.h"
#include "absl/time/clock.h"

#include "client/cpp/bulk_call.h"
#include "client/cpp/paths.h"
#include "kernels/base/fault_point.h"
#include "proto/convert/convert.h"
#include "proto/convert/data_frames.h"

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

absl::Status RefusedError() {
  return absl::UnavailableError("the store did not answer lately; it is asked again after a pause");
}

absl::Status ClosedError() { return absl::CancelledError("the client is closed"); }

// One connection keeps a core busy at each end, and others want some.
size_t BulkChannels(const ClientOptions& options) {
  if (options.bulk_channels > 0) return static_cast<size_t>(options.bulk_channels);
  return std::clamp<size_t>(std::thread::hardware_concurrency() / 4, 1, 4);
}

absl::Duration RetryWait(int attempt) {
  absl::BitGen random;
  return kRetryWait * (1 << std::min(attempt, 10)) * absl::Uniform(random, 0.5, 1.5);
}

}  // namespace

// A session stream and the thread that waits for its end.
class Connection::SessionStream {
 public:
  SessionStream(std::shared_ptr<grpc::Channel> channel, v1::SessionRequest request)
      : thread_([this, channel = std::move(channel), request = std::move(request)] {
          Run(channel, request);
        }) {}

  ~SessionStream() {
    group_.Cancel();
    thread_.join();
  }

  // What the server said, waiting for it until the deadline; nothing when it is over.
  std::optional<v1::SessionReply> Await(absl::Time deadline) {
    const absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithDeadline(absl::Condition(this, &SessionStream::Known), deadline);
    if (ended_ || reply_.session_id() == 0) return std::nullopt;
    return reply_;
  }

  bool ended() {
    const absl::MutexLock lock(&mutex_);
    return ended_;
  }

 private:
  bool Known() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return ended_ || reply_.session_id() != 0;
  }

  // Until the server ends it, the connection breaks, or it is cancelled. How does not matter: its
  // leases are gone.
  void Run(const std::shared_ptr<grpc::Channel>& channel, const v1::SessionRequest& request) {
    BulkCall call(channel, method::kSession, group_, absl::InfiniteFuture());
    grpc::ByteBuffer message;
    v1::SessionReply reply;
    const bool going = call.Write(FrameMessage(request));
    FaultPoint("grpc.client.session.asked");
    while (going && call.Read(&message) && ParseMessage(message, &reply)) {
      FaultPoint("grpc.client.session.opened");
      const absl::MutexLock lock(&mutex_);
      reply_ = reply;
    }
    const absl::MutexLock lock(&mutex_);
    ended_ = true;
  }

  CallGroup group_;
  absl::Mutex mutex_;
  v1::SessionReply reply_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

Connection::Connection(const ClientOptions& options)
    : options_(options),
      bulk_channels_max_(BulkChannels(options)),
      breaker_(options.breaker),
      paths_(std::make_unique<Paths>(*this)),
      tasks_(options.async_threads) {}

Connection::~Connection() = default;

std::shared_ptr<grpc::Channel> Connection::channel() {
  const absl::MutexLock lock(&mutex_);
  if (channel_ == nullptr) channel_ = MakeChannel(options_.endpoint, Traffic::kControl);
  return channel_;
}

absl::Status Connection::CheckCallable() const {
  if (closed_) return ClosedError();
  return breaker_.Refuses(absl::Now()) ? RefusedError() : absl::OkStatus();
}

absl::Status Connection::Call(absl::Duration timeout, const char* method,
                              const google::protobuf::MessageLite& request,
                              google::protobuf::MessageLite* reply) {
  CallGroup alone;
  return Call(alone, absl::Now() + timeout, method, request, reply);
}

absl::Status Connection::Call(CallGroup& group, absl::Time deadline, const char* method,
                              const google::protobuf::MessageLite& request,
                              google::protobuf::MessageLite* reply) {
  return Call(group, deadline, [&](UnaryCall& call) { return call.Run(method, request, reply); });
}

absl::Status Connection::Call(CallGroup& group, absl::Time deadline,
                              absl::FunctionRef<grpc::Status(UnaryCall&)> attempt) {
  const std::shared_ptr<grpc::Channel> way = channel();
  return Repeat(group, deadline, *way, [&] {
    UnaryCall call(way, group, deadline);
    return attempt(call);
  });
}

absl::Status Connection::Transfer(
    CallGroup& group, absl::Time deadline,
    absl::FunctionRef<grpc::Status(const std::shared_ptr<grpc::Channel>&)> attempt) {
  const std::shared_ptr<grpc::Channel> channel = NextBulkChannel();
  // It need not find out by itself that the server is back: the other one has.
  if (channel->GetState(/*try_to_connect=*/true) == GRPC_CHANNEL_TRANSIENT_FAILURE &&
      this->channel()->GetState(/*try_to_connect=*/false) == GRPC_CHANNEL_READY) {
    grpc::experimental::ChannelResetConnectionBackoff(channel.get());
  }
  return Repeat(group, deadline, *channel, [&] { return attempt(channel); });
}

std::shared_ptr<grpc::Channel> Connection::NextBulkChannel() {
  const absl::MutexLock lock(&mutex_);
  while (bulk_channels_.size() < bulk_channels_max_)
    bulk_channels_.push_back(MakeChannel(options_.endpoint, Traffic::kPages));
  next_bulk_channel_ = (next_bulk_channel_ + 1) % bulk_channels_.size();
  return bulk_channels_[next_bulk_channel_];
}

absl::Status Connection::Repeat(CallGroup& group, absl::Time deadline, grpc::Channel& channel,
                                absl::FunctionRef<grpc::Status()> attempt) {
  if (closed_) return ClosedError();
  calls_.fetch_add(1, std::memory_order_relaxed);
  if (!breaker_.Allow(absl::Now())) {
    refused_.fetch_add(1, std::memory_order_relaxed);
    return RefusedError();
  }
  absl::Status status;
  for (int number = 0;; ++number) {
    const absl::Time retry_at = std::min(deadline, absl::Now() + RetryWait(number));
    // gRPC reads from a new connection only while somebody waits for it. Calls on a channel that is
    // down fail at once and wait for nothing: on their own they would not notice that it comes up.
    if (channel.GetState(/*try_to_connect=*/true) == GRPC_CHANNEL_TRANSIENT_FAILURE)
      channel.WaitForConnected(absl::ToChronoTime(retry_at));
    status = FromGrpcStatus(attempt());
    if (!absl::IsUnavailable(status) || number + 1 >= options_.attempts) break;
    // Where the server itself said so.
    if (channel.GetState(/*try_to_connect=*/false) == GRPC_CHANNEL_READY)
      group.WaitCancelled(RetryWait(number));
    if (absl::Now() >= deadline || group.cancelled()) break;
    retries_.fetch_add(1, std::memory_order_relaxed);
  }
  if (group.cancelled()) {
    breaker_.OnAbandoned();
  } else if (IsAnswer(status)) {
    breaker_.OnSuccess();
  } else {
    failures_.fetch_add(1, std::memory_order_relaxed);
    breaker_.OnFailure(absl::Now());
  }
  return status;
}

void Connection::Close() {
  std::shared_ptr<SessionStream> session;  // destroyed without the lock
  const absl::MutexLock lock(&mutex_);
  closed_ = true;
  session.swap(session_);
}

uint64_t Connection::Session(absl::Time deadline) {
  const std::optional<v1::SessionReply> reply = AwaitSession(deadline);
  return reply.has_value() ? reply->session_id() : 0;
}

std::optional<v1::SessionReply> Connection::AwaitSession(absl::Time deadline) {
  std::shared_ptr<grpc::Channel> way = channel();
  std::shared_ptr<SessionStream> stream;
  std::shared_ptr<SessionStream> ended;  // destroyed, and so joined, without the lock
  {
    const absl::MutexLock lock(&mutex_);
    if (closed_) return std::nullopt;
    if (session_ != nullptr && session_->ended()) ended = std::move(session_);
    if (session_ == nullptr) {
      v1::SessionRequest request;
      request.set_client_name(options_.name);
      *request.mutable_paths() = paths_->Offer();
      session_ = std::make_shared<SessionStream>(std::move(way), std::move(request));
    }
    stream = session_;
  }
  return stream->Await(deadline);
}

bool Connection::RunPush(uint64_t pages, uint64_t bytes, absl::AnyInvocable<void() &&> task) {
  {
    const absl::MutexLock lock(&push_mutex_);
    const uint64_t room = options_.push_queue_bytes;
    if (queued_pushes_ > 0 && (bytes > room || queued_push_bytes_ > room - bytes)) {
      ++pushes_dropped_;
      pages_dropped_ += pages;
      bytes_dropped_ += bytes;
      return false;
    }
    ++queued_pushes_;
    queued_push_bytes_ += bytes;
  }
  push_tasks_.Add([this, bytes, task = std::move(task)]() mutable {
    std::move(task)();
    task = nullptr;
    const absl::MutexLock lock(&push_mutex_);
    --queued_pushes_;
    queued_push_bytes_ -= bytes;
  });
  return true;
}

bool Connection::AwaitPushes(absl::Duration timeout) const {
  const absl::MutexLock lock(&push_mutex_);
  return push_mutex_.AwaitWithTimeout(absl::Condition(this, &Connection::NoPush), timeout);
}

ClientCounters Connection::counters() const {
  const auto load = [](const std::atomic<uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  };
  const absl::MutexLock lock(&push_mutex_);
  return {.calls = load(calls_),
          .failures = load(failures_),
          .retries = load(retries_),
          .busy_retries = load(busy_retries_),
          .reopens = load(reopens_),
          .refused_by_breaker = load(refused_),
          .corrupt_pages = load(corrupt_pages_),
          .pushes_dropped = pushes_dropped_,
          .pages_dropped = pages_dropped_,
          .bytes_dropped = bytes_dropped_};
}

}  // namespace oscarkv::client
