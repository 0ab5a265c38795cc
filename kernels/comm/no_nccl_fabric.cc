// Linked where there is no CUDA.
#include "kernels/comm/nccl_fabric.h"

namespace oscarkv::comm {

absl::StatusOr<std::unique_ptr<PeerFabric>> MakeNcclFabric(const NcclOptions&) {
  return absl::UnimplementedError("this build has no CUDA (-DOSCARKV_CUDA=ON)");
}

}  // namespace oscarkv::comm
