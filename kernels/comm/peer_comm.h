// The seam between the transfers of two processes' device memory and what moves the bytes: NCCL
// (nccl_fabric.h), or a fake in host memory (tests/comm/fake_fabric.h). A communicator has two
// ranks, lives for one epoch, and never waits: whoever drives it polls, and knows the time.
//
//   meeting --> ready --> aborted --> closed
//      |                    ^
//      +--------------------+     an error of any call aborts, too
//
// Every implementation passes tests/comm/peer_comm_contract.h.
#ifndef OSCARKV_KERNELS_COMM_PEER_COMM_H_
#define OSCARKV_KERNELS_COMM_PEER_COMM_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace oscarkv::comm {

// A run of bytes in this side's memory that the fabric reaches.
struct Block {
  std::byte* data = nullptr;
  uint64_t bytes = 0;
};

enum class Way : uint8_t { kSend, kReceive };

// What two ranks find each other by, made by rank 0 for one communicator and never used twice.
inline constexpr size_t kPairIdBytes = 128;
using PairId = std::array<char, kPairIdBytes>;

// Not thread-safe. Calls wait for nothing but, at most, the
// device's driver.
class PeerComm {
 public:
  // Aborts what is under way, and waits until nothing touches its blocks any more.
  virtual ~PeerComm() = default;
  PeerComm(const PeerComm&) = delete;
  PeerComm& operator=(const PeerComm&) = delete;

  uint64_t epoch() const { return epoch_; }

  // Whether the ranks have met. kAborted: they have, and the other is of another epoch;
  // kUnavailable: they cannot.
  absl::StatusOr<bool> Ready();

  // Starts moving the blocks, as one group; they are this communicator's until Done, or Closed. The
  // other rank has to start the opposite, of as many blocks of the same sizes, in the same order:
  // operations are matched by nothing else. Returns the operation's number: 0, 1, 2...
  // kFailedPrecondition before Ready; kInvalidArgument: no blocks, or an empty one.
  absl::StatusOr<uint64_t> Start(Way way, std::span<const Block> blocks);

  // Whether the operation has ended: received blocks are filled, those sent may be written again.
  // Operations end in order. An error is the communicator's, and every later call returns it.
  absl::StatusOr<bool> Done(uint64_t operation);

  // Ends everything, on this side alone: the other is not told. Later calls return `why`.
  void Abort(const absl::Status& why);
  // After Abort: whether blocks are the caller's again.
  bool Closed();

 protected:
  explicit PeerComm(uint64_t epoch) : epoch_(epoch) {}

  // The same, of a communicator that is ready where it has to be, and has not failed.
  virtual absl::StatusOr<bool> DoReady() = 0;
  virtual absl::Status DoStart(uint64_t operation, Way way, std::span<const Block> blocks) = 0;
  virtual absl::StatusOr<bool> DoDone(uint64_t operation) = 0;
  virtual void DoAbort() = 0;  // once
  virtual bool DoClosed() = 0;

 private:
  const uint64_t epoch_;
  bool ready_ = false;
  absl::Status failed_;
  uint64_t started_ = 0;
  uint64_t done_ = 0;
};

// Makes the communicators of one device. Thread-safe.
class PeerFabric {
 public:
  virtual ~PeerFabric() = default;

  // Two ranks have to run the same version; to be compared before they try to meet.
  virtual uint32_t version() const = 0;
  virtual absl::StatusOr<PairId> NewPair() = 0;
  // Rank 0 or 1 of a pair. Starts meeting the other rank.
  virtual absl::StatusOr<std::unique_ptr<PeerComm>> Open(const PairId& pair, int rank,
                                                         uint64_t epoch) = 0;
};

}  // namespace oscarkv::comm

#endif  // OSCARKV_KERNELS_COMM_PEER_COMM_H_
