// A stream of ByteBuffers and nothing else: what gRPC itself can do. A page is a message; the
// server sends the memory it lies in, the client copies it once, to where it is wanted.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include "kernels/base/status_macros.h"
#include "proto/convert/convert.h"
#include "tests/bench/transfer/transfer_peer.h"

namespace oscarkv::bench {
namespace {

constexpr char kGet[] = "/bench.Bare/Get";
constexpr char kPut[] = "/bench.Bare/Put";
constexpr int kMessageBytesMax = 64 << 20;

// The first message of a call.
struct Range {
  uint64_t offset;
  uint64_t bytes;
  uint64_t message_bytes;
};

absl::Status CopyOut(const grpc::ByteBuffer& buffer, MutableByteView room) {
  std::vector<grpc::Slice> slices;
  if (!buffer.Dump(&slices).ok() || buffer.Length() != room.size())
    return absl::DataLossError(absl::StrCat("a message of ", buffer.Length(), " bytes"));
  for (const grpc::Slice& slice : slices) {
    std::memcpy(room.data(), slice.begin(), slice.size());
    room = room.subspan(slice.size());
  }
  return absl::OkStatus();
}

grpc::ByteBuffer InPlace(ByteView bytes) {
  const grpc::Slice slice(bytes.data(), bytes.size(), grpc::Slice::STATIC_SLICE);
  return grpc::ByteBuffer(&slice, 1);
}

class Reactor final : public grpc::ServerGenericBidiReactor {
 public:
  Reactor(bool put, MutableByteView set) : put_(put), set_(set) { StartRead(&read_); }

  void OnReadDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::OK);
    if (range_.message_bytes == 0) {
      const bool fits = CopyOut(read_, std::as_writable_bytes(std::span(&range_, 1))).ok() &&
                        range_.message_bytes > 0 && range_.offset <= set_.size() &&
                        range_.bytes <= set_.size() - range_.offset;
      if (!fits) return Finish({grpc::StatusCode::INVALID_ARGUMENT, "not a range"});
      left_ = set_.subspan(range_.offset, range_.bytes);
      if (!put_) return WriteNext();
    } else {
      const MutableByteView room =
          left_.first(std::min<uint64_t>(range_.message_bytes, left_.size()));
      if (!CopyOut(read_, room).ok()) return Finish({grpc::StatusCode::INVALID_ARGUMENT, "size"});
      left_ = left_.subspan(room.size());
    }
    StartRead(&read_);
  }

  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::CANCELLED);
    WriteNext();
  }

  void OnDone() override { delete this; }

 private:
  void WriteNext() {
    if (left_.empty()) return Finish(grpc::Status::OK);
    const MutableByteView next =
        left_.first(std::min<uint64_t>(range_.message_bytes, left_.size()));
    left_ = left_.subspan(next.size());
    written_ = InPlace(next);
    StartWrite(&written_);
  }

  const bool put_;
  const MutableByteView set_;
  Range range_ = {};
  MutableByteView left_;
  grpc::ByteBuffer read_;
  grpc::ByteBuffer written_;
};

class Service final : public grpc::CallbackGenericService {
 public:
  explicit Service(MutableByteView set) : set_(set) {}
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* call) override {
    return new Reactor(call->method() == kPut, set_);
  }

 private:
  const MutableByteView set_;
};

class BareStreamPeer final : public TransferPeer {
 public:
  explicit BareStreamPeer(const PeerOptions& options)
      : options_(options), stub_(MakeChannel(options.endpoint)) {}

  absl::Status Put(uint64_t first, ByteView pages) override {
    Call call(stub_, kPut, RangeOf(first, pages.size()));
    bool going = call.Start(/*last=*/false);
    while (going && !pages.empty()) {
      const grpc::ByteBuffer page = InPlace(pages.first(options_.page_bytes));
      pages = pages.subspan(options_.page_bytes);
      going = pages.empty() ? call.WriteLast(page) : call.Write(page);
    }
    grpc::ByteBuffer none;
    call.Read(&none);
    return call.Finish();
  }

  absl::Status Get(uint64_t first, MutableByteView room) override {
    Call call(stub_, kGet, RangeOf(first, room.size()));
    absl::Status status;
    grpc::ByteBuffer page;
    if (call.Start(/*last=*/true)) {
      while (status.ok() && !room.empty() && call.Read(&page)) {
        status = CopyOut(page, room.first(options_.page_bytes));
        room = room.subspan(options_.page_bytes);
      }
      if (room.empty()) call.Read(&page);
    }
    status.Update(call.Finish());
    if (status.ok() && !room.empty()) return absl::DataLossError("pages are missing");
    return status;
  }

 private:
  // One call whose steps the calling thread waits for, on a queue of its own.
  class Call {
   public:
    Call(grpc::GenericStub& stub, const char* method, const Range& range) : range_(range) {
      context_.set_initial_metadata_corked(true);
      stream_ = stub.PrepareCall(&context_, method, &queue_);
    }
    ~Call() {
      queue_.Shutdown();
      Wait();
    }
    bool Start(bool last) {
      stream_->StartCall(this);  // corked: goes with the first message
      const grpc::ByteBuffer first = InPlace(std::as_bytes(std::span(&range_, 1)));
      return last ? WriteLast(first) : Write(first);
    }
    bool Write(const grpc::ByteBuffer& message) {
      stream_->Write(message, this);
      return Wait();
    }
    bool WriteLast(const grpc::ByteBuffer& message) {
      stream_->WriteLast(message, {}, this);
      return Wait();
    }
    bool Read(grpc::ByteBuffer* message) {
      stream_->Read(message, this);
      return Wait();
    }
    absl::Status Finish() {
      grpc::Status status;
      stream_->Finish(&status, this);
      Wait();
      return FromGrpcStatus(status);
    }

   private:
    bool Wait() {
      void* tag = nullptr;
      bool ok = false;
      return queue_.Next(&tag, &ok) && ok;
    }
    Range range_;
    grpc::ClientContext context_;
    grpc::CompletionQueue queue_;
    std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  };

  static std::shared_ptr<grpc::Channel> MakeChannel(const std::string& endpoint) {
    // As our own client's.
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(kMessageBytesMax);
    arguments.SetInt(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, (16 << 20) - 1);
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16 << 20);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(endpoint, grpc::InsecureChannelCredentials(), arguments);
  }

  Range RangeOf(uint64_t first, uint64_t bytes) const {
    return {.offset = first * options_.page_bytes,
            .bytes = bytes,
            .message_bytes = options_.page_bytes};
  }

  const PeerOptions options_;
  grpc::GenericStub stub_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TransferPeer>> ConnectBareStream(const PeerOptions& options) {
  return std::make_unique<BareStreamPeer>(options);
}

absl::Status ServeBareStream(const std::string& endpoint, uint64_t set_bytes) {
  std::vector<std::byte> set(set_bytes);
  Service service(set);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(endpoint, grpc::InsecureServerCredentials(), &port);
  builder.SetMaxReceiveMessageSize(kMessageBytesMax);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, (16 << 20) - 1);
  builder.RegisterCallbackGenericService(&service);
  const auto server = builder.BuildAndStart();
  if (server == nullptr) return absl::UnavailableError(absl::StrCat("cannot listen on ", endpoint));
  const bool local = endpoint.starts_with("unix:");
  std::printf("listening on %s\n",
              local ? endpoint.c_str()
                    : absl::StrCat(endpoint.substr(0, endpoint.rfind(':')), ":", port).c_str());
  std::fflush(stdout);
  server->Wait();
  return absl::OkStatus();
}

}  // namespace oscarkv::bench
