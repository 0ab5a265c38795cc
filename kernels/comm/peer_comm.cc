#include "kernels/comm/peer_comm.h"

#include "absl/strings/str_cat.h"

namespace oscarkv::comm {

absl::StatusOr<bool> PeerComm::Ready() {
  if (!failed_.ok()) return failed_;
  if (ready_) return true;
  const absl::StatusOr<bool> ready = DoReady();
  if (!ready.ok()) Abort(ready.status());
  ready_ = ready.ok() && *ready;
  return ready;
}

absl::StatusOr<uint64_t> PeerComm::Start(Way way, std::span<const Block> blocks) {
  if (!failed_.ok()) return failed_;
  if (!ready_) return absl::FailedPreconditionError("the ranks have not met yet");
  if (blocks.empty()) return absl::InvalidArgumentError("an operation without blocks");
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (blocks[i].data != nullptr && blocks[i].bytes > 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("block ", i, " of ", blocks.size(), " is empty"));
  }
  const absl::Status started = DoStart(started_, way, blocks);
  if (!started.ok()) {
    Abort(started);
    return started;
  }
  return started_++;
}

absl::StatusOr<bool> PeerComm::Done(uint64_t operation) {
  if (!failed_.ok()) return failed_;
  if (operation >= started_) {
    return absl::InvalidArgumentError(
        absl::StrCat("operation ", operation, " of ", started_, " that were started"));
  }
  if (operation < done_) return true;
  const absl::StatusOr<bool> done = DoDone(operation);
  if (!done.ok()) Abort(done.status());
  if (done.ok() && *done) done_ = operation + 1;
  return done;
}

void PeerComm::Abort(const absl::Status& why) {
  if (!failed_.ok()) return;
  failed_ = why.ok() ? absl::CancelledError("aborted") : why;
  DoAbort();
}

bool PeerComm::Closed() { return !failed_.ok() && DoClosed(); }

}  // namespace oscarkv::comm
