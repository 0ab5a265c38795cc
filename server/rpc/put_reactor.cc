// Put: the header names the items, the chunks fill them in order. Bytes go from where they arrived
// straight into the page's reserved memory; every page becomes visible by itself when its last byte
// has come and all its checksums hold. A stream that breaks off leaves the pages that were whole,
// and gives the memory of the one that was not back at once.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "kernels/base/fault_point.h"
#include "kernels/base/status_macros.h"
#include "proto/convert/data_frames.h"
#include "server/core/parent_loader.h"
#include "server/rpc/cache_service.h"
#include "server/rpc/call_scope.h"
#include "server/rpc/put_items.h"

namespace oscarkv {
namespace {

class PutReactor final : public grpc::ServerReadReactor<grpc::ByteBuffer> {
 public:
  PutReactor(RpcContext& context, grpc::CallbackServerContext* call, grpc::ByteBuffer* reply)
      : context_(context), scope_(context, call, Method::kPut), call_(call), sent_(reply) {
    if (const absl::Status status = scope_.Admit(); !status.ok()) {
      End(status);
      return;
    }
    StartRead(&message_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      // The client has sent everything, or is gone: then the item in the making is dropped with the
      // slot.
      if (!call_->IsCancelled()) FinishItems();
      return End(call_->IsCancelled() ? absl::CancelledError("the client broke off")
                                      : CheckComplete());
    }
    GoOn(OnMessage());
  }

  void OnCancel() override {}  // the read that is under way fails

  void OnDone() override { delete this; }

 private:
  // With the next message, when this one has been dealt with.
  void GoOn(const absl::Status& status) {
    if (!status.ok()) return End(status);
    if (waiting_.has_value()) return context_.RunAsync([this] { LoadParent(); });
    StartRead(&message_);
  }

  void End(const absl::Status& status) {
    slot_ = PutSlot();
    inflight_.Release();
    if (space_ != nullptr)
      context_.transfers().Record(DataPath::kGrpc, Direction::kPush, bytes_, scope_.elapsed());
    *sent_ = FrameMessage(reply_);
    FaultPoint("grpc.server.put.done");
    Finish(scope_.End(status));
    FaultPoint("grpc.server.put.answered");
  }

  absl::Status OnMessage() {
    OSCARKV_ASSIGN_OR_RETURN(DataFrame frame, DataFrame::OfPutRequest(message_));
    message_.Clear();
    switch (frame.part()) {
      case v1::PutRequest::kHeader:
        return OnHeader(frame.head());
      case v1::PutRequest::kChunk:
        return OnChunk(std::move(frame));
      default:
        return absl::InvalidArgumentError("a put's message is a header or a chunk");
    }
  }

  absl::Status CheckComplete() const {
    return space_ == nullptr
               ? absl::InvalidArgumentError("a put starts with a header, and none came")
               : absl::OkStatus();
  }

  absl::Status OnHeader(const std::string& text) {
    if (space_ != nullptr)
      return absl::InvalidArgumentError("a put has one header, and a second one came");
    if (!header_.ParseFromString(text))
      return absl::InvalidArgumentError("the header is not a PutHeader");
    OSCARKV_RETURN_IF_ERROR(context_.paths().CheckAllowed(Direction::kPush, DataPath::kGrpc));
    OSCARKV_ASSIGN_OR_RETURN(put_, CheckPut(context_, header_));
    space_ = put_.space;
    for (int i = 0; i < header_.items_size(); ++i) reply_.add_results();
    FaultPoint("grpc.server.put.header");
    return absl::OkStatus();
  }

  absl::Status OnChunk(DataFrame frame) {
    if (space_ == nullptr)
      return absl::InvalidArgumentError("a put starts with a header, and a chunk came");
    v1::Chunk chunk;
    if (!chunk.ParseFromString(frame.head()))
      return absl::InvalidArgumentError("the chunk is not a Chunk");
    const uint64_t count = frame.data_bytes();
    if (chunk.item() >= static_cast<uint32_t>(header_.items_size()) ||
        chunk.item() + 1 < next_item_) {
      return absl::InvalidArgumentError(absl::StrCat("a chunk of item ", chunk.item(), " of ",
                                                     header_.items_size(), ", after one of item ",
                                                     next_item_ == 0 ? 0 : next_item_ - 1));
    }
    if (count > context_.options().max_chunk_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("a chunk of ", count, " bytes, at most ",
                                                     context_.options().max_chunk_bytes,
                                                     " are taken"));
    }
    while (next_item_ <= chunk.item()) {
      CloseItem();
      const uint32_t index = next_item_++;
      if (index != chunk.item()) {
        PassItem(index);
      } else if (ParentIsArchived(context_, put_, header_, index)) {
        // Reading from a disk takes longer than a reaction may.
        waiting_.emplace(WaitingChunk{std::move(chunk), std::move(frame), nullptr});
        return absl::OkStatus();
      } else {
        BeginItem(index);
      }
    }
    return TakeBytes(chunk, frame);
  }

  // Brings back what the item extends, a few pages at a time, then goes on with its chunk. On a
  // worker thread.
  void LoadParent() {
    const uint32_t index = waiting_->chunk.item();
    std::unique_ptr<ParentLoader>& loader = waiting_->loader;
    if (loader == nullptr) {
      loader = std::make_unique<ParentLoader>(context_.store(), *space_,
                                              header_.items(static_cast<int>(index)).parent());
    }
    const uint64_t before = loader->bytes_left();
    SharedRate::Use loading(context_.fetches().loading(), before, absl::Now());
    const bool more = loader->Step();
    loading.Moved(before - loader->bytes_left());
    loading.End(absl::Now());
    if (more && !call_->IsCancelled()) return context_.RunAsync([this] { LoadParent(); });
    if (loader->busy()) {
      SetResult(index, ItemStatus::kBusy, kParentBusy);
    } else {
      BeginItem(index);
    }
    const absl::Status status = TakeBytes(waiting_->chunk, waiting_->frame);
    waiting_.reset();
    GoOn(status);
  }

  absl::Status TakeBytes(const v1::Chunk& chunk, const DataFrame& frame) {
    if (!slot_) return absl::OkStatus();  // the item was refused: its bytes are let go by
    const MutableByteView bytes = slot_.bytes();
    const uint64_t count = frame.data_bytes();
    if (chunk.offset() != filled_ || count > bytes.size() - filled_) {
      SetResult(chunk.item(), ItemStatus::kInvalid,
                absl::StrCat("a chunk of ", count, " bytes at ", chunk.offset(), ", expected at ",
                             filled_, " of ", bytes.size()));
      slot_ = PutSlot();
      return absl::OkStatus();
    }
    frame.CopyData(bytes.data() + filled_);
    filled_ += count;
    bytes_ += count;
    slot_.Filled(filled_);
    FaultPoint("grpc.server.put.chunk");
    if (filled_ == bytes.size()) CommitItem();
    return absl::OkStatus();
  }

  // Reserves the page of item `index`, or notes why not.
  void BeginItem(uint32_t index) {
    filled_ = 0;
    BeginPutResult begun = BeginPutItem(context_, put_, header_, index, &inflight_);
    SetResult(index, begun.result.status, begun.result.message);
    slot_ = std::move(begun.slot);
    FaultPoint("grpc.server.put.begun");
  }

  void CommitItem() {
    FaultPoint("grpc.server.put.filled");
    const ItemResult result = slot_.Commit();
    FaultPoint("grpc.server.put.committed");
    SetResult(next_item_ - 1, result.status, result.message);
    inflight_.Release();
  }

  // An item that was begun and not filled is dropped, and its memory is free again.
  void CloseItem() {
    if (slot_) {
      SetResult(next_item_ - 1, ItemStatus::kInvalid,
                absl::StrCat("expected ", slot_.bytes().size(), " bytes, ", filled_, " came"));
      slot_ = PutSlot();
    }
    inflight_.Release();
  }

  // An item of which no byte comes: a page that is there already needs none. For another no room is
  // made, which would cost pages that are there.
  void PassItem(uint32_t index) {
    const v1::PutItem& item = header_.items(static_cast<int>(index));
    if (context_.store().Holds(*space_, item.key())) {
      BeginItem(index);
      CloseItem();
    } else {
      SetResult(index, ItemStatus::kInvalid,
                absl::StrCat("expected ", item.bytes(), " bytes, 0 came"));
    }
  }

  void FinishItems() {
    if (space_ == nullptr) return;
    CloseItem();
    while (next_item_ < static_cast<uint32_t>(header_.items_size())) PassItem(next_item_++);
  }

  void SetResult(uint32_t index, ItemStatus status, std::string message) {
    v1::ItemResult* result = reply_.mutable_results(static_cast<int>(index));
    result->set_status(ToProto(status));
    result->set_message(std::move(message));
  }

  RpcContext& context_;
  CallScope scope_;
  grpc::CallbackServerContext* call_;
  grpc::ByteBuffer* sent_;  // the reply as it is sent
  v1::PutReply reply_;
  grpc::ByteBuffer message_;
  v1::PutHeader header_;
  const Namespace* space_ = nullptr;
  CheckedPut put_;
  uint32_t next_item_ = 0;  // items before it have begun
  PutSlot slot_;            // of item next_item_ - 1, empty when it was refused or is done
  uint64_t filled_ = 0;
  uint64_t bytes_ = 0;  // of all items
  InflightBytes inflight_;
  // A chunk whose item begins when its parent is in memory.
  struct WaitingChunk {
    v1::Chunk chunk;
    DataFrame frame;
    std::unique_ptr<ParentLoader> loader;
  };
  std::optional<WaitingChunk> waiting_;
};

}  // namespace

grpc::ServerReadReactor<grpc::ByteBuffer>* CacheService::Put(grpc::CallbackServerContext* call,
                                                             grpc::ByteBuffer* reply) {
  return new PutReactor(context_, call, reply);
}

}  // namespace oscarkv
