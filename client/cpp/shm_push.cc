// Pushing by memory that client and server map: pages are encoded into it, and the server copies
// them out before it verifies them.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

#include "client/cpp/shm_path.h"
#include "kernels/base/fault_point.h"
#include "kernels/base/status_macros.h"

namespace oscarkv::client {
namespace {

class ShmPush final : public PushCall {
 public:
  ShmPush(std::shared_ptr<ShmDoor> door, std::unique_ptr<ShmLink> link)
      : door_(std::move(door)), link_(std::move(link)) {}
  ~ShmPush() override { door_->Give(Direction::kPush, std::move(link_)); }

  MutableByteView room() override { return link_->staging(); }

  absl::Status Push(Namespace::Impl& space, const PagesOffered& offered, PushReport* report,
                    absl::Status* broken) override {
    for (size_t done = 0; done < offered.pages.size();) {
      v1::DoorRequest request;
      const absl::StatusOr<size_t> count = Stage(space, offered, done, request.mutable_commit());
      if (!count.ok()) {
        *broken = count.status();
        return absl::OkStatus();
      }
      const PagesOffered part = PartOf(offered, done, *count);
      FaultPoint("shm.client.staged");
      absl::StatusOr<v1::DoorReply> reply = link_->Ask(request, space.group(), offered.deadline);
      FaultPoint("shm.client.committed");
      if (!reply.ok()) {
        if (TellsOfPath(reply.status())) *broken = reply.status();
        return reply.status();
      }
      OSCARKV_RETURN_IF_ERROR(StatusOf(*reply));
      TakePutResults(part, reply->committed(), report);
      for (const EncodedPage& page : part.pages) report->bytes_wire += page.bytes.size();
      done += *count;
    }
    return absl::OkStatus();
  }

 private:
  static PagesOffered PartOf(const PagesOffered& offered, size_t first, size_t count) {
    return {offered.request, offered.hints, offered.first + static_cast<uint32_t>(first),
            offered.pages.subspan(first, count), offered.deadline};
  }

  // Puts pages from `first` on into the commit, as many as fit into the staging memory and a
  // packet; those that were encoded elsewhere are copied. How many. kResourceExhausted: the first
  // alone does not fit.
  absl::StatusOr<size_t> Stage(const Namespace::Impl& space, const PagesOffered& offered,
                               size_t first, v1::DoorCommit* commit) const {
    const MutableByteView staging = link_->staging();
    const auto inside = [&](const EncodedPage& page) {
      return page.bytes.data() >= staging.data() &&
             page.bytes.data() + page.bytes.size() <= staging.data() + staging.size();
    };
    // Pages of one batch all lie in the room, or none does.
    const bool staged = inside(offered.pages[first]);
    size_t count = 0;
    uint64_t filled = 0;
    uint64_t packet = kPacketReserve;
    for (; first + count < offered.pages.size(); ++count) {
      const EncodedPage& page = offered.pages[first + count];
      packet += kItemReserve + page.block_crc32c.size_bytes();
      if (count > 0 && packet > kPacketBytesMax) break;
      if (!staged) {
        if (page.bytes.size() > staging.size() - filled) break;
        std::memcpy(staging.data() + filled, page.bytes.data(), page.bytes.size());
      }
      commit->add_offsets(staged ? static_cast<uint64_t>(page.bytes.data() - staging.data())
                                 : filled);
      filled += page.bytes.size();  // a multiple of the blocks' alignment
    }
    if (count == 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("a page of ", offered.pages[first].bytes.size(), " bytes, and ",
                       staging.size(), " bytes to stage it in"));
    }
    FillPutHeader(space, PartOf(offered, first, count), commit->mutable_header());
    return count;
  }

  // What a packet holds beside checksums: the scope and hints; of an item its keys and numbers.
  static constexpr uint64_t kPacketReserve = 1024;
  static constexpr uint64_t kItemReserve = 256;

  const std::shared_ptr<ShmDoor> door_;
  std::unique_ptr<ShmLink> link_;
};

class ShmPushPath final : public PushPath {
 public:
  explicit ShmPushPath(std::shared_ptr<ShmDoor> door) : door_(std::move(door)) {}
  DataPath kind() const override { return DataPath::kShm; }
  absl::StatusOr<std::unique_ptr<PushCall>> Begin(Namespace::Impl& space,
                                                  absl::Time deadline) override {
    OSCARKV_ASSIGN_OR_RETURN(std::unique_ptr<ShmLink> link,
                             door_->Take(Direction::kPush, space.group(), deadline));
    return std::make_unique<ShmPush>(door_, std::move(link));
  }

 private:
  const std::shared_ptr<ShmDoor> door_;
};

}  // namespace

std::shared_ptr<PushPath> MakeShmPushPath(std::shared_ptr<ShmDoor> door) {
  return std::make_shared<ShmPushPath>(std::move(door));
}

}  // namespace oscarkv::client
