// Fetching where the server has the pages: one request says where they lie and has them stay there.
// What was read is good if, after it was read, the fence is still down; so that is looked at after
// the sink has done all that it does with a page.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "client/cpp/page_calls.h"
#include "client/cpp/shm_path.h"
#include "kernels/base/fault_point.h"
#include "kernels/base/status_macros.h"
#include "proto/wire/page_key.h"

namespace oscarkv::client {
namespace {

// One call of FetchPath::Fetch.
class ShmFetch {
 public:
  ShmFetch(Namespace::Impl& space, const PagesWanted& wanted, PageSink& sink, PagesTaken* taken)
      : space_(space),
        wanted_(wanted),
        whole_(wanted.Of({0, space.codec().geometry().layers},
                         {0, space.codec().geometry().kv_heads})),
        sink_(sink),
        taken_(*taken) {}

  absl::Status Run(ShmDoor& door) {
    const uint32_t asked =
        std::min({wanted_.end - wanted_.first, space_.max_items(), kPacketKeysMax});
    v1::DoorRequest request;
    NamePages(space_, wanted_, wanted_.first, asked, request.mutable_map());
    std::unique_ptr<ShmLink> link;
    absl::StatusOr<v1::DoorReply> reply = Ask(door, request, &link);
    if (!reply.ok()) {
      if (TellsOfPath(reply.status())) taken_.broken = reply.status();
      return reply.status();
    }
    FaultPoint("shm.client.mapped");
    const absl::Status answer = StatusOf(*reply);
    if (answer.ok()) {
      OSCARKV_RETURN_IF_ERROR(TakePages(reply->mapped(), asked, *link));
      FaultPoint("shm.client.read");
      link->Release(release_);
    }
    door.Give(Direction::kFetch, std::move(link));
    return answer;
  }

 private:
  // By a connection that was idle, which may have ended meanwhile, or by a new one.
  absl::StatusOr<v1::DoorReply> Ask(ShmDoor& door, const v1::DoorRequest& request,
                                    std::unique_ptr<ShmLink>* link) const {
    for (int attempt = 0;; ++attempt) {
      OSCARKV_ASSIGN_OR_RETURN(*link,
                               door.Take(Direction::kFetch, wanted_.group, wanted_.deadline));
      absl::StatusOr<v1::DoorReply> reply = (*link)->Ask(request, wanted_.group, wanted_.deadline);
      if (!absl::IsUnavailable(reply.status()) || attempt == kIdleTried) return reply;
    }
  }

  absl::Status TakePages(const v1::DoorMapped& mapped, uint32_t asked, const ShmLink& link) {
    if (mapped.pages().empty() || static_cast<uint32_t>(mapped.pages_size()) > asked) {
      return absl::DataLossError(
          absl::StrCat("of ", asked, " pages the server says where ", mapped.pages_size(), " are"));
    }
    for (int i = 0; i < mapped.pages_size(); ++i) {
      const v1::MappedPage& page = mapped.pages(i);
      taken_.stop = FromProto(page.result().status());
      if (taken_.stop != ItemStatus::kOk) break;
      OSCARKV_RETURN_IF_ERROR(TakePage(page, link));
      if (taken_.stop == ItemStatus::kCorrupt) release_.add_corrupt(static_cast<uint32_t>(i));
      if (taken_.stop != ItemStatus::kOk || !taken_.sink.ok()) break;
    }
    return absl::OkStatus();
  }

  absl::Status TakePage(const v1::MappedPage& page, const ShmLink& link) {
    const uint32_t number = wanted_.first + taken_.pages;
    const auto blocks = static_cast<int>(space_.codec().geometry().blocks());
    OSCARKV_ASSIGN_OR_RETURN(
        const Encoding encoding,
        CheckPage(space_, whole_, number, page.encoding(), page.bytes(), blocks));
    const uint64_t bytes = page.bytes() + sizeof(uint32_t) * static_cast<uint64_t>(blocks);
    const ByteView arena = link.arena();
    if (page.offset() % kBlockAlignment != 0 || bytes > arena.size() ||
        page.offset() > arena.size() - bytes) {
      return absl::DataLossError(absl::StrCat("the server's memory has ", arena.size(),
                                              " bytes, the server says that ", bytes,
                                              " of a page are at ", page.offset()));
    }
    const ByteView stored = arena.subspan(page.offset(), bytes);
    CopyChecksums(stored.subspan(page.bytes()));
    // Looked at here as well: with checksums that are the page's own no other passes for it, so the
    // sink does not write one that came to lie there.
    absl::Status sink;
    if (!link.Revoked()) sink = Hand(number, encoding, stored.first(page.bytes()));
    if (link.Revoked()) {
      taken_.stop = ItemStatus::kFenced;
      return absl::OkStatus();
    }
    CountTaken(sink, &taken_);
    if (sink.ok())
      taken_.bytes += space_.codec().layout(encoding).range_bytes(wanted_.layers, wanted_.heads);
    return absl::OkStatus();
  }

  // Of the wanted blocks; `checksums` lie behind the page.
  void CopyChecksums(ByteView checksums) {
    const uint32_t heads = space_.codec().geometry().kv_heads;
    crcs_.resize(size_t{wanted_.layers.count} * wanted_.heads.count);
    const uint64_t row_bytes = wanted_.heads.count * sizeof(uint32_t);
    for (uint32_t i = 0; i < wanted_.layers.count; ++i) {
      const size_t first = size_t{wanted_.layers.first + i} * heads + wanted_.heads.first;
      std::memcpy(crcs_.data() + size_t{i} * wanted_.heads.count,
                  checksums.data() + first * sizeof(uint32_t), row_bytes);
    }
  }

  // The wanted blocks of a page, with their checksums.
  absl::Status Hand(uint32_t number, Encoding encoding, ByteView page) {
    const PageLayout& layout = space_.codec().layout(encoding);
    const uint32_t heads = space_.codec().geometry().kv_heads;
    const uint64_t bytes = layout.range_bytes(wanted_.layers, wanted_.heads);
    if (wanted_.heads.count == heads) {
      const uint64_t offset = layout.block_offset(wanted_.layers.first, 0);
      return sink_.TakeFrom(number, encoding, wanted_.layers, page.subspan(offset, bytes), crcs_);
    }
    OSCARKV_ASSIGN_OR_RETURN(MutableByteView room,
                             sink_.Room(number, encoding, wanted_.layers, bytes));
    for (uint32_t i = 0; i < wanted_.layers.count; ++i) {
      const uint32_t layer = wanted_.layers.first + i;
      const ByteView row = page.subspan(layout.block_offset(layer, wanted_.heads.first),
                                        wanted_.heads.count * layout.block(layer).stride);
      std::memcpy(room.data(), row.data(), row.size());
      room = room.subspan(row.size());
    }
    return sink_.Take(crcs_);
  }

  static constexpr int kIdleTried = 1;
  // As many keys, with their tags and lengths, as a packet has room for beside the scope and hints;
  // the answer takes less for each.
  static constexpr uint32_t kPacketKeysMax =
      static_cast<uint32_t>((kPacketBytesMax - 4096) / (kKeyBytesMax + 2));

  Namespace::Impl& space_;
  const PagesWanted& wanted_;
  const PagesWanted whole_;  // the same, of all blocks: what the server says of a page
  PageSink& sink_;
  PagesTaken& taken_;
  v1::DoorRelease release_;
  std::vector<uint32_t> crcs_;
};

class ShmFetchPath final : public FetchPath {
 public:
  explicit ShmFetchPath(std::shared_ptr<ShmDoor> door) : door_(std::move(door)) {}
  DataPath kind() const override { return DataPath::kShm; }
  absl::Status Fetch(Namespace::Impl& space, const PagesWanted& wanted, PageSink& sink,
                     PagesTaken* taken) override {
    return ShmFetch(space, wanted, sink, taken).Run(*door_);
  }

 private:
  const std::shared_ptr<ShmDoor> door_;
};

}  // namespace

std::shared_ptr<FetchPath> MakeShmFetchPath(std::shared_ptr<ShmDoor> door) {
  return std::make_shared<ShmFetchPath>(std::move(door));
}

}  // namespace oscarkv::client
