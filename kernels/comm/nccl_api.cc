#include "kernels/comm/nccl_api.h"

#include <dlfcn.h>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"

namespace oscarkv::comm {
namespace {

// Communicators that do not block, and whose initialisation can be aborted.
constexpr int kOldestVersion = NCCL_VERSION(2, 19, 3);

template <typename Function>
absl::Status Find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (*function != nullptr) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("NCCL: the library has no ", name));
}

absl::Status FindAll(void* library, NcclApi* api) {
  OSCARKV_RETURN_IF_ERROR(Find(library, "ncclGetVersion", &api->get_version));
  OSCARKV_RETURN_IF_ERROR(Find(library, "ncclGetUniqueId", &api->get_unique_id));
  OSCARKV_RETURN_IF_ERROR(Find(library, "ncclCommInitRankConfig", &api->comm_init_rank_config));
  OSCARKV_RETURN_IF_ERROR(Find(library, "ncclCommGetAsyncError", &api->comm_get_async_error));
  OSCARKV_RETURN_IF_ERROR(Find(library, "ncclCommAbort", &api->comm_abort));
  OSCARKV_RETURN_IF_ERROR(Find(library, "ncclGetErrorString", &api->get_error_string));
  OSCARKV_RETURN_IF_ERROR(Find(library, "ncclGetLastError", &api->get_last_error));
  OSCARKV_RETURN_IF_ERROR(Find(library, "ncclGroupStart", &api->group_start));
  OSCARKV_RETURN_IF_ERROR(Find(library, "ncclGroupEnd", &api->group_end));
  OSCARKV_RETURN_IF_ERROR(Find(library, "ncclSend", &api->send));
  return Find(library, "ncclRecv", &api->recv);
}

}  // namespace

absl::StatusOr<NcclApi> NcclApi::Load(const std::string& library) {
  void* const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (handle == nullptr) return absl::UnavailableError(absl::StrCat("NCCL: ", dlerror()));
  NcclApi api;
  OSCARKV_RETURN_IF_ERROR(FindAll(handle, &api));
  OSCARKV_RETURN_IF_ERROR(api.ToStatus(api.get_version(&api.version), nullptr, "its version"));
  if (api.version >= kOldestVersion) return api;
  return absl::UnavailableError(absl::StrCat("NCCL: expected version ", kOldestVersion,
                                             " or later, ", library, " is ", api.version));
}

absl::Status NcclApi::ToStatus(ncclResult_t result, ncclComm_t comm, const char* doing) const {
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  const bool peer = result == ncclRemoteError || result == ncclSystemError;
  return absl::Status(peer ? absl::StatusCode::kUnavailable : absl::StatusCode::kInternal,
                      absl::StrCat("NCCL, ", doing, ": ", get_error_string(result), " (",
                                   get_last_error(comm), ")"));
}

}  // namespace oscarkv::comm
