// Pushing by gRPC: one Put, its header with every block's checksum, then the bytes in chunks.
#include <algorithm>
#include <memory>

#include "client/cpp/page_path.h"
#include "client/cpp/put_call.h"

namespace oscarkv::client {
namespace {

class GrpcPush final : public PushCall {
 public:
  absl::Status Push(Namespace::Impl& space, const PagesOffered& offered, PushReport* report,
                    absl::Status*) override {
    v1::PutReply reply;
    // Not with the context that is offered: the call may live on when this has returned.
    absl::Status status = space.Call(offered.deadline, [&](grpc::ClientContext*) {
      reply.Clear();
      const auto call = PutCall::Start(space.connection()->stubs(), offered.deadline);
      const CallGroup::Member member(space.group(), call->context());
      v1::PutRequest header;
      FillPutHeader(space, offered, header.mutable_header());
      if (call->Write(&header)) SendChunks(space.max_chunk_bytes(), offered, *call, report);
      return call->Finish(&reply);
    });
    TakePutResults(offered, reply, report);
    return status;
  }

 private:
  // Stops when the call has ended.
  static void SendChunks(size_t chunk_bytes, const PagesOffered& offered, PutCall& call,
                         PushReport* report) {
    v1::PutRequest message;
    for (size_t i = 0; i < offered.pages.size(); ++i) {
      const ByteView bytes = offered.pages[i].bytes;
      for (size_t offset = 0; offset < bytes.size(); offset += chunk_bytes) {
        const size_t count = std::min(chunk_bytes, bytes.size() - offset);
        v1::Chunk* chunk = message.mutable_chunk();
        chunk->set_item(static_cast<uint32_t>(i));
        chunk->set_offset(offset);
        chunk->set_data(bytes.data() + offset, count);
        if (!call.Write(&message)) return;
        report->bytes_wire += count;
      }
    }
  }
};

class GrpcPushPath final : public PushPath {
 public:
  DataPath kind() const override { return DataPath::kGrpc; }
  absl::StatusOr<std::unique_ptr<PushCall>> Begin(Namespace::Impl&, absl::Time) override {
    return std::make_unique<GrpcPush>();
  }
};

}  // namespace

std::shared_ptr<PushPath> MakeGrpcPushPath() { return std::make_shared<GrpcPushPath>(); }

}  // namespace oscarkv::client
