// Fetching pages: a path brings the bytes of one page after another, and a sink verifies and
// decodes them into the worker's cache. When a path gives out, another goes on where it stopped.
#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "client/cpp/brought_pages.h"
#include "client/cpp/busy_wait.h"
#include "client/cpp/cpu_pages.h"
#include "client/cpp/namespace_impl.h"
#include "client/cpp/page_path.h"
#include "client/cpp/paths.h"
#include "client/cpp/pending_fetch_state.h"
#include "kernels/base/status_macros.h"

namespace oscarkv::client {
namespace {

class Fetcher {
 public:
  // `calls`: what is cancelled to end the fetch.
  Fetcher(Namespace::Impl& space, PageSink& sink, const FetchRequest& request, CallGroup& calls)
      : space_(space),
        calls_(calls),
        sink_(sink),
        request_(request),
        start_(absl::Now()),
        deadline_(start_ + space.connection()->options().fetch_timeout),
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
      const bool corrupt = absl::IsDataLoss(pages[page]);
      if (!corrupt && !absl::IsAborted(pages[page])) return pages[page];
      if (corrupt) space_.connection()->CountCorruptPage();
      Cut(static_cast<uint32_t>(page), corrupt ? ItemStatus::kCorrupt : ItemStatus::kFenced);
    }
    std::fill_n(report_.statuses.begin(), limit_, ItemStatus::kOk);
    report_.pages = limit_;
    report_.tokens = uint64_t{limit_} * space_.page_tokens();
    if (report_.store.ok() && limit_ == request_.keys.size()) {
      space_.connection()->fetch_times().Record(report_.path, report_.bytes_wire,
                                                absl::Now() - start_, request_.forecast);
    }
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
      OSCARKV_RETURN_IF_ERROR(sink_.EndLayers(group, limit_));
      if (limit_ == 0) break;
    }
    return absl::OkStatus();
  }

  // The pages before limit_, as far as they are there.
  absl::Status FetchGroup() {
    // A server that decodes needs the transform set as much as one that stores what is packed.
    const auto needs =
        request_.decoded ? Namespace::Impl::Needs::kTransforms : Namespace::Impl::Needs::kNamespace;
    done_ = elsewhere_ = 0;
    stopped_ = false;
    BusyWait wait(space_, calls_, deadline_);
    while (done_ < limit_) {
      const uint32_t first = done_;
      report_.store = space_.WithOpen(needs, deadline_, [&] { return FetchBatch(); });
      if (!misuse_.ok()) return misuse_;
      if (done_ > first) wait.GotOn();
      if (report_.store.ok() && stopped_ && stopped_at_ == ItemStatus::kBusy && wait.Wait()) {
        stopped_ = false;
        continue;
      }
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

  // Whether the sink can read what is wanted where a GPU holds it.
  bool ReadsDevice() const {
    return sink_.device_pages() != nullptr && !request_.decoded &&
           heads_.count == space_.codec().geometry().kv_heads;
  }

  // Of all pages, at least.
  uint64_t Bytes() const {
    const PageLayout& layout = space_.codec().layout(
        space_.MayHold(Encoding::kPacked) ? Encoding::kPacked : Encoding::kWide);
    return request_.keys.size() * layout.range_bytes(all_layers_, heads_);
  }

  // What one call of a path brings of the pages that are still missing.
  absl::Status FetchBatch() {
    for (;;) {
      // What has been brought already needs no call that would be told.
      if (calls_.cancelled()) return absl::CancelledError("the fetch was cancelled");
      std::shared_ptr<FetchPath> path;
      uint32_t end = limit_;
      if (done_ < elsewhere_) {
        end = elsewhere_;
      } else if (ReadsDevice()) {
        path = space_.connection()->paths().ForDevice(*sink_.device_pages(), Bytes(), deadline_);
      }
      if (path == nullptr) {
        OSCARKV_ASSIGN_OR_RETURN(
            path, space_.connection()->paths().ForFetch(request_.decoded, deadline_));
      }
      PagesTaken taken;
      const BlockRange rest = {layers_.first,
                               all_layers_.first + all_layers_.count - layers_.first};
      const absl::Status status = path->Fetch(
          space_, {request_, done_, end, layers_, heads_, deadline_, calls_, rest, brought_}, sink_,
          &taken);
      report_.path = path->kind();
      report_.bytes_wire += taken.bytes;
      done_ += taken.pages;
      misuse_ = taken.sink;
      if (taken.stop != ItemStatus::kOk) {
        if (taken.stop == ItemStatus::kCorrupt) space_.connection()->CountCorruptPage();
        stopped_at_ = taken.stop;
        stopped_ = true;
      }
      if (taken.elsewhere > 0) {
        elsewhere_ = done_ + taken.elsewhere;
        continue;
      }
      if (taken.broken.ok()) return status;
      space_.connection()->paths().GiveUp(Direction::kFetch, *path, taken.broken);
      if (done_ == limit_ || stopped_ || !misuse_.ok()) return absl::OkStatus();
    }
  }

  Namespace::Impl& space_;
  CallGroup& calls_;
  PageSink& sink_;
  const FetchRequest& request_;
  const absl::Time start_;
  const absl::Time deadline_;
  BlockRange all_layers_;
  BlockRange heads_;
  FetchReport report_;
  absl::Status misuse_;
  uint32_t limit_;  // pages that came, in the groups before this one
  BroughtPages brought_;

  // The group of layers on its way.
  BlockRange layers_;
  uint32_t done_ = 0;       // its pages that came
  uint32_t elsewhere_ = 0;  // pages before this one are in no GPU's memory
  bool stopped_ = false;    // at a page that is not there or not whole, and why:
  ItemStatus stopped_at_ = ItemStatus::kOk;
};

}  // namespace

absl::StatusOr<FetchReport> Namespace::Impl::Fetch(const EngineView& cache,
                                                   const FetchRequest& request) {
  OSCARKV_RETURN_IF_ERROR(CheckKeys(request.keys));
  OSCARKV_RETURN_IF_ERROR(CheckSlots(cache, request.keys, request.slots, /*least=*/-1));
  CpuPageSink sink(*codec_, cache, request.slots);
  return Fetcher(*this, sink, request, group_).Run();
}

absl::StatusOr<FetchReport> Namespace::Impl::FetchLayers(const EngineView& cache,
                                                         const FetchRequest& request,
                                                         PendingFetch::State& state) {
  OSCARKV_RETURN_IF_ERROR(CheckKeys(request.keys));
  OSCARKV_RETURN_IF_ERROR(CheckSlots(cache, request.keys, request.slots, /*least=*/-1));
  CpuPageSink sink(*codec_, cache, request.slots);
  return Follow(sink, request, state);
}

absl::StatusOr<FetchReport> Namespace::Impl::FetchLayersTo(PageSink& sink,
                                                           const FetchRequest& request,
                                                           PendingFetch::State& state) {
  const auto fetch = [&]() -> absl::StatusOr<FetchReport> {
    OSCARKV_RETURN_IF_ERROR(CheckKeys(request.keys));
    OSCARKV_RETURN_IF_ERROR(CheckPages(request.keys, sink.pages()));
    return Follow(sink, request, state);
  };
  absl::StatusOr<FetchReport> report = fetch();
  if (!report.ok()) sink.Abandon(report.status());
  return report;
}

absl::StatusOr<FetchReport> Namespace::Impl::Follow(PageSink& sink, const FetchRequest& request,
                                                    PendingFetch::State& state) {
  CallGroup calls(group_);
  if (!state.Begin(&calls)) {
    FetchReport report;
    report.store = absl::CancelledError("the fetch was cancelled");
    report.statuses.assign(request.keys.size(), ItemStatus::kSkipped);
    sink.Abandon(report.store);
    return report;
  }
  FollowedSink followed(sink, state);
  absl::StatusOr<FetchReport> report = Fetcher(*this, followed, request, calls).Run();
  state.LetGoOfCalls();
  return report;
}

absl::StatusOr<FetchReport> Namespace::Impl::FetchTo(PageSink& sink, const FetchRequest& request) {
  const auto fetch = [&]() -> absl::StatusOr<FetchReport> {
    OSCARKV_RETURN_IF_ERROR(CheckKeys(request.keys));
    OSCARKV_RETURN_IF_ERROR(CheckPages(request.keys, sink.pages()));
    return Fetcher(*this, sink, request, group_).Run();
  };
  absl::StatusOr<FetchReport> report = fetch();
  if (!report.ok()) sink.Abandon(report.status());
  return report;
}

}  // namespace oscarkv::client
