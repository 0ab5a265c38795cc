// The seam between fetches and pushes on one side, and the ways that page bytes travel on the
// other. A path knows how bytes get here or there; it knows nothing of caches, groups of layers,
// retries by another path or reports. Every path passes tests/client/page_path_contract.h. Included
// by the client's own sources only.
#ifndef OSCARKV_CLIENT_CPP_PAGE_PATH_H_
#define OSCARKV_CLIENT_CPP_PAGE_PATH_H_

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "client/cpp/namespace_impl.h"
#include "client/cpp/stored_pages.h"
#include "client/cpp/wire.h"
#include "proto/wire/data_path.h"

namespace oscarkv::client {

class BroughtPages;

// Pages first..end-1 of the request's keys, these blocks of each.
struct PagesWanted {
  const FetchRequest& request;
  uint32_t first = 0;
  uint32_t end = 0;
  BlockRange layers;
  BlockRange heads;
  absl::Time deadline;
  CallGroup& group;  // when it is cancelled, the fetch ends
  // Layers that the fetch will want of them, these and those that follow; and where what is brought
  // of more than these is kept. Paths for devices use that.
  BlockRange rest;
  BroughtPages& brought;

  // The same pages, these blocks of each.
  PagesWanted Of(BlockRange these_layers, BlockRange these_heads) const {
    PagesWanted other = *this;
    other.layers = these_layers;
    other.heads = these_heads;
    return other;
  }
  // The same pages, all layers that the fetch will want.
  PagesWanted OfAllLayers() const { return Of(rest, heads); }
};

struct PagesTaken {
  uint32_t pages = 0;  // that the sink has taken, from `first` on
  uint64_t bytes = 0;  // of pages, that came
  // Not kOk: why the page that follows those is not there; then none that follows is tried.
  ItemStatus stop = ItemStatus::kOk;
  uint32_t elsewhere = 0;  // that follow those, and that this path has not, but others may have
  absl::Status sink;       // the sink's own error, which ends the fetch
  absl::Status
      broken;  // the path is out of use from now on, and why; what is missing goes by another
};

// Whether an error says that a path is out of use: time, and the caller, say nothing about it.
inline bool TellsOfPath(const absl::Status& error) {
  return !absl::IsDeadlineExceeded(error) && !absl::IsCancelled(error);
}

// Counts what a sink's Take or TakeFrom returned.
void CountTaken(const absl::Status& sink, PagesTaken* taken);

// Thread-safe.
class FetchPath {
 public:
  virtual ~FetchPath() = default;
  virtual DataPath kind() const = 0;
  // Brings pages to the sink, in order: as many as one call of this path may ask for, at least one
  // unless `taken` says why not. Returns when the sink has taken them or the deadline has come, at
  // once when the group is cancelled: by its caller, or because `space` is destroyed. Nothing that
  // is not whole reaches the sink's Take; what it has taken is counted even if the call fails.
  //   kAborted, kFailedPrecondition  the namespace has to be opened again
  //   kDataLoss                      the answer makes no sense
  //   others                         nobody answered
  virtual absl::Status Fetch(Namespace::Impl& space, const PagesWanted& wanted, PageSink& sink,
                             PagesTaken* taken) = 0;
};

// Encoded pages that follow each other in a request, the first of them its page `first`.
struct PagesOffered {
  const PushRequest& request;
  const RequestHints& hints;  // with a request id
  uint32_t first = 0;
  std::span<const EncodedPage> pages;
  absl::Time deadline;
  DeviceSource* device = nullptr;  // in whose memory their bytes lie; null: in the host's
};

// What all paths tell the server of the pages.
void FillPutHeader(const Namespace::Impl& space, const PagesOffered& offered,
                   v1::PutHeader* header);
// What the server says became of them: statuses and messages of the report.
void TakePutResults(const PagesOffered& offered, const v1::PutReply& reply, PushReport* report);

// One push by a path. Used by one thread.
class PushCall {
 public:
  virtual ~PushCall() = default;
  // Where pages may be encoded, so that nothing copies them on this side: for those that are
  // offered next. Empty: wherever the source likes.
  virtual MutableByteView room() { return {}; }
  // Stores the pages: statuses, messages and bytes of the report are filled in as far as they are
  // known. When it returns, nobody looks any more at the bytes of pages that have no holder.
  // `broken` and errors as in FetchPath; everything is idempotent, so all that was offered may be
  // offered again.
  virtual absl::Status Push(Namespace::Impl& space, const PagesOffered& offered, PushReport* report,
                            absl::Status* broken) = 0;
  // The last Push did nothing: the path is not ready yet, and this push goes by another.
  virtual bool later() const { return false; }
};

// Thread-safe.
class PushPath {
 public:
  virtual ~PushPath() = default;
  virtual DataPath kind() const = 0;
  // An error says that the path is out of use from now on.
  virtual absl::StatusOr<std::unique_ptr<PushCall>> Begin(Namespace::Impl& space,
                                                          absl::Time deadline) = 0;
};

// The path that everybody has.
std::shared_ptr<FetchPath> MakeGrpcFetchPath();
std::shared_ptr<PushPath> MakeGrpcPushPath();

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_PAGE_PATH_H_
