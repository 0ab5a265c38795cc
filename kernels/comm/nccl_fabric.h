// NCCL as a fabric: a communicator of two ranks for each pair, which never blocks.
#ifndef OSCARKV_KERNELS_COMM_NCCL_FABRIC_H_
#define OSCARKV_KERNELS_COMM_NCCL_FABRIC_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"

#include "kernels/comm/peer_comm.h"

namespace oscarkv::comm {

struct NcclOptions {
  std::string library = "libnccl.so.2";
  int device = 0;
  // Processors that a transfer may take from what else the device does; more move bytes faster
  // over NVLink.
  int processors_max = 4;
};

// kUnimplemented: a build without CUDA; kUnavailable: no such library, or no such device. Two ranks
// of a pair are never on one device.
absl::StatusOr<std::unique_ptr<PeerFabric>> MakeNcclFabric(const NcclOptions& options);

}  // namespace oscarkv::comm

#endif  // OSCARKV_KERNELS_COMM_NCCL_FABRIC_H_
