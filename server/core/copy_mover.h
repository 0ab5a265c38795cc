// Moves pages into the tier of their copies, behind everybody's back: pins a page, copies it,
// compares the checksums of what has arrived with those that its producer gave, and only then makes
// the copy known.
#ifndef OSCARKV_SERVER_CORE_COPY_MOVER_H_
#define OSCARKV_SERVER_CORE_COPY_MOVER_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"

#include "server/core/page_copies.h"
#include "server/core/page_handles.h"
#include "server/core/page_store.h"

namespace oscarkv {

// Under way at one time: at least one page.
struct CopyMoverOptions {
  uint32_t pages_max = 32;
  uint64_t bytes_max = 256 << 20;
};

// For one thread. The store, which has copies, must outlive it.
class CopyMover {
 public:
  CopyMover(PageStore& store, const CopyMoverOptions& options);
  // Ends what is under way.
  ~CopyMover();

  // Starts as many moves as may be under way, and ends the one that was started first. False when
  // there is nothing to do.
  bool Step();

 private:
  struct Move {
    PageRecord* record = nullptr;
    PinnedPage page;
    TierSlot slot;
    std::vector<uint32_t> crcs;
    std::unique_ptr<PendingTransfer> pending;
  };

  bool HasRoom() const;
  void Start(PageRecord& record);
  void Finish(Move& move);
  void Fail(const Move& move, const absl::Status& why);

  PageStore& store_;
  PageCopies& copies_;
  const CopyMoverOptions options_;
  std::deque<Move> moves_;  // in the order of their starts
  uint64_t moving_bytes_ = 0;
  uint32_t damaged_in_a_row_ = 0;
};

// A CopyMover on a thread of its own, from construction to destruction.
class CopyWorker {
 public:
  // `on_degraded` is called, once, on that thread, when the tier goes out of use while the store
  // serves; with why. The store must outlive the worker.
  CopyWorker(PageStore& store, const CopyMoverOptions& options,
             absl::AnyInvocable<void(const std::string&)> on_degraded);
  ~CopyWorker();

 private:
  void Run();

  PageStore& store_;
  PageCopies& copies_;
  const CopyMoverOptions options_;
  absl::AnyInvocable<void(const std::string&)> on_degraded_;
  std::thread thread_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_COPY_MOVER_H_
