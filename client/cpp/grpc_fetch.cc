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

  // Gets of the keys that are still missing, as many as the server takes, and no more bytes than
  // their connections hold for this side while it is at the first of them.
  absl::Status Run() {
    const size_t most =
        std::min<size_t>(space_.max_items(),
                         std::max<uint64_t>(1, streams_max() * kReceivedAheadBytes / PageBytes()));
    const size_t end = std::min<size_t>(wanted_.end, wanted_.first + most);
    const auto attempt = [&](const std::shared_ptr<grpc::Channel>& channel) {
      // A repeated attempt goes on where the last one stopped: whole pages are with the sink
      // already.
      item_open_ = false;
      return next() == end ? grpc::Status::OK : GetUntil(channel, end);
    };
    return space_.connection()->Transfer(wanted_.group, wanted_.deadline, attempt);
  }

 private:
  // Pages that follow each other, which one call brings.
  struct Part {
    size_t first;
    size_t end;
    std::unique_ptr<BulkCall> call;
  };

  uint32_t next() const { return wanted_.first + taken_.pages; }
  size_t streams_max() const { return space_.connection()->bulk_channels(); }

  // Of a page, as far as it is wanted, before it is known.
  uint64_t PageBytes() const {
    const bool wide = wanted_.request.decoded || !space_.MayHold(Encoding::kPacked);
    const PageLayout& layout = space_.codec().layout(wide ? Encoding::kWide : Encoding::kPacked);
    return layout.range_bytes(wanted_.layers, wanted_.heads);
  }

  // One attempt. What one connection can bring is bounded by a core at each end, so what is large
  // comes in parts over several; the sink takes them in order, and the later ones arrive meanwhile.
  grpc::Status GetUntil(const std::shared_ptr<grpc::Channel>& channel, size_t end) {
    const size_t first = next();
    const size_t pages = end - first;
    const size_t streams =
        std::clamp<size_t>(pages * PageBytes() / space_.connection()->options().bulk_part_bytes, 1,
                           std::min(streams_max(), pages));
    std::vector<Part> parts;
    FaultPoint("grpc.client.get.begun");
    for (size_t i = 0; i < streams; ++i) {
      parts.push_back(
          {first + pages * i / streams, first + pages * (i + 1) / streams,
           std::make_unique<BulkCall>(i == 0 ? channel : space_.connection()->NextBulkChannel(),
                                      method::kGet, wanted_.group, wanted_.deadline)});
      const Part& part = parts.back();
      part.call->WriteLast(FrameMessage(MakeRequest(part.first, part.end - part.first)));
    }
    FaultPoint("grpc.client.get.asked");
    for (const Part& part : parts) {
      part_ = &part;
      grpc::ByteBuffer message;
      while (part.call->Read(&message)) {
        const absl::Status torn = OnMessage(message);
        if (!torn.ok() || stopped()) return ToGrpcStatus(torn);  // this side ends the calls
      }
      FaultPoint("grpc.client.get.read");
      const grpc::Status ended = part.call->Finish();
      if (!ended.ok()) return ended;
      if (item_open_) return ToGrpcStatus(EndedInPage());
      if (next() < part.end) break;  // what follows would leave a hole
    }
    return grpc::Status::OK;
  }

  bool stopped() const { return !taken_.sink.ok() || taken_.stop != ItemStatus::kOk; }

  v1::GetRequest MakeRequest(size_t first, size_t count) const {
    v1::GetRequest request;
    AskForPages(space_, wanted_, static_cast<uint32_t>(first), count, &request);
    request.set_form(wanted_.request.decoded ? v1::DECODED : v1::STORED);
    request.set_stop_at_first_miss(true);
    request.set_first_head(wanted_.heads.first);
    request.set_heads(wanted_.heads.count);
    request.set_chunk_bytes(kPieceBytes);
    request.set_data_in_items(true);
    request.set_no_end(true);
    request.set_may_take_back(true);
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
    const size_t page = part_->first + item.item();
    const ItemStatus status = FromProto(item.result().status());
    // One that has begun comes again only to be taken back.
    if ((item_open_ && status == ItemStatus::kOk) || page != next() || page >= part_->end) {
      return absl::DataLossError(
          absl::StrCat("the server answered item ", item.item(), " out of order"));
    }
    if (status != ItemStatus::kOk) {
      item_open_ = false;
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
    if (!item_open_ || part_->first + item != next() || offset != filled_ ||
        count > room_.size() - filled_) {
      return absl::DataLossError(absl::StrCat("a chunk of item ", item, " at ", offset, " with ",
                                              count, " bytes does not continue the page"));
    }
    frame.CopyData(room_.data() + filled_);
    filled_ += count;
    taken_.bytes += count;
    FaultPoint("grpc.client.get.chunk");
    if (filled_ == room_.size()) {
      TakePage();
    } else {
      sink_.Filled(filled_);
    }
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
  const Part* part_ = nullptr;  // the call that brings it
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
