// One call says where pages lie and has them stay there, with all layers of the fetch; the sink
// reads them whenever it likes until it says that it has. No bytes pass here.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "client/cpp/brought_pages.h"
#include "client/cpp/connection.h"
#include "client/cpp/device_fetch.h"
#include "client/cpp/page_calls.h"
#include "client/cpp/peer_calls.h"
#include "kernels/base/fault_point.h"
#include "kernels/base/status_macros.h"

namespace oscarkv::client {
namespace {

// That ending a hold may take, however late the fetch is: the server's memory waits for it.
constexpr absl::Duration kEndTimeoutMin = absl::Milliseconds(50);

class Hold final : public PagesHold {
 public:
  Hold(std::shared_ptr<Connection> connection, uint64_t id, absl::Time deadline)
      : connection_(std::move(connection)), id_(id), deadline_(deadline) {}
  ~Hold() override {
    if (id_ != 0) End().IgnoreError();  // nobody asks
  }

  absl::Status End() override {
    v1::EndHoldRequest request;
    request.set_hold_id(std::exchange(id_, 0));
    v1::EndHoldReply reply;
    OSCARKV_RETURN_IF_ERROR(connection_->Call(std::max(deadline_ - absl::Now(), kEndTimeoutMin),
                                              method::kEndHold, request, &reply));
    FaultPoint("ipc.client.fetch.ended");
    if (reply.held()) return absl::OkStatus();
    return absl::AbortedError("the server did not keep the page until it was read");
  }

 private:
  const std::shared_ptr<Connection> connection_;
  uint64_t id_;
  const absl::Time deadline_;
};

// One call of FetchPath::Fetch.
class IpcFetch {
 public:
  IpcFetch(Namespace::Impl& space, const PagesWanted& wanted, const v1::ShareDeviceReply& shared,
           DevicePages& sink, PagesTaken* taken)
      : space_(space),
        wanted_(wanted),
        all_(wanted.OfAllLayers()),
        shared_(shared),
        sink_(sink),
        taken_(*taken) {}

  absl::Status Run(uint64_t session) {
    v1::HoldPagesReply reply;
    const uint32_t asked = std::min(wanted_.end - wanted_.first, space_.max_items());
    const absl::Status status = Ask(session, asked, &reply);
    if (absl::IsResourceExhausted(status)) {
      taken_.elsewhere = asked;
      return absl::OkStatus();
    }
    OSCARKV_RETURN_IF_ERROR(status);
    FaultPoint("ipc.client.fetch.held");
    std::unique_ptr<PagesHold> hold;
    if (reply.hold_id() != 0)
      hold = std::make_unique<Hold>(space_.connection(), reply.hold_id(), wanted_.deadline);
    OSCARKV_RETURN_IF_ERROR(Check(reply, asked));
    if (TakeAbsence(reply, &taken_)) return absl::OkStatus();
    sink_.Keep(wanted_.first, static_cast<uint32_t>(reply.pages_size()), std::move(hold));
    for (int i = 0; i < reply.pages_size(); ++i) {
      const v1::HeldPage& page = reply.pages(i);
      wanted_.brought.Add(
          wanted_.first + static_cast<uint32_t>(i),
          {.encoding = *FromProto(page.encoding()),
           .layers = all_.layers,
           .offset = page.offset(),
           .bytes = page.bytes()},
          {page.block_crc32c().data(), static_cast<size_t>(page.block_crc32c_size())});
    }
    wanted_.brought.Take(space_.codec(), wanted_, sink_, &taken_);
    FaultPoint("ipc.client.fetch.taken");
    return absl::OkStatus();
  }

 private:
  absl::Status Ask(uint64_t session, uint32_t count, v1::HoldPagesReply* reply) {
    v1::HoldPagesRequest request;
    AskForPages(space_, all_, all_.first, count, &request);
    request.set_session_id(session);
    return space_.connection()->Call(wanted_.group, wanted_.deadline, method::kHoldPages, request,
                                     reply);
  }

  // Whether the answer makes sense, and its places lie in the memory.
  absl::Status Check(const v1::HoldPagesReply& reply, uint32_t asked) const {
    OSCARKV_RETURN_IF_ERROR(CheckLeadingPages(reply, asked));
    if (!reply.pages().empty() && reply.hold_id() == 0)
      return absl::DataLossError("the server names pages, and no hold that keeps them in place");
    for (int i = 0; i < reply.pages_size(); ++i) {
      const v1::HeldPage& page = reply.pages(i);
      OSCARKV_RETURN_IF_ERROR(CheckPage(space_, all_, all_.first + static_cast<size_t>(i),
                                        page.encoding(), page.bytes(), page.block_crc32c_size())
                                  .status());
      if (page.offset() % kBlockAlignment == 0 && page.offset() <= shared_.bytes() &&
          page.bytes() <= shared_.bytes() - page.offset())
        continue;
      return absl::DataLossError(absl::StrCat("the GPU's memory has ", shared_.bytes(),
                                              " bytes, the server says that ", page.bytes(),
                                              " of a page are at ", page.offset()));
    }
    return absl::OkStatus();
  }

  Namespace::Impl& space_;
  const PagesWanted& wanted_;
  const PagesWanted all_;  // the same, with all layers of the fetch
  const v1::ShareDeviceReply& shared_;
  DevicePages& sink_;
  PagesTaken& taken_;
};

class IpcFetchPath final : public FetchPath {
 public:
  DataPath kind() const override { return DataPath::kIpc; }

  absl::Status Fetch(Namespace::Impl& space, const PagesWanted& wanted, PageSink& sink,
                     PagesTaken* taken) override {
    if (wanted.brought.Take(space.codec(), wanted, *sink.device_pages(), taken))
      return absl::OkStatus();
    const uint64_t session = space.connection()->Session(wanted.deadline);
    if (session == 0) return absl::UnavailableError("no session could be opened");
    OSCARKV_ASSIGN_OR_RETURN(const v1::ShareDeviceReply shared,
                             shared_.Get(space, wanted.group, wanted.deadline, &taken->broken));
    if (taken->broken.ok()) taken->broken = sink.device_pages()->Open(shared.handle());
    if (!taken->broken.ok()) return absl::OkStatus();
    return IpcFetch(space, wanted, shared, *sink.device_pages(), taken).Run(session);
  }

 private:
  SharedDevice shared_;
};

}  // namespace

std::shared_ptr<FetchPath> MakeIpcFetchPath() { return std::make_shared<IpcFetchPath>(); }

}  // namespace oscarkv::client
