// The NCCL that this process has: the functions of it that are used, from the library that is
// loaded when they are first wanted. It is not linked: in a worker NCCL lies inside PyTorch's
// package, where no loader looks for it, and a server without it serves by other paths.
#ifndef OSCARKV_KERNELS_COMM_NCCL_API_H_
#define OSCARKV_KERNELS_COMM_NCCL_API_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "nccl.h"

namespace oscarkv::comm {

struct NcclApi {
  decltype(&ncclGetVersion) get_version = nullptr;
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) comm_init_rank_config = nullptr;
  decltype(&ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&ncclCommAbort) comm_abort = nullptr;
  decltype(&ncclGetErrorString) get_error_string = nullptr;
  decltype(&ncclGetLastError) get_last_error = nullptr;
  decltype(&ncclGroupStart) group_start = nullptr;
  decltype(&ncclGroupEnd) group_end = nullptr;
  decltype(&ncclSend) send = nullptr;
  decltype(&ncclRecv) recv = nullptr;
  int version = 0;

  // `library`: a path, or a name that the loader knows. It stays for the process's life.
  // kUnavailable: there is none, or one that is too old.
  static absl::StatusOr<NcclApi> Load(const std::string& library);

  // OK also for ncclInProgress. kUnavailable: the other rank or the way to it failed; kInternal
  // otherwise. `comm` may be null.
  absl::Status ToStatus(ncclResult_t result, ncclComm_t comm, const char* doing) const;
};

}  // namespace oscarkv::comm

#endif  // OSCARKV_KERNELS_COMM_NCCL_API_H_
