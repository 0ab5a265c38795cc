// What every PeerComm keeps. A fabric's test registers it with a way to run two sides.
#ifndef OSCARKV_TESTS_COMM_PEER_COMM_CONTRACT_H_
#define OSCARKV_TESTS_COMM_PEER_COMM_CONTRACT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/bytes.h"
#include "kernels/comm/peer_comm.h"

namespace oscarkv::testing {

// One of the two: a thread, or a process of its own.
class PeerSide {
 public:
  virtual ~PeerSide() = default;
  virtual int rank() const = 0;
  virtual comm::PeerFabric& fabric() = 0;
  // Memory that the fabric reaches, for the side's life.
  virtual std::byte* Allocate(uint64_t bytes) = 0;
  virtual void Write(std::byte* to, ByteView bytes) = 0;
  virtual std::vector<std::byte> Read(const std::byte* from, uint64_t bytes) = 0;
  // A word to the other side, beside the fabric; and the next from there.
  virtual void Tell(const std::string& word) = 0;
  virtual std::string Hear() = 0;
  // Ends this side without a word, as kill does: the body that called it returns at once.
  virtual void Die() = 0;
};

class PeerRunner {
 public:
  virtual ~PeerRunner() = default;
  // Runs the body as both ranks, rank 0 here, until both have ended. Each run has its own two
  // sides; rank 0's fabric is that of the runs before.
  virtual void Run(const std::function<void(PeerSide&)>& body) = 0;
};

int RegisterPeerCommContract(const std::string& name,
                             const std::function<std::unique_ptr<PeerRunner>()>& make);

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_COMM_PEER_COMM_CONTRACT_H_
