// Pushing pages: encode a batch, send its header with every block's checksum, then the bytes in
// chunks.
#include <algorithm>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "client/cpp/cpu_pages.h"
#include "client/cpp/namespace_impl.h"
#include "client/cpp/put_call.h"
#include "client/cpp/wire.h"
#include "kernels/base/status_macros.h"
#include "proto/convert/convert.h"

namespace oscarkv::client {
namespace {

// Sinks and the recent window stay WIDE: quality depends on them more than on anything else.
Encoding FormOf(uint64_t page_begin, uint64_t page_end, uint64_t end_position,
                const PageCodec& codec, const CodecSpec& spec) {
  const bool sink = page_begin < spec.sink_tokens;
  const bool recent = page_end + spec.recent_tokens > end_position;
  return sink || recent || !codec.can_pack() ? Encoding::kWide : Encoding::kPacked;
}

class Pusher {
 public:
  Pusher(Namespace::Impl& space, PageSource& source, const PushRequest& request)
      : space_(space),
        source_(source),
        request_(request),
        hints_(request.hints),
        deadline_(absl::Now() + space.connection()->options().push_timeout) {
    report_.statuses.assign(request.keys.size(), ItemStatus::kSkipped);
    report_.messages.resize(request.keys.size());
    // So that the store knows the batches of this push as one request.
    if (hints_.request_id == 0) {
      absl::BitGen random;
      hints_.request_id = absl::Uniform<uint64_t>(random) | 1U;
    }
  }

  absl::StatusOr<PushReport> Run() {
    const auto needs = space_.codec().can_pack() ? Namespace::Impl::Needs::kTransforms
                                                 : Namespace::Impl::Needs::kNamespace;
    for (size_t first = 0; first < request_.keys.size();) {
      report_.store = space_.CheckCallable();
      if (!report_.store.ok()) break;
      OSCARKV_ASSIGN_OR_RETURN(const size_t count, EncodeBatch(first));
      report_.store = space_.WithOpen(needs, deadline_, [&] { return SendBatch(first, count); });
      // What follows a page that was not stored has no parent there.
      if (!report_.store.ok() || !AllStored(first, count)) break;
      first += count;
    }
    return std::move(report_);
  }

 private:
  uint64_t PositionOf(size_t page) const {
    return request_.first_position + page * space_.page_tokens();
  }

  // Encodes pages from `first` on into batch_, as many as fit; how many.
  absl::StatusOr<size_t> EncodeBatch(size_t first) {
    const PageCodec& codec = space_.codec();
    const uint64_t end = std::max(request_.end_position, PositionOf(request_.keys.size()));
    const size_t count_max = std::min<size_t>(request_.keys.size() - first, space_.max_items());
    std::vector<Encoding> encodings;
    for (size_t page = first; page < first + count_max; ++page) {
      encodings.push_back(
          FormOf(PositionOf(page), PositionOf(page + 1), end, codec, space_.spec().codec));
    }
    OSCARKV_ASSIGN_OR_RETURN(
        batch_, source_.Encode(static_cast<uint32_t>(first), encodings, &report_.encode));
    for (const EncodedPage& page : batch_)
      (page.encoding == Encoding::kWide ? report_.wide_pages : report_.packed_pages) += 1;
    report_.bytes_model += batch_.size() * codec.layout(Encoding::kWide).page_bytes();
    return batch_.size();
  }

  v1::PutRequest MakeHeader(size_t first) const {
    v1::PutRequest message;
    v1::PutHeader* header = message.mutable_header();
    *header->mutable_scope() = space_.MakeScope();
    *header->mutable_hints() = ToProto(hints_);
    header->set_more_pages(static_cast<uint32_t>(request_.keys.size() - first - batch_.size()));
    for (size_t i = 0; i < batch_.size(); ++i) {
      v1::PutItem* item = header->add_items();
      const size_t page = first + i;
      item->set_key(request_.keys[page]);
      item->set_parent(page == 0 ? request_.parent : request_.keys[page - 1]);
      item->set_first_position(PositionOf(page));
      item->set_encoding(ToProto(batch_[i].encoding));
      item->set_bytes(batch_[i].bytes.size());
      item->mutable_block_crc32c()->Add(batch_[i].block_crc32c.begin(),
                                        batch_[i].block_crc32c.end());
    }
    return message;
  }

  // Sends the chunks of the batch; stops when the call has ended.
  void SendChunks(PutCall& call) {
    const size_t chunk_bytes = space_.max_chunk_bytes();
    v1::PutRequest message;
    for (size_t i = 0; i < batch_.size(); ++i) {
      const ByteView bytes = batch_[i].bytes;
      for (size_t offset = 0; offset < bytes.size(); offset += chunk_bytes) {
        const size_t count = std::min(chunk_bytes, bytes.size() - offset);
        v1::Chunk* chunk = message.mutable_chunk();
        chunk->set_item(static_cast<uint32_t>(i));
        chunk->set_offset(offset);
        chunk->set_data(bytes.data() + offset, count);
        if (!call.Write(&message)) return;
        report_.bytes_wire += count;
      }
    }
  }

  absl::Status SendBatch(size_t first, size_t count) {
    v1::PutReply reply;
    // Not with the context that is offered: the call may live on when this has returned.
    absl::Status status = space_.Call(deadline_, [&](grpc::ClientContext*) {
      reply.Clear();
      const auto call = PutCall::Start(space_.connection()->stubs(), deadline_);
      const CallGroup::Member member(space_.group(), call->context());
      v1::PutRequest header = MakeHeader(first);
      if (call->Write(&header)) SendChunks(*call);
      return call->Finish(&reply);
    });
    for (size_t i = 0; i < std::min<size_t>(count, static_cast<size_t>(reply.results_size()));
         ++i) {
      const v1::ItemResult& result = reply.results(static_cast<int>(i));
      report_.statuses[first + i] = FromProto(result.status());
      report_.messages[first + i] = result.message();
    }
    return status;
  }

  bool AllStored(size_t first, size_t count) const {
    return std::all_of(
        report_.statuses.begin() + static_cast<std::ptrdiff_t>(first),
        report_.statuses.begin() + static_cast<std::ptrdiff_t>(first + count),
        [](ItemStatus s) { return s == ItemStatus::kOk || s == ItemStatus::kExists; });
  }

  Namespace::Impl& space_;
  PageSource& source_;
  const PushRequest& request_;
  RequestHints hints_;
  const absl::Time deadline_;
  PushReport report_;
  std::span<const EncodedPage> batch_;
};

}  // namespace

absl::Status Namespace::Impl::CheckPushable() const {
  if (spec_.codec.transform_hash.empty() || codec_->can_pack()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "the namespace was opened without its transform set: pages can not be pushed");
}

absl::StatusOr<PushReport> Namespace::Impl::Push(const EngineView& cache,
                                                 const PushRequest& request) {
  OSCARKV_RETURN_IF_ERROR(CheckKeys(request.keys));
  OSCARKV_RETURN_IF_ERROR(CheckSlots(cache, request.keys, request.slots, /*least=*/0));
  OSCARKV_RETURN_IF_ERROR(CheckPushable());
  CpuPageSource source(*codec_, cache, request.slots, connection_->options().push_batch_bytes);
  return Pusher(*this, source, request).Run();
}

absl::StatusOr<PushReport> Namespace::Impl::PushFrom(PageSource& source,
                                                     const PushRequest& request) {
  OSCARKV_RETURN_IF_ERROR(CheckKeys(request.keys));
  OSCARKV_RETURN_IF_ERROR(CheckPages(request.keys, source.pages()));
  OSCARKV_RETURN_IF_ERROR(CheckPushable());
  return Pusher(*this, source, request).Run();
}

}  // namespace oscarkv::client
