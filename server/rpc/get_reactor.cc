// Get: for each key its item message, then the selected blocks in chunks, straight from the page's
// memory. The page is pinned until gRPC has sent the last chunk of it, whatever happens in the
// store meanwhile. Every byte is verified just before it is sent.
#include <algorithm>
#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "kernels/base/checksum.h"
#include "kernels/base/fault_point.h"
#include "kernels/base/status_macros.h"
#include "proto/convert/data_frames.h"
#include "proto/wire/page_key.h"
#include "server/rpc/cache_service.h"
#include "server/rpc/call_scope.h"

namespace oscarkv {
namespace {

constexpr uint32_t kChunkBytesMin = 4096;

// What keeps a page's bytes in place while they are being sent.
struct SentPage {
  PinnedPage pin;
  std::vector<std::byte> decoded;  // for DECODED reads
};

class GetReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  GetReactor(RpcContext& context, grpc::CallbackServerContext* call,
             const grpc::ByteBuffer* request)
      : context_(context), scope_(context, call, Method::kGet) {
    absl::Status status = scope_.Admit();
    if (status.ok()) status = Parse(*request);
    if (status.ok()) {
      sending_ = SharedRate::Use(context_.fetches().sending(), BytesWanted(), absl::Now());
      FaultPoint("grpc.server.get.asked");
      Advance();
    } else {
      End(status);
    }
  }

  void OnWriteDone(bool ok) override {
    if (!ok || cancelled_.load(std::memory_order_acquire))
      return End(absl::CancelledError("the client broke off"));
    Advance();
  }

  // Seen before the next write; the pin goes with the reactor.
  void OnCancel() override { cancelled_.store(true, std::memory_order_release); }
  void OnDone() override { delete this; }

 private:
  void End(const absl::Status& status) {
    LetGoOfPage();
    last_.reset();
    parts_.clear();
    Finish(scope_.End(status));
  }

  absl::Status Parse(const grpc::ByteBuffer& request) {
    if (!ParseMessage(request, &request_))
      return absl::InvalidArgumentError("the request is not a GetRequest");
    OSCARKV_RETURN_IF_ERROR(context_.paths().CheckAllowed(Direction::kFetch, DataPath::kGrpc));
    OSCARKV_ASSIGN_OR_RETURN(space_, context_.Resolve(request_.scope()));
    OSCARKV_ASSIGN_OR_RETURN(traits_, context_.TraitsOf(request_.hints()));
    const uint32_t most = context_.options().max_items;
    if (static_cast<uint32_t>(request_.keys_size()) > most) {
      return absl::InvalidArgumentError(
          absl::StrCat("at most ", most, " keys in one call, found ", request_.keys_size()));
    }
    for (int i = 0; i < request_.keys_size(); ++i) {
      OSCARKV_RETURN_IF_ERROR(Annotate(ValidateKey(request_.keys(i)), absl::StrCat("key ", i)));
    }
    const Geometry& geometry = space_->spec().geometry;
    OSCARKV_ASSIGN_OR_RETURN(
        layers_, MakeRange("layers", request_.first_layer(), request_.layers(), geometry.layers));
    OSCARKV_ASSIGN_OR_RETURN(
        heads_, MakeRange("heads", request_.first_head(), request_.heads(), geometry.kv_heads));
    if (request_.form() == v1::DECODED) {
      OSCARKV_ASSIGN_OR_RETURN(codec_, context_.CodecFor(*space_));
    }
    const uint32_t chunk_max = context_.options().max_chunk_bytes;
    chunk_bytes_ = request_.chunk_bytes() == 0
                       ? chunk_max
                       : std::clamp(request_.chunk_bytes(), kChunkBytesMin, chunk_max);
    return absl::OkStatus();
  }

  // A count of 0 means all that follow `first`.
  static absl::StatusOr<BlockRange> MakeRange(const char* what, uint32_t first, uint32_t count,
                                              uint32_t all) {
    if (first < all && count <= all - first)
      return BlockRange{first, count == 0 ? all - first : count};
    return absl::OutOfRangeError(
        absl::StrCat(what, " ", first, " + ", count, " pass the end: the namespace has ", all));
  }

  // The next write: a chunk of the page under way, the next item, or the end.
  void Advance() {
    if (sent_ < item_bytes_) return NextChunk();
    LetGoOfPage();
    if (NoItemFollows()) return request_.no_end() ? End(absl::OkStatus()) : WriteEnd();
    NextItem();
  }

  bool NoItemFollows() const { return stop_ || next_key_ == request_.keys_size(); }

  void NextItem() {
    const auto item = static_cast<uint32_t>(next_key_++);
    const std::string& key = request_.keys(static_cast<int>(item));
    item_ = item;
    PinResult pinned = context_.store().Pin(*space_, key);
    // Reading from a disk takes longer than a reaction may.
    if (pinned.archived) return context_.RunAsync([this] { LoadItem(); });
    StartItem(std::move(pinned));
  }

  // Of a page, as far as it is asked for, before it is known.
  uint64_t PageBytesWanted() const {
    const bool packed = codec_ == nullptr && space_->holds(Encoding::kPacked);
    const PageLayout& layout = space_->layout(packed ? Encoding::kPacked : Encoding::kWide);
    return layout.range_bytes(layers_, heads_);
  }
  // Of all of them, as if all were there.
  uint64_t BytesWanted() const {
    return PageBytesWanted() * static_cast<uint64_t>(request_.keys_size());
  }

  // Brings the item's page into memory, and those of the keys that follow. On a worker thread.
  void LoadItem() {
    const std::vector<std::string_view> keys(request_.keys().begin() + static_cast<int>(item_),
                                             request_.keys().end());
    const PageStore& store = context_.store();
    std::vector<std::string_view> wanted;
    for (const std::string_view key :
         std::span(keys).first(std::min(keys.size(), PageStore::kPagesPerLoad)))
      if (!store.Holds(*space_, key)) wanted.push_back(key);
    SharedRate::Use loading(context_.fetches().loading(), wanted.size() * PageBytesWanted(),
                            absl::Now());
    PinResult pinned = context_.store().Load(*space_, keys);
    // The first, which may not stay in the store, and those that came along, as far as they did.
    const auto came = std::ranges::count_if(wanted, [&](std::string_view key) {
      return key == keys[0] ? pinned.status == ItemStatus::kOk : store.Holds(*space_, key);
    });
    loading.Moved(static_cast<uint64_t>(came) * PageBytesWanted());
    loading.End(absl::Now());
    StartItem(std::move(pinned));
  }

  void StartItem(PinResult pinned) {
    const std::string& key = request_.keys(static_cast<int>(item_));
    if (!pinned.message.empty()) return WriteFailure(pinned.status, std::move(pinned.message));
    if (pinned.status != ItemStatus::kOk) {
      if (request_.lease_id() == 0 || context_.store().LeaseIsLive(request_.lease_id()))
        return WriteFailure(pinned.status, "");
      return WriteFailure(ItemStatus::kFenced, "the lease has ended, and the page is gone");
    }
    page_ = std::make_shared<SentPage>();
    page_->pin = std::move(pinned.page);
    last_.reset();
    FaultPoint("grpc.server.get.pinned");
    ItemResult why_not;
    inflight_ = context_.TakeInflight(*space_, page_->pin.meta().bytes + DecodedBytes(), &why_not);
    if (!inflight_) return WriteFailure(why_not.status, std::move(why_not.message));
    BeginParts(page_->pin.layout());
    absl::StatusOr<ByteView> page;
    const absl::Status sound =
        codec_ == nullptr ? VerifyAhead() : (page = page_->pin.Verified(layers_, heads_)).status();
    if (!sound.ok()) return WriteFailure(ItemStatus::kCorrupt, std::string(sound.message()));
    FaultPoint("grpc.server.get.verified");
    fetched_.push_back(key);
    if (codec_ == nullptr) return WriteItem(page_->pin.meta().encoding, StoredCrcs());
    // Decoding a page takes longer than a reaction may.
    context_.RunAsync([this, bytes = *page] { DecodeItemBytes(bytes); });
  }

  // An item of these pages begins: nothing of it is verified.
  void BeginParts(const PageLayout& layout) {
    parts_.clear();
    part_bytes_ = sent_ = 0;
    item_bytes_ = layout.range_bytes(layers_, heads_);
    next_layer_ = layers_.first;
  }

  // Verifies what the next chunk takes, or all where the client wants no page to be taken back.
  absl::Status VerifyAhead() {
    const uint64_t ahead = request_.may_take_back() ? chunk_bytes_ : item_bytes_;
    while (part_bytes_ < item_bytes_ && part_bytes_ - sent_ < ahead) {
      const BlockRange layer = {next_layer_++, 1};
      OSCARKV_ASSIGN_OR_RETURN(const ByteView page, page_->pin.Verified(layer, heads_));
      SelectBlocks(page, page_->pin.layout(), layer);
    }
    return absl::OkStatus();
  }

  // The transport may still hold the last of its bytes, and with them the pin; the budget is for
  // what this call has under way, or a call's own last page would make its next one BUSY.
  void LetGoOfPage() {
    last_ = std::move(page_);
    inflight_.Release();
    buffer_.Clear();
  }

  // Of memory that a page takes beyond its own while it is sent.
  uint64_t DecodedBytes() const {
    return codec_ == nullptr ? 0 : codec_->layout(Encoding::kWide).page_bytes();
  }

  // The selected blocks of a page as parts, one a layer, or one in all when every head is wanted.
  void SelectBlocks(ByteView page, const PageLayout& layout, BlockRange layers) {
    for (uint32_t layer = layers.first; layer < layers.first + layers.count; ++layer) {
      const ByteView run = page.subspan(layout.block_offset(layer, heads_.first),
                                        heads_.count * layout.block(layer).stride);
      part_bytes_ += run.size();
      if (!parts_.empty() && parts_.back().data() + parts_.back().size() == run.data()) {
        parts_.back() = ByteView(parts_.back().data(), parts_.back().size() + run.size());
      } else {
        parts_.push_back(run);
      }
    }
  }

  std::vector<uint32_t> StoredCrcs() const {
    std::vector<uint32_t> crcs;
    const uint32_t heads = space_->spec().geometry.kv_heads;
    for (uint32_t layer = layers_.first; layer < layers_.first + layers_.count; ++layer) {
      const auto run = page_->pin.block_crcs().subspan(layer * heads + heads_.first, heads_.count);
      crcs.insert(crcs.end(), run.begin(), run.end());
    }
    return crcs;
  }

  // Decodes the selected blocks into a WIDE page. On a worker thread.
  void DecodeItemBytes(ByteView page) {
    const PageLayout& wide = codec_->layout(Encoding::kWide);
    const Geometry& geometry = codec_->geometry();
    page_->decoded.assign(wide.page_bytes(), std::byte{0});
    std::vector<std::byte*> bases(size_t{2} * geometry.layers);
    const EngineView view = WidePageView(wide, page_->decoded, bases);
    std::vector<int64_t> slots(geometry.page_tokens);
    for (size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<int64_t>(i);
    const PageLayout& stored = page_->pin.layout();
    DecodeItem item{.encoding = page_->pin.meta().encoding,
                    .layers = {0, 1},
                    .heads = heads_,
                    .slots = slots,
                    .bytes = {},
                    .block_crc32c = {},
                    .result = {}};
    absl::Status status;
    const uint32_t heads = geometry.kv_heads;
    for (uint32_t layer = layers_.first; status.ok() && layer < layers_.first + layers_.count;
         ++layer) {
      item.layers = {layer, 1};
      item.bytes = page.subspan(stored.block_offset(layer, heads_.first),
                                heads_.count * stored.block(layer).stride);
      item.block_crc32c =
          page_->pin.block_crcs().subspan(layer * heads + heads_.first, heads_.count);
      status = codec_->Decode({&item, 1}, codec_->engine_basis(), view);
      if (status.ok()) status = item.result;
    }
    if (!status.ok()) return WriteFailure(ItemStatus::kCorrupt, std::string(status.message()));
    BeginParts(wide);
    SelectBlocks(page_->decoded, wide, layers_);
    std::vector<uint32_t> crcs;
    for (uint32_t layer = layers_.first; layer < layers_.first + layers_.count; ++layer) {
      for (uint32_t head = heads_.first; head < heads_.first + heads_.count; ++head) {
        crcs.push_back(
            Crc32c(ByteView(page_->decoded)
                       .subspan(wide.block_offset(layer, head), wide.block(layer).bytes)));
      }
    }
    WriteItem(Encoding::kWide, crcs);
  }

  void WriteItem(Encoding encoding, const std::vector<uint32_t>& crcs) {
    v1::GetReply reply;
    v1::GetItem* item = reply.mutable_item();
    item->set_item(item_);
    item->mutable_result()->set_status(v1::OK);
    item->set_encoding(ToProto(encoding));
    item->set_bytes(item_bytes_);
    item->mutable_block_crc32c()->Add(crcs.begin(), crcs.end());
    item->set_first_position(page_->pin.meta().first_position);
    ++delivered_;
    bytes_ += item_bytes_;
    Send(request_.data_in_items() ? FrameItem(*item, NextParts()) : FrameMessage(reply));
    FaultPoint("grpc.server.get.item");
  }

  void WriteFailure(ItemStatus status, std::string message) {
    item_bytes_ = sent_ = 0;
    stop_ = request_.stop_at_first_miss();
    v1::GetReply reply;
    reply.mutable_item()->set_item(item_);
    reply.mutable_item()->mutable_result()->set_status(ToProto(status));
    reply.mutable_item()->mutable_result()->set_message(std::move(message));
    Send(FrameMessage(reply));
  }

  void NextChunk() {
    if (const absl::Status sound = VerifyAhead(); !sound.ok()) {
      --delivered_;
      bytes_ -= item_bytes_;
      fetched_.pop_back();
      return WriteFailure(ItemStatus::kCorrupt, std::string(sound.message()));
    }
    const uint64_t offset = sent_;
    const std::vector<HeldBytes> parts = NextParts();
    Send(FrameChunk(item_, offset, parts));
    FaultPoint("grpc.server.get.chunk");
  }

  // What a chunk takes of the bytes that are still to be sent; from here on they count as sent.
  std::vector<HeldBytes> NextParts() {
    uint64_t left = std::min<uint64_t>(chunk_bytes_, item_bytes_ - sent_);
    uint64_t skip = sent_;
    sent_ += left;
    sending_.Moved(left);
    std::vector<HeldBytes> held;
    for (const ByteView part : parts_) {
      if (left == 0) break;
      if (skip >= part.size()) {
        skip -= part.size();
        continue;
      }
      const ByteView piece = part.subspan(skip, std::min<uint64_t>(left, part.size() - skip));
      held.push_back({piece, page_});
      left -= piece.size();
      skip = 0;
    }
    return held;
  }

  void WriteEnd() {
    v1::GetReply reply;
    reply.mutable_end()->set_items_delivered(delivered_);
    reply.mutable_end()->set_bytes(bytes_);
    SendLast(FrameMessage(reply));
  }

  void Send(grpc::ByteBuffer buffer) {
    if (request_.no_end() && sent_ == item_bytes_ && NoItemFollows())
      return SendLast(std::move(buffer));
    buffer_.Swap(&buffer);
    StartWrite(&buffer_);
  }

  // The last message, and how the call ended.
  void SendLast(grpc::ByteBuffer buffer) {
    // One use of the sequence, however many pages it has.
    const std::vector<std::string_view> keys(fetched_.begin(), fetched_.end());
    context_.store().Touch(*space_, keys, traits_);
    FaultPoint("grpc.server.get.touched");
    sending_.End(absl::Now());
    context_.transfers().Record(DataPath::kGrpc, Direction::kFetch, bytes_, scope_.elapsed());
    inflight_.Release();  // the client's next call may come before OnDone
    buffer_.Swap(&buffer);
    StartWriteAndFinish(&buffer_, grpc::WriteOptions(), scope_.End(absl::OkStatus()));
  }

  RpcContext& context_;
  CallScope scope_;
  std::atomic<bool> cancelled_ = false;
  v1::GetRequest request_;
  const Namespace* space_ = nullptr;
  RequestTraits traits_;
  const PageCodec* codec_ = nullptr;  // for DECODED reads
  BlockRange layers_;
  BlockRange heads_;
  uint32_t chunk_bytes_ = 0;

  int next_key_ = 0;
  uint32_t item_ = 0;  // the one under way
  std::shared_ptr<SentPage> page_;
  // The one before, until this one is there: a page whose parent has left memory would be read from
  // disk and forgotten, and so would all that follow, one by one.
  std::shared_ptr<SentPage> last_;
  InflightBytes inflight_;  // of page_
  SharedRate::Use sending_;
  uint64_t item_bytes_ = 0;      // that are to be sent of it
  uint32_t next_layer_ = 0;      // to be verified
  std::vector<ByteView> parts_;  // what is verified of it
  uint64_t part_bytes_ = 0;
  uint64_t sent_ = 0;
  bool stop_ = false;
  std::vector<std::string> fetched_;
  uint32_t delivered_ = 0;
  uint64_t bytes_ = 0;
  grpc::ByteBuffer buffer_;
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* CacheService::Get(grpc::CallbackServerContext* call,
                                                              const grpc::ByteBuffer* request) {
  return new GetReactor(context_, call, request);
}

}  // namespace oscarkv
