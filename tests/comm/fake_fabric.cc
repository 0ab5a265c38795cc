#include "tests/comm/fake_fabric.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace oscarkv::testing {

using comm::Block;
using comm::PairId;
using comm::PeerComm;
using comm::Way;

namespace {

struct Operation {
  Way way = Way::kSend;
  std::vector<Block> blocks;
  std::vector<std::byte> sent;  // of an eager send: the bytes as they were
  bool done = false;
};

std::vector<std::byte> BytesOf(const std::vector<Block>& blocks) {
  std::vector<std::byte> bytes;
  for (const Block& block : blocks) bytes.insert(bytes.end(), block.data, block.data + block.bytes);
  return bytes;
}

}  // namespace

struct FakeFabric::Pair {
  struct End {
    bool opened = false;
    bool touches = false;  // blocks of this end may be read and written
    bool aborted = false;
    uint64_t epoch = 0;
    std::vector<Operation> operations;
  };

  explicit Pair(const FakeFabricOptions& pair_options, uint64_t number)
      : options(pair_options), random(pair_options.seed * 1000003 + number) {
    meeting_polls = UpTo(options.delay_polls_max);
  }
  uint32_t UpTo(uint32_t most) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    return most == 0 ? 0 : static_cast<uint32_t>(random() % (most + 1));
  }

  // One step of the operation that is next, if both ranks have started it.
  void Move() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    while (moved < std::min(ends[0].operations.size(), ends[1].operations.size())) {
      if (!delay.has_value()) delay = UpTo(options.delay_polls_max);
      if (*delay > 0) {
        --*delay;
        return;
      }
      if (options.fail_from.has_value() && moved >= *options.fail_from)
        failed = absl::UnavailableError("the fabric has failed");
      if (!failed.ok() || (options.drop_from.has_value() && moved >= *options.drop_from)) return;
      if (!Carry()) return;
      ends[0].operations[moved].done = ends[1].operations[moved].done = true;
      ++moved;
      delay.reset();
    }
  }

  // Whether the bytes of the operation that is next could be carried over.
  bool Carry() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    const size_t from = ends[0].operations[moved].way == Way::kSend ? 0 : 1;
    const Operation& send = ends[from].operations[moved];
    const Operation& receive = ends[1 - from].operations[moved];
    if (send.way == receive.way || !SameSizes(send, receive)) {
      failed = absl::InternalError(absl::StrCat("operation ", moved, " does not match"));
      return false;
    }
    if (!ends[1 - from].touches || (send.sent.empty() && !ends[from].touches)) return false;
    const std::vector<std::byte> bytes = send.sent.empty() ? BytesOf(send.blocks) : send.sent;
    const std::byte* next = bytes.data();
    for (const Block& block : receive.blocks) {
      std::memcpy(block.data, next, block.bytes);
      next += block.bytes;
    }
    return true;
  }
  static bool SameSizes(const Operation& a, const Operation& b) {
    return std::ranges::equal(a.blocks, b.blocks, {}, &Block::bytes, &Block::bytes);
  }

  const FakeFabricOptions options;
  absl::Mutex mutex;
  std::mt19937_64 random ABSL_GUARDED_BY(mutex);
  std::array<End, 2> ends ABSL_GUARDED_BY(mutex);
  uint32_t meeting_polls ABSL_GUARDED_BY(mutex) = 0;
  size_t moved ABSL_GUARDED_BY(mutex) = 0;
  std::optional<uint32_t> delay ABSL_GUARDED_BY(mutex);
  absl::Status failed ABSL_GUARDED_BY(mutex);
};

class FakeFabric::Comm final : public PeerComm {
 public:
  Comm(std::shared_ptr<Pair> pair, size_t rank, uint64_t epoch)
      : PeerComm(epoch), pair_(std::move(pair)), rank_(rank) {}
  ~Comm() override {
    absl::MutexLock lock(&pair_->mutex);
    mine().aborted = true;
    mine().touches = false;
  }

 protected:
  absl::StatusOr<bool> DoReady() override {
    absl::MutexLock lock(&pair_->mutex);
    if (!other().opened || pair_->options.never_meets) return false;
    if (pair_->meeting_polls > 0) {
      --pair_->meeting_polls;
      return false;
    }
    if (other().epoch != epoch()) {
      return absl::AbortedError(
          absl::StrCat("this rank is of epoch ", epoch(), ", the other one of ", other().epoch));
    }
    if (absl::Status heard = Heard(); !heard.ok()) return heard;
    return true;
  }
  absl::Status DoStart(uint64_t operation, Way way, std::span<const Block> blocks) override {
    absl::MutexLock lock(&pair_->mutex);
    if (operation != mine().operations.size())
      return absl::InternalError("operations out of order");
    Operation started;
    started.way = way;
    started.blocks.assign(blocks.begin(), blocks.end());
    if (way == Way::kSend && pair_->random() % 100 < pair_->options.eager_percent) {
      started.sent = BytesOf(started.blocks);
      started.done = true;
    }
    mine().operations.push_back(std::move(started));
    return absl::OkStatus();
  }
  absl::StatusOr<bool> DoDone(uint64_t operation) override {
    absl::MutexLock lock(&pair_->mutex);
    pair_->Move();
    // In order: a send that was eager has not ended before what comes before it.
    const auto end = mine().operations.begin() + static_cast<ptrdiff_t>(operation) + 1;
    if (std::all_of(mine().operations.begin(), end, [](const Operation& o) { return o.done; }))
      return true;
    if (!pair_->failed.ok()) return pair_->failed;
    if (absl::Status heard = Heard(); !heard.ok()) return heard;
    return false;
  }
  void DoAbort() override {
    absl::MutexLock lock(&pair_->mutex);
    mine().aborted = true;
    closing_polls_ = pair_->UpTo(pair_->options.closing_polls_max);
  }
  bool DoClosed() override {
    absl::MutexLock lock(&pair_->mutex);
    if (mine().touches) pair_->Move();
    if (closing_polls_ > 0) {
      --closing_polls_;
      return false;
    }
    mine().touches = false;
    return true;
  }

 private:
  Pair::End& mine() ABSL_EXCLUSIVE_LOCKS_REQUIRED(pair_->mutex) { return pair_->ends[rank_]; }
  Pair::End& other() ABSL_EXCLUSIVE_LOCKS_REQUIRED(pair_->mutex) { return pair_->ends[1 - rank_]; }
  absl::Status Heard() ABSL_EXCLUSIVE_LOCKS_REQUIRED(pair_->mutex) {
    if (!pair_->options.tells_of_aborts || !other().aborted) return absl::OkStatus();
    return absl::UnavailableError("the other rank has gone");
  }

  const std::shared_ptr<Pair> pair_;
  const size_t rank_;
  uint32_t closing_polls_ = 0;
};

FakeFabric::FakeFabric(const FakeFabricOptions& options) : options_(options) {}
FakeFabric::~FakeFabric() = default;

absl::StatusOr<PairId> FakeFabric::NewPair() {
  absl::MutexLock lock(&mutex_);
  const uint64_t number = ++pairs_made_;
  pairs_[number] = std::make_shared<Pair>(options_, number);
  PairId id = {};
  std::memcpy(id.data(), &number, sizeof(number));
  return id;
}

absl::StatusOr<std::unique_ptr<PeerComm>> FakeFabric::Open(const PairId& pair, int rank,
                                                           uint64_t epoch) {
  uint64_t number = 0;
  std::memcpy(&number, pair.data(), sizeof(number));
  if (rank != 0 && rank != 1)
    return absl::InvalidArgumentError(absl::StrCat("rank ", rank, " of two"));
  std::shared_ptr<Pair> found;
  {
    absl::MutexLock lock(&mutex_);
    if (!pairs_.contains(number)) return absl::InvalidArgumentError("not a pair");
    found = pairs_[number];
  }
  const auto end = static_cast<size_t>(rank);
  absl::MutexLock lock(&found->mutex);
  if (found->ends[end].opened) return absl::InvalidArgumentError("the rank was opened before");
  found->ends[end].opened = found->ends[end].touches = true;
  found->ends[end].epoch = epoch;
  return std::make_unique<Comm>(found, end, epoch);
}

}  // namespace oscarkv::testing
