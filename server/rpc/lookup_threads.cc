#include "server/rpc/lookup_threads.h"

#include <optional>

namespace oscarkv {
namespace {

constexpr int kThreads = 2;
constexpr int kSlots = 32;  // of each method; more calls at once wait with gRPC until one is free

}  // namespace

// Takes one call after the other. What it waits for comes out of the queue with its address.
class LookupThreads::Slot {
 public:
  enum class Method { kLookup, kReleaseLease };

  Slot(LookupThreads& threads, Method method) : threads_(threads), method_(method) { AwaitCall(); }

  // What it waited for has come; `ok`: and there may be more.
  void OnEvent(bool ok) {
    if (answering_) return AwaitCall();
    if (!ok) return;  // the server is shut down
    answering_ = true;
    grpc::ByteBuffer reply;
    const grpc::Status status = Answer(&reply);
    if (status.ok()) {
      writer_->Finish(reply, status, this);
    } else {
      writer_->FinishWithError(status, this);
    }
  }

 private:
  void AwaitCall() {
    answering_ = false;
    writer_.reset();
    call_.emplace();
    request_.Clear();
    writer_.emplace(&*call_);
    const absl::ReaderMutexLock lock(&threads_.mutex_);
    if (threads_.stopped_) return;
    grpc::ServerCompletionQueue* queue = threads_.queue_.get();
    if (method_ == Method::kLookup) {
      threads_.service_.RequestLookup(&*call_, &request_, &*writer_, queue, queue, this);
    } else {
      threads_.service_.RequestReleaseLease(&*call_, &request_, &*writer_, queue, queue, this);
    }
  }

  grpc::Status Answer(grpc::ByteBuffer* reply) {
    return method_ == Method::kLookup
               ? threads_.service_.AnswerLookup(&*call_, request_, reply)
               : threads_.service_.AnswerReleaseLease(&*call_, request_, reply);
  }

  LookupThreads& threads_;
  const Method method_;
  bool answering_ = false;
  std::optional<grpc::ServerContext> call_;
  grpc::ByteBuffer request_;
  std::optional<grpc::ServerAsyncResponseWriter<grpc::ByteBuffer>> writer_;
};

LookupThreads::LookupThreads(CacheService& service, grpc::ServerBuilder& builder)
    : service_(service), queue_(builder.AddCompletionQueue()) {}

LookupThreads::~LookupThreads() { Stop(); }

void LookupThreads::Start() {
  for (int i = 0; i < kSlots; ++i) {
    for (const Slot::Method method : {Slot::Method::kLookup, Slot::Method::kReleaseLease})
      slots_.push_back(std::make_unique<Slot>(*this, method));
  }
  for (int i = 0; i < kThreads; ++i) threads_.emplace_back([this] { Run(); });
}

void LookupThreads::Stop() {
  {
    const absl::MutexLock lock(&mutex_);
    if (stopped_) return;
    stopped_ = true;
    queue_->Shutdown();
  }
  for (std::thread& thread : threads_) thread.join();
  Run();  // what is left where no thread was started
}

void LookupThreads::Run() {
  void* slot = nullptr;
  bool ok = false;
  while (queue_->Next(&slot, &ok)) static_cast<Slot*>(slot)->OnEvent(ok);
}

}  // namespace oscarkv
