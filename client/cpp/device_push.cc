// One call says what is to be stored, and is told where the server wants it; the bytes go there
// from this side's device; a second call has them verified and stored.
#include "client/cpp/device_push.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "client/cpp/connection.h"
#include "client/cpp/device_source.h"
#include "client/cpp/peer_calls.h"
#include "client/cpp/peer_link.h"
#include "kernels/base/fault_point.h"
#include "kernels/base/status_macros.h"
#include "kernels/codec/page_layout.h"

namespace oscarkv::client {
namespace {

class DevicePush : public PushCall {
 public:
  absl::Status Push(Namespace::Impl& space, const PagesOffered& offered, PushReport* report,
                    absl::Status* broken) override {
    DeviceSource& source = *offered.device;
    later_ = false;
    OSCARKV_ASSIGN_OR_RETURN(const bool ready, Prepare(space, source, offered.deadline, broken));
    later_ = broken->ok() && !ready;
    if (later_) return absl::OkStatus();
    for (size_t done = 0; broken->ok() && done < offered.pages.size();) {
      const PagesOffered rest = {.request = offered.request,
                                 .hints = offered.hints,
                                 .first = offered.first + static_cast<uint32_t>(done),
                                 .pages = offered.pages.subspan(done),
                                 .deadline = offered.deadline,
                                 .device = offered.device};
      OSCARKV_ASSIGN_OR_RETURN(const size_t pushed, PushSome(space, rest, report, broken));
      if (pushed == 0) break;
      done += pushed;
    }
    return absl::OkStatus();
  }
  bool later() const override { return later_; }

 protected:
  // Before the first page: what is needed of the server, and of the source; false: it is not ready
  // yet. As Push.
  virtual absl::StatusOr<bool> Prepare(Namespace::Impl& space, DeviceSource& source,
                                       absl::Time deadline, absl::Status* broken) = 0;
  virtual void Name(DeviceSource&, v1::BeginPushRequest*) {}
  // Where the server may place pages; 0: it does not say.
  virtual uint64_t staging_bytes() const { return 0; }
  // Brings the pages that are wanted there.
  virtual absl::Status Bring(Namespace::Impl& space, const PagesOffered& offered,
                             const v1::BeginPushReply& reply) = 0;
  // An answer may have been lost.
  virtual void GiveUp(DeviceSource&, const absl::Status&) {}

 private:
  // How many were stored, or were there; 0 also where nothing that follows is to be offered.
  absl::StatusOr<size_t> PushSome(Namespace::Impl& space, const PagesOffered& offered,
                                  PushReport* report, absl::Status* broken) {
    v1::BeginPushReply begun;
    absl::Status status = Begin(space, offered, &begun);
    // The server may have ended the peer meanwhile: it had been idle for long.
    if (absl::IsNotFound(status)) {
      GiveUp(*offered.device, status);
      OSCARKV_ASSIGN_OR_RETURN(const bool ready,
                               Prepare(space, *offered.device, offered.deadline, broken));
      if (!broken->ok()) return 0;
      if (ready) status = Begin(space, offered, &begun);
    }
    if (absl::IsUnimplemented(status)) {
      *broken = status;
      return 0;
    }
    if (status.ok()) status = Check(offered, begun);
    if (!status.ok()) {
      GiveUp(*offered.device, status);
      return status;
    }
    if (begun.push_id() == 0) {
      report->statuses[offered.first] = ItemStatus::kBusy;
      report->messages[offered.first] = "the server has no room for a page on its way now";
      return 0;
    }
    FaultPoint("device.client.push.begun");
    OSCARKV_RETURN_IF_ERROR(Bring(space, offered, begun));
    FaultPoint("device.client.push.brought");
    v1::EndPushReply ended;
    OSCARKV_RETURN_IF_ERROR(End(space, offered, begun.push_id(), &ended));
    FaultPoint("device.client.push.ended");
    for (int i = 0; i < begun.places_size(); ++i)
      if (begun.places(i).wanted())
        report->bytes_wire += offered.pages[static_cast<size_t>(i)].bytes.size();
    v1::PutReply results;
    results.mutable_results()->Swap(ended.mutable_results());
    TakePutResults(offered, results, report);
    const auto first = report->statuses.begin() + offered.first;
    const bool stored = std::all_of(first, first + begun.places_size(), [](ItemStatus s) {
      return s == ItemStatus::kOk || s == ItemStatus::kExists;
    });
    return stored ? static_cast<size_t>(begun.places_size()) : 0;
  }

  absl::Status Begin(Namespace::Impl& space, const PagesOffered& offered,
                     v1::BeginPushReply* reply) {
    v1::BeginPushRequest request;
    FillPutHeader(space, offered, request.mutable_put());
    request.set_session_id(space.connection()->Session(offered.deadline));
    request.set_deadline_ms(static_cast<uint32_t>(
        std::max<int64_t>(1, absl::ToInt64Milliseconds(offered.deadline - absl::Now()))));
    Name(*offered.device, &request);
    return space.Call(offered.deadline, method::kBeginPush, request, reply);
  }

  // Whether the answer makes sense, and its places lie in the memory.
  absl::Status Check(const PagesOffered& offered, const v1::BeginPushReply& reply) const {
    const auto places = static_cast<size_t>(reply.places_size());
    if (places > offered.pages.size() || (places == 0) != (reply.push_id() == 0)) {
      return absl::DataLossError(absl::StrCat("of ", offered.pages.size(),
                                              " pages the server places ", places, " in push ",
                                              reply.push_id()));
    }
    for (size_t i = 0; staging_bytes() > 0 && i < places; ++i) {
      const v1::PushPlace& place = reply.places(static_cast<int>(i));
      const uint64_t bytes = offered.pages[i].bytes.size();
      if (!place.wanted() || (place.offset() % kBlockAlignment == 0 && bytes <= staging_bytes() &&
                              place.offset() <= staging_bytes() - bytes))
        continue;
      return absl::DataLossError(absl::StrCat("the staging memory has ", staging_bytes(),
                                              " bytes, the server wants ", bytes, " at ",
                                              place.offset()));
    }
    return absl::OkStatus();
  }

  absl::Status End(Namespace::Impl& space, const PagesOffered& offered, uint64_t push,
                   v1::EndPushReply* reply) {
    v1::EndPushRequest request;
    request.set_push_id(push);
    return space.Call(offered.deadline, method::kEndPush, request, reply);
  }

  bool later_ = false;
};

class IpcPush final : public DevicePush {
 public:
  explicit IpcPush(SharedDevice& shared) : shared_(shared) {}

 protected:
  absl::StatusOr<bool> Prepare(Namespace::Impl& space, DeviceSource& source, absl::Time deadline,
                               absl::Status* broken) override {
    OSCARKV_ASSIGN_OR_RETURN(const v1::ShareDeviceReply shared,
                             shared_.Get(space, space.group(), deadline, broken));
    if (!broken->ok()) return false;
    staging_bytes_ = shared.staging_bytes();
    *broken = shared.staging_handle().empty()
                  ? absl::UnimplementedError("the server shares no memory for pushes")
                  : source.OpenStaging(shared.staging_handle());
    return broken->ok();
  }
  uint64_t staging_bytes() const override { return staging_bytes_; }
  absl::Status Bring(Namespace::Impl&, const PagesOffered& offered,
                     const v1::BeginPushReply& reply) override {
    std::vector<DeviceSource::Placed> placed;
    for (int i = 0; i < reply.places_size(); ++i) {
      if (reply.places(i).wanted())
        placed.push_back({offered.pages[static_cast<size_t>(i)].bytes, reply.places(i).offset()});
    }
    return placed.empty() ? absl::OkStatus() : offered.device->Write(placed);
  }

 private:
  SharedDevice& shared_;
  uint64_t staging_bytes_ = 0;
};

class NcclPush final : public DevicePush {
 protected:
  absl::StatusOr<bool> Prepare(Namespace::Impl& space, DeviceSource& source, absl::Time deadline,
                               absl::Status* broken) override {
    return OpenPeerLink(space, *source.sender(), Direction::kPush, space.group(), deadline, broken);
  }
  void Name(DeviceSource& source, v1::BeginPushRequest* request) override {
    request->set_peer_id(source.sender()->peer_id());
    request->set_peer_epoch(source.sender()->epoch());
  }
  absl::Status Bring(Namespace::Impl& space, const PagesOffered& offered,
                     const v1::BeginPushReply& reply) override {
    std::vector<std::string> keys;
    std::vector<comm::Block> blocks;
    for (int i = 0; i < reply.places_size(); ++i) {
      if (!reply.places(i).wanted()) continue;
      const ByteView page = offered.pages[static_cast<size_t>(i)].bytes;
      keys.push_back(offered.request.keys[offered.first + static_cast<size_t>(i)]);
      blocks.push_back({const_cast<std::byte*>(page.data()), page.size()});  // sending reads only
    }
    if (keys.empty()) return absl::OkStatus();
    PeerLink& link = *offered.device->sender();
    return link.Send({link.epoch(), reply.sequence(), reply.pages_crc32c()}, keys, blocks,
                     offered.deadline, [&space] { return space.group().cancelled(); });
  }
  void GiveUp(DeviceSource& source, const absl::Status& why) override {
    source.sender()->Break(why);
  }
};

class IpcPushPath final : public PushPath {
 public:
  DataPath kind() const override { return DataPath::kIpc; }
  absl::StatusOr<std::unique_ptr<PushCall>> Begin(Namespace::Impl&, absl::Time) override {
    return std::make_unique<IpcPush>(shared_);
  }

 private:
  SharedDevice shared_;
};

class NcclPushPath final : public PushPath {
 public:
  DataPath kind() const override { return DataPath::kNccl; }
  absl::StatusOr<std::unique_ptr<PushCall>> Begin(Namespace::Impl&, absl::Time) override {
    return std::make_unique<NcclPush>();
  }
};

}  // namespace

std::shared_ptr<PushPath> MakeIpcPushPath() { return std::make_shared<IpcPushPath>(); }
std::shared_ptr<PushPath> MakeNcclPushPath() { return std::make_shared<NcclPushPath>(); }

}  // namespace oscarkv::client
