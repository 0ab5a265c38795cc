#include "server/core/copy_mover.h"

#include <utility>

#include "absl/strings/str_cat.h"

#include "server/core/block_check.h"

namespace oscarkv {
namespace {

// Copies of sound pages that arrived damaged, one after the other, after which the tier's memory is
// not trusted any more.
constexpr uint32_t kDamagedMax = 3;

}  // namespace

CopyMover::CopyMover(PageStore& store, const CopyMoverOptions& options)
    : store_(store), copies_(*store.copies()), options_(options) {}

CopyMover::~CopyMover() {
  for (Move& move : moves_) Finish(move);
}

bool CopyMover::HasRoom() const {
  return moves_.empty() ||
         (moves_.size() < options_.pages_max && moving_bytes_ < options_.bytes_max);
}

bool CopyMover::Step() {
  while (HasRoom()) {
    PageRecord* const record = copies_.TakeQueued();
    if (record == nullptr) break;
    Start(*record);
  }
  if (moves_.empty()) return false;
  Finish(moves_.front());
  moving_bytes_ -= moves_.front().slot.bytes;
  moves_.pop_front();
  return true;
}

void CopyMover::Start(PageRecord& record) {
  Move move;
  move.record = &record;
  move.page = store_.PinRecord(record);
  if (!move.page) return copies_.GiveUp(record, std::nullopt, PageCopies::Ending::kGone);
  const MutableByteView bytes = move.page.slot_;
  const absl::StatusOr<TierSlot> slot = copies_.Reserve(record, bytes.size(), store_.clock_.Now());
  if (!slot.ok()) {
    return copies_.GiveUp(
        record, std::nullopt,
        absl::IsNotFound(slot.status()) ? PageCopies::Ending::kGone : PageCopies::Ending::kRefused);
  }
  move.slot = *slot;
  const std::vector<TierPieces> pieces = PiecesOfSlot(move.page.layout());
  move.crcs.resize(CountPieces(move.page.layout()));
  auto pending = copies_.tier()->CopyIn(*slot, bytes, pieces, move.crcs);
  if (!pending.ok()) return Fail(move, pending.status());
  move.pending = *std::move(pending);
  moving_bytes_ += slot->bytes;
  moves_.push_back(std::move(move));
}

void CopyMover::Finish(Move& move) {
  const absl::Status copied = move.pending->Wait();
  if (!copied.ok()) return Fail(move, copied);
  const absl::Status sound = CheckPieces(move.page.layout(), move.page.block_crcs(), move.crcs);
  if (sound.ok()) {
    damaged_in_a_row_ = 0;
    return copies_.Publish(*move.record, move.slot);
  }
  // Either the page has rotted where it lies, and is dropped by this, or the copy is bad.
  if (!move.page.VerifyAll(CorruptAt::kMove).ok())
    return copies_.GiveUp(*move.record, move.slot, PageCopies::Ending::kGone);
  Fail(move, sound);
  if (++damaged_in_a_row_ >= kDamagedMax) {
    copies_.Degrade(absl::DataLossError(absl::StrCat(
        damaged_in_a_row_, " copies in a row arrived damaged; the last: ", sound.message())));
  }
}

void CopyMover::Fail(const Move& move, const absl::Status& why) {
  copies_.GiveUp(*move.record, move.slot, PageCopies::Ending::kFailed);
  if (absl::IsUnavailable(why)) copies_.Degrade(why);
}

CopyWorker::CopyWorker(PageStore& store, const CopyMoverOptions& options,
                       absl::AnyInvocable<void(const std::string&)> on_degraded)
    : store_(store),
      copies_(*store.copies()),
      options_(options),
      on_degraded_(std::move(on_degraded)),
      thread_([this] { Run(); }) {}

CopyWorker::~CopyWorker() {
  copies_.Stop();
  thread_.join();
}

void CopyWorker::Run() {
  CopyMover mover(store_, options_);
  bool told = !copies_.degraded().empty();
  while (!copies_.stopped()) {
    if (!mover.Step() && !copies_.AwaitQueued()) return;
    if (told) continue;
    const std::string degraded = copies_.degraded();
    if (degraded.empty()) continue;
    told = true;
    on_degraded_(degraded);
  }
}

}  // namespace oscarkv
