// Two sides of a test in two processes: this one is rank 0, and runs itself again, with the same
// test, as rank 1.
#ifndef OSCARKV_TESTS_GPU_PROCESS_RUNNER_H_
#define OSCARKV_TESTS_GPU_PROCESS_RUNNER_H_

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/comm/peer_comm_contract.h"

namespace oscarkv::testing {

// Rank 1 lives in the process that this makes, and each run has its own.
class ProcessRunner final : public PeerRunner {
 public:
  // Makes a side's fabric, once in each process, when its first run begins; null: it needs none.
  using MakeFabric = std::function<std::unique_ptr<comm::PeerFabric>(int rank)>;
  // `within`: the command that rank 1 is run by, if any.
  explicit ProcessRunner(MakeFabric make, std::vector<std::string> within = {})
      : make_(std::move(make)), within_(std::move(within)) {}

  void Run(const std::function<void(PeerSide&)>& body) override;

  // As which rank this process runs.
  static int rank();

 private:
  const MakeFabric make_;
  const std::vector<std::string> within_;
  std::unique_ptr<comm::PeerFabric> fabric_;
  int runs_ = 0;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_GPU_PROCESS_RUNNER_H_
