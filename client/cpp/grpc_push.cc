// Pushing by gRPC: one Put, its header with every block's checksum, then the bytes in chunks, from
// where they lie.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "client/cpp/bulk_call.h"
#include "client/cpp/page_path.h"
#include "kernels/base/fault_point.h"
#include "proto/convert/convert.h"
#include "proto/convert/data_frames.h"

namespace oscarkv::client {
namespace {

// Bytes that stay for as long as the call may send them, which may be longer than it is waited for.
HeldBytes Hold(ByteView bytes, std::shared_ptr<const void> holder) {
  if (holder != nullptr) return {bytes, std::move(holder)};
  auto copy = std::make_shared<const std::string>(AsText(bytes));
  const ByteView view = AsBytes(*copy);
  return {view, std::move(copy)};
}

class GrpcPush final : public PushCall {
 public:
  absl::Status Push(Namespace::Impl& space, const PagesOffered& offered, PushReport* report,
                    absl::Status*) override {
    v1::PutReply reply;
    const auto attempt = [&](const std::shared_ptr<grpc::Channel>& channel) {
      reply.Clear();
      BulkCall call(channel, method::kPut, space.group(), offered.deadline);
      v1::PutRequest header;
      FillPutHeader(space, offered, header.mutable_header());
      FaultPoint("grpc.client.put.begun");
      if (call.Write(FrameMessage(header), /*more=*/true)) {
        FaultPoint("grpc.client.put.header");
        SendChunks(std::min<size_t>(space.max_chunk_bytes(), kPieceBytes), offered, call, report);
      }
      FaultPoint("grpc.client.put.sent");
      grpc::ByteBuffer message;
      const bool answered = call.Read(&message);
      FaultPoint("grpc.client.put.answered");
      const grpc::Status ended = call.Finish();
      if (!ended.ok() || (answered && ParseMessage(message, &reply))) return ended;
      return ToGrpcStatus(absl::DataLossError("the server's answer is no PutReply"));
    };
    const absl::Status status =
        space.connection()->Transfer(space.group(), offered.deadline, attempt);
    TakePutResults(offered, reply, report);
    return status;
  }

 private:
  // Stops when the call has ended.
  static void SendChunks(size_t chunk_bytes, const PagesOffered& offered, BulkCall& call,
                         PushReport* report) {
    for (size_t i = 0; i < offered.pages.size(); ++i) {
      const ByteView bytes = offered.pages[i].bytes;
      for (size_t offset = 0; offset < bytes.size(); offset += chunk_bytes) {
        const size_t count = std::min(chunk_bytes, bytes.size() - offset);
        const HeldBytes held = Hold(bytes.subspan(offset, count), offered.pages[i].holder);
        const grpc::ByteBuffer chunk = FrameChunk(static_cast<uint32_t>(i), offset, {&held, 1});
        const bool last = i + 1 == offered.pages.size() && offset + count == bytes.size();
        if (!(last ? call.WriteLast(chunk) : call.Write(chunk))) return;
        report->bytes_wire += count;
        FaultPoint("grpc.client.put.chunk");
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
