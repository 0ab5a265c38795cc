// Fetching by gRPC: one Get, whose items and chunks are put together in the sink's room.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "client/cpp/bulk_call.h"
#include "client/cpp/page_calls.h"
#include "kernels/base/fault_point.h"
#include "kernels/base/status_macros.h"
#include "proto/convert/data_frames.h"

namespace oscarkv::client {
namespace {

absl::Status NotAnAnswer() {
  return absl::DataLossError("the server sent a message that is no GetReply");
}

absl::Status EndedInPage() {
  return absl::DataLossError("the server ended the answer in the middle of a page");
}

// One call of FetchPath::Fetch.
class GrpcFetch {
 public:
  GrpcFetch(Namespace::Impl& space, const PagesWanted& wanted, PageSink& sink, PagesTaken* taken)
      : space_(space), wanted_(wanted), sink_(sink), taken_(*taken) {}

  // One Get of the keys that are still missing, as many as the server takes.
  absl::Status Run() {
    const size_t end = std::min<size_t>(wanted_.end, size_t{wanted_.first} + space_.max_items());
    const auto attempt = [&](const std::shared_ptr<grpc::Channel>& channel) {
      // A repeated attempt goes on where the last one stopped: whole pages are with the sink
      // already.
      base_ = next();
      end_ = end;
      item_open_ = false;
      if (base_ == end) return grpc::Status::OK;
      BulkCall call(channel, method::kGet, wanted_.group, wanted_.deadline);
      grpc::ByteBuffer message;
      absl::Status torn;
      FaultPoint("grpc.client.get.begun");
      bool going = call.WriteLast(FrameMessage(MakeRequest(end - base_)));
      FaultPoint("grpc.client.get.asked");
      while (going && torn.ok() && !stopped()) {
        going = call.Read(&message);
        if (going) torn = OnMessage(message);
      }
      FaultPoint("grpc.client.get.read");
      if (going) return ToGrpcStatus(torn);  // this side ends the call
      const grpc::Status ended = call.Finish();
      if (!ended.ok()) return ended;
      return ToGrpcStatus(item_open_ ? EndedInPage() : absl::OkStatus());
    };
    return space_.connection()->Transfer(wanted_.group, wanted_.deadline, attempt);
  }

 private:
  uint32_t next() const { return wanted_.first + taken_.pages; }
  bool stopped() const { return !taken_.sink.ok() || taken_.stop != ItemStatus::kOk; }

  v1::GetRequest MakeRequest(size_t count) const {
    v1::GetRequest request;
    AskForPages(space_, wanted_, next(), count, &request);
    request.set_form(wanted_.request.decoded ? v1::DECODED : v1::STORED);
    request.set_stop_at_first_miss(true);
    request.set_first_head(wanted_.heads.first);
    request.set_heads(wanted_.heads.count);
    request.set_data_in_items(true);
    return request;
  }

  absl::Status OnMessage(const grpc::ByteBuffer& message) {
    const absl::StatusOr<DataFrame> frame = DataFrame::OfGetReply(message);
    if (!frame.ok()) return NotAnAnswer();
    switch (frame->part()) {
      case v1::GetReply::kItem:
        return OnItem(*frame);
      case v1::GetReply::kChunk:
        return OnChunk(*frame);
      default:
        return item_open_ ? EndedInPage() : absl::OkStatus();
    }
  }

  absl::Status OnItem(const DataFrame& frame) {
    v1::GetItem& item = item_;
    if (!item.ParseFromString(frame.head())) return NotAnAnswer();
    const size_t page = size_t{base_} + item.item();
    if (item_open_ || page != next() || page >= end_) {
      return absl::DataLossError(
          absl::StrCat("the server answered item ", item.item(), " out of order"));
    }
    const ItemStatus status = FromProto(item.result().status());
    if (status != ItemStatus::kOk) {
      taken_.stop = status;
      return absl::OkStatus();
    }
    OSCARKV_ASSIGN_OR_RETURN(
        const Encoding encoding,
        CheckPage(space_, wanted_, page, item.encoding(), item.bytes(), item.block_crc32c_size()));
    absl::StatusOr<MutableByteView> room =
        sink_.Room(next(), encoding, wanted_.layers, item.bytes());
    if (!room.ok()) {
      taken_.sink = room.status();
      return absl::OkStatus();
    }
    room_ = *room;
    filled_ = 0;
    crcs_.assign(item.block_crc32c().begin(), item.block_crc32c().end());
    item_open_ = true;
    return frame.data_bytes() == 0 ? absl::OkStatus() : OnData(item.item(), 0, frame);
  }

  absl::Status OnChunk(const DataFrame& frame) {
    v1::Chunk chunk;
    if (!chunk.ParseFromString(frame.head())) return NotAnAnswer();
    return OnData(chunk.item(), chunk.offset(), frame);
  }

  // Bytes of an item, from where they arrived straight to where they are wanted.
  absl::Status OnData(uint32_t item, uint64_t offset, const DataFrame& frame) {
    const uint64_t count = frame.data_bytes();
    if (!item_open_ || size_t{base_} + item != next() || offset != filled_ ||
        count > room_.size() - filled_) {
      return absl::DataLossError(absl::StrCat("a chunk of item ", item, " at ", offset, " with ",
                                              count, " bytes does not continue the page"));
    }
    frame.CopyData(room_.data() + filled_);
    filled_ += count;
    taken_.bytes += count;
    FaultPoint("grpc.client.get.chunk");
    if (filled_ == room_.size()) TakePage();
    return absl::OkStatus();
  }

  void TakePage() {
    item_open_ = false;
    FaultPoint("grpc.client.get.filled");
    CountTaken(sink_.Take(crcs_), &taken_);
    FaultPoint("grpc.client.get.taken");
  }

  Namespace::Impl& space_;
  const PagesWanted& wanted_;
  PageSink& sink_;
  PagesTaken& taken_;

  // The item on its way.
  uint32_t base_ = 0;  // page number of the call's item 0
  size_t end_ = 0;     // and of the one after its last
  v1::GetItem item_;
  bool item_open_ = false;
  MutableByteView room_;
  uint64_t filled_ = 0;
  std::vector<uint32_t> crcs_;
};

class GrpcFetchPath final : public FetchPath {
 public:
  DataPath kind() const override { return DataPath::kGrpc; }
  absl::Status Fetch(Namespace::Impl& space, const PagesWanted& wanted, PageSink& sink,
                     PagesTaken* taken) override {
    return GrpcFetch(space, wanted, sink, taken).Run();
  }
};

}  // namespace

std::shared_ptr<FetchPath> MakeGrpcFetchPath() { return std::make_shared<GrpcFetchPath>(); }

}  // namespace oscarkv::client
