// Pushing pages: a batch is encoded, where the path has room for it, and the path brings it to the
// store.
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "client/cpp/busy_wait.h"
#include "client/cpp/cpu_pages.h"
#include "client/cpp/device_source.h"
#include "client/cpp/namespace_impl.h"
#include "client/cpp/page_path.h"
#include "client/cpp/paths.h"
#include "kernels/base/status_macros.h"

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
      if (call_ == nullptr)
        report_.store = space_.WithOpen(needs, deadline_, [&] { return TakePath(); });
      if (!report_.store.ok()) break;
      OSCARKV_ASSIGN_OR_RETURN(const size_t count, EncodeBatch(first));
      report_.store = StoreBatch(needs, first);
      // What follows a page that was not stored has no parent there.
      if (!report_.store.ok() || StoredFrom(first) < first + count) break;
      first += count;
    }
    return std::move(report_);
  }

 private:
  // Of all pages, at least.
  uint64_t Bytes() const {
    const Encoding least = space_.codec().can_pack() ? Encoding::kPacked : Encoding::kWide;
    return request_.keys.size() * space_.codec().layout(least).page_bytes();
  }

  uint64_t PositionOf(size_t page) const {
    return request_.first_position + page * space_.page_tokens();
  }

  // Encodes pages from `first` on into batch_, as many as fit; how many.
  absl::StatusOr<size_t> EncodeBatch(size_t first) {
    const PageCodec& codec = space_.codec();
    batch_first_ = first;
    const uint64_t end = std::max(request_.end_position, PositionOf(request_.keys.size()));
    const size_t count_max = std::min<size_t>(request_.keys.size() - first, space_.max_items());
    std::vector<Encoding> encodings;
    for (size_t page = first; page < first + count_max; ++page) {
      encodings.push_back(
          FormOf(PositionOf(page), PositionOf(page + 1), end, codec, space_.spec().codec));
    }
    on_device_ = IsOfDevices(path_->kind());
    if (on_device_) {
      OSCARKV_ASSIGN_OR_RETURN(
          batch_, source_.device_source()->EncodeOnDevice(static_cast<uint32_t>(first), encodings,
                                                          &report_.encode));
    } else {
      source_.UseRoom(call_->room());
      OSCARKV_ASSIGN_OR_RETURN(
          batch_, source_.Encode(static_cast<uint32_t>(first), encodings, &report_.encode));
    }
    for (const EncodedPage& page : batch_)
      (page.encoding == Encoding::kWide ? report_.wide_pages : report_.packed_pages) += 1;
    report_.bytes_model += batch_.size() * codec.layout(Encoding::kWide).page_bytes();
    return batch_.size();
  }

  // Brings the batch, whose first page is `first`, to the store. A page that the store is too busy
  // for is offered again, with those behind it, after a wait that grows.
  absl::Status StoreBatch(Namespace::Impl::Needs needs, size_t first) {
    BusyWait wait(space_, space_.group(), deadline_);
    for (;;) {
      OSCARKV_RETURN_IF_ERROR(space_.WithOpen(needs, deadline_, [&] { return SendBatch(first); }));
      const size_t stored = StoredFrom(first);
      if (stored > first) wait.GotOn();
      batch_ = batch_.subspan(stored - first);
      first = stored;
      if (batch_.empty() || report_.statuses[first] != ItemStatus::kBusy || !wait.Wait()) break;
    }
    return absl::OkStatus();
  }

  // Whatever path the pages were encoded for: one that gives out has another after it.
  absl::Status SendBatch(size_t first) {
    for (;;) {
      absl::Status broken;
      const absl::Status status =
          call_->Push(space_,
                      {request_, hints_, static_cast<uint32_t>(first), batch_, deadline_,
                       on_device_ ? source_.device_source() : nullptr},
                      &report_, &broken);
      if (broken.ok() && !call_->later()) return status;
      if (broken.ok()) {
        of_devices_ = false;
      } else {
        space_.connection()->paths().GiveUp(Direction::kPush, *path_, broken);
      }
      OSCARKV_RETURN_IF_ERROR(TakePath());
      if (on_device_ && !IsOfDevices(path_->kind())) {
        OSCARKV_ASSIGN_OR_RETURN(batch_, source_.device_source()->BringToHost());
        batch_ = batch_.subspan(first - batch_first_);
        on_device_ = false;
      }
    }
  }

  // A path that can be begun. The batch, if there is one, lies where the one before had it: that
  // call lives as long as the batch.
  absl::Status TakePath() {
    for (;;) {
      DeviceSource* const device = of_devices_ ? source_.device_source() : nullptr;
      OSCARKV_ASSIGN_OR_RETURN(path_,
                               space_.connection()->paths().ForPush(device, Bytes(), deadline_));
      absl::StatusOr<std::unique_ptr<PushCall>> call = path_->Begin(space_, deadline_);
      if (call.ok()) {
        calls_.push_back(*std::move(call));
        call_ = calls_.back().get();
        report_.path = path_->kind();
        return absl::OkStatus();
      }
      if (!TellsOfPath(call.status())) return call.status();
      space_.connection()->paths().GiveUp(Direction::kPush, *path_, call.status());
    }
  }

  // The first page from `first` on that is not stored.
  size_t StoredFrom(size_t first) const {
    const auto begin = report_.statuses.begin() + static_cast<std::ptrdiff_t>(first);
    const auto stored = std::find_if_not(begin, report_.statuses.end(), [](ItemStatus s) {
      return s == ItemStatus::kOk || s == ItemStatus::kExists;
    });
    return static_cast<size_t>(stored - report_.statuses.begin());
  }

  Namespace::Impl& space_;
  PageSource& source_;
  const PushRequest& request_;
  RequestHints hints_;
  const absl::Time deadline_;
  PushReport report_;
  std::shared_ptr<PushPath> path_;
  std::vector<std::unique_ptr<PushCall>> calls_;  // the last is in use
  PushCall* call_ = nullptr;
  size_t batch_first_ = 0;              // the first page that was encoded with
  std::span<const EncodedPage> batch_;  // those that are not stored yet
  bool on_device_ = false;              // its bytes lie there
  bool of_devices_ = true;              // paths between devices may be taken
};

}  // namespace

absl::Status Namespace::Impl::CheckPushable() const {
  if (spec_.codec.transform_hash.empty() || codec_->can_pack()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "the namespace was opened without its transform set: pages can not be pushed");
}

absl::Status Namespace::Impl::CheckPush(const EngineView& cache, const PushRequest& request) const {
  OSCARKV_RETURN_IF_ERROR(CheckKeys(request.keys));
  OSCARKV_RETURN_IF_ERROR(CheckSlots(cache, request.keys, request.slots, /*least=*/0));
  return CheckPushable();
}

absl::StatusOr<PushReport> Namespace::Impl::Push(const EngineView& cache,
                                                 const PushRequest& request) {
  OSCARKV_RETURN_IF_ERROR(CheckPush(cache, request));
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
