// Pairs of ranks in one process's host memory, with the faults that a test asks for. Bytes move
// when somebody polls, and after an abort some may still come until it is closed, so that memory
// which is let go too early is found out.
#ifndef OSCARKV_TESTS_COMM_FAKE_FABRIC_H_
#define OSCARKV_TESTS_COMM_FAKE_FABRIC_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"

#include "kernels/comm/peer_comm.h"

namespace oscarkv::testing {

struct FakeFabricOptions {
  uint64_t seed = 0;
  uint32_t delay_polls_max = 0;    // before ranks have met, and before bytes of an operation move
  bool never_meets = false;        // what the ranks find each other by is stuck
  uint32_t closing_polls_max = 0;  // after an abort, while bytes may still come
  uint32_t eager_percent = 0;      // of sends end before the other rank has started to receive
  bool tells_of_aborts = false;    // to the other rank
  // The operations of a pair from this one on: bytes are lost on their way, or both ranks get an
  // error.
  std::optional<uint64_t> drop_from = std::nullopt;
  std::optional<uint64_t> fail_from = std::nullopt;
};

// Thread-safe.
class FakeFabric final : public comm::PeerFabric {
 public:
  explicit FakeFabric(const FakeFabricOptions& options = {});
  ~FakeFabric() override;

  // Of pairs made from now on.
  void set_options(const FakeFabricOptions& options) {
    absl::MutexLock lock(&mutex_);
    options_ = options;
  }
  uint32_t version() const override { return 1; }
  absl::StatusOr<comm::PairId> NewPair() override;
  absl::StatusOr<std::unique_ptr<comm::PeerComm>> Open(const comm::PairId& pair, int rank,
                                                       uint64_t epoch) override;

 private:
  class Comm;
  struct Pair;
  absl::Mutex mutex_;
  FakeFabricOptions options_ ABSL_GUARDED_BY(mutex_);
  uint64_t pairs_made_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_map<uint64_t, std::shared_ptr<Pair>> pairs_ ABSL_GUARDED_BY(mutex_);
};

// One fabric for both ends, which each own theirs.
class SharedFabric final : public comm::PeerFabric {
 public:
  explicit SharedFabric(std::shared_ptr<PeerFabric> fabric, uint32_t version = 1)
      : fabric_(std::move(fabric)), version_(version) {}
  uint32_t version() const override { return version_; }
  absl::StatusOr<comm::PairId> NewPair() override { return fabric_->NewPair(); }
  absl::StatusOr<std::unique_ptr<comm::PeerComm>> Open(const comm::PairId& pair, int rank,
                                                       uint64_t epoch) override {
    return fabric_->Open(pair, rank, epoch);
  }

 private:
  const std::shared_ptr<PeerFabric> fabric_;
  const uint32_t version_;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_COMM_FAKE_FABRIC_H_
