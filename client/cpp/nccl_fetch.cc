// A call asks for as many pages as a slot takes; the server's GPU sends them while the answer, with
// the ticket, is on its way. Each sink has a peer of its own, so that nothing is shared but the
// server. A peer that breaks costs its fetch; the next one opens another, of a later epoch. While
// the two meet, pages come by other paths.
#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "client/cpp/brought_pages.h"
#include "client/cpp/connection.h"
#include "client/cpp/device_fetch.h"
#include "client/cpp/device_pages.h"
#include "client/cpp/page_calls.h"
#include "client/cpp/peer_calls.h"
#include "client/cpp/peer_link.h"
#include "kernels/base/fault_point.h"
#include "kernels/base/status_macros.h"

namespace oscarkv::client {
namespace {

// One call of FetchPath::Fetch.
class NcclFetch {
 public:
  NcclFetch(Namespace::Impl& space, const PagesWanted& wanted, DevicePages& sink, PagesTaken* taken)
      : space_(space),
        wanted_(wanted),
        asked_(wanted),
        sink_(sink),
        peer_(*sink.receiver()),
        taken_(*taken) {}

  absl::Status Run() {
    absl::Status status = Try();
    // The server may have ended the peer meanwhile: it had been idle for long.
    if (absl::IsNotFound(status) && peer_.epoch() == 0) status = Try();
    return status;
  }

 private:
  absl::Status Try() {
    OSCARKV_ASSIGN_OR_RETURN(const bool met,
                             OpenPeerLink(space_, peer_, Direction::kFetch, wanted_.group,
                                          wanted_.deadline, &taken_.broken));
    if (!taken_.broken.ok()) return absl::OkStatus();
    if (!met) {
      taken_.elsewhere = wanted_.end - wanted_.first;
      return absl::OkStatus();
    }
    if (wanted_.group.cancelled()) return absl::CancelledError("the fetch was cancelled");
    const absl::StatusOr<uint64_t> slot = sink_.ReceiveSlot();
    if (!slot.ok()) {
      taken_.sink = slot.status();
      return absl::OkStatus();
    }
    // A call takes longer than the bytes: as long as there are slots, it is for all layers.
    const bool keep = sink_.MayKeepSlot() && FitsSlot(wanted_.rest);
    asked_.layers = keep ? wanted_.rest : wanted_.layers;
    v1::SendPagesReply reply;
    absl::Status status = Ask(&reply);
    if (status.ok()) status = Check(reply);
    if (!status.ok()) {
      // Whether a ticket was given is not known.
      peer_.Break(status);
      return status;
    }
    if (TakeAbsence(reply, &taken_)) return absl::OkStatus();
    FaultPoint("nccl.client.fetch.asked");
    std::vector<uint64_t> sizes;
    for (const v1::SentPage& page : reply.pages()) sizes.push_back(page.bytes());
    OSCARKV_RETURN_IF_ERROR(peer_.Receive({peer_.epoch(), reply.sequence(), reply.pages_crc32c()},
                                          wanted_.request.keys.subspan(wanted_.first, sizes.size()),
                                          sizes, *slot, wanted_.deadline,
                                          [this] { return wanted_.group.cancelled(); }));
    FaultPoint("nccl.client.fetch.received");
    BroughtPages gone_after_this;
    BroughtPages& brought = keep ? wanted_.brought : gone_after_this;
    if (keep) sink_.KeepSlot();
    Add(reply, *slot, &brought);
    brought.Take(space_.codec(), wanted_, sink_, &taken_);
    return absl::OkStatus();
  }

  // Whether any page's layers do.
  bool FitsSlot(BlockRange layers) const {
    return space_.codec().layout(Encoding::kWide).range_bytes(layers, wanted_.heads) <=
           peer_.shape().slot_bytes;
  }

  absl::Status Ask(v1::SendPagesReply* reply) {
    asked_.end = asked_.first + std::min(wanted_.end - wanted_.first, space_.max_items());
    v1::SendPagesRequest request;
    AskForPages(space_, asked_, asked_.first, asked_.end - asked_.first, &request);
    request.set_peer_id(peer_.peer_id());
    request.set_peer_epoch(peer_.epoch());
    request.set_deadline_ms(static_cast<uint32_t>(
        std::max<int64_t>(1, absl::ToInt64Milliseconds(wanted_.deadline - absl::Now()))));
    return space_.connection()->Call(wanted_.group, wanted_.deadline, method::kSendPages, request,
                                     reply);
  }

  absl::Status Check(const v1::SendPagesReply& reply) const {
    OSCARKV_RETURN_IF_ERROR(CheckLeadingPages(reply, asked_.end - asked_.first));
    uint64_t all = 0;
    for (int i = 0; i < reply.pages_size(); ++i) {
      const v1::SentPage& page = reply.pages(i);
      OSCARKV_RETURN_IF_ERROR(CheckPage(space_, asked_, asked_.first + static_cast<size_t>(i),
                                        page.encoding(), page.bytes(), page.block_crc32c_size())
                                  .status());
      all += page.bytes();
      if (all <= peer_.shape().slot_bytes) continue;
      return absl::DataLossError(
          absl::StrCat("a slot has ", peer_.shape().slot_bytes, " bytes, the server sends ", all));
    }
    return absl::OkStatus();
  }

  void Add(const v1::SendPagesReply& reply, uint64_t offset, BroughtPages* brought) const {
    uint32_t number = asked_.first;
    for (const v1::SentPage& page : reply.pages()) {
      brought->Add(number++,
                   {.memory = DevicePlace::Memory::kReceived,
                    .encoding = *FromProto(page.encoding()),
                    .layers = asked_.layers,
                    .offset = offset,
                    .bytes = page.bytes()},
                   {page.block_crc32c().data(), static_cast<size_t>(page.block_crc32c_size())});
      offset += page.bytes();
    }
  }

  Namespace::Impl& space_;
  const PagesWanted& wanted_;
  PagesWanted asked_;  // of the server: perhaps all layers, of as many pages as it may be asked for
  DevicePages& sink_;
  PeerLink& peer_;
  PagesTaken& taken_;
};

class NcclFetchPath final : public FetchPath {
 public:
  DataPath kind() const override { return DataPath::kNccl; }
  absl::Status Fetch(Namespace::Impl& space, const PagesWanted& wanted, PageSink& sink,
                     PagesTaken* taken) override {
    if (wanted.brought.Take(space.codec(), wanted, *sink.device_pages(), taken))
      return absl::OkStatus();
    return NcclFetch(space, wanted, *sink.device_pages(), taken).Run();
  }
};

}  // namespace

std::shared_ptr<FetchPath> MakeNcclFetchPath() { return std::make_shared<NcclFetchPath>(); }

}  // namespace oscarkv::client
