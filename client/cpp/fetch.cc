// Fetching pages: the bytes of one page are gathered, and a sink verifies and decodes them into the
// worker's cache while the next page is on its way.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "client/cpp/cpu_pages.h"
#include "client/cpp/namespace_impl.h"
#include "client/cpp/wire.h"
#include "kernels/base/status_macros.h"
#include "proto/convert/convert.h"

namespace oscarkv::client {
namespace {

class Fetcher {
 public:
  Fetcher(Namespace::Impl& space, PageSink& sink, const FetchRequest& request)
      : space_(space),
        sink_(sink),
        request_(request),
        deadline_(absl::Now() + space.connection()->options().fetch_timeout),
        limit_(static_cast<uint32_t>(request.keys.size())) {
    const Geometry& geometry = space.codec().geometry();
    all_layers_ = request.layers.count == 0 ? BlockRange{0, geometry.layers} : request.layers;
    heads_ = request.heads.count == 0 ? BlockRange{0, geometry.kv_heads} : request.heads;
    report_.statuses.assign(request.keys.size(), ItemStatus::kSkipped);
  }

  absl::StatusOr<FetchReport> Run() {
    OSCARKV_RETURN_IF_ERROR(CheckArguments());
    OSCARKV_RETURN_IF_ERROR(sink_.Begin(all_layers_, heads_));
    OSCARKV_RETURN_IF_ERROR(FetchGroups());
    OSCARKV_ASSIGN_OR_RETURN(const std::vector<absl::Status> pages, sink_.Finish());
    for (size_t page = std::min<size_t>(pages.size(), limit_); page-- > 0;) {
      if (pages[page].ok()) continue;
      if (!absl::IsDataLoss(pages[page])) return pages[page];
      space_.connection()->CountCorruptPage();
      Cut(static_cast<uint32_t>(page), ItemStatus::kCorrupt);
    }
    std::fill_n(report_.statuses.begin(), limit_, ItemStatus::kOk);
    report_.pages = limit_;
    report_.tokens = uint64_t{limit_} * space_.page_tokens();
    return std::move(report_);
  }

 private:
  // No page from `page` on counts; `why` is its status.
  void Cut(uint32_t page, ItemStatus why) {
    std::fill(report_.statuses.begin() + page, report_.statuses.end(), ItemStatus::kSkipped);
    report_.statuses[page] = why;
    limit_ = page;
  }

  absl::Status FetchGroups() {
    for (const BlockRange group : sink_.LayerGroups(all_layers_)) {
      layers_ = group;
      OSCARKV_RETURN_IF_ERROR(FetchGroup());
      OSCARKV_RETURN_IF_ERROR(sink_.EndLayers(group));
      if (limit_ == 0) break;
    }
    return absl::OkStatus();
  }

  // The pages before limit_, as far as they are there.
  absl::Status FetchGroup() {
    // A server that decodes needs the transform set as much as one that stores what is packed.
    const auto needs =
        request_.decoded ? Namespace::Impl::Needs::kTransforms : Namespace::Impl::Needs::kNamespace;
    done_ = 0;
    stopped_ = false;
    while (done_ < limit_) {
      const uint32_t first = done_;
      report_.store = space_.WithOpen(needs, deadline_, [&] { return FetchBatch(); });
      if (!misuse_.ok()) return misuse_;
      if (!report_.store.ok() || done_ == first || stopped_) break;
    }
    // Nothing usable came of this page: its bytes are damaged, or nobody answered.
    if (done_ < limit_ && !stopped_) {
      stopped_at_ = absl::IsDataLoss(report_.store) ? ItemStatus::kCorrupt : ItemStatus::kMiss;
    }
    if (done_ < limit_) Cut(done_, stopped_at_);
    return absl::OkStatus();
  }

  absl::Status CheckArguments() const {
    const Geometry& geometry = space_.codec().geometry();
    const auto check = [](const char* what, BlockRange range, uint32_t count) {
      if (range.first < count && range.count <= count - range.first) return absl::OkStatus();
      return absl::InvalidArgumentError(absl::StrCat(what, " ", range.first, " + ", range.count,
                                                     " do not lie within 0..", count - 1));
    };
    OSCARKV_RETURN_IF_ERROR(check("layers", all_layers_, geometry.layers));
    return check("heads", heads_, geometry.kv_heads);
  }

  v1::GetRequest MakeRequest(size_t count) const {
    v1::GetRequest request;
    *request.mutable_scope() = space_.MakeScope();
    for (const std::string& key : request_.keys.subspan(done_, count)) request.add_keys(key);
    request.set_form(request_.decoded ? v1::DECODED : v1::STORED);
    request.set_lease_id(request_.lease_id);
    request.set_stop_at_first_miss(true);
    *request.mutable_hints() = ToProto(request_.hints);
    request.set_first_layer(layers_.first);
    request.set_layers(layers_.count);
    request.set_first_head(heads_.first);
    request.set_heads(heads_.count);
    return request;
  }

  // One Get of the keys that are still missing, as many as the server takes.
  absl::Status FetchBatch() {
    const size_t end = std::min<size_t>(limit_, size_t{done_} + space_.max_items());
    return space_.Call(deadline_, [&](grpc::ClientContext* context) {
      // A repeated attempt goes on where the last one stopped: whole pages are in the cache
      // already.
      base_ = done_;
      end_ = end;
      item_open_ = false;
      if (base_ == end) return grpc::Status::OK;
      const auto reader =
          space_.connection()->stubs().cache->Get(context, MakeRequest(end - base_));
      v1::GetReply reply;
      absl::Status torn;
      while (torn.ok() && misuse_.ok() && !stopped_ && reader->Read(&reply)) torn = OnReply(reply);
      const bool ours = !torn.ok() || !misuse_.ok() || stopped_;  // this side ends the call
      if (ours) context->TryCancel();
      const grpc::Status ended = reader->Finish();
      if (ours || !ended.ok()) return ours ? ToGrpcStatus(torn) : ended;
      return ToGrpcStatus(item_open_ ? EndedInPage() : absl::OkStatus());
    });
  }

  static absl::Status EndedInPage() {
    return absl::DataLossError("the server ended the answer in the middle of a page");
  }

  absl::Status OnReply(const v1::GetReply& reply) {
    if (reply.has_item()) return OnItem(reply.item());
    if (reply.has_chunk()) return OnChunk(reply.chunk());
    return item_open_ ? EndedInPage() : absl::OkStatus();
  }

  absl::Status OnItem(const v1::GetItem& item) {
    const size_t page = size_t{base_} + item.item();
    if (item_open_ || page != done_ || page >= end_) {
      return absl::DataLossError(
          absl::StrCat("the server answered item ", item.item(), " out of order"));
    }
    const ItemStatus status = FromProto(item.result().status());
    if (status != ItemStatus::kOk) {
      stopped_at_ = status;
      stopped_ = true;
      return absl::OkStatus();
    }
    const absl::StatusOr<Encoding> encoding = FromProto(item.encoding());
    if (!encoding.ok() || !space_.MayHold(*encoding)) {
      return absl::DataLossError(absl::StrCat("page ", page, " comes in encoding ",
                                              static_cast<int>(item.encoding()),
                                              ", which this namespace has not"));
    }
    const uint64_t expected = space_.codec().layout(*encoding).range_bytes(layers_, heads_);
    const int blocks = static_cast<int>(layers_.count * heads_.count);
    if (item.bytes() != expected || item.block_crc32c_size() != blocks) {
      return absl::DataLossError(absl::StrCat("page ", page, ": expected ", expected, " bytes and ",
                                              blocks, " checksums, the server sends ", item.bytes(),
                                              " and ", item.block_crc32c_size()));
    }
    absl::StatusOr<MutableByteView> room = sink_.Room(done_, *encoding, layers_, expected);
    if (!room.ok()) {
      misuse_ = room.status();
      return absl::OkStatus();
    }
    room_ = *room;
    filled_ = 0;
    crcs_.assign(item.block_crc32c().begin(), item.block_crc32c().end());
    item_open_ = true;
    return absl::OkStatus();
  }

  absl::Status OnChunk(const v1::Chunk& chunk) {
    if (!item_open_ || size_t{base_} + chunk.item() != done_ || chunk.offset() != filled_ ||
        chunk.data().size() > room_.size() - filled_) {
      return absl::DataLossError(absl::StrCat("a chunk of item ", chunk.item(), " at ",
                                              chunk.offset(), " with ", chunk.data().size(),
                                              " bytes does not continue the page"));
    }
    std::memcpy(room_.data() + filled_, chunk.data().data(), chunk.data().size());
    filled_ += chunk.data().size();
    report_.bytes_wire += chunk.data().size();
    if (filled_ == room_.size()) TakePage();
    return absl::OkStatus();
  }

  void TakePage() {
    item_open_ = false;
    const absl::Status taken = sink_.Take(crcs_);
    if (taken.ok()) {
      ++done_;
    } else if (absl::IsDataLoss(taken)) {
      space_.connection()->CountCorruptPage();
      stopped_at_ = ItemStatus::kCorrupt;
      stopped_ = true;
    } else {
      misuse_ = taken;
    }
  }

  Namespace::Impl& space_;
  PageSink& sink_;
  const FetchRequest& request_;
  const absl::Time deadline_;
  BlockRange all_layers_;
  BlockRange heads_;
  FetchReport report_;
  absl::Status misuse_;
  uint32_t limit_;  // pages that came, in the groups before this one

  // The group of layers on its way.
  BlockRange layers_;
  uint32_t done_ = 0;     // its pages that came
  bool stopped_ = false;  // at a page that is not there or not whole, and why:
  ItemStatus stopped_at_ = ItemStatus::kOk;

  // The item on its way.
  uint32_t base_ = 0;  // page number of the call's item 0
  size_t end_ = 0;     // and of the one after its last
  bool item_open_ = false;
  MutableByteView room_;
  uint64_t filled_ = 0;
  std::vector<uint32_t> crcs_;
};

}  // namespace

absl::StatusOr<FetchReport> Namespace::Impl::Fetch(const EngineView& cache,
                                                   const FetchRequest& request) {
  OSCARKV_RETURN_IF_ERROR(CheckKeys(request.keys));
  OSCARKV_RETURN_IF_ERROR(CheckSlots(cache, request.keys, request.slots, /*least=*/-1));
  CpuPageSink sink(*codec_, cache, request.slots);
  return Fetcher(*this, sink, request).Run();
}

absl::StatusOr<FetchReport> Namespace::Impl::FetchTo(PageSink& sink, const FetchRequest& request) {
  const auto fetch = [&]() -> absl::StatusOr<FetchReport> {
    OSCARKV_RETURN_IF_ERROR(CheckKeys(request.keys));
    OSCARKV_RETURN_IF_ERROR(CheckPages(request.keys, sink.pages()));
    return Fetcher(*this, sink, request).Run();
  };
  absl::StatusOr<FetchReport> report = fetch();
  if (!report.ok()) sink.Abandon(report.status());
  return report;
}

}  // namespace oscarkv::client
